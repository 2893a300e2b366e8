"""Raw actions of a policy, and the actions that the environment takes."""

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_happo.common.distributions import ActionLeaf, action_leaves
from sb3_happo.envs.spaces import joint_action_dtype


class EnvActions:
    """
    Conversion of one agent's raw actions to actions of the environment.

    Raw actions are float tensors ``(batch, action_dim)``, as they are sampled, stored and learned
    from. Box actions are scaled and clipped to their bounds, Discrete ones counted from ``start``.

    :param action_space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these
    :param rescale: Scaling of Box actions from [-1, 1] to the bounds; otherwise they are clipped
    """

    def __init__(self, action_space: spaces.Space, rescale: bool = True) -> None:
        self.leaves: list[ActionLeaf] = list(action_leaves(action_space))
        self.rescale = rescale
        self.dtype = joint_action_dtype(spaces.Dict([("agent", action_space)]))["agent"]

    def to_arrays(self, actions: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """
        :param actions: Raw actions, ``(batch, action_dim)``
        :param out: Array for the result; a new array by default
        :return: ``(batch, ...)``, a structured array where the action space is nested
        """
        if out is None:
            out = np.empty(len(actions), self.dtype)
        start = 0
        for leaf in self.leaves:
            field = out
            for name in leaf.path:
                field = field[name]
            columns = actions[:, start : start + leaf.n_actions].reshape(field.shape)
            start += leaf.n_actions
            self._write(leaf.space, columns, field)
        return out

    def rounded(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: Raw actions, ``(batch, action_dim)``
        :return: Raw actions that SB3 would store: those of the environment, scaled back. They
            differ from ``actions`` by rounding
        """
        result = actions.copy()
        start = 0
        for leaf in self.leaves:
            end = start + leaf.n_actions
            if isinstance(leaf.space, spaces.Box) and self.rescale:
                low = leaf.space.low.ravel()
                width = leaf.space.high.ravel() - low
                taken = low + 0.5 * (actions[:, start:end] + 1.0) * width
                result[:, start:end] = 2.0 * ((taken - low) / np.where(width > 0, width, 1)) - 1.0
            start = end
        return result

    def _write(self, space: spaces.Space, columns: np.ndarray, field: np.ndarray) -> None:
        if isinstance(space, spaces.Box):
            if self.rescale:
                share = 0.5 * (columns.clip(-1.0, 1.0) + 1.0)
                columns = space.low + share * (space.high - space.low)
            np.clip(columns, space.low, space.high, out=field, casting="same_kind")
        elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            start = np.reshape(space.start, field.shape[1:])
            np.add(columns.astype(np.int64), start, out=field)
        else:
            field[...] = columns

    def to_tensor(self, actions: th.Tensor) -> th.Tensor:
        """
        :meth:`to_arrays` for tensors, on their device, and plain action spaces.

        :param actions: Raw actions, ``(batch, action_dim)``
        :return: ``(batch, ...)``
        """
        (leaf,) = self.leaves
        space = leaf.space
        columns = actions.reshape(-1, *(space.shape or ()))
        if isinstance(space, spaces.Box):
            low = th.as_tensor(space.low, device=actions.device)
            high = th.as_tensor(space.high, device=actions.device)
            if self.rescale:
                columns = low + 0.5 * (columns.clamp(-1.0, 1.0) + 1.0) * (high - low)
            return columns.clamp(low, high)
        if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            return columns.long() + th.as_tensor(space.start, device=actions.device)
        return columns
