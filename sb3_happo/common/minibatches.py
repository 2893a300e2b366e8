"""Rows, sequences and minibatches of rollouts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_happo.common.recurrent import owners_of, pack, select
from sb3_happo.common.type_aliases import ActorBatch, Sequences


class TeamBatch(NamedTuple):
    """
    Joint transitions: row i of every agent belongs to the same step of the same environment.

    :param agents: Batches by agent, all of the same rows; rows at which an agent was inactive are
        among them
    :param active: Active mask, ``(batch, n_agents)``, bool
    """

    agents: dict[str, ActorBatch]
    active: th.Tensor

    def select(self, rows: th.Tensor | slice) -> "TeamBatch":
        """
        :param rows: Indices ``(n,)``, or a slice
        :return: Rows of all agents
        """
        agents = {agent: select_rows(batch, rows) for agent, batch in self.agents.items()}
        return TeamBatch(agents, self.active[rows])


def select_rows(batch: Any, rows: th.Tensor | slice | None) -> Any:
    """
    Rows of a batch.

    :param batch: NamedTuple of tensors, dicts of tensors, and None; sequences are not changed
    :param rows: Indices ``(n,)``; a slice for a view; None for all rows, without a copy
    :return: Batch of the same type
    """
    if rows is None:
        return batch

    def select_part(part: PyTorchObs | Sequences | None) -> PyTorchObs | Sequences | None:
        if part is None or isinstance(part, Sequences):
            return part
        if isinstance(part, dict):
            return {key: value[rows] for key, value in part.items()}
        return part[rows]

    return type(batch)(*map(select_part, batch))


def join_agents(batches: Sequence[ActorBatch], one_hots: Sequence[th.Tensor | None]) -> ActorBatch:
    """
    Samples of several agents that share one network, as one batch.

    :param batches: Samples of each agent, at least one agent
    :param one_hots: Index of each agent among those that share the network, ``(n_agents,)``; None
        for agents without
    :return: All samples, one agent's after the other's; with sequences in packed order
    """
    if len(batches) == 1:
        return batches[0]
    first = batches[0]
    rows: list[Any] = []
    for parts in zip(*(batch[:6] for batch in batches), strict=True):
        rows.append(_join_parts(parts))
    ids = None
    if one_hots[0] is not None:
        expanded = []
        for own, batch in zip(one_hots, batches, strict=True):
            assert own is not None
            expanded.append(own.expand(len(batch[1]), -1))
        ids = th.cat(expanded)
    joint = ActorBatch(*rows)._replace(agent_ids=ids)
    if first.sequences is None:
        return joint
    owners, states, n_sequences = [], [], 0
    for batch in batches:
        assert batch.sequences is not None
        owners.append(owners_of(batch.sequences) + n_sequences)
        states.append(batch.sequences.states)
        n_sequences += len(batch.sequences.states)
    order, batch_sizes, present = pack(th.cat(owners))
    sequences = Sequences(batch_sizes, th.cat(states)[present])
    return select_rows(joint, order)._replace(sequences=sequences)


def _join_parts(parts: Sequence[Any]) -> Any:
    """Rows of one entry of several batches: tensors, dicts of tensors, or None."""
    if parts[0] is None:
        return None
    if isinstance(parts[0], dict):
        return {key: th.cat([part[key] for part in parts]) for key in parts[0]}
    return th.cat(list(parts))


def divide_sequences(batch: Any, parts: th.Tensor) -> Iterator[Any]:
    """
    Divide a batch with sequences.

    :param batch: Batch with sequences
    :param parts: Number of the part for each sequence, ``(n_sequences,)``
    :return: Iterator over the parts
    """
    owners = owners_of(batch.sequences)
    for number in parts.unique():
        rows, sequences = select(batch.sequences, (parts == number)[owners])
        yield select_rows(batch, rows)._replace(sequences=sequences)


def minibatches(batch: Any, batch_size: int | None, n_epochs: int = 1) -> Iterator[Any]:
    """
    Shuffle a batch and divide it, as SB3 does; the last minibatch of a pass may be smaller.
    Sequences stay whole, so minibatches with sequences have about ``batch_size`` rows at most.

    :param batch: NamedTuple as for :func:`select_rows`
    :param batch_size: Rows per minibatch; None for all rows at once
    :param n_epochs: Number of passes, each in a new order
    :return: Iterator over batches of the same type
    """
    n_rows = len(batch[1])
    for _ in range(n_epochs):
        if batch_size is None or batch_size >= n_rows:
            # The order within one minibatch has no effect: no shuffling and no copy
            yield batch
        elif batch.sequences is not None:
            yield from _minibatches_of_sequences(batch, batch_size)
        else:
            order = th.from_numpy(np.random.permutation(n_rows)).to(batch[1].device)
            for rows in order.split(batch_size):
                yield select_rows(batch, rows)


def _minibatches_of_sequences(batch: Any, batch_size: int) -> Iterator[Any]:
    """Minibatches of whole sequences, in random order."""
    lengths = owners_of(batch.sequences).bincount()
    order = th.from_numpy(np.random.permutation(len(lengths))).to(lengths.device)
    parts = th.empty_like(order)
    parts[order] = (lengths[order].cumsum(0) - 1) // batch_size
    yield from divide_sequences(batch, parts)


def joint_minibatches(
    data: Mapping[str, ActorBatch], batch_size: int | None, n_epochs: int = 1
) -> Iterator[dict[str, ActorBatch]]:
    """
    Minibatches of several agents side by side, each agent shuffled by itself. An agent that was
    active less often has fewer of them. For the same rows of all agents, see
    :func:`aligned_minibatches`.

    :param data: Rows by agent
    :param batch_size: Rows of each agent per minibatch; None for all rows at once
    :param n_epochs: Number of passes
    :return: Iterator over minibatches by agent, with the agents that have rows left
    """
    for _ in range(n_epochs):
        iterators = {}
        for agent, rows in data.items():
            if len(rows.advantages):
                iterators[agent] = minibatches(rows, batch_size)
        while batch := _next_of_each(iterators):
            yield batch


def _next_of_each(iterators: dict[str, Iterator[ActorBatch]]) -> dict[str, ActorBatch]:
    """Next minibatch of every agent that has one."""
    batch = {}
    for agent, iterator in iterators.items():
        rows = next(iterator, None)
        if rows is not None:
            batch[agent] = rows
    return batch


def aligned_minibatches(data: TeamBatch, batch_size: int | None) -> Iterator[TeamBatch]:
    """
    Minibatches with the same rows for all agents, for policies whose agents read one another
    (communication, attention over agents, joint actors).

    :param data: Joint transitions of a rollout, with the agents' active mask
    :param batch_size: Joint transitions per minibatch; None for all rows at once
    :return: Iterator over minibatches; the last one may be smaller
    """
    n_rows = len(data.active)
    if batch_size is None or batch_size >= n_rows:
        yield data
        return
    order = th.from_numpy(np.random.permutation(n_rows)).to(data.active.device)
    for rows in order.split(batch_size):
        yield data.select(rows)
