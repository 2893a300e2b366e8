"""Statistics of episodes, for simulators whose environments no ``Monitor`` can be put around."""

import time
from typing import Any

import numpy as np


class EpisodeStatistics:
    """
    What SB3's ``Monitor`` says of episodes that end, for many environments at once.

    :param n_envs: Number of environments
    """

    def __init__(self, n_envs: int) -> None:
        self._returns = np.zeros(n_envs)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._start = time.time()

    def add(self, rewards: np.ndarray) -> None:
        """
        :param rewards: Of one step of all environments, ``(n_envs,)``
        """
        self._returns += rewards
        self._lengths += 1

    def clear(self) -> None:
        """Begin new episodes everywhere."""
        self._returns[:] = 0.0
        self._lengths[:] = 0

    def end(self, rows: np.ndarray) -> list[dict[str, Any]]:
        """
        :param rows: Environments whose episode has ended, and where the next one begins
        :return: ``info["episode"]`` of each: return ``r``, length ``l``, seconds since the beginning ``t``
        """
        seconds = round(time.time() - self._start, 6)
        ended = zip(self._returns[rows].tolist(), self._lengths[rows].tolist(), strict=True)
        self._returns[rows] = 0.0
        self._lengths[rows] = 0
        return [{"r": round(total, 6), "l": length, "t": seconds} for total, length in ended]
