"""
Observations in the form that SB3's features extractors take.

=====================================  ===================================================
Observation space of the environment   Entry of the joint observation
=====================================  ===================================================
Box of float64 or float16              Box of float32
Box of shape ``()``                    Box of shape ``(1,)``
Box without entries, an empty Dict     Box of shape ``(1,)``, always zero
Discrete that counts from ``start``    Discrete that counts from 0
MultiDiscrete that counts elsewhere    MultiDiscrete that counts from 0
MultiDiscrete of several dimensions    MultiDiscrete of one dimension
=====================================  ===================================================

The converted spaces know the environment's own, so that ``predict`` converts alike.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.spaces import float32_space


class EncodedBox(spaces.Box):
    """
    Space of single numbers as vectors, or of nothing as a constant.

    :param own_space: Space of the environment: a Box of shape ``()`` or without entries, or an
        empty Dict or Tuple
    """

    def __init__(self, own_space: spaces.Space) -> None:
        low, high = 0.0, 1.0
        dtype = np.dtype(np.float32)
        if isinstance(own_space, spaces.Box) and own_space.shape == ():
            converted = float32_space(own_space)
            assert isinstance(converted, spaces.Box)
            low, high, dtype = converted.low.item(), converted.high.item(), converted.dtype
        super().__init__(low, high, (1,), dtype.type)
        self.own_space = own_space


class EncodedDiscrete(spaces.Discrete):
    """
    Space of numbers that count from ``start``, counted from 0.

    :param own_space: Space of the environment
    """

    def __init__(self, own_space: spaces.Discrete) -> None:
        super().__init__(int(own_space.n))
        self.own_space = own_space


class EncodedMultiDiscrete(spaces.MultiDiscrete):
    """
    Space of numbers in any shape and from any start, as a vector of numbers that count from 0.

    :param own_space: Space of the environment
    """

    def __init__(self, own_space: spaces.MultiDiscrete) -> None:
        super().__init__(own_space.nvec.ravel(), dtype=own_space.dtype.type)
        self.own_space = own_space


EncodedSpace = EncodedBox | EncodedDiscrete | EncodedMultiDiscrete


def encoded_space(space: spaces.Space) -> spaces.Space:
    """
    :param space: Observation space of the environment, not nested
    :return: Space of the same observations in the form that SB3 takes
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return EncodedBox(space)
    if isinstance(space, spaces.Box) and (space.shape == () or 0 in space.shape):
        return EncodedBox(space)
    if isinstance(space, spaces.Discrete) and space.start:
        return EncodedDiscrete(space)
    if isinstance(space, spaces.MultiDiscrete) and (space.nvec.ndim != 1 or np.any(space.start)):
        return EncodedMultiDiscrete(space)
    return float32_space(space)


def own_space(space: spaces.Space) -> spaces.Space:
    """
    :param space: Space of an entry of a joint observation
    :return: Space of the environment's own observation
    """
    return space.own_space if isinstance(space, EncodedSpace) else space


def is_constant(space: spaces.Space) -> bool:
    """
    :param space: Space of an entry of a joint observation
    :return: True if the entry stands for nothing
    """
    return isinstance(space, EncodedBox) and own_space(space).shape != ()


def encode_array(space: spaces.Space, array: np.ndarray) -> np.ndarray:
    """
    Convert observations, and check that discrete ones are in their space.

    :param space: Space of an entry of a joint observation, with something to observe
    :param array: Observations in the environment's own form, ``(..., *own_shape)``
    :return: Observations in the form of ``space``, ``(..., *shape)``
    :raises ValueError: If a value is not in the space, or would change with its type
    """
    own = own_space(space)
    n_batch = array.ndim - len(own.shape or ())
    if isinstance(own, (spaces.Discrete, spaces.MultiDiscrete)):
        array = _from_zero(own, array)
    elif isinstance(own, spaces.MultiBinary):
        _check_values(own, array, (array == 0) | (array == 1))
    elif array.dtype != space.dtype and space.dtype is not None and space.dtype.kind in "iu":
        with np.errstate(invalid="ignore"):
            converted = array.astype(space.dtype)
        _check_values(own, array, converted == array)
    shape = array.shape[:n_batch] + (space.shape or ())
    return array.astype(space.dtype, copy=False).reshape(shape)


def _from_zero(own: spaces.Discrete | spaces.MultiDiscrete, array: np.ndarray) -> np.ndarray:
    """Numbers of a space counted from 0."""
    n = own.n if isinstance(own, spaces.Discrete) else own.nvec
    shifted = array - own.start if np.any(own.start) else array
    legal = (shifted >= 0) & (shifted < n)
    if array.dtype.kind not in "biu":
        legal &= shifted == np.floor(shifted)
    _check_values(own, array, legal)
    return shifted


def _check_values(own: spaces.Space, array: np.ndarray, legal: Any) -> None:
    """
    :param own: Space of the environment
    :param array: Observations
    :param legal: Mask of the values that are in the space, of the shape of ``array``
    """
    if not np.all(legal):
        wrong = array[~np.asarray(legal)] if array.ndim else array
        raise ValueError(
            f"the value {np.ravel(wrong)[0]} is not in {_short(own)}; correct the env's "
            "observation_space or what it returns."
        )


def _short(space: spaces.Space) -> str:
    """Space without the bounds of each entry."""
    return f"Box{space.shape} of {space.dtype}" if isinstance(space, spaces.Box) else str(space)


def encode_observation(space: spaces.Space, observation: Any) -> Any:
    """
    Convert an agent's observation as joint observations are converted.

    :param space: Observation space of an agent in the joint observation, without mask: a plain
        space, or a Dict of plain spaces
    :param observation: Observation in the environment's own form, flat (see
        :func:`~sb3_happo.common.agent_inputs.flat_observation`), one or a batch; entries that have
        the form of ``space`` already are kept
    :return: Observation in the form of ``space``
    :raises ValueError: If a value is not in its space
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping):
            return observation
        encoded = dict(observation)
        for key, part in space.spaces.items():
            if key in observation:
                encoded[key] = _encode_entry(part, observation[key], key)
            elif is_constant(part):
                encoded[key] = np.zeros(1, np.float32)
        return encoded
    return _encode_entry(space, observation, "")


def _encode_entry(space: spaces.Space, value: Any, key: str) -> Any:
    """One entry of an observation; values of foreign shapes are left to SB3's errors."""
    own = own_space(space)
    if isinstance(own, (spaces.Dict, spaces.Tuple)):
        return np.zeros(1, np.float32) if isinstance(value, Mapping) else value
    if not isinstance(space, EncodedSpace) and isinstance(own, spaces.Box):
        return value
    array = np.asarray(value)
    shape = own.shape or ()
    n_batch = array.ndim - len(shape)
    if array.dtype.kind not in "biuf" or n_batch < 0 or array.shape[n_batch:] != shape:
        return value
    if is_constant(space):
        return np.zeros((*array.shape[:n_batch], 1), np.float32)
    try:
        return encode_array(space, array)
    except ValueError as error:
        owner = f"entry {key!r} of the observation: " if key else ""
        raise ValueError(f"{owner}{error}") from error
