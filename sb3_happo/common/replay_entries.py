"""Entries of joint observations in a replay buffer: those of one type side by side in one array."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_happo.common.rollout_memory import storage_dtype


def entry_dtype(key: str, space: spaces.Space) -> np.dtype:
    """
    :param key: Key of the joint observation
    :param space: Space of the entry
    :return: Type in which a replay buffer stores it
    """
    return np.dtype(str(storage_dtype(key, space)).removeprefix("torch."))


def entry_size(space: spaces.Space) -> int:
    """
    :param space: Space of an entry of the joint observation
    :return: Number of its numbers
    """
    return math.prod(space.shape or ())


class EntryArray:
    """
    Observations and next observations of the entries of one type, ``(size, n_envs, n_columns)``
    each. A sample is one copy of rows; the entries are views of it.

    :param keys: Entries of the joint observation, all of the type
    :param observation_space: Joint observation space
    :param dtype: Type of the numbers
    :param size: Number of steps
    :param n_envs: Number of environments
    """

    def __init__(
        self,
        keys: Sequence[str],
        observation_space: spaces.Dict,
        dtype: np.dtype,
        size: int,
        n_envs: int,
    ) -> None:
        self.n_envs = n_envs
        self.slices: dict[str, slice] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        start = 0
        for key in keys:
            space = observation_space.spaces[key]
            end = start + entry_size(space)
            self.slices[key] = slice(start, end)
            self.shapes[key] = tuple(space.shape or ())
            start = end
        self.observations = np.zeros((size, n_envs, start), dtype)
        self.next_observations = np.zeros((size, n_envs, start), dtype)

    def write(self, position: int, obs: Mapping[str, Any], next_obs: Mapping[str, Any]) -> None:
        """
        :param position: Index of the step
        :param obs: Joint observation, each entry ``(n_envs, ...)``
        :param next_obs: Joint observation after the step
        """
        for key, columns in self.slices.items():
            shape = (self.n_envs, -1)
            self.observations[position, :, columns] = np.reshape(obs[key], shape)
            self.next_observations[position, :, columns] = np.reshape(next_obs[key], shape)

    def read(self, rows: np.ndarray, of_next: bool) -> dict[str, np.ndarray]:
        """
        :param rows: Indices ``step * n_envs + env``, ``(batch,)``
        :param of_next: Next observations instead of observations
        :return: Entries, ``(batch, ...)`` each
        """
        array = self.next_observations if of_next else self.observations
        taken = np.take(array.reshape(-1, array.shape[2]), rows, axis=0)
        entries = {}
        for key, columns in self.slices.items():
            entries[key] = taken[:, columns].reshape(len(rows), *self.shapes[key])
        return entries
