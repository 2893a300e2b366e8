"""Parallel games of one kind of agent; see also :mod:`sb3_happo.envs.games`."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from sb3_happo.envs import games

Step = tuple[dict[Any, Any], dict[Any, float], dict[Any, bool], dict[Any, bool], dict[Any, dict]]


class MatrixGame(games.MatrixGame):
    """
    The package's game in normal form; by default the game of the HAPPO paper's Proposition 1, as
    :class:`sb3_happo.envs.games.Halves`, for odd numbers of agents too.

    :param n_agents: Number of agents, if there are no payoffs
    :param payoff: Common reward of each joint action, ``(2,) * n_agents``
    """

    def __init__(self, n_agents: int = 2, payoff: np.ndarray | None = None) -> None:
        if payoff is None:
            half = (0,) * (n_agents // 2) + (1,) * (n_agents - n_agents // 2)
            payoff = np.zeros((2,) * n_agents)
            payoff[half] = payoff[tuple(1 - action for action in half)] = 1.0
        super().__init__(payoff)


class RandomTeam(ParallelEnv):
    """
    Random observations and rewards for agents of any names and action spaces; actions have no
    effect.

    :param action_spaces: ``{agent: action space}``
    :param length: Steps of an episode
    :param observation_spaces: ``{agent: observation space}``, by default a vector of 3 for each
    :param truncate: Whether episodes end by truncation
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "random_team", "render_modes": []}
    render_mode = None

    def __init__(
        self,
        action_spaces: Mapping[Any, spaces.Space],
        length: int = 10,
        observation_spaces: Mapping[Any, spaces.Space] | None = None,
        truncate: bool = False,
    ) -> None:
        self.possible_agents = list(action_spaces)
        self.agents: list[Any] = []
        self.length = length
        self.truncate = truncate
        self.actions: dict[Any, Any] = {}
        self._action_spaces = dict(action_spaces)
        vector = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self._observation_spaces = dict(observation_spaces or dict.fromkeys(action_spaces, vector))
        self._rng = np.random.default_rng()
        self._t = 0

    @property
    def t(self) -> int:
        """
        :return: Steps since the reset
        """
        return self._t

    def observation_space(self, agent: Any) -> spaces.Space:
        return self._observation_spaces[agent]

    def action_space(self, agent: Any) -> spaces.Space:
        return self._action_spaces[agent]

    def _observations(self) -> dict[Any, Any]:
        for space in self._observation_spaces.values():
            space.seed(int(self._rng.integers(2**31)))
        return {agent: self._observation_spaces[agent].sample() for agent in self.possible_agents}

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._t = 0
        self.agents = self.possible_agents[:]
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[Any, Any]) -> Step:
        self._t += 1
        self.actions = actions
        end = self._t == self.length
        everyone = self.possible_agents
        rewards = {agent: float(self._rng.normal()) for agent in everyone}
        if end:
            self.agents = []
        return (
            self._observations(),
            rewards,
            dict.fromkeys(everyone, end and not self.truncate),
            dict.fromkeys(everyone, end and self.truncate),
            {agent: {} for agent in everyone},
        )


class MaskedGame(ParallelEnv):
    """
    Two agents whose legal actions change at random. Reward 1 for the legal action with the highest
    number, else 0: the best return of an episode is its ``length``, and a policy that prefers
    higher numbers reaches it. Illegal actions raise.

    ``agent_0`` has Discrete(4), ``agent_1`` MultiDiscrete([3, 2]), of which both heads must be
    best.

    :param length: Steps of an episode
    :param masks_in: Place of the masks, "observation" or "info": PettingZoo's two forms
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "masked_game", "render_modes": []}
    render_mode = None
    heads: ClassVar[dict[str, list[int]]] = {"agent_0": [4], "agent_1": [3, 2]}

    def __init__(self, length: int = 8, masks_in: str = "observation") -> None:
        self.possible_agents = list(self.heads)
        self.agents: list[str] = []
        self.length = length
        self.masks_in = masks_in
        self._action_spaces = {
            "agent_0": spaces.Discrete(4),
            "agent_1": spaces.MultiDiscrete([3, 2]),
        }
        box = spaces.Box(0, 1, (1,), np.float32)
        self._observation_spaces: dict[str, spaces.Space] = dict.fromkeys(self.heads, box)
        if masks_in == "observation":
            self._observation_spaces = {
                agent: spaces.Dict(
                    {"observation": box, "action_mask": spaces.MultiBinary(sum(heads))}
                )
                for agent, heads in self.heads.items()
            }
        self._rng = np.random.default_rng()
        self._t = 0
        self._masks: dict[str, list[np.ndarray]] = {}

    @property
    def masks(self) -> dict[str, list[np.ndarray]]:
        """
        :return: Current mask of each head of each agent, ``(n_choices,)``
        """
        return self._masks

    def observation_space(self, agent: str) -> spaces.Space:
        return self._observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        return self._action_spaces[agent]

    def _answer(self) -> tuple[dict, dict]:
        self._masks = {agent: [self._draw(n) for n in heads] for agent, heads in self.heads.items()}
        flat = {agent: np.concatenate(masks) for agent, masks in self._masks.items()}
        own = np.full(1, self._t / self.length, np.float32)
        if self.masks_in == "info":
            return dict.fromkeys(self.heads, own), {
                agent: {"action_mask": mask} for agent, mask in flat.items()
            }
        return {agent: {"observation": own, "action_mask": mask} for agent, mask in flat.items()}, {
            agent: {} for agent in flat
        }

    def _draw(self, n: int) -> np.ndarray:
        mask = self._rng.integers(0, 2, n).astype(np.int8)
        mask[self._rng.integers(n)] = 1
        return mask

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._t = 0
        self.agents = self.possible_agents[:]
        return self._answer()

    def step(self, actions: dict[str, Any]) -> Step:
        rewards = {}
        for agent, masks in self._masks.items():
            choices = np.atleast_1d(actions[agent])
            for mask, choice in zip(masks, choices, strict=True):
                if not mask[choice]:
                    raise AssertionError(f"{agent} took the illegal action {choice} of {mask}")
            best = [int(np.flatnonzero(mask)[-1]) for mask in masks]
            rewards[agent] = float(list(choices) == best)
        self._t += 1
        end = self._t == self.length
        if end:
            self.agents = []
        observations, infos = self._answer()
        return (
            observations,
            rewards,
            dict.fromkeys(self.heads, end),
            dict.fromkeys(self.heads, False),
            infos,
        )
