"""Checks of single values that an environment returns: observations, action masks, rewards."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.checker.report import Findings
from sb3_happo.envs.spaces import ACTION_MASK, flatten_mask, n_choices, split_mask


def check_observation(
    findings: Findings, agent: str, space: spaces.Space, value: Any, part: str = ""
) -> None:
    """
    Compare an observation with its space.

    :param findings: Collection that takes the findings
    :param agent: Name of the agent
    :param space: Observation space, or a part of it
    :param value: Observation, or the same part of it
    :param part: Path of the part, such as "/position"; empty for the whole observation
    """
    owner = f"agent {agent!r}: observation"
    if part:
        owner = f"{owner} {part}"
    if isinstance(space, spaces.Tuple):
        _check_tuple_observation(findings, owner, agent, space, value, part)
        return
    if isinstance(space, spaces.Dict):
        _check_dict_observation(findings, owner, agent, space, value, part)
        return
    if isinstance(space, spaces.Box) and not isinstance(value, np.ndarray):
        findings.add(
            "warning",
            f"{owner} is a {type(value).__name__}, no array",
            "Return np.array(..., dtype=np.float32).",
        )
    array = np.asarray(value)
    if array.shape != space.shape:
        findings.add(
            "error",
            f"{owner} has shape {array.shape}, its space {space.shape}",
            "Make both the same: correct observation_space, or what the env returns.",
            key=f"shape {owner}",
        )
    elif array.dtype.kind == "f" and not np.isfinite(array).all():
        kind = "NaN" if np.isnan(array).any() else "infinite"
        findings.add(
            "error",
            f"{owner} is {kind}",
            "Search for a division by zero, the logarithm of a negative number, or unbounded "
            "growth.",
        )
    elif isinstance(space, spaces.Box):
        _check_box_values(findings, owner, space, array)
    elif not space.contains(value):
        findings.add(
            "error",
            f"{owner} {value!r} is not in {space}",
            "Correct observation_space, or what the env returns.",
            owner,
        )


def _check_box_values(findings: Findings, owner: str, space: spaces.Box, array: np.ndarray) -> None:
    if array.dtype.kind == "f" and space.dtype.kind in "iu":
        findings.add(
            "error",
            f"{owner} has floats in a space of {space.dtype}",
            "Declare the space with dtype=np.float32.",
        )
    elif (array < space.low).any() or (array > space.high).any():
        findings.add(
            "warning",
            f"{owner} has values in [{array.min():.4g}, {array.max():.4g}], outside its bounds",
            "Widen the bounds of the Box, with np.inf if there are none.",
            key=f"bounds {owner}",
        )


def _check_tuple_observation(
    findings: Findings, owner: str, agent: str, space: spaces.Tuple, value: Any, part: str
) -> None:
    if len(value) != len(space.spaces):
        findings.add(
            "error",
            f"{owner} has {len(value)} parts, its space {len(space.spaces)}",
            "Make both the same.",
        )
    for index, (subspace, subvalue) in enumerate(zip(space.spaces, value, strict=False)):
        check_observation(findings, agent, subspace, subvalue, f"{part}/{index}")


def _check_dict_observation(
    findings: Findings, owner: str, agent: str, space: spaces.Dict, value: Any, part: str
) -> None:
    if not isinstance(value, Mapping):
        findings.add(
            "error",
            f"{owner} is a {type(value).__name__}, its space a Dict",
            "Return a dict with the keys of the space.",
        )
        return
    missing = set(space.spaces) - set(value)
    extra = set(value) - set(space.spaces)
    if missing:
        findings.add(
            "error",
            f"{owner} lacks {sorted(missing)}",
            "Return every key that the observation space has.",
        )
    if extra:
        findings.add(
            "warning",
            f"{owner} has {sorted(extra)}, which its space has not",
            "Add them to the space; they are ignored.",
        )
    for key, subspace in space.spaces.items():
        if key in value and key != ACTION_MASK:
            check_observation(findings, agent, subspace, value[key], f"{part}/{key}")


def check_mask(findings: Findings, agent: str, space: spaces.Space, mask: Any) -> np.ndarray | None:
    """
    Check an action mask.

    :param findings: Collection that takes the findings
    :param agent: Name of the agent
    :param space: Action space of the agent
    :param mask: Action mask as the environment returns it
    :return: Flat mask ``(n_choices,)``, int8; None if the mask cannot be used
    """
    if not n_choices(space):
        findings.add(
            "warning",
            f"agent {agent!r} has an action mask, but {space} has nothing to mask",
            "It is ignored; drop it.",
        )
        return None
    try:
        flat = flatten_mask(space, mask)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        findings.add(
            "error",
            f"agent {agent!r}: {error}",
            f"Return {n_choices(space)} zeros and ones, one head after the other.",
        )
        return None
    if not np.isin(flat, (0, 1)).all():
        findings.add(
            "warning",
            f"agent {agent!r}: an action mask with other values than 0 and 1",
            "Use 0 and 1, as int8.",
        )
    if not _allows_an_action(split_mask(space, flat)):
        findings.add(
            "error",
            f"agent {agent!r}: an action mask that allows nothing",
            "Keep at least one action legal (for example one without effect), or leave the agent "
            "out of the observations.",
        )
        return None
    return flat


def _allows_an_action(mask: Any) -> bool:
    """
    :param mask: Action mask, nested as the action space is
    :return: Whether every part of the mask has a legal choice
    """
    if mask is None:
        return True
    if isinstance(mask, np.ndarray):
        return bool(mask.any())
    parts = mask.values() if isinstance(mask, dict) else mask
    return all(_allows_an_action(part) for part in parts)


def check_reward(findings: Findings, agent: str, reward: Any) -> float:
    """
    Check a reward.

    :param findings: Collection that takes the findings
    :param agent: Name of the agent
    :param reward: Reward as the environment returns it
    :return: Reward as a number; 0 if it is none
    """
    if np.ndim(reward):
        findings.add(
            "error",
            f"agent {agent!r}: a reward of shape {np.shape(reward)}",
            "Return one number per agent.",
        )
        return 0.0
    try:
        number = float(reward)
    except (TypeError, ValueError):
        findings.add(
            "error",
            f"agent {agent!r}: the reward {reward!r} is no number",
            "Return one number per agent.",
        )
        return 0.0
    if not np.isfinite(number):
        findings.add(
            "error",
            f"agent {agent!r}: a reward of {number}",
            "Find what it is computed from; rewards must be finite.",
        )
        return 0.0
    return number
