"""Probability distributions over the actions of one agent: plain, masked, squashed or hybrid."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

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
    SquashedDiagGaussianDistribution,
    StateDependentNoiseDistribution,
    make_proba_distribution,
    sum_independent_dims,
)
from stable_baselines3.common.preprocessing import get_action_dim
from torch import nn

from sb3_happo.common.state_dependent_noise import SdeDeviations, SdeOptions

# ---------------------------------------------------------------- action spaces


class ActionLeaf(NamedTuple):
    """
    One plain space inside an agent's action space.

    :param path: Field names that lead to it, outermost first; empty where the whole space is plain
    :param space: The plain space, in the form of :func:`plain_form`
    :param n_actions: Number of its columns in the agent's raw action
    :param n_params: Number of means or logits of its distribution
    :param n_choices: Length of its action mask; 0 for spaces that have none
    """

    path: tuple[str, ...]
    space: spaces.Space
    n_actions: int
    n_params: int
    n_choices: int

    @property
    def factors(self) -> tuple[int, ...]:
        """
        :return: Number of options of each choice that an action mask covers: ``(n,)`` for Discrete,
            ``nvec`` for MultiDiscrete, empty for the others
        """
        if isinstance(self.space, spaces.MultiDiscrete):
            return tuple(int(n) for n in self.space.nvec)
        return (self.n_choices,) if self.n_choices else ()


def plain_form(space: spaces.Space) -> spaces.Space:
    """
    The form of a space that SB3's distributions are made for: MultiDiscrete and MultiBinary of one
    dimension, and Boxes of float32.

    :param space: Box, Discrete, MultiDiscrete or MultiBinary
    :return: A space of the same size. Its actions, reshaped, lie within the given space
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
    The plain spaces inside an agent's action space, in the order of the columns of raw actions.

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


def starts_of_choices(leaves: Iterable[ActionLeaf]) -> np.ndarray:
    """
    The layout of an agent's action masks.

    :param leaves: Leaves of the agent's action space
    :return: First column of each discrete choice in the masks, ``(n_factors,)``
    """
    sizes: list[int] = []
    for leaf in leaves:
        sizes.extend(leaf.factors)
    return np.cumsum([0, *sizes[:-1]])


# ---------------------------------------------------------------- distributions

#: Deviations of the continuous columns: logarithms, ``(n_continuous,)`` or one row per sample, or
#: state-dependent ones
Deviations: TypeAlias = th.Tensor | SdeDeviations


def make_action_distribution(
    action_space: spaces.Space,
    masked: bool = False,
    squashed: bool = False,
    sde: SdeOptions | None = None,
) -> Distribution:
    """
    The distribution for an agent's action space: SB3's own for plain spaces, sb3-contrib's maskable
    ones where the agent has action masks, and a :class:`HybridDistribution` for Dict and Tuple
    spaces.

    :param action_space: The agent's action space
    :param masked: Whether the Discrete and MultiDiscrete parts are masked
    :param squashed: Whether the Gaussians of Box parts pass through tanh, as in SB3's SAC
    :param sde: Form of state-dependent noise of Box parts; None for a Gaussian
    :return: A distribution without parameters yet
    """
    if isinstance(action_space, (spaces.Dict, spaces.Tuple)):
        return HybridDistribution(action_space, masked, squashed, sde)
    action_space = plain_form(action_space)
    if masked and isinstance(action_space, (spaces.Discrete, spaces.MultiDiscrete)):
        return make_masked_proba_distribution(action_space)
    if sde is not None and isinstance(action_space, spaces.Box):
        return sde.distribution(get_action_dim(action_space))
    if squashed and isinstance(action_space, spaces.Box):
        return SquashedDiagGaussianDistribution(get_action_dim(action_space))
    return make_proba_distribution(action_space)


def set_parameters(
    distribution: Distribution,
    params: th.Tensor,
    log_std: Deviations | None,
    action_masks: th.Tensor | None = None,
) -> Distribution:
    """
    Give a distribution of :func:`make_action_distribution` its parameters.

    :param distribution: The distribution, changed in place
    :param params: Means and logits, ``(batch, n_params)``
    :param log_std: Logarithm of the standard deviations of the continuous columns,
        ``(n_continuous,)`` or one row per sample; or those of state-dependent noise
    :param action_masks: 1 where a choice is legal, ``(batch, n_choices)``
    :return: ``distribution``
    """
    if isinstance(distribution, HybridDistribution):
        return distribution.proba_distribution(params, log_std, action_masks)
    if isinstance(distribution, StateDependentNoiseDistribution):
        assert isinstance(log_std, SdeDeviations)
        return log_std.set_parameters(distribution, params)
    if isinstance(distribution, DiagGaussianDistribution):
        assert isinstance(log_std, th.Tensor)
        return distribution.proba_distribution(params, log_std)
    distribution.proba_distribution(params)
    if action_masks is not None and isinstance(distribution, MaskableDistribution):
        distribution.apply_masking(action_masks)
    return distribution


def _columns(log_std: Deviations, start: int, stop: int) -> Deviations:
    if isinstance(log_std, SdeDeviations):
        return log_std.columns(start, stop)
    return log_std[..., start:stop]


class HybridDistribution(Distribution):
    """
    Independent distributions over the parts of a Dict or Tuple action space.
    The log-probability and the entropy of an action are the sums over its parts.

    Actions are float tensors ``(batch, action_dim)``: the columns of the parts, in the order of
    :func:`action_leaves`.

    :param action_space: Dict or Tuple of Box, Discrete, MultiDiscrete, MultiBinary, or of further
        Dicts and Tuples
    :param masked: Whether the Discrete and MultiDiscrete parts are masked
    :param squashed: Whether the Gaussians of Box parts pass through tanh
    :param sde: Form of state-dependent noise of Box parts; None for Gaussians
    """

    def __init__(
        self,
        action_space: spaces.Dict | spaces.Tuple,
        masked: bool = False,
        squashed: bool = False,
        sde: SdeOptions | None = None,
    ) -> None:
        super().__init__()
        self.leaves = list(action_leaves(action_space))
        self.parts = [
            make_action_distribution(leaf.space, masked, squashed, sde) for leaf in self.leaves
        ]
        self._n_params = [leaf.n_params for leaf in self.leaves]
        self._n_actions = [leaf.n_actions for leaf in self.leaves]
        self._n_choices = [leaf.n_choices for leaf in self.leaves]

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """
        The linear layer whose outputs are the means and logits of all parts.

        :param latent_dim: Number of features at the end of the policy network
        :return: The layer
        """
        return nn.Linear(latent_dim, sum(self._n_params))

    def proba_distribution(
        self,
        params: th.Tensor,
        log_std: Deviations | None = None,
        action_masks: th.Tensor | None = None,
    ) -> "HybridDistribution":
        """
        Set the parameters of every part.

        :param params: Means and logits, ``(batch, n_params)``
        :param log_std: Logarithm of the standard deviations, ``(n_continuous,)`` or
            ``(batch, n_continuous)``; None where no part is continuous
        :param action_masks: Masks of the discrete parts one after the other, ``(batch, n_choices)``
        :return: self
        """
        masks: Sequence[th.Tensor | None] = [None] * len(self.parts)
        if action_masks is not None:
            masks = action_masks.split(self._n_choices, dim=1)
        start = 0
        for part, leaf, leaf_params, mask in zip(
            self.parts, self.leaves, params.split(self._n_params, dim=1), masks, strict=True
        ):
            leaf_std = None
            if isinstance(leaf.space, spaces.Box):
                assert log_std is not None
                leaf_std = _columns(log_std, start, start + leaf.n_actions)
                start += leaf.n_actions
            set_parameters(part, leaf_params, leaf_std, mask)
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        Joint log-probability of the parts of an action.

        :param actions: Raw actions, ``(batch, action_dim)``
        :return: Log-probabilities, ``(batch,)``
        """
        log_probs = []
        columns = actions.split(self._n_actions, dim=1)
        for leaf, part, column in zip(self.leaves, self.parts, columns, strict=True):
            if isinstance(leaf.space, spaces.Discrete):
                column = column.flatten()  # (batch, 1) -> (batch,), the form of a Categorical
            log_probs.append(part.log_prob(column))
        return th.stack(log_probs).sum(dim=0)

    def entropy(self) -> th.Tensor | None:
        """
        Joint entropy of the parts.

        :return: Entropies, ``(batch,)``; None if a part is squashed, which has no closed form
        """
        entropies = []
        for part in self.parts:
            entropy = part.entropy()
            if entropy is None:
                return None
            entropies.append(entropy)
        return th.stack(entropies).sum(dim=0)

    def _join(self, columns: list[th.Tensor]) -> th.Tensor:
        """Join the columns of the parts, ``(batch,)`` or ``(batch, n)``."""
        return th.cat([column.reshape(len(column), -1).float() for column in columns], dim=1)

    def sample(self, normals: th.Tensor | None = None) -> th.Tensor:
        """
        :param normals: Standard normal numbers for the continuous columns,
            ``(batch, n_continuous)``; None for independent ones
        :return: Sampled raw actions, ``(batch, action_dim)``
        """
        columns = []
        start = 0
        for part, leaf in zip(self.parts, self.leaves, strict=True):
            own = None
            if normals is not None and isinstance(leaf.space, spaces.Box):
                own = normals[:, start : start + leaf.n_actions]
                start += leaf.n_actions
            columns.append(draw_actions(part, normals=own))
        return self._join(columns)

    def mode(self) -> th.Tensor:
        """
        :return: Most likely raw action of each part, ``(batch, action_dim)``
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
        Raw actions of the distribution with the given parameters.

        :param params: Means and logits, ``(batch, n_params)``
        :param log_std: Logarithm of the standard deviations, ``(n_continuous,)``
        :param action_masks: 1 where a choice is legal, ``(batch, n_choices)``
        :param deterministic: Take the mode instead of a sample
        :return: Raw actions, ``(batch, action_dim)``
        """
        return self.proba_distribution(params, log_std, action_masks).get_actions(deterministic)

    def log_prob_from_params(
        self,
        params: th.Tensor,
        log_std: th.Tensor | None = None,
        action_masks: th.Tensor | None = None,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Sampled raw actions of the distribution with the given parameters, with log-probabilities.

        :param params: Means and logits, ``(batch, n_params)``
        :param log_std: Logarithm of the standard deviations, ``(n_continuous,)``
        :param action_masks: 1 where a choice is legal, ``(batch, n_choices)``
        :return: Raw actions ``(batch, action_dim)`` and log-probabilities ``(batch,)``
        """
        actions = self.actions_from_params(params, log_std, action_masks)
        return actions, self.log_prob(actions)


def draw_actions(
    distribution: Distribution, deterministic: bool = False, normals: th.Tensor | None = None
) -> th.Tensor:
    """
    Raw actions of a distribution whose Gaussian draws may be given.

    :param distribution: Distribution with its parameters
    :param deterministic: Most likely actions instead of samples
    :param normals: Standard normal numbers for the continuous columns, ``(batch, n_continuous)``;
        None for independent ones
    :return: Raw actions, in the form of ``distribution.get_actions``
    """
    if deterministic or normals is None:
        return distribution.get_actions(deterministic=deterministic)
    if isinstance(distribution, HybridDistribution):
        return distribution.sample(normals)
    if isinstance(distribution, DiagGaussianDistribution):
        return distribution.distribution.mean + distribution.distribution.stddev * normals
    return distribution.sample()


class PointDistribution(Distribution):
    """
    All probability on one action: the policy of a deterministic or greedy actor.

    The log-probability is 0 for this action and minus infinity for any other, the entropy 0: the
    numbers of a point mass under the counting measure (a point in a Box has no density). They have
    no gradient, so that a policy-gradient loss fails in ``backward`` instead of learning nothing.
    """

    #: Largest difference that counts as the same action: batches of other sizes round differently
    TOLERANCE = 1e-5

    actions: th.Tensor

    def proba_distribution_net(self, latent_dim: int) -> nn.Module:
        """
        Not defined: the number of outputs depends on the head.

        :param latent_dim: Number of features at the end of the policy network
        :raises NotImplementedError: Always
        """
        raise NotImplementedError("A point has no layer of its own; use make_head(...).n_params.")

    def proba_distribution(self, actions: th.Tensor) -> "PointDistribution":
        """
        Set the action.

        :param actions: Raw actions, ``(batch, action_dim)``
        :return: self
        """
        self.actions = actions
        return self

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """
        :param actions: Raw actions, ``(batch, action_dim)``, or ``(batch,)`` if there is one column
        :return: 0 for the action of the distribution, minus infinity for others, ``(batch,)``
        """
        own = self.actions.detach()
        distance = (actions.reshape(own.shape) - own).abs().amax(dim=1)
        return th.zeros_like(distance).masked_fill(distance > self.TOLERANCE, -th.inf)

    def entropy(self) -> th.Tensor:
        """
        :return: Zeros, ``(batch,)``
        """
        return th.zeros_like(self.actions[:, 0]).detach()

    def sample(self) -> th.Tensor:
        """
        :return: Raw actions, ``(batch, action_dim)``
        """
        return self.actions

    def mode(self) -> th.Tensor:
        """
        :return: Raw actions, ``(batch, action_dim)``
        """
        return self.actions

    def actions_from_params(self, actions: th.Tensor, deterministic: bool = False) -> th.Tensor:
        """
        :param actions: Raw actions, ``(batch, action_dim)``
        :param deterministic: Without effect
        :return: Raw actions, ``(batch, action_dim)``
        """
        return self.proba_distribution(actions).get_actions(deterministic)

    def log_prob_from_params(self, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param actions: Raw actions, ``(batch, action_dim)``
        :return: Raw actions ``(batch, action_dim)`` and their log-probabilities, zeros ``(batch,)``
        """
        return self.actions_from_params(actions), self.log_prob(actions)


@contextmanager
def unvalidated() -> Iterator[None]:
    """
    PyTorch's distributions without validation of their arguments, which costs as much as a layer of
    a small network.
    """
    before = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.distributions.Distribution.set_default_validate_args(before)


# ---------------------------------------------------------------- divergence


def kl_divergence(old: Distribution, new: Distribution) -> th.Tensor:
    """
    KL divergence between two distributions over the same agent's actions, summed over the columns
    of an action. SB3's ``kl_divergence`` keeps the columns apart, and does not take masked and
    hybrid distributions.

    For squashed distributions it is the divergence of the Gaussians before tanh: a bijection,
    applied to both, does not change the divergence.

    :param old: Reference distribution
    :param new: Distribution of the same form
    :return: ``KL(old || new)``, ``(batch,)``
    :raises TypeError: If a distribution is a point, between two of which the divergence is 0 or
        infinite
    """
    if isinstance(old, HybridDistribution):
        assert isinstance(new, HybridDistribution)
        parts = zip(old.parts, new.parts, strict=True)
        return th.stack([kl_divergence(*pair) for pair in parts]).sum(dim=0)
    divergences = []
    for components in zip(_components(old), _components(new), strict=True):
        divergence = th.distributions.kl_divergence(*components)
        # (batch,) of a Categorical, (batch, n) of Gaussians and Bernoullis -> (batch, 1 or n)
        columns = divergence.unsqueeze(1).flatten(start_dim=1)
        divergences.append(sum_independent_dims(columns))
    return th.stack(divergences).sum(dim=0)


def _components(distribution: Distribution) -> list[th.distributions.Distribution]:
    """The PyTorch distributions of a plain one: one, or one per choice of a MultiDiscrete."""
    if isinstance(distribution, PointDistribution):
        raise TypeError(
            "A deterministic or greedy actor has no KL divergence; use the head 'gaussian' or "
            "'squashed' with an algorithm that measures it."
        )
    if isinstance(distribution, MaskableMultiCategoricalDistribution):
        return list(distribution.distributions)
    inner = distribution.distribution
    return list(inner) if isinstance(inner, (list, tuple)) else [inner]
