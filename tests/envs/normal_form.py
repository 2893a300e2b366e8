"""Games in normal form with observations that tables take."""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

Step = tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict]]


class NormalForm(ParallelEnv):
    """
    One joint action, after which the game ends.

    :param payoffs: Payoffs of each agent, ``(n_agents, n_actions_0, n_actions_1, ...)``
    :param observation_space: Observation space, whose observation is the number 0 or zeros
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "normal_form", "render_modes": []}
    render_mode = None

    def __init__(self, payoffs: Any, observation_space: spaces.Space | None = None) -> None:
        self.table = np.array(payoffs, np.float64)
        self.possible_agents = [f"agent_{index}" for index in range(len(self.table))]
        self.agents: list[str] = []
        self._observation_space = observation_space or spaces.Discrete(1)
        sizes = zip(self.possible_agents, self.table.shape[1:], strict=True)
        self._action_spaces = {agent: spaces.Discrete(n) for agent, n in sizes}

    def observation_space(self, agent: str) -> spaces.Space:
        return self._observation_space

    def action_space(self, agent: str) -> spaces.Space:
        return self._action_spaces[agent]

    def _observations(self) -> dict[str, Any]:
        space = self._observation_space
        observation: Any = 0
        if not isinstance(space, spaces.Discrete):
            observation = np.zeros(space.shape or (), space.dtype)
        return dict.fromkeys(self.possible_agents, observation)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.agents = self.possible_agents[:]
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Step:
        joint = tuple(int(actions[agent]) for agent in self.possible_agents)
        everyone = self.possible_agents
        self.agents = []
        own: Any = (slice(None), *joint)
        rewards = self.table[own].tolist()
        return (
            self._observations(),
            dict(zip(everyone, rewards, strict=True)),
            dict.fromkeys(everyone, True),
            dict.fromkeys(everyone, False),
            {agent: {} for agent in everyone},
        )
