"""Observations, action masks and hidden states in the forms that ``predict`` takes."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_happo.common.distributions import ActionLeaf, starts_of_choices
from sb3_happo.envs.encodings import own_space
from sb3_happo.envs.spaces import ACTION_MASK, flatten_mask


def flat_observation(observation: Any) -> Any:
    """
    :param observation: Observation of an agent as the environment returns it
    :return: Observation with nested dicts and tuples joined into one dict, with keys such as
        "arm/0", as in joint observations
    """
    if isinstance(observation, tuple):
        observation = dict(enumerate(observation))
    if not isinstance(observation, dict):
        return observation
    flat: dict[str, Any] = {}
    for key, value in observation.items():
        inner = flat_observation(value)
        if isinstance(inner, dict):
            flat.update({f"{key}/{name}": part for name, part in inner.items()})
        else:
            flat[str(key)] = inner
    return flat


def split_mask(
    observation: Any, observation_space: spaces.Space
) -> tuple[np.ndarray | dict[str, np.ndarray], np.ndarray | None]:
    """
    Separate an action mask from an observation.

    :param observation: Observation as the environment or a joint environment returns it, or
        PettingZoo's ``{"observation": ..., "action_mask": ...}``
    :param observation_space: Observation space of the policy, without masks
    :return: Observation without the mask, flat; and the mask, or None
    """
    mask = None
    if isinstance(observation, dict) and ACTION_MASK in observation:
        mask = observation[ACTION_MASK]
        rest = {key: value for key, value in observation.items() if key != ACTION_MASK}
        own_keys: tuple[str, ...] = ()
        if isinstance(observation_space, spaces.Dict):
            own_keys = tuple(observation_space.spaces)
        wrapped = list(rest) == ["observation"] and "observation" not in own_keys
        observation = rest["observation"] if wrapped else rest
    return as_arrays(observation, observation_space), mask


def _collect_parts(
    value: Any, prefix: str, known: Mapping[str, Any], parts: dict[str, np.ndarray]
) -> None:
    """Collect arrays by their flat keys; a list or tuple under a known key is an array."""
    inner = dict(enumerate(value)) if isinstance(value, (tuple, list)) else value
    for name, part in inner.items():
        key = f"{prefix}{name}"
        is_nested = isinstance(part, (dict, tuple, list))
        if is_nested and key not in known:
            _collect_parts(part, f"{key}/", known, parts)
        else:
            parts[key] = np.asarray(part)


def as_arrays(observation: Any, observation_space: spaces.Space) -> Any:
    """
    :param observation: Observation, one or a batch, of NumPy arrays, lists, tuples or numbers
    :param observation_space: Observation space of the policy, flat, without masks
    :return: Array, or for a Dict space flat dict of arrays
    :raises ValueError: If the observation is a dict and the space is not, or the reverse
    """
    if isinstance(observation_space, spaces.Dict):
        if not isinstance(observation, (dict, tuple, list)):
            raise ValueError(
                f"The observation is {observation!r}, and its space is {observation_space}; pass a "
                "dict (or a tuple) of its parts."
            )
        parts: dict[str, np.ndarray] = {}
        _collect_parts(observation, "", observation_space.spaces, parts)
        if parts.keys() != observation_space.spaces.keys():
            raise ValueError(
                f"The observation has the parts {list(parts)}, and its space needs "
                f"{list(observation_space.spaces)}."
            )
        return parts
    if isinstance(own_space(observation_space), (spaces.Dict, spaces.Tuple)):
        # A space without entries, which a constant stands for
        return observation
    if isinstance(observation, dict):
        raise ValueError(
            f"The observation is a dict with the keys {list(observation)}, and its space is "
            f"{observation_space}; pass the array alone."
        )
    return np.asarray(observation)


def state_tensor(
    state: tuple[np.ndarray, ...] | None, episode_start: np.ndarray | None, device: th.device
) -> th.Tensor | None:
    """
    Hidden states given to ``predict``.

    :param state: Parts of the hidden states, each ``(n_layers, batch, hidden_size)``; None at the
        start of an episode
    :param episode_start: Mask of the rows that begin an episode, ``(batch,)``; None for no row
    :param device: Device of the result
    :return: ``(batch, n_parts, n_layers, hidden_size)``, with zeros at these rows; None at the
        start
    """
    if state is None:
        return None
    stacked = th.as_tensor(np.stack(state), dtype=th.float32, device=device)
    states = stacked.permute(2, 0, 1, 3)
    if episode_start is None:
        return states
    flags = np.asarray(episode_start, dtype=bool).reshape(-1)
    starts = th.as_tensor(flags, device=device)
    return states.masked_fill(starts.reshape(-1, 1, 1, 1), 0.0)


class ActionMasks:
    """
    Action masks of one agent: form, checks, and conversion to tensors.

    :param action_space: Action space of the agent
    :param leaves: Plain spaces inside it
    :param masked: Whether the training environment has action masks
    """

    def __init__(
        self, action_space: spaces.Space, leaves: Sequence[ActionLeaf], masked: bool
    ) -> None:
        self.action_space = action_space
        self.masked = masked
        #: Entries of a mask: one for each choice of each Discrete and MultiDiscrete part
        self.n_choices = sum(leaf.n_choices for leaf in leaves)
        self._starts = starts_of_choices(leaves)

    def to_tensor(self, action_masks: Any, device: th.device) -> th.Tensor | None:
        """
        :param action_masks: Mask given to ``predict``: ``(n_choices,)``, ``(batch, n_choices)``,
            nested as the environment gives it, or None
        :param device: Device of the result
        :return: Masks ``(batch, n_choices)``; None for an agent without masks
        :raises ValueError: If a mask is missing, not expected, of a wrong shape, or allows nothing
        """
        if not self.masked:
            if action_masks is not None and self.n_choices:
                raise ValueError(
                    "This agent was trained without action masks and would ignore them; train it "
                    "in an environment that gives masks, in the observation or in the info."
                )
            return None
        if action_masks is None:
            raise ValueError(
                "This agent was trained with action masks; pass `action_masks=`, or an "
                "observation with the key 'action_mask'."
            )
        masks = self._as_rows(action_masks)
        if len(self.rows_without_choice(masks)):
            raise ValueError(
                "The action mask allows no action at all; at least one choice must be legal."
            )
        # PyTorch warns about read-only arrays, such as the mask of an absent agent
        return th.as_tensor(masks if masks.flags.writeable else masks.copy(), device=device)

    def _as_rows(self, action_masks: Any) -> np.ndarray:
        """Masks ``(batch, n_choices)`` of any form."""
        if isinstance(action_masks, (dict, tuple, list)):
            # Nested, in the environment's form; or a list of masks, which does not fit that form
            with suppress(ValueError):
                action_masks = flatten_mask(self.action_space, action_masks)
        masks = np.asarray(action_masks)
        if not masks.ndim or not masks.size or masks.shape[-1] % self.n_choices:
            raise ValueError(
                f"The action mask has the shape {masks.shape}; it needs {self.n_choices} entries "
                "per observation."
            )
        # With VecFrameStack, the latest mask is the last one
        return masks[..., -self.n_choices :].reshape(-1, self.n_choices)

    def rows_without_choice(self, action_masks: np.ndarray) -> np.ndarray:
        """
        Rows of a batch of masks in which a discrete choice has no legal option.

        :param action_masks: ``(batch, n_choices)``
        :return: Indices of the rows, ``(n,)``
        """
        legal = np.logical_or.reduceat(action_masks != 0, self._starts, axis=1)
        return np.flatnonzero(~legal.all(axis=1))
