"""Normalisation of values, with bounds that follow from the rewards alone."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch import nn

#: Margin of the bounds on either side, in widths of the range of discounted sums
BOUNDS_MARGIN = 0.5


class OutputChange(NamedTuple):
    """
    Change of a critic's outputs, ``scale * output + shift``, that goes with new statistics.

    :param scale: Factors, ``(n_norms,)``, > 0
    :param shift: Summands, ``(n_norms,)``
    """

    scale: th.Tensor
    shift: th.Tensor

    def apply_to(self, outputs: th.Tensor) -> th.Tensor:
        """
        :param outputs: Outputs of the critic under the old statistics, ``(..., n_columns)``
        :return: Outputs under the new statistics, ``(..., n_columns)``
        """
        return outputs * self.scale + self.shift

    @th.no_grad()
    def apply_to_layers(self, layers: list[nn.Linear]) -> None:
        """
        Change output layers, so that they return the changed outputs.

        :param layers: Output layer of each statistic, changed in place
        """
        for layer, scale, shift in zip(layers, self.scale, self.shift, strict=True):
            layer.weight.mul_(scale)
            layer.bias.mul_(scale).add_(shift)


class ValueNorm(nn.Module):
    """
    Running mean and variance of the returns (Yu et al. 2022, "The Surprising Effectiveness of PPO
    in Cooperative Multi-Agent Games", appendix D.1). The critic predicts normalised returns; its
    values are denormalised to units of reward.

    Returns are bootstrapped with the critic's own values, so that statistics and values could
    increase one another without bound. Two things prevent it:

    * Values are clipped to bounds that depend on the rewards alone (:meth:`extend_bounds`). Returns
      are sums of rewards and of one clipped value, and statistics are those of returns: whatever
      the critic's outputs are, all three stay within limits that the rewards set.
    * A change of the statistics does not change the values: the critic's output layer changes with
      them (van Hasselt et al. 2016, "Learning values across many orders of magnitude", PopArt).

    :param n_values: Number of separate statistics: 1 for all columns of the returns together, or
        one per column
    :param decay: Weight of the old statistics at each update, in [0, 1). The bias towards the
        initial zero is divided out, so that a decay near 1 averages over all updates so far
    :param epsilon: Smallest variance, > 0
    """

    mean: th.Tensor
    std: th.Tensor
    moments: th.Tensor
    weight: th.Tensor
    bounds: th.Tensor
    bounded: th.Tensor

    def __init__(self, n_values: int = 1, decay: float = 0.99999, epsilon: float = 1e-2) -> None:
        super().__init__()
        self.decay = decay
        self.epsilon = epsilon
        self.register_buffer("mean", th.zeros(n_values))
        self.register_buffer("std", th.ones(n_values))
        # Double precision: with a decay near 1 float32 would lose the first updates
        self.register_buffer("moments", th.zeros(2, n_values, dtype=th.float64))
        self.register_buffer("weight", th.zeros(n_values, dtype=th.float64))
        # Range of the discounted sums of rewards; it holds 0, the value after the end of an episode
        self.register_buffer("bounds", th.zeros(2, n_values))
        self.register_buffer("bounded", th.zeros((), dtype=th.bool))

    @th.no_grad()
    def update(self, returns: th.Tensor, active: th.Tensor | None = None) -> OutputChange:
        """
        Add the returns of a rollout to the statistics. Returns that are NaN or infinite, as of
        rewards near the limits of float32, do not count.

        :param returns: Returns in units of reward, ``(batch, n_columns)``; with a single statistic
            all columns count together
        :param active: Mask of the returns that count, ``(batch, n_columns)``; None for all
        :return: Change of the critic's outputs after which its values are those of before. At the
            first update, when outputs have no meaning yet, the mean is added to them, and they
            are not scaled up
        """
        n_values = len(self.weight)
        returns = returns.double().reshape(-1, n_values)
        present = returns.isfinite()
        if active is not None:
            present &= active.reshape(-1, n_values)
        returns = returns.where(present, 0.0)
        count = present.sum(dim=0)
        sums = th.stack([returns.sum(dim=0), (returns**2).sum(dim=0)])
        batch_moments = sums / count.clamp(min=1)
        # A column without a single return keeps its statistics
        step = (1 - self.decay) * (count > 0).double()
        known_before, old_mean, old_std = self.weight > 0, self.mean.clone(), self.std.clone()
        self.moments.lerp_(batch_moments, step)
        self.weight.lerp_(th.ones_like(self.weight), step)
        mean, square = self.moments / self.weight.clamp(min=1e-12)
        seen = self.weight > 0
        self.mean.copy_(mean)
        self.std.copy_(th.where(seen, (square - mean**2).clamp(min=self.epsilon).sqrt(), 1.0))
        scale = old_std / self.std
        shift = (old_mean - self.mean) / self.std
        return OutputChange(
            scale.where(known_before, scale.clamp(max=1.0)), shift.where(known_before, 0.0)
        )

    @th.no_grad()
    def extend_bounds(self, lowest: th.Tensor, highest: th.Tensor) -> None:
        """
        Extend the bounds of the values to the range of discounted sums of rewards. They hold this
        range, 0, and on either side a margin of half the width, or of the smallest deviation if
        that is larger.

        :param lowest: Least sums, ``(n, n_columns)``
        :param highest: Largest sums, ``(n, n_columns)``
        """
        n_values = len(self.weight)
        lower, upper = self.bounds
        self.bounds[0] = th.minimum(lower, lowest.reshape(-1, n_values).amin(dim=0))
        self.bounds[1] = th.maximum(upper, highest.reshape(-1, n_values).amax(dim=0))
        self.bounded.fill_(True)

    def clip(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: Values in units of reward, ``(..., n_columns)``
        :return: Values within the bounds, ``(..., n_columns)``; unchanged before the first rewards
        """
        lower, upper = self.bounds
        margin = (BOUNDS_MARGIN * (upper - lower)).clamp(min=self.epsilon**0.5)
        return values.clamp(lower - margin, upper + margin).where(self.bounded, values)

    def normalize(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: Values in units of reward, ``(..., n_columns)``
        :return: Values in standard deviations from the mean, ``(..., n_columns)``
        """
        return (values - self.mean) / self.std

    def denormalize(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: Normalised values, as the critic's network returns them, ``(..., n_columns)``
        :return: Values in units of reward, ``(..., n_columns)``; they may lie outside of the bounds
        """
        return values * self.std + self.mean

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # Files of before the bounds hold none: they begin with the next rewards
        for name in ("bounds", "bounded"):
            initial = th.zeros_like(getattr(self, name))
            state_dict.setdefault(prefix + name, initial)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class DiscountedSums:
    """
    Extremes of the discounted sums of rewards over stretches of steps. For each step, all stretches
    count that end with it and begin at any step since the last true end of an episode; later
    rewards weigh more, ``sum(gamma**(t - k) * r_k)``, so that one number per environment suffices.
    Across a time limit sums go on, as do values, which are bootstrapped there.

    :param n_envs: Number of environments
    :param n_values: Columns of the rewards
    :param gamma: Discount factor, in [0, 1]
    :param device: Device of the rewards
    """

    def __init__(
        self, n_envs: int, n_values: int, gamma: float, device: th.device | str = "cpu"
    ) -> None:
        self.gamma = gamma
        #: Least and largest sums so far, ``(n_envs, n_values)``; at most and at least 0
        self.lowest = th.zeros(n_envs, n_values, device=device)
        self.highest = th.zeros(n_envs, n_values, device=device)
        self._low = self.lowest.clone()
        self._high = self.highest.clone()

    def add(self, rewards: th.Tensor, terminated: np.ndarray) -> None:
        """
        :param rewards: Rewards of a step, ``(n_envs, n_values)``
        :param terminated: True where an episode has ended, other than by a time limit,
            ``(n_envs,)``
        """
        # A stretch is continued where that makes the sum more extreme; otherwise a new one begins
        self._low = rewards + self.gamma * self._low.clamp(max=0.0)
        self._high = rewards + self.gamma * self._high.clamp(min=0.0)
        self.lowest = th.minimum(self.lowest, self._low)
        self.highest = th.maximum(self.highest, self._high)
        if terminated.any():
            rows = th.as_tensor(terminated, device=rewards.device)
            self._low[rows] = 0.0
            self._high[rows] = 0.0

    def state(self) -> list[th.Tensor]:
        """
        :return: Sums of the present stretches and their extremes so far, for a checkpoint
        """
        return [self.lowest, self.highest, self._low, self._high]

    def restore(self, state: list[th.Tensor]) -> None:
        """
        :param state: Result of :meth:`state` for as many environments
        """
        device = self.lowest.device
        self.lowest, self.highest, self._low, self._high = (part.to(device) for part in state)
