"""Probability distributions over one agent's actions, plain, masked or hybrid."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import (
    MaskableDistribution,
    MaskableMultiCategoricalDistribution,
    make_masked_proba_distribution,
)
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    Distribution,
    make_proba_distribution,
    sum_independent_dims,
)
from stable_baselines3.common.preprocessing import get_action_dim
from torch import nn


class ActionLeaf(NamedTuple):
    """
    One plain space inside an agent's action space.

    :param path: Field names that lead to it, outermost first; empty where the whole space is plain
    :param space: The plain space, in the form of :func:`plain_form`
    :param n_actions: Columns it takes in the agent's raw action
    :param n_params: Outputs of the policy network that parametrise it (means or logits)
    :param n_choices: Length of its action mask; 0 for spaces that have none
    """

    path: tuple[str, ...]
    space: spaces.Space
    n_actions: int
    n_params: int
    n_choices: int


def plain_form(space: spaces.Space) -> spaces.Space:
    """
    What the distributions, SB3's own, are made for: MultiDiscrete and MultiBinary of one dimension, and Boxes of float32.

    :param space: Box, Discrete, MultiDiscrete or MultiBinary
    :return: A space of the same size whose actions, brought into the space's own shape, lie within the space
    """
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim != 1:
        return spaces.MultiDiscrete(space.nvec.ravel(), start=space.start.ravel())
    if isinstance(space, spaces.MultiBinary) and len(space.shape) != 1:
        return spaces.MultiBinary(int(np.prod(space.shape)))
    if isinstance(space, spaces.Box) and space.dtype != np.float32:
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        # Rounded bounds may lie outside: float32(0.1) > 0.1
        low = np.where(low < space.low, np.nextafter(low, np.float32(np.inf)), low)
        high = np.where(high > space.high, np.nextafter(high, np.float32(-np.inf)), high)
        return spaces.Box(low, high, dtype=np.float32)
    return space


def action_leaves(space: spaces.Space, path: tuple[str, ...] = ()) -> Iterator[ActionLeaf]:
    """
    The plain spaces inside an agent's action space, in the order in which raw actions hold them.

    :param space: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these
    :param path: Field names that lead to ``space``
    :return: An iterator over the leaves
    """
    if isinstance(space, spaces.Dict):
        for key, subspace in space.spaces.items():
            yield from action_leaves(subspace, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, subspace in enumerate(space.spaces):
            yield from action_leaves(subspace, (*path, str(index)))
    else:
        space = plain_form(space)
        n_actions = get_action_dim(space)
        n_choices = 0
        if isinstance(space, spaces.Discrete):
            n_choices = int(space.n)
        elif isinstance(space, spaces.MultiDiscrete):
            n_choices = int(space.nvec.sum())
        yield ActionLeaf(path, space, n_actions, n_choices or n_actions, n_choices)


def make_action_distribution(action_space: spaces.Space, masked: bool = False) -> Distribution:
    """
    The distribution for an agent's action space: SB3's own for plain spaces, sb3-contrib's maskable ones where the
    agent has action masks, and a :class:`HybridDistribution` for Dict and Tuple spaces.

    :param action_space: The agent's action space
    :param masked: Whether the discrete parts are masked
    :return: A distribution without parameters yet
    """
    if isinstance(action_space, (spaces.Dict, spaces.Tuple)):
        return HybridDistribution(action_space, masked)
    action_space = plain_form(action_space)
    if masked and isinstance(action_space, (spaces.Discrete, spaces.MultiDiscrete)):
        return make_masked_proba_distribution(action_space)
    return make_proba_distribution(action_space)


def set_parameters(
    distribution: Distribution,
    params: th.Tensor,
    log_std: th.Tensor | None,
    action_masks: th.Tensor | None = None,
) -> Distribution:
    """
    Give a distribution of :func:`make_action_distribution` its parameters.

    :param distribution: The distribution, changed in place
    :param params: Output of the policy network (means, logits), ``(batch, n_params)``
    :param log_std: Logarithm of the standard deviations of the continuous dimensions, ``(n_continuous,)`` or one row per
        sample
    :param action_masks: 1 where a choice is legal, ``(batch, n_choices)``
    :return: ``distribution``
    """
    if isinstance(distribution, HybridDistribution):
        return distribution.proba_distribution(params, log_std, action_masks)
    if isinstance(distribution, DiagGaussianDistribution):
        assert log_std is not None
        return distribution.proba_distribution(params, log_std)
    distribution.proba_distribution(params)
    if action_masks is not None and isinstance(distribution, MaskableDistribution):
        distribution.apply_masking(action_masks)
    return distribution


class HybridDistribution(Distribution):
    """
    Independent distributions over the parts of a Dict or Tuple action space.
    The log-probability and the entropy of an action are the sums over its parts.

    Actions are float tensors ``(batch, action_dim)``: the columns of the parts, in the order of
    :func:`action_leaves`.

    :param action_space: Dict or Tuple of Box, Discrete, MultiDiscrete, MultiBinary, or of further Dicts and Tuples
    :param masked: Whether the Discrete and MultiDiscrete parts are masked
    """

    def __init__(self, action_space: spaces.Dict | spaces.Tuple, masked: bool = False) -> None:
        super().__init__()
        self.leaves = list(action_leaves(action_space))
        self.parts = [make_action_distribution(leaf.space, masked) for leaf in self.leaves]
        self._n_params = [leaf.n_params for leaf in self.leaves]
        self._n_actions = [leaf.n_actions for leaf in self.leaves]
        self._n_choices = [leaf.n_choices for leaf in self.leaves]

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """
        The linear layer whose outputs parametrise all parts.

        :param latent_dim: Features that the policy network ends with
        :return: The layer
        """
        return nn.Linear(latent_dim, sum(self._n_params))

    def proba_distribution(
        self,
        params: th.Tensor,
        log_std: th.Tensor | None = None,
        action_masks: th.Tensor | None = None,
    ) -> "HybridDistribution":
        """
        Set the parameters of every part.

        :param params: ``(batch, n_params)``
        :param log_std: ``(n_continuous,)``, None where no part is continuous
        :param action_masks: ``(batch, n_choices)``, the masks of the discrete parts one after the other
        :return: self
        """
        masks = (
            [None] * len(self.parts)
            if action_masks is None
            else action_masks.split(self._n_choices, dim=1)
        )
        start = 0
        for part, leaf, leaf_params, mask in zip(
            self.parts, self.leaves, params.split(self._n_params, dim=1), masks, strict=True
        ):
            leaf_std = None
            if isinstance(leaf.space, spaces.Box):
                assert log_std is not None
                leaf_std = log_std[..., start : start + leaf.n_actions]
                start += leaf.n_actions
            set_parameters(part, leaf_params, leaf_std, mask)
        return self

    def _columns(self, actions: th.Tensor) -> list[th.Tensor]:
        return [
            column.flatten() if isinstance(leaf.space, spaces.Discrete) else column
            for leaf, column in zip(self.leaves, actions.split(self._n_actions, dim=1), strict=True)
        ]

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: ``(batch, action_dim)``
        :return: Joint log-probability of the parts, ``(batch,)``
        """
        pairs = zip(self.parts, self._columns(actions), strict=True)
        return th.stack([part.log_prob(column) for part, column in pairs]).sum(dim=0)

    def entropy(self) -> th.Tensor:
        """
        :return: Joint entropy of the parts, ``(batch,)``
        """
        entropies = [part.entropy() for part in self.parts]
        return th.stack([entropy for entropy in entropies if entropy is not None]).sum(dim=0)

    def _join(self, columns: list[th.Tensor]) -> th.Tensor:
        return th.cat([column.reshape(len(column), -1).float() for column in columns], dim=1)

    def sample(self) -> th.Tensor:
        """
        :return: ``(batch, action_dim)``
        """
        return self._join([part.sample() for part in self.parts])

    def mode(self) -> th.Tensor:
        """
        :return: The most likely action of each part, ``(batch, action_dim)``
        """
        return self._join([part.mode() for part in self.parts])

    def actions_from_params(
        self,
        params: th.Tensor,
        log_std: th.Tensor | None = None,
        action_masks: th.Tensor | None = None,
        deterministic: bool = False,
    ) -> th.Tensor:
        """
        :param params: ``(batch, n_params)``
        :param log_std: ``(n_continuous,)``
        :param action_masks: ``(batch, n_choices)``
        :param deterministic: Take the mode instead of a sample
        :return: ``(batch, action_dim)``
        """
        return self.proba_distribution(params, log_std, action_masks).get_actions(deterministic)

    def log_prob_from_params(
        self,
        params: th.Tensor,
        log_std: th.Tensor | None = None,
        action_masks: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param params: ``(batch, n_params)``
        :param log_std: ``(n_continuous,)``
        :param action_masks: ``(batch, n_choices)``
        :return: Sampled actions ``(batch, action_dim)`` and their log-probabilities ``(batch,)``
        """
        actions = self.actions_from_params(params, log_std, action_masks)
        return actions, self.log_prob(actions)


@contextmanager
def unvalidated() -> Iterator[None]:
    """PyTorch's distributions without a look at their arguments, which costs as much as a layer of a small network."""
    before = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.distributions.Distribution.set_default_validate_args(before)


def starts_of_choices(leaves: Iterable[ActionLeaf]) -> np.ndarray:
    """
    :param leaves: Of an agent's action space
    :return: Where each discrete choice begins in its action masks
    """
    sizes: list[int] = []
    for leaf in leaves:
        if isinstance(leaf.space, spaces.MultiDiscrete):
            sizes.extend(int(n) for n in leaf.space.nvec.flatten())
        elif leaf.n_choices:
            sizes.append(leaf.n_choices)
    return np.cumsum([0, *sizes[:-1]])


def kl_divergence(old: Distribution, new: Distribution) -> th.Tensor:
    """
    KL divergence between two distributions over the same agent's actions, of whole actions: summed over their dimensions.
    (SB3's ``kl_divergence`` leaves the dimensions apart, and does not know masked and hybrid distributions.)

    :param old: The reference
    :param new: What to measure
    :return: ``KL(old || new)``, ``(batch,)``
    """
    if isinstance(old, HybridDistribution):
        assert isinstance(new, HybridDistribution)
        return th.stack(
            [kl_divergence(*parts) for parts in zip(old.parts, new.parts, strict=True)]
        ).sum(dim=0)
    divergences = [
        # A Gaussian's and a Bernoulli's dimensions come apart, (batch, n); a Categorical has none
        sum_independent_dims(
            th.distributions.kl_divergence(*heads).unsqueeze(1).flatten(start_dim=1)
        )
        for heads in zip(_heads(old), _heads(new), strict=True)
    ]
    return th.stack(divergences).sum(dim=0)


def _heads(distribution: Distribution) -> list[th.distributions.Distribution]:
    """The PyTorch distributions that a plain one consists of: one, or one per choice of a MultiDiscrete."""
    if isinstance(distribution, MaskableMultiCategoricalDistribution):
        return list(distribution.distributions)
    inner = distribution.distribution
    return list(inner) if isinstance(inner, (list, tuple)) else [inner]
