"""Random inputs of a policy, with which an exported file is checked."""

from collections.abc import Iterable, Mapping

import numpy as np
from gymnasium import spaces

from sb3_happo.common.actor_network import ActorNetwork
from sb3_happo.common.distributions import ActionLeaf
from sb3_happo.common.export.normalization import Statistics
from sb3_happo.common.export.signature import Signature, TensorInfo
from sb3_happo.envs.encodings import is_constant

#: Largest bound of a Box that counts as one; numbers beyond it are drawn as if there were none
WIDEST = 1e4


def draw_inputs(
    policy: ActorNetwork,
    signature: Signature,
    statistics: Mapping[str, Statistics],
    n: int,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """
    :param policy: Policy of one agent
    :param signature: Inputs and outputs of the policy
    :param statistics: Statistics of the parts of the observation that are normalised
    :param n: Number of rows
    :param seed: Seed for the pseudo-random generator
    :return: Random inputs by name. Observations are uniform within bounds, normal where there are
        none, and have the mean and twice the deviation of the statistics where they are normalised;
        every choice has at least one legal option; states are as recurrent layers return them
    """
    rng = np.random.default_rng(seed)
    inputs = {}
    for info in signature.inputs:
        if info.role == "observation":
            own = statistics.get(info.path[0] if info.path else "")
            values = _draw_observations(info, own, n, rng)
        elif info.role == "action_mask":
            values = draw_masks(policy.leaves, n, rng)
        else:
            values = np.tanh(rng.normal(size=info.batch_shape(n)))
        inputs[info.name] = values.astype(info.dtype)
    return inputs


def draw_masks(leaves: Iterable[ActionLeaf], n: int, rng: np.random.Generator) -> np.ndarray:
    """
    :param leaves: Plain spaces of an action space
    :param n: Number of rows
    :param rng: Pseudo-random generator
    :return: Masks in which every choice has a legal option, ``(n, n_choices)``
    """
    masks = []
    for leaf in leaves:
        for n_options in leaf.factors:
            mask = rng.integers(0, 2, (n, n_options))
            mask[np.arange(n), rng.integers(0, n_options, n)] = 1
            masks.append(mask)
    return np.concatenate(masks, axis=1)


def _draw_observations(
    info: TensorInfo, statistics: Statistics | None, n: int, rng: np.random.Generator
) -> np.ndarray:
    """One part of the observation, ``(n, ...)``."""
    shape = info.batch_shape(n)
    space = info.space
    if space is not None and is_constant(space):
        return np.zeros(shape)
    if isinstance(space, spaces.Discrete):
        return rng.integers(space.start, space.start + space.n, shape)
    if isinstance(space, spaces.MultiDiscrete):
        return rng.integers(space.start, space.start + space.nvec, shape)
    if isinstance(space, spaces.MultiBinary):
        return rng.integers(0, 2, shape)
    assert isinstance(space, spaces.Box)
    if statistics is not None:
        mean, std = statistics.mean.reshape(info.shape), statistics.std.reshape(info.shape)
        values = mean + 2.0 * std * rng.normal(size=shape)
        return values if space.dtype.kind == "f" else np.clip(values, space.low, space.high)
    return _draw_box(space, shape, rng)


def _draw_box(space: spaces.Box, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    has_low, has_high = np.abs(low) <= WIDEST, np.abs(high) <= WIDEST
    near_low, near_high = np.where(has_low, low, 0.0), np.where(has_high, high, 0.0)
    is_integer = space.dtype.kind in "iu"
    uniform = near_low + rng.random(shape) * (near_high - near_low + is_integer)
    normal = rng.normal(size=shape)
    distance = np.abs(normal)
    one_sided = np.where(has_low, near_low + distance, near_high - distance)
    values = np.where(has_low | has_high, one_sided, normal)
    values = np.where(has_low & has_high, uniform, values)
    return np.floor(values) if is_integer else values
