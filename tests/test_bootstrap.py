"""Values beyond the last step of a rollout, computed by hand."""

import numpy as np
import pytest
import torch as th

from sb3_happo.common.bootstrap import (
    Presence,
    last_observations,
    mean_of_active_agents,
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
    ("truncated", "info", "cut"),
    [
        (True, {"terminal_observation": {"a": np.ones(1)}}, True),
        (True, {"terminal_observation": None}, False),
        (True, {}, False),
        (False, {"terminal_observation": {"a": np.ones(1)}}, False),
    ],
)
def test_last_observations_are_of_cut_episodes_alone(
    truncated: bool, info: dict, cut: bool
) -> None:
    found = last_observations(np.array([False, truncated, False]), [{}, info, {}], ["a"], 2)
    assert found.envs == ([1] if cut else [])
    assert ("a" in found.observations) == cut


def test_last_observations_are_stacked_in_order() -> None:
    infos = []
    for number in range(4):
        observation = {"a": np.array([number, 1.0]), "b": np.array(number), "unused": 0}
        infos.append({"terminal_observation": observation})
    found = last_observations(np.array([1, 0, 1, 1], bool), infos, ["a", "b"], 2)
    assert found.envs == [0, 2, 3]
    assert list(found.observations) == ["a", "b"]
    assert found.observations["a"].tolist() == [[0.0, 1.0], [2.0, 1.0], [3.0, 1.0]]
    assert isinstance(found.observations["b"], np.ndarray)
    assert found.observations["b"].tolist() == [0, 2, 3]
    assert found.presence == Presence(None, None)


def test_last_observations_of_tensors() -> None:
    infos = [{"terminal_observation": {"a": th.tensor([number, 1.0])}} for number in range(2)]
    stacked = last_observations(np.ones(2, bool), infos, ["a"], 2).observations["a"]
    assert isinstance(stacked, th.Tensor)
    assert stacked.tolist() == [[0.0, 1.0], [1.0, 1.0]]


def test_presence_of_infos() -> None:
    assert Presence.from_infos([{}, {"other": 1}], 2) == Presence(None, None)
    given = {"active": np.array([False, True]), "waiting_agents": np.array([True, False])}
    presence = Presence.from_infos([{}, given, {}], 2)
    assert presence.active is not None and presence.waiting is not None
    assert presence.active.tolist() == [[True, True], [False, True], [True, True]]
    assert presence.waiting.tolist() == [[False, False], [True, False], [False, False]]
