"""Minibatches: rows, sequences, and several agents side by side."""

from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_happo import HAPPO
from sb3_happo.common.minibatches import (
    TeamBatch,
    aligned_minibatches,
    divide_sequences,
    joint_minibatches,
    minibatches,
    select_rows,
)
from sb3_happo.common.recurrent import owners_of
from sb3_happo.common.type_aliases import ActorBatch, Sequences
from tests.algorithms import LstmHAPPO, collect, small
from tests.envs import HeterogeneousTeam, TurnGame


def numbered(n: int, offset: float = 0.0, nested: bool = False) -> ActorBatch:
    """A batch whose entries all hold the number of their row, plus an offset."""
    rows = th.arange(n) + offset
    observations: Any = {"a": rows[:, None], "b": rows} if nested else rows[:, None]
    return ActorBatch(observations, rows[:, None], None, rows, rows, rows, th.arange(n))


def numbers(batch: ActorBatch, offset: float = 0.0) -> list[int]:
    """Numbers of the rows of a batch of `numbered`, whose entries must agree."""
    found = batch.advantages - offset
    entries = [batch.actions[:, 0], batch.old_log_prob, batch.factor]
    observations = batch.observations
    if isinstance(observations, dict):
        entries += [observations["a"][:, 0], observations["b"]]
    else:
        entries.append(observations[:, 0])
    assert all(th.equal(entry - offset, found) for entry in entries)
    assert batch.rows is not None and th.equal(batch.rows.float(), found)
    return found.long().tolist()


# ---------------------------------------------------------------- rows


def test_select_rows() -> None:
    batch = numbered(5, nested=True)
    assert select_rows(batch, None) is batch
    assert numbers(select_rows(batch, th.tensor([3, 1, 1]))) == [3, 1, 1]
    view = select_rows(batch, slice(1, 3))
    assert numbers(view) == [1, 2] and view.action_masks is None
    batch.advantages[1] = 7.0
    assert view.advantages[0] == 7.0, "a slice gives a view"


@pytest.mark.parametrize("batch_size", [2, 3, 7])
def test_minibatches_hold_every_row_once(batch_size: int) -> None:
    np.random.seed(0)
    drawn = [numbers(batch) for batch in minibatches(numbered(20, nested=True), batch_size)]
    full, rest = divmod(20, batch_size)
    assert [len(rows) for rows in drawn] == [batch_size] * full + [rest] * bool(rest)
    flat = list(chain(*drawn))
    assert sorted(flat) == list(range(20)) and flat != list(range(20))


@pytest.mark.parametrize("batch_size", [None, 20, 100])
def test_one_minibatch_is_no_copy(batch_size: int | None) -> None:
    batch = numbered(20)
    (only,) = minibatches(batch, batch_size)
    assert only is batch


# ---------------------------------------------------------------- several agents


def test_joint_minibatches() -> None:
    """Each agent is shuffled by itself; one that was active less often has fewer minibatches."""
    np.random.seed(0)
    data = {"a": numbered(12), "b": numbered(5, 100.0), "c": numbered(0)}
    drawn: dict[str, list[list[int]]] = {"a": [], "b": []}
    for batch in joint_minibatches(data, 4):
        for agent, rows in batch.items():
            drawn[agent].append(numbers(rows, 100.0 if agent == "b" else 0.0))
    assert [len(rows) for rows in drawn["a"]] == [4, 4, 4]
    assert [len(rows) for rows in drawn["b"]] == [4, 1]
    assert sorted(chain(*drawn["a"])) == list(range(12))
    assert sorted(chain(*drawn["b"])) == list(range(5))
    assert drawn["a"][0] != drawn["b"][0]


def test_joint_minibatches_of_nobody() -> None:
    assert list(joint_minibatches({"a": numbered(0)}, 4)) == []
    assert list(joint_minibatches({"a": numbered(0)}, None)) == []


def team_batch(n: int) -> TeamBatch:
    """Three agents; the active mask holds the binary digits of the row's number."""
    agents = {"a": numbered(n), "b": numbered(n, 100.0, nested=True), "c": numbered(n, -50.0)}
    active = (th.arange(n)[:, None] >> th.arange(3)) & 1
    return TeamBatch(agents, active.bool())


def rows_of(batch: TeamBatch) -> list[int]:
    """Numbers of the rows of a `team_batch`, which must be those of all agents and of the mask."""
    own = numbers(batch.agents["a"])
    assert numbers(batch.agents["b"], 100.0) == own
    assert numbers(batch.agents["c"], -50.0) == own
    expected = [[bool(row >> bit & 1) for bit in range(3)] for row in own]
    assert batch.active.tolist() == expected
    return own


@pytest.mark.parametrize("batch_size", [3, 4, 7])
def test_aligned_minibatches_hold_the_same_rows_for_all_agents(batch_size: int) -> None:
    np.random.seed(0)
    drawn = [rows_of(batch) for batch in aligned_minibatches(team_batch(20), batch_size)]
    full, rest = divmod(20, batch_size)
    assert [len(rows) for rows in drawn] == [batch_size] * full + [rest] * bool(rest)
    flat = list(chain(*drawn))
    assert sorted(flat) == list(range(20)), "each row once"
    assert flat != list(range(20)), "in a random order"


@pytest.mark.parametrize("batch_size", [None, 20, 21])
def test_aligned_minibatches_of_all_rows(batch_size: int | None) -> None:
    data = team_batch(20)
    (only,) = aligned_minibatches(data, batch_size)
    assert only is data


def test_aligned_minibatches_follow_the_seed() -> None:
    drawn = []
    for seed in (3, 3, 4):
        np.random.seed(seed)
        drawn.append([rows_of(batch) for batch in aligned_minibatches(team_batch(20), 6)])
    assert drawn[0] == drawn[1] != drawn[2]


def test_team_data_of_a_rollout() -> None:
    """Rows at which an agent is not on turn are among them, with the mask that says so."""
    model = small(HAPPO, TurnGame(), n_steps=12, seed=0)
    collect(model)
    factor = th.rand(12)
    data = model.rollout_buffer.team_data(factor)
    assert list(data.agents) == list(model.agents)
    assert th.equal(data.active, th.eye(3, dtype=th.bool).repeat(4, 1))
    for column, agent in enumerate(model.agents):
        batch = data.agents[agent]
        assert th.equal(batch.factor, factor) and len(batch.actions) == 12
        own = model.rollout_buffer.agent_data(agent, factor)
        active = select_rows(batch, data.active[:, column].nonzero().flatten())
        assert th.equal(active.actions, own.actions)
        assert th.equal(active.old_log_prob, own.old_log_prob)
    sizes = [len(batch.active) for batch in aligned_minibatches(data, 5)]
    assert sizes == [5, 5, 2]


# ---------------------------------------------------------------- sequences


def recurrent_batch(lengths: list[int]) -> ActorBatch:
    """
    Sequences of given lengths, longest first, in PyTorch's packed order. Advantages number the
    sequences, log-probabilities the steps within them; the hidden state is the sequence's number.
    """
    assert lengths == sorted(lengths, reverse=True)
    pairs = []
    for step in range(lengths[0]):
        pairs += [(owner, step) for owner, length in enumerate(lengths) if length > step]
    owners, steps = th.tensor(pairs).float().T
    sizes = [sum(length > step for length in lengths) for step in range(lengths[0])]
    states = th.arange(len(lengths)).float().reshape(-1, 1, 1, 1)
    n = len(owners)
    batch = numbered(n)._replace(advantages=owners, old_log_prob=steps)
    return batch._replace(sequences=Sequences(th.tensor(sizes), states))


def check_whole(batch: ActorBatch, lengths: list[int]) -> list[int]:
    """Numbers of the sequences of a minibatch, each of which must be complete and in order."""
    assert batch.sequences is not None
    owners = owners_of(batch.sequences)
    found = []
    for index in range(len(batch.sequences.states)):
        rows = (owners == index).nonzero().flatten()
        (number,) = batch.advantages[rows].unique().long().tolist()
        assert batch.old_log_prob[rows].tolist() == list(range(lengths[number]))
        assert batch.sequences.states[index].item() == number
        found.append(number)
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 6, 11])
def test_sequences_stay_whole(batch_size: int) -> None:
    np.random.seed(1)
    lengths = [5, 4, 4, 2, 1, 1]
    drawn = []
    for batch in minibatches(recurrent_batch(lengths), batch_size):
        drawn.append(check_whole(batch, lengths))
    assert sorted(chain(*drawn)) == list(range(6)), "each sequence once"
    assert len(drawn) > 1


def test_sequences_are_divided_as_told() -> None:
    lengths = [5, 4, 4, 2, 1, 1]
    parts = th.tensor([0, 1, 0, 1, 1, 0])
    first, second = divide_sequences(recurrent_batch(lengths), parts)
    assert sorted(check_whole(first, lengths)) == [0, 2, 5]
    assert sorted(check_whole(second, lengths)) == [1, 3, 4]


def test_sequences_of_a_rollout_stay_whole() -> None:
    """Cut by episodes and chunks; the rows of all minibatches are those of the agent."""
    np.random.seed(0)
    model = small(LstmHAPPO, HeterogeneousTeam(), n_steps=40, chunk_length=5, seed=0)
    collect(model)
    for agent in ("arm", "console"):
        data = model.rollout_buffer.agent_data(agent, th.ones(40))
        rows: list[int] = []
        n_sequences = 0
        for batch in minibatches(data, 10):
            assert batch.sequences is not None
            owners = owners_of(batch.sequences)
            for index in range(len(batch.sequences.states)):
                own = batch.rows[owners == index]
                assert (own.diff() > 0).all() and own[-1] - own[0] < 5
            n_sequences += len(batch.sequences.states)
            rows += batch.rows.tolist()
        assert data.rows is not None and sorted(rows) == sorted(data.rows.tolist())
        assert data.sequences is not None and n_sequences == len(data.sequences.states)
