"""
Parts of a head: conversion of an actor's outputs to the actions of one plain space.

Illegal choices get the logit :data:`ILLEGAL`, as in sb3-contrib. Their probability is then exactly
0 in float32, and products such as ``0 * log_prob`` stay finite. A choice of which nothing is legal
is therefore treated as if everything were; the action of such an agent must not count elsewhere.
"""

from abc import ABC, abstractmethod

import torch as th
from stable_baselines3.common.distributions import (
    DiagGaussianDistribution,
    SquashedDiagGaussianDistribution,
)
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch.nn import functional as F

from sb3_happo.common.distributions import ActionLeaf

ILLEGAL = -1e8

# ---------------------------------------------------------------- discrete samples with a gradient


def straight_through(hard: th.Tensor, soft: th.Tensor) -> th.Tensor:
    """
    The value of one tensor with the gradient of another (Bengio et al. 2013, arXiv 1308.3432).

    :param hard: Value, exactly, whatever the rounding of ``soft``
    :param soft: Differentiable relaxation of it, of the same shape
    :return: A tensor of the same shape
    """
    return hard + (soft - soft.detach())


def one_hot_argmax(scores: th.Tensor) -> th.Tensor:
    """
    :param scores: Score of each option, ``(..., n)``
    :return: 1 for the option of the highest score, the first of several; otherwise 0, ``(..., n)``
    """
    return F.one_hot(scores.argmax(dim=-1), scores.shape[-1]).to(scores.dtype)


def gumbel_softmax(log_probs: th.Tensor, temperature: float = 1.0) -> th.Tensor:
    """
    A sample of a categorical distribution, by the straight-through Gumbel-softmax estimator (Jang
    et al. 2017, arXiv 1611.01144). The sample is exact at every temperature, which trades the bias
    of its gradient (small at low temperatures) against the variance.

    :param log_probs: Log-probability of each option, ``(batch, n)``
    :param temperature: Temperature of the softmax whose gradient the sample gets, > 0
    :return: One-hot samples, ``(batch, n)``
    """
    # An exponential variate may round to 0, whose logarithm would be infinite
    exponential = th.empty_like(log_probs).exponential_().clamp_min(th.finfo(log_probs.dtype).tiny)
    scores = log_probs - exponential.log()
    return straight_through(one_hot_argmax(scores), (scores / temperature).softmax(dim=-1))


def binary_concrete(logits: th.Tensor, temperature: float = 1.0) -> th.Tensor:
    """
    A sample of Bernoulli distributions, the case of :func:`gumbel_softmax` for two options
    (Maddison et al. 2017, arXiv 1611.00712, appendix B).

    :param logits: Logit of each bit, ``(batch, n)``
    :param temperature: Temperature of the sigmoid whose gradient the sample gets, > 0
    :return: Zeros and ones, ``(batch, n)``
    """
    uniform = th.rand_like(logits).clamp_min(th.finfo(logits.dtype).tiny)
    scores = logits + uniform.log() - (-uniform).log1p()  # plus a logistic variate
    return straight_through((scores > 0).to(logits.dtype), (scores / temperature).sigmoid())


# ---------------------------------------------------------------- parts


class LeafHead(ABC):
    """
    One plain space under one head. It holds no parameters, and is safe to copy, pickle and share.

    All methods take the part's own columns: of the actor's output ``(batch, n_params)``, of the
    logarithms of the state-independent deviations ``(n_log_std,)`` or ``(batch, n_log_std)``, and
    of the action masks ``(batch, n_choices)``, None where all choices are legal.

    :param leaf: The plain space
    """

    #: Number of outputs of the actor's last layer
    n_params: int
    #: Number of columns of an encoded action
    n_encoded: int
    #: Number of learned state-independent deviations
    n_log_std = 0
    #: Number of options of each discrete choice, bits included
    factors: tuple[int, ...] = ()

    def __init__(self, leaf: ActionLeaf) -> None:
        self.n_actions = leaf.n_actions
        self.n_choices = leaf.n_choices

    @abstractmethod
    def encode(self, raw: th.Tensor) -> th.Tensor:
        """
        :param raw: Raw actions, ``(..., n_actions)``
        :return: Encoded actions, ``(..., n_encoded)``
        """

    @abstractmethod
    def decode(self, encoded: th.Tensor) -> th.Tensor:
        """
        :param encoded: Encoded actions, ``(..., n_encoded)``
        :return: Raw actions, ``(..., n_actions)``
        """

    @abstractmethod
    def mode(self, params: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
        """
        :param params: Outputs of the actor
        :param mask: Legal choices
        :return: Most likely encoded action, differentiable, ``(batch, n_encoded)``
        """

    @abstractmethod
    def rsample(
        self,
        params: th.Tensor,
        log_std: th.Tensor | None,
        mask: th.Tensor | None,
        temperature: float,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param params: Outputs of the actor
        :param log_std: Logarithm of the standard deviations
        :param mask: Legal choices
        :param temperature: Temperature of discrete relaxations
        :return: Encoded, differentiable sample ``(batch, n_encoded)``, and log-probability
            ``(batch,)``
        """

    def log_probabilities(self, params: th.Tensor, mask: th.Tensor | None) -> list[th.Tensor]:
        """
        :param params: Outputs of the actor
        :param mask: Legal choices
        :return: For each entry of ``factors`` the log-probability of its options, ``(batch, n)``
        """
        return []


class BoxHead(LeafHead):
    """
    A Box: raw and encoded actions are the same numbers.

    :param leaf: The plain space
    """

    def __init__(self, leaf: ActionLeaf) -> None:
        super().__init__(leaf)
        self.n_params = leaf.n_actions
        self.n_encoded = leaf.n_actions

    def encode(self, raw: th.Tensor) -> th.Tensor:
        return raw

    def decode(self, encoded: th.Tensor) -> th.Tensor:
        return encoded


class GaussianBoxHead(BoxHead):
    """
    A diagonal Gaussian with state-independent deviations, as in SB3's PPO.

    :param leaf: The plain space
    """

    def __init__(self, leaf: ActionLeaf) -> None:
        super().__init__(leaf)
        self.n_log_std = leaf.n_actions

    def mode(self, params: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
        return params

    def rsample(
        self,
        params: th.Tensor,
        log_std: th.Tensor | None,
        mask: th.Tensor | None,
        temperature: float,
    ) -> tuple[th.Tensor, th.Tensor]:
        if log_std is None:
            raise ValueError(
                "A Gaussian head needs `log_std`, the deviations that its policy holds."
            )
        distribution = DiagGaussianDistribution(self.n_actions)
        return distribution.log_prob_from_params(params, log_std)


class TanhGaussianBoxHead(GaussianBoxHead):
    """
    State-dependent noise that passes through tanh, as in SB3's gSDE with ``squash_output``.

    :param leaf: The plain space
    """

    def mode(self, params: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
        return params.tanh()


class SquashedBoxHead(BoxHead):
    """
    A diagonal Gaussian that passes through tanh, with state-dependent deviations, as in SB3's SAC.
    The outputs are the means, then the logarithms of the deviations.

    :param leaf: The plain space
    """

    def __init__(self, leaf: ActionLeaf) -> None:
        super().__init__(leaf)
        self.n_params = 2 * leaf.n_actions

    def mean_and_log_std(self, params: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        :param params: Outputs of the actor, ``(batch, 2 * n_actions)``
        :return: Means and clipped logarithms of the deviations, both ``(batch, n_actions)``
        """
        mean, log_std = params.chunk(2, dim=1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def mode(self, params: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
        return self.mean_and_log_std(params)[0].tanh()

    def rsample(
        self,
        params: th.Tensor,
        log_std: th.Tensor | None,
        mask: th.Tensor | None,
        temperature: float,
    ) -> tuple[th.Tensor, th.Tensor]:
        distribution = SquashedDiagGaussianDistribution(self.n_actions)
        return distribution.log_prob_from_params(*self.mean_and_log_std(params))


class DeterministicBoxHead(BoxHead):
    """
    A tanh of the outputs, as in SB3's TD3. Noise is added outside.

    :param leaf: The plain space
    """

    def mode(self, params: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
        return params.tanh()

    def rsample(
        self,
        params: th.Tensor,
        log_std: th.Tensor | None,
        mask: th.Tensor | None,
        temperature: float,
    ) -> tuple[th.Tensor, th.Tensor]:
        # A point: log-probability 0, as of a PointDistribution
        return params.tanh(), params.new_zeros(len(params))


class ChoiceHead(LeafHead):
    """
    Discrete or MultiDiscrete: one logit, or value, per option. Encoded actions are one-hots.

    :param leaf: The plain space
    """

    def __init__(self, leaf: ActionLeaf) -> None:
        super().__init__(leaf)
        # A MultiBinary, under a greedy head, is choices between two options
        self.factors = leaf.factors or (2,) * leaf.n_actions
        self.n_params = sum(self.factors)
        self.n_encoded = self.n_params

    def encode(self, raw: th.Tensor) -> th.Tensor:
        columns = raw.long().unbind(dim=-1)
        one_hots = []
        for column, n in zip(columns, self.factors, strict=True):
            one_hots.append(F.one_hot(column, n))
        return th.cat(one_hots, dim=-1).to(raw.dtype)

    def decode(self, encoded: th.Tensor) -> th.Tensor:
        columns = [part.argmax(dim=-1) for part in encoded.split(self.factors, dim=-1)]
        return th.stack(columns, dim=-1).to(encoded.dtype)

    def values(self, params: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
        """
        :param params: Outputs of the actor
        :param mask: Legal choices
        :return: Outputs, with :data:`ILLEGAL` where a choice is illegal, ``(batch, n_params)``
        """
        # MultiBinary has no masks: (batch, 0)
        if mask is None or not self.n_choices:
            return params
        return params.masked_fill(mask == 0, ILLEGAL)

    def log_probabilities(self, params: th.Tensor, mask: th.Tensor | None) -> list[th.Tensor]:
        logits = self.values(params, mask).split(self.factors, dim=1)
        return [part.log_softmax(dim=1) for part in logits]

    def mode(self, params: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
        one_hots = []
        # Not by the log-probabilities, which round: near options may become equal
        for logits in self.values(params, mask).split(self.factors, dim=1):
            one_hots.append(straight_through(one_hot_argmax(logits), logits.softmax(dim=1)))
        return th.cat(one_hots, dim=1)

    def rsample(
        self,
        params: th.Tensor,
        log_std: th.Tensor | None,
        mask: th.Tensor | None,
        temperature: float,
    ) -> tuple[th.Tensor, th.Tensor]:
        log_probs = self.log_probabilities(params, mask)
        one_hots = th.cat([gumbel_softmax(part, temperature) for part in log_probs], dim=1)
        return one_hots, (one_hots * th.cat(log_probs, dim=1)).sum(dim=1)


class GreedyChoiceHead(ChoiceHead):
    """
    Discrete, MultiDiscrete or MultiBinary: one value per option, and the highest is taken.

    :param leaf: The plain space
    """

    def log_probabilities(self, params: th.Tensor, mask: th.Tensor | None) -> list[th.Tensor]:
        log_probs = []
        for values in self.values(params, mask).split(self.factors, dim=1):
            log_probs.append((1 - one_hot_argmax(values)) * ILLEGAL)
        return log_probs

    def rsample(
        self,
        params: th.Tensor,
        log_std: th.Tensor | None,
        mask: th.Tensor | None,
        temperature: float,
    ) -> tuple[th.Tensor, th.Tensor]:
        raise NotImplementedError(
            "The head 'greedy' has values, not logits to sample by; use the head 'deterministic' "
            "or 'squashed'."
        )


class BitsHead(LeafHead):
    """
    MultiBinary: independent bits, with one logit each. Raw and encoded actions are zeros and ones.

    :param leaf: The plain space
    """

    def __init__(self, leaf: ActionLeaf) -> None:
        super().__init__(leaf)
        self.n_params = leaf.n_actions
        self.n_encoded = leaf.n_actions
        self.factors = (2,) * leaf.n_actions

    def encode(self, raw: th.Tensor) -> th.Tensor:
        return raw

    def decode(self, encoded: th.Tensor) -> th.Tensor:
        return encoded.detach()  # as the columns of other choices, raw bits have no gradient

    def log_probabilities(self, params: th.Tensor, mask: th.Tensor | None) -> list[th.Tensor]:
        both = th.stack([F.logsigmoid(-params), F.logsigmoid(params)], dim=2)
        return list(both.unbind(dim=1))  # (batch, n, 2) -> n times (batch, 2)

    def mode(self, params: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
        return straight_through((params > 0).to(params.dtype), params.sigmoid())

    def rsample(
        self,
        params: th.Tensor,
        log_std: th.Tensor | None,
        mask: th.Tensor | None,
        temperature: float,
    ) -> tuple[th.Tensor, th.Tensor]:
        bits = binary_concrete(params, temperature)
        log_probs = bits * F.logsigmoid(params) + (1 - bits) * F.logsigmoid(-params)
        return bits, log_probs.sum(dim=1)
