"""Boltzmann policies: choices with probabilities proportional to ``exp(value / temperature)``."""

from collections.abc import Sequence

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_happo.common.batched_actors import draw_choices


class Temperature(nn.Module):
    """
    Temperature that several policies share.

    :param value: Temperature, > 0
    """

    def __init__(self, value: float = 1.0) -> None:
        super().__init__()
        self.value: th.Tensor
        self.register_buffer("value", th.tensor(float(value)))


def boltzmann(
    values: th.Tensor, factors: Sequence[int], temperature: th.Tensor | float
) -> th.Tensor:
    """
    :param values: Values of all options, over several choices side by side, ``(..., n_options)``
    :param factors: Number of options of each choice
    :param temperature: Temperature, > 0
    :return: Probability of each option within its choice, ``(..., n_options)``
    """
    parts = []
    for own in (values / temperature).split(list(factors), dim=-1):
        parts.append(own.softmax(dim=-1))
    return th.cat(parts, dim=-1)


def log_boltzmann(
    values: th.Tensor, factors: Sequence[int], temperature: th.Tensor | float
) -> th.Tensor:
    """
    :param values: Values of all options, over several choices side by side, ``(..., n_options)``
    :param factors: Number of options of each choice
    :param temperature: Temperature, > 0
    :return: Log-probability of each option within its choice, ``(..., n_options)``
    """
    parts = []
    for own in (values / temperature).split(list(factors), dim=-1):
        parts.append(own.log_softmax(dim=-1))
    return th.cat(parts, dim=-1)


def entropy(probabilities: th.Tensor) -> th.Tensor:
    """
    :param probabilities: Probability of each option within its choice, ``(..., n_options)``
    :return: Entropy, over several choices added, ``(...)``
    """
    return th.special.entr(probabilities).sum(dim=-1)


def draw(
    values: th.Tensor,
    factors: Sequence[int],
    temperature: th.Tensor | float,
    deterministic: bool = False,
) -> tuple[th.Tensor, th.Tensor]:
    """
    :param values: Values of all options, ``(batch, n_options)``
    :param factors: Number of options of each choice
    :param temperature: Temperature, > 0
    :param deterministic: Options of the highest values instead of samples
    :return: One-hot choices ``(batch, n_options)``, and log-probabilities ``(batch,)``
    """
    parts, total = [], values.new_zeros(len(values))
    for own in (values / temperature).split(list(factors), dim=1):
        choices, log_probs = draw_choices(own, None, deterministic)
        parts.append(F.one_hot(choices, own.shape[1]).to(values.dtype))
        total = total + log_probs
    return th.cat(parts, dim=1), total
