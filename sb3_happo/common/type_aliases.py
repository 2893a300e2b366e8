"""Named tuples and aliases that pass between the rooms of the package."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

AgentOrderFn: TypeAlias = Callable[[tuple[str, ...]], Sequence[str]]
AgentOrderName: TypeAlias = Literal["random", "fixed", "reverse", "greedy"]
AgentOrder: TypeAlias = AgentOrderName | AgentOrderFn


class RNNStates(NamedTuple):
    """
    What a recurrent team remembers in each environment. Without memory there is nothing in it.

    :param pi: Per recurrent agent, ``(n_envs, n_parts, n_layers, hidden_size)``; an LSTM has two parts, a GRU one
    :param vf: The critic's, ``(n_envs, n_values, n_parts, n_layers, hidden_size)``, or None
    """

    pi: dict[str, th.Tensor]
    vf: th.Tensor | None


class Sequences(NamedTuple):
    """
    How the rows of a batch follow each other in time, in PyTorch's packed order: the first step of every sequence, longest
    sequences first, then the second step of all that have one, and so on.

    :param batch_sizes: How many sequences have a t-th step, on the CPU, ``(max_length,)``
    :param states: RecurrentLayers before the first step of each, ``(n_sequences, ..., n_parts, n_layers, hidden_size)``
    """

    batch_sizes: th.Tensor
    states: th.Tensor


class AgentStep(NamedTuple):
    """
    What one agent decided at one vectorised step.

    :param actions: Raw (neither clipped nor shifted) actions, ``(batch, action_dim)``
    :param log_probs: Log-probability of each whole action, ``(batch,)``
    :param states: Its memory after the step, ``(batch, n_parts, n_layers, hidden_size)``, or None without one
    """

    actions: th.Tensor
    log_probs: th.Tensor
    states: th.Tensor | None


class ActorsStep(NamedTuple):
    """
    Decision of all actors at one vectorised step, without the critic.

    :param actions: Raw actions (neither clipped nor shifted) of each agent,
        ``(n_envs, action_dim)``
    :param log_probs: Log-probability of each agent's whole action, ``(n_envs,)``
    :param states: States after the step of each agent with recurrent layers, as if all agents were
        active, ``(n_envs, n_parts, n_layers, hidden_size)``
    """

    actions: dict[str, th.Tensor]
    log_probs: dict[str, th.Tensor]
    states: dict[str, th.Tensor]


class JointStep(NamedTuple):
    """
    What the team decided at one vectorised step.

    :param actions: Per agent, the raw (neither clipped nor shifted) actions, ``(n_envs, action_dim)``
    :param log_probs: Per agent, the log-probability of its whole action, ``(n_envs,)``
    :param values: The critic's values in units of reward, ``(n_envs, n_values)``
    :param states: What the team remembers after the step, of everybody as if active
    """

    actions: dict[str, th.Tensor]
    log_probs: dict[str, th.Tensor]
    values: th.Tensor
    states: RNNStates


class ActorBatch(NamedTuple):
    """
    One agent's share of a minibatch; only rows at which the agent was active.

    :param observations: The agent's own observations, ``(batch, ...)``
    :param actions: Raw actions, ``(batch, action_dim)``
    :param action_masks: Which choices were legal, ``(batch, n_choices)``, or None
    :param old_log_prob: Log-probability at collection, ``(batch,)``
    :param advantages: Advantages of the joint action, ``(batch,)``
    :param factor: Product of the probability ratios of the agents updated before, ``(batch,)``
    :param rows: Where in the rollout they lie, ``(batch,)``, or None for all of it in order
    :param sequences: How they follow each other, or None for an agent without memory
    """

    observations: PyTorchObs
    actions: th.Tensor
    action_masks: th.Tensor | None
    old_log_prob: th.Tensor
    advantages: th.Tensor
    factor: th.Tensor
    rows: th.Tensor | None = None
    sequences: Sequences | None = None


class CriticBatch(NamedTuple):
    """
    A minibatch for the critic.

    :param observations: The entries of the joint observation that the critic reads, each ``(batch, ...)``
    :param old_values: Values at collection, in units of reward, ``(batch, n_values)``
    :param returns: TD(lambda) targets, in units of reward, ``(batch, n_values)``
    :param active: Which values count, ``(batch, n_values)``, or None where all do
    :param sequences: How the rows follow each other, or None for a critic without memory
    """

    observations: dict[str, th.Tensor]
    old_values: th.Tensor
    returns: th.Tensor
    active: th.Tensor | None
    sequences: Sequences | None = None
