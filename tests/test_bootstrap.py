"""Values beyond the last step of a rollout, computed by hand."""

import numpy as np
import pytest
import torch as th

from sb3_happo.common.bootstrap import (
    Presence,
    mean_of_active_agents,
    stack_entries,
    stack_masks,
    truncated_envs,
    values_of_all_agents,
    zero_after_leaving,
)

VALUES = th.tensor([[1.0, 2.0, 6.0], [10.0, 20.0, 60.0]])
LAST_OWN = th.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])


def test_mean_of_active_agents() -> None:
    active = th.tensor([[True, False, True], [False, True, False]])
    assert mean_of_active_agents(VALUES, active).tolist() == [[3.5], [20.0]]
    assert mean_of_active_agents(VALUES, th.ones(2, 3, dtype=th.bool)).tolist() == [[3.0], [30.0]]
    nobody = th.zeros(2, 3, dtype=th.bool)
    assert mean_of_active_agents(VALUES, nobody).tolist() == [[0.0], [0.0]]


def test_zero_after_leaving() -> None:
    zeros = zero_after_leaving(VALUES, th.ones(2, 3, dtype=th.bool))
    assert zeros.shape == VALUES.shape and not zeros.any()


def test_values_of_a_team_of_which_all_are_active() -> None:
    found = values_of_all_agents(VALUES, LAST_OWN, Presence(None, None), zero_after_leaving)
    assert th.equal(found, VALUES)
    everyone = Presence(np.ones((2, 3), bool), np.zeros((2, 3), bool))
    assert th.equal(values_of_all_agents(VALUES, LAST_OWN, everyone, zero_after_leaving), VALUES)


def test_values_of_agents_that_have_left() -> None:
    presence = Presence(np.array([[True, False, True], [False, True, False]]), None)
    own_rewards = values_of_all_agents(VALUES, LAST_OWN, presence, zero_after_leaving)
    assert own_rewards.tolist() == [[1.0, 0.0, 6.0], [0.0, 20.0, 0.0]]
    common_reward = values_of_all_agents(VALUES, LAST_OWN, presence, mean_of_active_agents)
    assert common_reward.tolist() == [[1.0, 3.5, 6.0], [20.0, 20.0, 20.0]]


def test_values_of_agents_that_wait_for_their_turn() -> None:
    """Those on turn have the critic's value, those that wait their last own one, others none."""
    active = np.array([[True, False, False], [False, False, True]])
    waiting = np.array([[False, True, False], [True, True, False]])
    presence = Presence(active, waiting)
    found = values_of_all_agents(VALUES, LAST_OWN, presence, zero_after_leaving)
    assert found.tolist() == [[1.0, -2.0, 0.0], [-4.0, -5.0, 60.0]]


@pytest.mark.parametrize(
    ("done", "info", "cut"),
    [
        (True, {"terminal_observation": {"a": 1}, "TimeLimit.truncated": True}, True),
        (True, {"terminal_observation": {"a": 1}, "TimeLimit.truncated": False}, False),
        (True, {"terminal_observation": {"a": 1}}, False),
        (True, {"TimeLimit.truncated": True}, False),
        (True, {"terminal_observation": None, "TimeLimit.truncated": True}, False),
        (False, {"terminal_observation": {"a": 1}, "TimeLimit.truncated": True}, False),
    ],
)
def test_truncated_envs(done: bool, info: dict, cut: bool) -> None:
    dones = np.array([False, done, False])
    assert truncated_envs(dones, [{}, info, {}]) == ([1] if cut else [])


def test_truncated_envs_are_given_in_order() -> None:
    info = {"terminal_observation": {}, "TimeLimit.truncated": True}
    assert truncated_envs(np.array([1, 0, 1, 1], bool), [info] * 4) == [0, 2, 3]


def test_stack_entries() -> None:
    observations = [{"a": np.array([i, 1.0]), "b": np.array(i), "c": 0} for i in range(3)]
    stacked = stack_entries(observations, ["a", "b"])
    assert list(stacked) == ["a", "b"]
    assert stacked["a"].tolist() == [[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]]
    assert isinstance(stacked["b"], np.ndarray) and stacked["b"].tolist() == [0, 1, 2]


def test_stack_entries_of_tensors() -> None:
    observations = [{"a": th.tensor([i, 1.0])} for i in range(2)]
    stacked = stack_entries(observations, ["a"])["a"]
    assert isinstance(stacked, th.Tensor) and stacked.tolist() == [[0.0, 1.0], [1.0, 1.0]]


def test_stack_masks() -> None:
    default = np.array([True, True])
    given = {"active": np.array([False, True])}
    assert stack_masks("active", [{}, {"other": 1}], default) is None
    stacked = stack_masks("active", [{}, given, {}], default)
    assert stacked is not None
    assert stacked.tolist() == [[True, True], [False, True], [True, True]]
