"""
The head of an actor: conversion of the outputs of its last layer to actions.

A head is stateless. The policy holds the layer and the deviations; the head defines their sizes and
their meaning. An action has two forms:

* raw, ``(batch, action_dim)``: sampled, stored and sent to the environment. Box columns are
  numbers, Discrete and MultiDiscrete columns count from 0, MultiBinary columns are 0 or 1.
* encoded, ``(batch, n_encoded)``: input of a Q network. Box and MultiBinary columns are the same as
  in raw actions; each Discrete and each factor of MultiDiscrete is a one-hot. Encoded samples are
  differentiable.

========================  =====================  ==========================  =======================
head                      Box                    Discrete, MultiDiscrete     as in
========================  =====================  ==========================  =======================
``gaussian``              Gaussian, its          categorical                 PPO, HAPPO
                          deviations learned
                          for all states
``squashed``              tanh of a Gaussian,    categorical                 SAC, HASAC
                          deviations per state
``deterministic``         tanh                   most likely option          TD3, HATD3, MADDPG
``greedy``                refused                option of highest value     DQN, IQL, VDN, QMIX
========================  =====================  ==========================  =======================
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution

from sb3_happo.common.distributions import (
    ActionLeaf,
    Deviations,
    PointDistribution,
    action_leaves,
    make_action_distribution,
    set_parameters,
)
from sb3_happo.common.leaf_heads import (
    BitsHead,
    BoxHead,
    ChoiceHead,
    DeterministicBoxHead,
    GaussianBoxHead,
    GreedyChoiceHead,
    LeafHead,
    SquashedBoxHead,
    TanhGaussianBoxHead,
)
from sb3_happo.common.state_dependent_noise import SdeDeviations
from sb3_happo.suggestions import check_names

HeadName = Literal["gaussian", "squashed", "deterministic", "greedy"]

#: Largest number of combinations of discrete choices that :meth:`Head.expand` computes
MAX_COMBINATIONS = 1024


class Expansion(NamedTuple):
    """
    Every combination of an actor's own discrete choices, for exact expectations:
    ``(probs * f(actions, log_probs)).sum(dim=1)``.

    :param actions: Encoded actions, ``(batch, n_combinations, n_encoded)``. Continuous columns are
        one sample per row, the same in all combinations
    :param log_probs: Log-probability of each whole action, ``(batch, n_combinations)``
    :param probs: Probability of each combination of discrete choices, exactly 0 for illegal ones,
        ``(batch, n_combinations)``
    """

    actions: th.Tensor
    log_probs: th.Tensor
    probs: th.Tensor


class _Inputs(NamedTuple):
    """
    The inputs of one part of a head.

    :param part: The part
    :param params: Outputs of the actor that belong to it, ``(batch, part.n_params)``
    :param log_std: State-independent deviations that belong to it, or None
    :param mask: Action masks that belong to it, ``(batch, part.n_choices)``, or None
    """

    part: LeafHead
    params: th.Tensor
    log_std: th.Tensor | None
    mask: th.Tensor | None


class Head(ABC):
    """
    Conversion of the outputs of an actor's last layer to actions; the base of all heads.

    :param action_space: The agent's action space: Box, Discrete, MultiDiscrete, MultiBinary, or a
        Dict or Tuple of these
    :param masked: Whether the agent has action masks
    """

    name: ClassVar[HeadName]
    box_head: ClassVar[type[BoxHead]]

    def __init__(self, action_space: spaces.Space, masked: bool = False) -> None:
        self.action_space = action_space
        self.masked = masked
        self.leaves = list(action_leaves(action_space))
        self.parts = [self._make_part(leaf) for leaf in self.leaves]
        self._n_actions = [part.n_actions for part in self.parts]
        self._n_choices = [part.n_choices for part in self.parts]
        self._n_params = [part.n_params for part in self.parts]
        self._n_encoded = [part.n_encoded for part in self.parts]

    @property
    def n_params(self) -> int:
        """
        :return: Number of outputs of the actor's last layer
        """
        return sum(self._n_params)

    @property
    def n_log_std(self) -> int:
        """
        :return: Number of learned state-independent deviations that the policy must hold
        """
        return sum(part.n_log_std for part in self.parts)

    @property
    def n_encoded(self) -> int:
        """
        :return: Number of columns of an encoded action
        """
        return sum(self._n_encoded)

    @property
    def factors(self) -> list[int]:
        """
        :return: Number of options of each discrete choice, bits included, in the order of the
            columns of raw actions
        """
        sizes: list[int] = []
        for part in self.parts:
            sizes.extend(part.factors)
        return sizes

    @property
    def n_combinations(self) -> int:
        """
        :return: Number of combinations of discrete choices; 1 where there are none
        """
        return math.prod(self.factors)

    def _make_part(self, leaf: ActionLeaf) -> LeafHead:
        """
        :param leaf: One plain space
        :return: The part of this head for it
        """
        if isinstance(leaf.space, spaces.Box):
            return self.box_head(leaf)
        if isinstance(leaf.space, spaces.MultiBinary):
            return BitsHead(leaf)
        return ChoiceHead(leaf)

    def _check_masks(self, action_masks: th.Tensor | None) -> None:
        """
        :param action_masks: Action masks, ``(batch, n_choices)``
        :raises ValueError: If they are of another length, or the head was made without masks
        """
        if action_masks is None:
            return
        n_choices = sum(self._n_choices)
        if action_masks.shape[-1] != n_choices:
            raise ValueError(
                f"Action masks of shape {tuple(action_masks.shape)} do not fit {self.action_space};"
                f" give one column for each of its {n_choices} choices."
            )
        if n_choices and not self.masked:
            raise ValueError(
                f"The head {self.name!r} for {self.action_space} was made without action masks and "
                "would ignore them; make it with masked=True."
            )

    def _split(
        self,
        params: th.Tensor,
        log_std: th.Tensor | None = None,
        action_masks: th.Tensor | None = None,
    ) -> list[_Inputs]:
        """
        :param params: Outputs of the actor, ``(batch, n_params)``
        :param log_std: Logarithm of the state-independent deviations, ``(..., n_log_std)``
        :param action_masks: Action masks, ``(batch, n_choices)``
        :return: Inputs of each part
        :raises ValueError: If the masks do not fit
        """
        self._check_masks(action_masks)
        inputs = []
        log_std_start, mask_start = 0, 0
        for part, own in zip(self.parts, params.split(self._n_params, dim=1), strict=True):
            own_std, mask = None, None
            if log_std is not None:
                own_std = log_std[..., log_std_start : log_std_start + part.n_log_std]
            if action_masks is not None and part.n_choices:
                mask = action_masks[:, mask_start : mask_start + part.n_choices]
            log_std_start += part.n_log_std
            mask_start += part.n_choices
            inputs.append(_Inputs(part, own, own_std, mask))
        return inputs

    # ------------------------------------------------------------ acting

    @abstractmethod
    def distribution(
        self,
        params: th.Tensor,
        log_std: Deviations | None = None,
        action_masks: th.Tensor | None = None,
    ) -> Distribution:
        """
        The distribution over raw actions. A new one per call, so that threads do not share it.

        As in SB3, actions of a Discrete space are ``(batch,)``, all others ``(batch, action_dim)``;
        deterministic and greedy heads always have ``(batch, action_dim)``.

        :param params: Outputs of the actor, ``(batch, n_params)``
        :param log_std: Logarithm of the state-independent deviations, ``(n_log_std,)`` or
            ``(batch, n_log_std)``, or those of state-dependent noise ("gaussian" only); None for
            heads that have none
        :param action_masks: 1 where a choice is legal, ``(batch, n_choices)``; None where all are
        :return: SB3's interface: sample, mode, log_prob, entropy, get_actions
        :raises ValueError: If the masks do not fit
        """

    def mode(self, params: th.Tensor, action_masks: th.Tensor | None = None) -> th.Tensor:
        """
        The most likely encoded action. Box columns are differentiable as they are (TD3's actor),
        discrete ones by the straight-through softmax: the value is the one-hot of the argmax, the
        gradient that of the probabilities.

        :param params: Outputs of the actor, ``(batch, n_params)``
        :param action_masks: 1 where a choice is legal, ``(batch, n_choices)``; None where all are
        :return: Encoded actions, ``(batch, n_encoded)``
        :raises ValueError: If the masks do not fit
        """
        actions = []
        for part, own, _, mask in self._split(params, None, action_masks):
            actions.append(part.mode(own, mask))
        return th.cat(actions, dim=1)

    # ------------------------------------------------------------ forms of an action

    def encode(self, raw: th.Tensor) -> th.Tensor:
        """
        The form of an action that a Q network reads.

        :param raw: Raw actions, ``(batch, action_dim)``, or ``(batch,)`` if there is one column
        :return: Encoded actions, float, ``(batch, n_encoded)``
        """
        if not raw.is_floating_point():
            raw = raw.float()
        columns = raw.reshape(-1, sum(self._n_actions)).split(self._n_actions, dim=1)
        pairs = zip(self.parts, columns, strict=True)
        return th.cat([part.encode(column) for part, column in pairs], dim=1)

    def decode(self, encoded: th.Tensor) -> th.Tensor:
        """
        The inverse of :meth:`encode`.

        :param encoded: Encoded actions, ``(batch, n_encoded)``
        :return: Raw actions, ``(batch, action_dim)``; only Box columns keep their gradient
        """
        pairs = zip(self.parts, encoded.split(self._n_encoded, dim=1), strict=True)
        return th.cat([part.decode(column) for part, column in pairs], dim=1)

    # ------------------------------------------------------------ learning

    def rsample(
        self,
        params: th.Tensor,
        log_std: th.Tensor | None = None,
        action_masks: th.Tensor | None = None,
        temperature: float = 1.0,
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Differentiable samples. Gaussians are reparametrised, discrete choices and bits are drawn by
        the straight-through Gumbel-softmax, at any temperature from the exact distribution.

        The log-probability of discrete choices has the value of the hard choice. Its gradient has
        two paths, the probabilities and the sample: the first alone is zero in the mean, and an
        entropy term made of it would have no effect.

        A deterministic head adds no noise to Box columns, and counts them with log-probability 0.
        Its discrete choices are drawn, as in MADDPG's actor update; :meth:`mode` draws nothing.

        :param params: Outputs of the actor, ``(batch, n_params)``
        :param log_std: Logarithm of the state-independent deviations, ``(n_log_std,)`` or
            ``(batch, n_log_std)``; None for heads that have none
        :param action_masks: 1 where a choice is legal, ``(batch, n_choices)``; None where all are
        :param temperature: Temperature of the relaxation that discrete choices get their gradient
            from, > 0: high values for little variance, low values for little bias
        :return: Encoded actions ``(batch, n_encoded)`` and their log-probabilities ``(batch,)``
        :raises ValueError: If the masks do not fit, or the temperature is not positive
        :raises NotImplementedError: By a greedy head
        """
        if temperature <= 0:
            raise ValueError(f"temperature must be positive, not {temperature}")
        actions, log_probs = [], []
        for part, own, own_std, mask in self._split(params, log_std, action_masks):
            action, log_prob = part.rsample(own, own_std, mask, temperature)
            actions.append(action)
            log_probs.append(log_prob)
        return th.cat(actions, dim=1), th.stack(log_probs).sum(dim=0)

    def probabilities(
        self, params: th.Tensor, action_masks: th.Tensor | None = None
    ) -> list[th.Tensor]:
        """
        The probabilities that :meth:`rsample` draws discrete choices with. Choices are independent
        of each other: :meth:`expand` computes their products.

        :param params: Outputs of the actor, ``(batch, n_params)``
        :param action_masks: 1 where a choice is legal, ``(batch, n_choices)``; None where all are
        :return: For each entry of ``factors`` the probability of its options, ``(batch, n)``
        :raises ValueError: If the masks do not fit
        """
        return [log_probs.exp() for log_probs in self._log_probabilities(params, action_masks)]

    def _log_probabilities(
        self, params: th.Tensor, action_masks: th.Tensor | None
    ) -> list[th.Tensor]:
        """For each discrete choice the log-probability of its options, ``(batch, n)``."""
        log_probs: list[th.Tensor] = []
        for part, own, _, mask in self._split(params, None, action_masks):
            log_probs.extend(part.log_probabilities(own, mask))
        return log_probs

    def expand(
        self,
        params: th.Tensor,
        log_std: th.Tensor | None = None,
        action_masks: th.Tensor | None = None,
    ) -> Expansion:
        """
        Every combination of the actor's discrete choices, with one sample of its continuous columns
        per row. The mean over them is exact over choices (Christodoulou 2019, arXiv 1910.07207):
        no bias of a relaxation, and no noise.

        :param params: Outputs of the actor, ``(batch, n_params)``
        :param log_std: Logarithm of the state-independent deviations, as in :meth:`rsample`
        :param action_masks: 1 where a choice is legal, ``(batch, n_choices)``; None where all are
        :return: Combinations and their probabilities, all differentiable
        :raises ValueError: If there are more than ``MAX_COMBINATIONS``, or the masks do not fit
        """
        if self.n_combinations > MAX_COMBINATIONS:
            raise ValueError(
                f"{self.action_space} has {self.n_combinations} combinations of choices, more than "
                f"{MAX_COMBINATIONS}; use rsample, which draws one of them."
            )
        combinations = self._combinations(params.device)  # (n_combinations, n_factors)
        choice_log_probs = params.new_zeros(len(params), len(combinations))
        tables = self._log_probabilities(params, action_masks)
        for table, options in zip(tables, combinations.unbind(dim=1), strict=True):
            choice_log_probs = choice_log_probs + table[:, options]
        actions, log_probs = self._expand_actions(params, log_std, combinations)
        return Expansion(actions, choice_log_probs + log_probs, choice_log_probs.exp())

    def _combinations(self, device: th.device) -> th.Tensor:
        """All combinations of discrete choices, int64 ``(n_combinations, n_factors)``."""
        factors = self.factors
        if not factors:
            return th.zeros(1, 0, dtype=th.int64, device=device)
        options = [th.arange(n, device=device) for n in factors]
        # The product of a single range is (n,), of several (n_combinations, n_factors)
        return th.cartesian_prod(*options).reshape(-1, len(factors))

    def _expand_actions(
        self, params: th.Tensor, log_std: th.Tensor | None, combinations: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param params: Outputs of the actor, ``(batch, n_params)``
        :param log_std: Logarithm of the state-independent deviations
        :param combinations: Options of each discrete choice, ``(n_combinations, n_factors)``
        :return: Encoded actions ``(batch, n_combinations, n_encoded)``, and log-probabilities of
            the continuous columns ``(batch, 1)``
        """
        size = (len(params), len(combinations), -1)
        log_probs = params.new_zeros(len(params), 1)
        actions = []
        start = 0
        for part, own, own_std, _ in self._split(params, log_std):
            if part.factors:
                options = combinations[:, start : start + len(part.factors)]
                start += len(part.factors)
                # Through float32: half precision does not represent every whole number
                encoded = part.encode(options.float()).to(params.dtype)
                # (n_combinations, n_encoded) -> (1, n_combinations, n_encoded)
                actions.append(encoded.unsqueeze(0).expand(size))
            else:
                sample, log_prob = part.rsample(own, own_std, None, 1.0)
                log_probs = log_probs + log_prob.unsqueeze(1)
                # (batch, n_encoded) -> (batch, 1, n_encoded)
                actions.append(sample.unsqueeze(1).expand(size))
        return th.cat(actions, dim=2), log_probs

    def values(self, params: th.Tensor, action_masks: th.Tensor | None = None) -> th.Tensor:
        """
        The values of the options of a greedy head. They lie in the columns of :meth:`encode`, so
        that ``(values * encode(raw)).sum(dim=1)`` is the value of an action.

        :param params: Outputs of the actor, ``(batch, n_params)``
        :param action_masks: 1 where a choice is legal, ``(batch, n_choices)``; None where all are
        :return: Values, -1e8 where a choice is illegal, ``(batch, n_params)``; not minus infinity,
            whose product with 0, at the end of an episode, would be NaN
        :raises ValueError: If the masks do not fit
        :raises NotImplementedError: By all other heads
        """
        raise NotImplementedError(f"The head {self.name!r} has no values; use the head 'greedy'.")


class GaussianHead(Head):
    """
    Gaussians with learned state-independent deviations, categorical choices and Bernoulli bits:
    SB3's distributions for PPO, and sb3-contrib's where there are masks.

    :param action_space: The agent's action space
    :param masked: Whether the agent has action masks
    """

    name = "gaussian"
    box_head: ClassVar[type[BoxHead]] = GaussianBoxHead

    def distribution(
        self,
        params: th.Tensor,
        log_std: Deviations | None = None,
        action_masks: th.Tensor | None = None,
    ) -> Distribution:
        self._check_masks(action_masks)
        sde = log_std.options if isinstance(log_std, SdeDeviations) else None
        distribution = make_action_distribution(self.action_space, self.masked, sde=sde)
        return set_parameters(distribution, params, log_std, action_masks)


class TanhGaussianHead(GaussianHead):
    """
    Gaussians of state-dependent noise that pass through tanh (``squash_output`` of gSDE),
    categorical choices and Bernoulli bits. Box columns lie in [-1, 1].

    :param action_space: The agent's action space
    :param masked: Whether the agent has action masks
    """

    box_head = TanhGaussianBoxHead


class SquashedHead(Head):
    """
    Gaussians that pass through tanh, with state-dependent deviations, as in SB3's SAC; categorical
    choices and Bernoulli bits. Box columns lie in [-1, 1]. The entropy is None if there is a Box.

    :param action_space: The agent's action space
    :param masked: Whether the agent has action masks
    """

    name = "squashed"
    box_head = SquashedBoxHead

    def distribution(
        self,
        params: th.Tensor,
        log_std: Deviations | None = None,
        action_masks: th.Tensor | None = None,
    ) -> Distribution:
        means, log_stds = [], []
        for part, own, _, _ in self._split(params, None, action_masks):
            if isinstance(part, SquashedBoxHead):
                own, own_std = part.mean_and_log_std(own)
                log_stds.append(own_std)
            means.append(own)
        distribution = make_action_distribution(self.action_space, self.masked, squashed=True)
        state_log_std = th.cat(log_stds, dim=1) if log_stds else None
        return set_parameters(distribution, th.cat(means, dim=1), state_log_std, action_masks)


class PointHead(Head):
    """
    One action per observation, the mode: the base of deterministic and greedy heads.

    :param action_space: The agent's action space
    :param masked: Whether the agent has action masks
    """

    def distribution(
        self,
        params: th.Tensor,
        log_std: Deviations | None = None,
        action_masks: th.Tensor | None = None,
    ) -> Distribution:
        return PointDistribution().proba_distribution(self.decode(self.mode(params, action_masks)))


class DeterministicHead(PointHead):
    """
    tanh for Box columns, the most likely option for choices and bits. Noise is added outside.

    :param action_space: The agent's action space
    :param masked: Whether the agent has action masks
    """

    name = "deterministic"
    box_head = DeterministicBoxHead


class GreedyHead(PointHead):
    """
    The legal option of the highest value, for each choice separately; the first of equal ones.
    A MultiDiscrete counts as that many choices, and a MultiBinary as choices between 0 and 1, with
    two values and two encoded columns per bit.

    :param action_space: The agent's action space, without Boxes
    :param masked: Whether the agent has action masks
    :raises TypeError: If a part of the action space is a Box
    """

    name = "greedy"

    def _make_part(self, leaf: ActionLeaf) -> LeafHead:
        if isinstance(leaf.space, spaces.Box):
            part = f"part {'/'.join(leaf.path)!r} of the action, " if leaf.path else ""
            raise TypeError(
                "The head 'greedy' has one value per option, and "
                f"{part}{leaf.space} has infinitely many; "
                "use the head 'squashed' or 'deterministic', or make the actions Discrete."
            )
        return GreedyChoiceHead(leaf)

    def values(self, params: th.Tensor, action_masks: th.Tensor | None = None) -> th.Tensor:
        values = []
        for part, own, _, mask in self._split(params, None, action_masks):
            assert isinstance(part, GreedyChoiceHead)
            values.append(part.values(own, mask))
        return th.cat(values, dim=1)


_HEADS: dict[str, type[Head]] = {
    head.name: head for head in (GaussianHead, SquashedHead, DeterministicHead, GreedyHead)
}


def make_head(
    name: HeadName, action_space: spaces.Space, masked: bool = False, squash_output: bool = False
) -> Head:
    """
    The head of a name.

    :param name: "gaussian", "squashed", "deterministic" or "greedy"
    :param action_space: The agent's action space
    :param masked: Whether the agent has action masks
    :param squash_output: Whether the Gaussians of state-dependent noise pass through tanh
    :return: The head
    :raises ValueError: If there is no such head
    :raises TypeError: If the head does not support the action space
    """
    check_names([name], _HEADS, "`head`")
    if squash_output:
        return TanhGaussianHead(action_space, masked)
    return _HEADS[name](action_space, masked)
