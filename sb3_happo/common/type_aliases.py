"""Named tuples and aliases that pass between the rooms of the package."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

AgentOrderFn: TypeAlias = Callable[[tuple[str, ...]], Sequence[str]]
AgentOrderName: TypeAlias = Literal["random", "fixed", "reverse", "greedy"]
AgentOrder: TypeAlias = AgentOrderName | AgentOrderFn


class JointStep(NamedTuple):
    """
    What the team decided at one vectorised step.

    :param actions: Per agent, the raw (neither clipped nor shifted) actions, ``(n_envs, action_dim)``
    :param log_probs: Per agent, the log-probability of its whole action, ``(n_envs,)``
    :param values: The critic's values in units of reward, ``(n_envs, n_values)``
    """

    actions: dict[str, th.Tensor]
    log_probs: dict[str, th.Tensor]
    values: th.Tensor


class ActorBatch(NamedTuple):
    """
    One agent's share of a minibatch; only rows at which the agent was active.

    :param observations: The agent's own observations, ``(batch, ...)``
    :param actions: Raw actions, ``(batch, action_dim)``
    :param action_masks: Which choices were legal, ``(batch, n_choices)``, or None
    :param old_log_prob: Log-probability at collection, ``(batch,)``
    :param advantages: Advantages of the joint action, ``(batch,)``
    :param factor: Product of the probability ratios of the agents updated before, ``(batch,)``
    """

    observations: PyTorchObs
    actions: th.Tensor
    action_masks: th.Tensor | None
    old_log_prob: th.Tensor
    advantages: th.Tensor
    factor: th.Tensor


class CriticBatch(NamedTuple):
    """
    A minibatch for the critic.

    :param observations: The entries of the joint observation that the critic reads, each ``(batch, ...)``
    :param old_values: Values at collection, in units of reward, ``(batch, n_values)``
    :param returns: TD(lambda) targets, in units of reward, ``(batch, n_values)``
    :param active: Which values count, ``(batch, n_values)``, or None where all do
    """

    observations: dict[str, th.Tensor]
    old_values: th.Tensor
    returns: th.Tensor
    active: th.Tensor | None
