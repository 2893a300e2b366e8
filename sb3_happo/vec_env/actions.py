"""Joint actions at the boundary of a ``VecEnv``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.spaces import ACTION_MASK, split_mask, subspaces


def as_joint_actions(
    actions: np.ndarray | Sequence[Mapping[str, Any]],
    action_space: spaces.Dict,
    dtype: np.dtype,
    n_envs: int,
) -> np.ndarray:
    """
    Convert joint actions to the form that crosses the ``VecEnv`` boundary.

    :param actions: Structured array ``(n_envs,)`` with one field per agent, in any order; or one
        dict ``{agent: action}`` per environment, as ``action_space.sample()`` returns it
    :param action_space: Action spaces of the agents
    :param dtype: :func:`~sb3_happo.envs.joint_action_dtype` of ``action_space``
    :param n_envs: Number of environments
    :return: Array ``(n_envs,)`` of ``dtype``; ``actions`` itself if it is one already
    :raises TypeError: If ``actions`` have neither form
    :raises ValueError: If they are for another team or another number of environments
    """
    if isinstance(actions, Mapping):
        raise TypeError(
            "Joint actions are a structured array with one row per environment, not a dict of "
            "arrays; make one with `joint = np.empty(n_envs, joint_action_dtype(action_space))` "
            "and fill `joint[agent]`."
        )
    if len(actions) != n_envs:
        raise ValueError(
            f"There are {n_envs} environments, and joint actions for {len(actions)}; give one row "
            "to each."
        )
    if isinstance(actions, np.ndarray) and actions.dtype.names is not None:
        return _with_dtype(actions, dtype)
    if not all(isinstance(action, Mapping) for action in actions):
        raise TypeError(
            f"Joint actions are a structured array with the fields {dtype.names}, or a list of "
            f"dicts with these keys; got {type(actions).__name__} of {type(actions[0]).__name__}."
        )
    joint = np.empty(n_envs, dtype)
    for row, action in zip(joint, actions, strict=True):
        _fill(row, action_space, action)
    return joint


def _with_dtype(actions: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Structured actions with their fields in the order and of the types of ``dtype``."""
    if actions.dtype == dtype:
        return actions
    names = list(dtype.names or ())
    if sorted(actions.dtype.names or ()) != sorted(names):
        raise ValueError(
            f"These actions are for the agents {actions.dtype.names}, but the team is "
            f"{dtype.names}."
        )
    # Fields are selected by name first, for NumPy converts structured arrays by position
    return actions[names].astype(dtype)


def _fill(row: np.void, space: spaces.Dict | spaces.Tuple, action: Any) -> None:
    for name, key, subspace in subspaces(space):
        if isinstance(subspace, (spaces.Dict, spaces.Tuple)):
            _fill(row[name], subspace, action[key])
        else:
            row[name] = action[key]


def sample_actions(
    action_space: spaces.Dict, obs: Mapping[str, np.ndarray], n_envs: int
) -> list[dict[str, Any]]:
    """
    Random legal joint actions.

    :param action_space: Action spaces of the agents, whose random generators are used
    :param obs: Joint observation, each entry ``(n_envs, ...)``, whose action masks are obeyed
    :param n_envs: Number of environments
    :return: One dict ``{agent: action}`` per environment
    """
    sampled: list[dict[str, Any]] = []
    for index in range(n_envs):
        joint: dict[str, Any] = {}
        for agent, space in action_space.spaces.items():
            mask = obs.get(f"{agent}/{ACTION_MASK}")
            if mask is None:
                joint[agent] = space.sample()
            else:
                joint[agent] = space.sample(mask=split_mask(space, mask[index]))
        sampled.append(joint)
    return sampled
