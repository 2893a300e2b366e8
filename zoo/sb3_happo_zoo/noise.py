"""Action noise of entries: RL Zoo's keys ``noise_type`` and ``noise_std``, for teams."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
)

from sb3_happo.common.action_noise import continuous_columns
from sb3_happo.suggestions import check_names

NOISES: dict[str, Any] = {
    "normal": NormalActionNoise,
    "ornstein-uhlenbeck": OrnsteinUhlenbeckActionNoise,
}


def with_action_noise(hyperparams: dict[str, Any], action_space: spaces.Space) -> dict[str, Any]:
    """
    :param hyperparams: Evaluated hyperparameters, perhaps with ``noise_type`` and ``noise_std``
    :param action_space: Joint action space
    :return: Hyperparameters with ``action_noise`` in their place
    :raises ValueError: If one of both keys is missing, the type is unknown, a deviation is no
        number of at least 0, or ``action_noise`` is given beside them
    """
    others = dict(hyperparams)
    kind, deviation = others.pop("noise_type", None), others.pop("noise_std", None)
    if kind is None and deviation is None:
        return others
    if kind is None or deviation is None:
        missing = "noise_type" if kind is None else "noise_std"
        raise ValueError(
            f"{missing} is missing: noise_type (one of {', '.join(NOISES)}) and noise_std make the "
            "action noise together."
        )
    if others.get("action_noise") is not None:
        raise ValueError("action_noise and noise_type exclude each other; leave one of them out.")
    check_names([str(kind).strip()], NOISES, "noise_type")
    assert isinstance(action_space, spaces.Dict)
    others["action_noise"] = make_noise(NOISES[str(kind).strip()], deviation, action_space)
    return others


def make_noise(
    noise_class: Any, deviation: Any, action_space: spaces.Dict
) -> ActionNoise | dict[str, ActionNoise]:
    """
    :param noise_class: Class of SB3's noises, called with mean and deviation
    :param deviation: Standard deviation for all agents, or ``{agent: deviation}``
    :param action_space: Joint action space, one entry per agent
    :return: Noise of the team, or of single agents
    :raises ValueError: If a deviation is no number of at least 0
    """
    sizes = {agent: int(own.sum()) for agent, own in continuous_columns(action_space).items()}
    if not isinstance(deviation, Mapping):
        return _noise(noise_class, "noise_std", deviation, sum(sizes.values()))
    noises = {}
    for agent, own in deviation.items():
        # An unknown agent is refused by the algorithm, which names the nearest one
        size = sizes.get(str(agent), 1)
        noises[str(agent)] = _noise(noise_class, f"noise_std[{agent!r}]", own, size)
    return noises


def _noise(noise_class: Any, name: str, deviation: Any, size: int) -> ActionNoise:
    is_number = isinstance(deviation, (int, float)) and not isinstance(deviation, bool)
    if not is_number or not 0 <= deviation < np.inf:
        raise ValueError(
            f"{name} must be a number, at least 0, or {{agent: number}}, not {deviation!r}"
        )
    noise: ActionNoise = noise_class(mean=np.zeros(size), sigma=deviation * np.ones(size))
    return noise
