"""Gymnasium envs with one action per agent, in the style of lbforaging and rware."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class TupleTeam(gym.Env):
    """
    Two agents in Tuples; the reward of each agent is its own action, in a list.

    :param length: Steps of an episode, which ends by truncation
    """

    def __init__(self, length: int = 5) -> None:
        self.length = length
        self._t = 0
        self.action_space: spaces.Space = spaces.Tuple([spaces.Discrete(3), spaces.Discrete(4)])
        self.observation_space: spaces.Space = spaces.Tuple(
            [spaces.Box(0, 100, (2,), np.float64), spaces.Box(0, 100, (3,), np.float64)]
        )

    def _observation(self) -> Any:
        return np.full(2, self._t, np.float64), np.full(3, 10.0 + self._t)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._t = 0
        return self._observation(), {"t": 0}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        self._t += 1
        return (
            self._observation(),
            [float(a) for a in action],
            False,
            self._t == self.length,
            {"t": self._t},
        )


class DictTeam(TupleTeam):
    """
    The same in Dicts, keyed by the agents' names.

    :param length: Steps of an episode
    """

    def __init__(self, length: int = 5) -> None:
        super().__init__(length)
        self.action_space: spaces.Space = spaces.Dict(
            {"left": spaces.Discrete(3), "right": spaces.Discrete(4)}
        )
        self.observation_space: spaces.Space = spaces.Dict(
            {
                "left": spaces.Box(0, 100, (2,), np.float64),
                "right": spaces.Box(0, 100, (3,), np.float64),
            }
        )

    def _observation(self) -> Any:
        return dict(zip(("left", "right"), super()._observation(), strict=True))

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        observation, rewards, terminated, truncated, info = super().step(action.values())
        return (
            observation,
            dict(zip(("left", "right"), rewards, strict=True)),
            terminated,
            truncated,
            info,
        )
