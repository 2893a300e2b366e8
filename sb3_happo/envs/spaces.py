"""Spaces of a team: joint actions as structured arrays, action masks, parts of observations."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

STATE = "state"
AGENT_STATES = "agent_states"
ACTION_MASK = "action_mask"
ACTIVE = "active"
OBSERVATION = "observation"

PLAIN_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def subspaces(space: spaces.Dict | spaces.Tuple) -> list[tuple[str, Any, spaces.Space]]:
    """
    Parts of a nested space.

    :param space: Dict or Tuple space
    :return: For each part its name (the key, or "0", "1", ... for a Tuple), its key in the space's
        own samples, and its space
    """
    items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    return [(str(key), key, subspace) for key, subspace in items]


# ---------------------------------------------------------------- joint actions


def joint_action_dtype(action_space: spaces.Dict) -> np.dtype:
    """
    Type of a team's joint actions: a structured array with one row per environment and one field
    per agent.

    Discrete becomes an int64 scalar, MultiDiscrete its own dtype and shape, MultiBinary int8 of its
    shape, Box float32 of its shape, and a Dict or Tuple a nested structured field whose sub-fields
    are named by key, or "0", "1", ... The fields hold actions of the agents' own spaces: a Discrete
    with ``start=5`` counts from 5.

    :param action_space: Action spaces of the agents
    :return: Type of the array; ``actions["agent_0"]`` is then that agent's batch, and
        ``actions[i]`` the joint action of environment ``i``
    :raises TypeError: If a space is not supported
    """
    fields = []
    for agent, space in action_space.spaces.items():
        try:
            fields.append((agent, _field_dtype(space)))
        except TypeError as error:
            raise TypeError(f"agent {agent!r}: {error}") from error
    return np.dtype(fields)


def as_sampled(space: spaces.Space, action: Any) -> Any:
    """
    One action in the form that the environment takes.

    :param space: Action space of an agent
    :param action: Row of an agent's field of a joint action array: a NumPy scalar, an array, or a
        structured row where the space is nested
    :return: Action, of the types that ``space.sample()`` returns
    """
    if isinstance(space, spaces.Dict):
        return {key: as_sampled(subspace, action[key]) for key, subspace in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        parts = enumerate(space.spaces)
        return tuple(as_sampled(subspace, action[str(index)]) for index, subspace in parts)
    convert = action_converter(space)
    return action if convert is None else convert(action)


def _field_dtype(space: spaces.Space) -> np.dtype:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return np.dtype([(name, _field_dtype(subspace)) for name, _, subspace in subspaces(space)])
    if isinstance(space, spaces.Discrete):
        return np.dtype(np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return np.dtype((space.dtype, space.shape))
    if isinstance(space, spaces.MultiBinary):
        return np.dtype((np.int8, space.shape))
    if isinstance(space, spaces.Box):
        return np.dtype((np.float32, space.shape))
    raise TypeError(
        f"Unsupported action space {space}; use Box, Discrete, MultiDiscrete, MultiBinary, or a "
        "Dict or Tuple of these."
    )


class _NestedConverter:
    """Converter of the nested tuples that ``np.void.item()`` returns to Dict or Tuple actions."""

    def __init__(self, space: spaces.Dict | spaces.Tuple) -> None:
        parts = subspaces(space)
        self.keys = [key for _, key, _ in parts] if isinstance(space, spaces.Dict) else None
        self.converters = [action_converter(subspace) for _, _, subspace in parts]

    def __call__(self, values: tuple) -> dict[str, Any] | tuple:
        converted = convert_actions(values, self.converters)
        if self.keys is None:
            return tuple(converted)
        return dict(zip(self.keys, converted, strict=True))


def action_converter(space: spaces.Space) -> Callable[[Any], Any] | None:
    """
    Function that turns one agent's part of ``joint_action.item()`` into an action, of the type,
    dtype and shape that ``space.sample()`` returns.

    :param space: Action space of the agent
    :return: Picklable function; None if the value already is the action
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return _NestedConverter(space)
    if isinstance(space, spaces.Discrete):
        return space.dtype.type
    if isinstance(space, spaces.Box) and space.dtype != np.float32:
        return partial(_box_action, space)
    # Arrays already have the space's type; numbers become arrays of shape ()
    return None if space.shape else partial(np.asarray, dtype=space.dtype)


def _box_action(space: spaces.Box, value: Any) -> np.ndarray:
    """Action of another type than float32, which its rounding must not lead out of the bounds."""
    return np.asarray(np.clip(np.asarray(value, space.dtype), space.low, space.high), space.dtype)


def convert_actions(
    values: Iterable[Any], converters: Iterable[Callable[[Any], Any] | None]
) -> list[Any]:
    """
    Apply the functions of :func:`action_converter`.

    :param values: Parts of ``joint_action.item()``
    :param converters: Function of each part; None keeps the value
    :return: Actions
    """
    converted = []
    for value, convert in zip(values, converters, strict=True):
        converted.append(value if convert is None else convert(value))
    return converted


def joint_action_to_dict(
    action_space: spaces.Dict, joint_action: np.void | np.ndarray
) -> dict[str, Any]:
    """
    Split the joint action of one environment.

    :param action_space: Action spaces of the agents
    :param joint_action: One row of an array of dtype :func:`joint_action_dtype`
    :return: ``{agent: action}``, of the types that ``action_space.sample()`` returns
    """
    values: Any = joint_action.item()
    return cast(dict[str, Any], _NestedConverter(action_space)(values))


# ---------------------------------------------------------------- action masks


def is_flag(key: str) -> bool:
    """
    :param key: Key of an entry of a joint observation, or of one agent's observation
    :return: Whether the entry holds flags (an action mask or the active mask), which must not be
        normalised
    """
    return key == ACTIVE or key.rpartition("/")[2] == ACTION_MASK


def n_choices(space: spaces.Space) -> int:
    """
    Length of an agent's action mask.

    :param space: Action space of the agent
    :return: ``n`` of Discrete, the sum of ``nvec`` of MultiDiscrete, the sum over the parts of Dict
        and Tuple, 0 for other spaces
    """
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return sum(n_choices(subspace) for _, _, subspace in subspaces(space))
    return 0


def flatten_mask(space: spaces.Space, mask: Any) -> np.ndarray:
    """
    Concatenate the parts of an action mask, one head after the other, as sb3-contrib does.

    :param space: Action space of the agent
    :param mask: Flat mask; or nested as Gymnasium's ``space.sample(mask)`` takes it (one array per
        MultiDiscrete head, a Dict or Tuple of masks for a Dict or Tuple space). None allows
        everything
    :return: Flat mask, 1 where a choice is legal, ``(n_choices,)``, int8
    :raises ValueError: If the mask has another length
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)) and isinstance(mask, (Mapping, tuple, list)):
        parts = [np.zeros(0, np.int8)]
        for _, key, subspace in subspaces(space):
            part = mask.get(key) if isinstance(mask, Mapping) else mask[key]
            parts.append(flatten_mask(subspace, part))
        return np.concatenate(parts)
    size = n_choices(space)
    if mask is None or not size:
        return np.ones(size, np.int8)
    if isinstance(mask, (tuple, list)) and mask and np.ndim(mask[0]):
        mask = np.concatenate([np.ravel(head) for head in mask])
    flat = np.asarray(mask).ravel()
    if flat.shape != (size,):
        if flat.size == _n_combinations(space):
            raise ValueError(
                f"an action mask of shape {np.shape(mask)} over the combinations of the parts of "
                f"{space}, which the algorithms choose independently; it needs {size} entries, "
                "one for each choice of each part"
            )
        raise ValueError(
            f"an action mask of shape {np.shape(mask)} where {space} needs {size} entries"
        )
    return flat.astype(np.int8, copy=False)


def _n_combinations(space: spaces.Space) -> int:
    """Number of different actions; 0 if a part is not discrete."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return math.prod(_n_combinations(subspace) for _, _, subspace in subspaces(space))
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.prod())
    return n_choices(space)


def split_mask(space: spaces.Space, mask: np.ndarray) -> Any:
    """
    Nest a flat action mask as Gymnasium's ``space.sample(mask)`` takes it: the inverse of
    :func:`flatten_mask`.

    :param space: Action space of the agent
    :param mask: Flat mask, 1 where a choice is legal, ``(n_choices,)``, int8
    :return: Mask, nested as the space is; None for spaces without choices
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = subspaces(space)
        ends = np.cumsum([n_choices(subspace) for _, _, subspace in parts])[:-1]
        masks = [
            split_mask(subspace, part)
            for (_, _, subspace), part in zip(parts, np.split(mask, ends), strict=True)
        ]
        if isinstance(space, spaces.Tuple):
            return tuple(masks)
        return dict(zip(space.spaces, masks, strict=True))
    if isinstance(space, spaces.MultiDiscrete):
        return _split_heads(space.nvec, mask)
    return mask if isinstance(space, spaces.Discrete) else None


def _split_heads(nvec: npt.NDArray[np.integer], mask: np.ndarray) -> tuple:
    if nvec.ndim == 1:
        return tuple(np.split(mask, np.cumsum(nvec)[:-1]))
    ends = np.cumsum(nvec.reshape(len(nvec), -1).sum(axis=1))[:-1]
    return tuple(
        _split_heads(heads, part) for heads, part in zip(nvec, np.split(mask, ends), strict=True)
    )


# ---------------------------------------------------------------- observations


def is_image(space: spaces.Space) -> bool:
    """
    :param space: Observation space
    :return: Whether Stable-Baselines3 takes it for an image: uint8 in [0, 255] with three
        dimensions
    """
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and bool((space.low == 0).all() and (space.high == 255).all())
    )


def float32_space(space: spaces.Space) -> spaces.Space:
    """
    :param space: Observation space, neither Dict nor Tuple
    :return: Space of the same observations as float32 if it is a Box of floats; otherwise
        ``space``
    """
    if (
        not isinstance(space, spaces.Box)
        or not np.issubdtype(space.dtype, np.floating)
        or space.dtype == np.float32
    ):
        return space
    with np.errstate(over="ignore"):  # bounds beyond the range of float32 become infinite
        return spaces.Box(
            space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32
        )


def observation_leaves(space: spaces.Space, path: tuple = ()) -> list[tuple[tuple, spaces.Space]]:
    """
    Spaces of the arrays inside an observation space.

    :param space: Observation space of an agent
    :param path: Keys that lead to ``space``
    :return: For each array the keys that lead to it in an observation (empty if the whole
        observation is one array), and its space
    :raises TypeError: If a space is not supported
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        leaves: list[tuple[tuple, spaces.Space]] = []
        for _, key, subspace in subspaces(space):
            leaves += observation_leaves(subspace, (*path, key))
        return leaves
    if not isinstance(space, PLAIN_SPACES):
        raise TypeError(
            f"unsupported observation space {space}; turn it into Box, Discrete, MultiDiscrete, "
            "MultiBinary, or a Dict or Tuple of these, for example with a wrapper that pads "
            "sequences"
        )
    return [(path, space)]
