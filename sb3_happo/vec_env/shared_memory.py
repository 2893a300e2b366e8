"""Arrays that the parent and the workers of a :class:`JointSubprocVecEnv` share."""

import contextlib
import math
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.spaces import joint_action_dtype
from sb3_happo.vec_env.joint_dummy_vec_env import JointObs

_ALIGNMENT = 64  # bytes in a cache line


class SharedArrays(NamedTuple):
    """
    Arrays with one row per environment. :func:`_rows` is the table of their shapes and types.

    :param obs: Joint observations, each entry ``(n_envs, ...)``
    :param terminal_obs: Last observations of the episodes that have just ended, likewise
    :param actions: Joint actions, ``(n_envs,)``
    :param rewards: Team rewards, ``(n_envs,)``
    :param agent_rewards: Individual rewards, ``(n_envs, n_agents)``
    :param dones: End of an episode, ``(n_envs,)``
    :param truncated: End of an episode by its time limit alone, ``(n_envs,)``
    :param partial: Validity of ``active`` and ``waiting``, ``(n_envs,)``; False: all agents of the
        environment are active
    :param active: Active mask of ``obs``, ``(n_envs, n_agents)``
    :param waiting: Mask of the agents that are alive though not active in ``obs``, likewise
    """

    obs: JointObs
    terminal_obs: JointObs
    actions: np.ndarray
    rewards: np.ndarray
    agent_rewards: np.ndarray
    dones: np.ndarray
    truncated: np.ndarray
    partial: np.ndarray
    active: np.ndarray
    waiting: np.ndarray


class _Row(NamedTuple):
    """
    Part of an array that belongs to one environment.

    :param shape: Shape of the part
    :param dtype: Type of its numbers
    """

    shape: tuple[int, ...]
    dtype: np.dtype


def _rows(observation_space: spaces.Dict, action_space: spaces.Dict) -> dict[str, Any]:
    """
    Table of the arrays, from which the memory is laid out and :class:`SharedArrays` is made.

    :param observation_space: Joint observation space
    :param action_space: Joint action space
    :return: For each field of :class:`SharedArrays` a :class:`_Row`, or a dict of them
    """
    obs: dict[str, _Row] = {}
    for key, space in observation_space.spaces.items():
        obs[key] = _Row(space.shape or (), np.dtype(space.dtype))
    flag = np.dtype(np.bool_)
    agents = (len(action_space.spaces),)
    return {
        "obs": obs,
        "terminal_obs": obs,
        "actions": _Row((), joint_action_dtype(action_space)),
        "rewards": _Row((), np.dtype(np.float32)),
        "agent_rewards": _Row(agents, np.dtype(np.float64)),
        "dones": _Row((), flag),
        "truncated": _Row((), flag),
        "partial": _Row((), flag),
        "active": _Row(agents, flag),
        "waiting": _Row(agents, flag),
    }


class SharedBlock:
    """
    One block of shared memory for all :class:`SharedArrays`, each in an aligned region of its own.

    :param observation_space: Joint observation space
    :param action_space: Joint action space
    :param n_envs: Number of environments
    :param rows: Environments that ``arrays`` shows, all by default
    :param name: Name of the block to join; None makes a new one
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Dict,
        n_envs: int,
        rows: slice | None = None,
        name: str | None = None,
    ) -> None:
        table = _rows(observation_space, action_space)
        size = sum(_region_size(row, n_envs) for row in _leaves(table))
        self.memory = SharedMemory(name, create=name is None, size=size)
        # np.ndarray(..., buffer) would let the memory be unmapped while an array is still in use
        self._bytes = np.frombuffer(self.memory.buf, np.uint8)  # type: ignore[arg-type]
        self._offset = 0
        self._n_envs = n_envs
        shown = rows or slice(n_envs)
        fields: dict[str, Any] = {}
        for field, row in table.items():
            if isinstance(row, _Row):
                fields[field] = self._next_array(row)[shown]
            else:
                fields[field] = {key: self._next_array(part)[shown] for key, part in row.items()}
        self.arrays = SharedArrays(**fields)

    def _next_array(self, row: _Row) -> np.ndarray:
        """
        View the next region of the memory.

        :param row: Part of one environment
        :return: Array ``(n_envs, *row.shape)``
        """
        shape = (self._n_envs, *row.shape)
        end = self._offset + math.prod(shape) * row.dtype.itemsize
        array = self._bytes[self._offset : end].view(row.dtype).reshape(shape)
        self._offset += _region_size(row, self._n_envs)
        return array

    def close(self) -> None:
        """Give the memory back."""
        del self.arrays, self._bytes
        # A traceback may still hold an array; the memory is then unmapped together with it
        with contextlib.suppress(BufferError):
            self.memory.close()


def _leaves(table: dict[str, Any]) -> list[_Row]:
    rows: list[_Row] = []
    for row in table.values():
        if isinstance(row, _Row):
            rows.append(row)
        else:
            rows.extend(row.values())
    return rows


def _region_size(row: _Row, n_envs: int) -> int:
    """Number of bytes of an array, rounded up so that the next one begins at a cache line."""
    size = n_envs * math.prod(row.shape) * row.dtype.itemsize
    return math.ceil(size / _ALIGNMENT) * _ALIGNMENT
