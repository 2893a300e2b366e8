"""Statistics of episodes, for simulators whose environments cannot be wrapped in ``Monitor``."""

import time
from typing import Any

import numpy as np


class EpisodeStatistics:
    """
    Returns and lengths of episodes, as SB3's ``Monitor`` reports them, for many environments.

    :param n_envs: Number of environments
    """

    def __init__(self, n_envs: int) -> None:
        self._returns = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._start = time.time()

    def add(self, rewards: np.ndarray) -> None:
        """
        Count a step of all environments.

        :param rewards: Team rewards, ``(n_envs,)``
        """
        self._returns += rewards
        self._lengths += 1

    def clear(self) -> None:
        """Begin new episodes in all environments."""
        self._returns[:] = 0.0
        self._lengths[:] = 0

    def end(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """
        End the episodes of some environments, and begin new ones there.

        :param rows: Indices of the environments
        :return: ``info["episode"]`` of each: return ``r``, length ``l``, and ``t``, the seconds
            since this object was made
        """
        seconds = round(time.time() - self._start, 6)
        ended = zip(self._returns[rows].tolist(), self._lengths[rows].tolist(), strict=True)
        self._returns[rows] = 0.0
        self._lengths[rows] = 0
        return [{"r": round(total, 6), "l": length, "t": seconds} for total, length in ended]
