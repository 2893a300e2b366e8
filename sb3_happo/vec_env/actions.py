"""Joint actions on their way to the environments."""

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
    Bring joint actions into the form that crosses the ``VecEnv`` boundary.

    :param actions: Structured array ``(n_envs,)`` with one field per agent, in any order; or for each environment a dict
        ``{agent: action}``, as ``action_space.sample()`` gives it
    :param action_space: The agents' action spaces
    :param dtype: :func:`~sb3_happo.envs.joint_action_dtype` of ``action_space``
    :param n_envs: Number of environments
    :return: Array ``(n_envs,)`` of ``dtype``; ``actions`` itself where it is one already
    :raises TypeError: If ``actions`` are neither
    :raises ValueError: If they are not for this team, or not one per environment
    """
    if isinstance(actions, Mapping):
        raise TypeError(
            "Joint actions are a structured array with one row per environment, not a dict of arrays; make one with "
            "`joint = np.empty(n_envs, joint_action_dtype(action_space))` and fill `joint[agent]`."
        )
    if len(actions) != n_envs:
        raise ValueError(
            f"There are {n_envs} environments, and joint actions for {len(actions)}; give one row to each."
        )
    if isinstance(actions, np.ndarray) and actions.dtype.names is not None:
        if actions.dtype == dtype:
            return actions
        if sorted(actions.dtype.names) != sorted(dtype.names or ()):
            raise ValueError(
                f"These actions are for the agents {actions.dtype.names}, but the team is {dtype.names}."
            )
        # NumPy would assign the fields of a structured array by position
        return actions[list(dtype.names or ())].astype(dtype)
    if not all(isinstance(action, Mapping) for action in actions):
        raise TypeError(
            f"Joint actions are a structured array with the fields {dtype.names}, or a list of dicts with these keys; "
            f"got {type(actions).__name__} of {type(actions[0]).__name__}."
        )
    joint = np.empty(n_envs, dtype)
    for row, action in zip(joint, actions, strict=True):
        _fill(row, action_space, action)
    return joint


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

    :param action_space: The agents' action spaces, with whose generators the actions are drawn
    :param obs: Joint observation, each entry ``(n_envs, ...)``, of which the action masks matter
    :param n_envs: Number of environments
    :return: ``{agent: action}`` for each of them
    """
    masks = {agent: obs.get(f"{agent}/{ACTION_MASK}") for agent in action_space.spaces}
    return [
        {
            agent: space.sample()
            if (mask := masks[agent]) is None
            else space.sample(mask=split_mask(space, mask[index]))
            for agent, space in action_space.spaces.items()
        }
        for index in range(n_envs)
    ]
