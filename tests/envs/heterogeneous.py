"""Five agents of five kinds, some of which come and go."""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from tests.envs.games import Step


class HeterogeneousTeam(ParallelEnv):
    """
    A team of which no two agents are alike.

    =========== ==================== ===================================== ===============
    agent       observation          action                                alive at steps
    =========== ==================== ===================================== ===============
    ``camera``  image (36, 36, 3)    Discrete(4), masks in the observation 0 to 8
    ``arm``     Box(3), Discrete(3)  Box(2) in [-2, 3]                     0 to 2, from 6
    ``crane``   vector of 4          Tuple(Discrete(3, start=1), Box(2))   always
    ``console`` vector of 2          MultiDiscrete([2, 3]), masks in info  always
    ``switch``  Discrete(6)          MultiBinary(3)                        from 2
    =========== ==================== ===================================== ===============

    The reward of each agent is 1 for a good action: the highest legal number, Box actions above
    0.5, all bits set; and ``camera`` gets 10 in the step of its death. Actions raise that are
    illegal, outside their space, or of an agent that is not alive.

    :param length: Steps of an episode, which ends by truncation
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "heterogeneous_team", "render_modes": []}
    render_mode = None

    def __init__(self, length: int = 12) -> None:
        self.length = length
        self.possible_agents = ["camera", "arm", "crane", "console", "switch"]
        self.agents: list[str] = []
        image = spaces.Box(0, 255, (36, 36, 3), np.uint8)
        self._observation_spaces: dict[str, spaces.Space] = {
            "camera": spaces.Dict(
                {"observation": image, "action_mask": spaces.Box(0, 1, (4,), np.int8)}
            ),
            "arm": spaces.Dict(
                {"position": spaces.Box(-1, 1, (3,), np.float64), "mode": spaces.Discrete(3)}
            ),
            "crane": spaces.Box(-1, 1, (4,), np.float32),
            "console": spaces.Box(-1, 1, (2,), np.float32),
            "switch": spaces.Discrete(6),
        }
        self._action_spaces: dict[str, spaces.Space] = {
            "camera": spaces.Discrete(4),
            "arm": spaces.Box(-2, 3, (2,), np.float32),
            "crane": spaces.Tuple(
                [spaces.Discrete(3, start=1), spaces.Box(-1, 1, (2,), np.float32)]
            ),
            "console": spaces.MultiDiscrete([2, 3]),
            "switch": spaces.MultiBinary(3),
        }
        self._rng = np.random.default_rng()
        self._t = 0
        self._masks: dict[str, np.ndarray] = {}

    def observation_space(self, agent: str) -> spaces.Space:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        return self._action_spaces[agent]

    def alive(self, t: int) -> list[str]:
        """
        :param t: Steps since the reset
        :return: Agents that are alive then, in the order of ``possible_agents``
        """
        gone = {"camera": t > 8, "arm": 2 < t < 6, "switch": t < 2}
        return [agent for agent in self.possible_agents if not gone.get(agent, False)]

    def _answer(self) -> tuple[dict[str, Any], dict[str, dict]]:
        rng = self._rng
        self._masks = {
            "camera": rng.integers(0, 2, 4).astype(np.int8),
            "console": rng.integers(0, 2, 5).astype(np.int8),
        }
        self._masks["camera"][rng.integers(4)] = 1
        self._masks["console"][[rng.integers(2), 2 + rng.integers(3)]] = 1
        observations: dict[str, Any] = {
            "camera": {
                "observation": rng.integers(0, 256, (36, 36, 3), np.uint8),
                "action_mask": self._masks["camera"],
            },
            "arm": {"position": rng.uniform(-1, 1, 3), "mode": int(rng.integers(3))},
            "crane": rng.uniform(-1, 1, 4).astype(np.float32),
            "console": rng.uniform(-1, 1, 2).astype(np.float32),
            "switch": int(rng.integers(6)),
        }
        infos: dict[str, dict] = {agent: {} for agent in self.agents}
        infos["console"] = {"action_mask": self._masks["console"]}
        return {agent: observations[agent] for agent in self.agents}, infos

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._t = 0
        self.agents = self.alive(0)
        return self._answer()

    def _reward(self, agent: str, action: Any) -> float:
        if agent == "camera":
            return float(action == np.flatnonzero(self._masks["camera"])[-1])
        if agent == "arm":
            return float((action > 0.5).all())
        if agent == "crane":
            return float(action[0] == 3 and (action[1] > 0.5).all())
        if agent == "console":
            mask = self._masks["console"]
            return float(
                action[0] == np.flatnonzero(mask[:2])[-1]
                and action[1] == np.flatnonzero(mask[2:])[-1]
            )
        return float(action.all())

    def step(self, actions: dict[str, Any]) -> Step:
        assert list(actions) == self.agents, (
            f"actions of {list(actions)}, where {self.agents} are there"
        )
        for agent, action in actions.items():
            assert self._action_spaces[agent].contains(action), (agent, action)
        if "camera" in actions:
            assert self._masks["camera"][actions["camera"]], "illegal action of camera"
        assert self._masks["console"][[actions["console"][0], 2 + actions["console"][1]]].all(), (
            "illegal action of console"
        )
        rewards = {agent: self._reward(agent, action) for agent, action in actions.items()}
        acted = self.agents
        self._t += 1
        self.agents = self.alive(self._t)
        terminations = {agent: agent not in self.agents for agent in {*acted, *self.agents}}
        if terminations.get("camera"):
            rewards["camera"] += 10.0
        end = self._t == self.length
        truncations = {agent: end and not terminations[agent] for agent in terminations}
        observations, infos = self._answer()
        if end:
            self.agents = []
        return observations, rewards, terminations, truncations, infos
