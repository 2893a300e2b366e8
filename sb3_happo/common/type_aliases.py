"""Named tuples and aliases that several modules use."""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

AgentOrderFn: TypeAlias = Callable[[tuple[str, ...]], Sequence[str]]
AgentOrderName: TypeAlias = Literal["random", "fixed", "reverse", "greedy", "semi_greedy"]
AgentOrder: TypeAlias = AgentOrderName | AgentOrderFn


class RNNStates(NamedTuple):
    """
    States of the recurrent layers of a team in each environment; empty without such layers.

    :param pi: State of each agent with recurrent layers,
        ``(n_envs, n_parts, n_layers, hidden_size)``; an LSTM has two parts, a GRU one
    :param vf: State of the critic, ``(n_envs, n_values, n_parts, n_layers, hidden_size)``; None for
        a feed-forward critic
    """

    pi: dict[str, th.Tensor]
    vf: th.Tensor | None


class Sequences(NamedTuple):
    """
    Division of the rows of a batch into sequences, in PyTorch's packed order: the first step of
    every sequence, longest sequences first, then the second step of all that have one, and so on.

    :param batch_sizes: Number of sequences that have a t-th step, on the CPU, ``(max_length,)``
    :param states: States of the recurrent layers before the first step of each sequence,
        ``(n_sequences, ..., n_parts, n_layers, hidden_size)``
    """

    batch_sizes: th.Tensor
    states: th.Tensor


class AgentStep(NamedTuple):
    """
    Decision of one agent at one vectorised step.

    :param actions: Raw actions (neither clipped nor shifted), ``(batch, action_dim)``
    :param log_probs: Log-probability of each whole action, ``(batch,)``
    :param states: States of the recurrent layers after the step,
        ``(batch, n_parts, n_layers, hidden_size)``; None for a feed-forward policy
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
    Decision of all agents at one vectorised step, with the critic's values.

    :param actions: Raw actions (neither clipped nor shifted) of each agent,
        ``(n_envs, action_dim)``
    :param log_probs: Log-probability of each agent's whole action, ``(n_envs,)``
    :param values: Values in units of reward, ``(n_envs, n_values)``
    :param states: States of the recurrent layers after the step, as if all agents were active
    """

    actions: dict[str, th.Tensor]
    log_probs: dict[str, th.Tensor]
    values: th.Tensor
    states: RNNStates


class ActorBatch(NamedTuple):
    """
    Rows of a rollout at which an agent was active.

    :param observations: The agent's own observations, ``(batch, ...)``
    :param actions: Raw actions, ``(batch, action_dim)``
    :param action_masks: Masks of the legal choices, ``(batch, n_choices)``, or None
    :param old_log_prob: Log-probability at collection, ``(batch,)``
    :param advantages: Advantages of the joint action, ``(batch,)``
    :param factor: Product of the probability ratios of the agents updated before, ``(batch,)``
    :param rows: Indices of the rows in the rollout, ``(batch,)``; None for all rows in order
    :param sequences: Division of the rows into sequences; None for a feed-forward policy
    :param agent_ids: One-hot index of the agent of each row, ``(batch, n_agents)``, where the rows
        of several agents with one network are side by side; None for rows of one agent
    """

    observations: PyTorchObs
    actions: th.Tensor
    action_masks: th.Tensor | None
    old_log_prob: th.Tensor
    advantages: th.Tensor
    factor: th.Tensor
    rows: th.Tensor | None = None
    sequences: Sequences | None = None
    agent_ids: th.Tensor | None = None


class CriticBatch(NamedTuple):
    """
    Rows of a rollout for the critic.

    :param observations: Entries of the joint observation that the critic reads, each
        ``(batch, ...)``
    :param old_values: Values at collection, in units of reward, before they were clipped,
        ``(batch, n_values)``
    :param returns: TD(lambda) targets, in units of reward, ``(batch, n_values)``
    :param active: Mask of the values that count, ``(batch, n_values)``; None if all do
    :param sequences: Division of the rows into sequences; None for a feed-forward critic
    """

    observations: dict[str, th.Tensor]
    old_values: th.Tensor
    returns: th.Tensor
    active: th.Tensor | None
    sequences: Sequences | None = None
