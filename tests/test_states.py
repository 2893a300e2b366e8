"""The critic's state in a joint environment."""

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_happo.envs import (
    JointEnv,
)
from tests.envs import (
    HeterogeneousTeam,
    MatrixGame,
    RandomTeam,
    Script,
    episode,
)


def test_concatenated_observations_encode_and_zero() -> None:
    observation_spaces = {
        "a": spaces.Discrete(3, start=1),
        "b": spaces.MultiDiscrete([2, 3]),
        "c": spaces.MultiBinary(2),
        "d": spaces.Box(-1, 1, (2, 1), np.float64),
    }
    team = Script([], list("abcd"))
    team.space = observation_spaces
    team.answers = [
        {
            "a": (np.int64(2), 0, False, False),
            "b": (np.array([1, 0]), 0, False, False),
            "c": (np.array([0, 1], np.int8), 0, False, False),
            "d": (np.array([[0.5], [-0.5]]), 0, False, False),
        },
        {
            "b": (np.array([0, 2]), 0, False, False),
            "d": (np.array([[0.5], [1.0]]), 0, False, False),
        },
    ]
    env = JointEnv(team)
    assert env.reset()[0]["state"].tolist() == [0, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0.5, -0.5]
    assert env.step(dict.fromkeys("abcd", 0))[0]["state"].tolist() == [
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        1,
        0,
        0,
        0.5,
        1,
    ]


@pytest.mark.parametrize(("shape", "stacked"), [((8, 8, 3), (8, 8, 6)), ((3, 8, 8), (6, 8, 8))])
def test_images_of_one_shape_are_stacked(shape: tuple[int, ...], stacked: tuple[int, ...]) -> None:
    image = spaces.Box(0, 255, shape, np.uint8)
    env = JointEnv(
        RandomTeam(
            dict.fromkeys("ab", spaces.Discrete(2)), observation_spaces=dict.fromkeys("ab", image)
        )
    )
    assert env.observation_space["state"] == spaces.Box(0, 255, stacked, np.uint8)
    observation, _ = env.reset()
    axis = int(np.argmax(np.array(stacked) - np.array(shape)))
    assert np.array_equal(
        observation["state"], np.concatenate([observation["a"], observation["b"]], axis)
    )


def test_images_among_other_things_keep_keys_of_their_own() -> None:
    env = JointEnv(HeterogeneousTeam())
    own = [
        key
        for key in env.observation_space
        if not key.startswith("state") and not key.endswith("action_mask")
    ]
    assert [key for key in env.observation_space if key.startswith("state")] == [
        f"state/{key}" for key in own
    ]
    observation, _ = env.reset(seed=1)
    assert all(np.array_equal(observation[key], observation[f"state/{key}"]) for key in own)


class WithState(RandomTeam):
    """A random team whose state counts its steps."""

    def state(self) -> np.ndarray:
        return np.full(2, self._t, np.float64)


def team_with_state() -> WithState:
    observation_spaces = {"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(3)}
    return WithState(dict.fromkeys("ab", spaces.Discrete(2)), observation_spaces=observation_spaces)


def test_choices_of_the_state() -> None:
    for state in (None, "env"):
        env = JointEnv(team_with_state(), state=state)
        env.reset()
        assert env.step({"a": 0, "b": 0})[0]["state"].tolist() == [1, 1]
        assert env.observation_space["state"].dtype == np.float32
    assert JointEnv(team_with_state(), state="observations").observation_space["state"].shape == (
        5,
    )
    with pytest.raises(ValueError, match=r"no working state\(\)"):
        JointEnv(MatrixGame(), state="env")
    with pytest.raises(ValueError, match="neither None"):
        JointEnv(MatrixGame(), state="all")


def test_agent_specific_state() -> None:
    env = JointEnv(team_with_state(), state="agent")
    env.reset(seed=0)
    observation = env.step({"a": 0, "b": 0})[0]
    assert "state" not in observation
    rows = observation["agent_states"]
    assert env.observation_space["agent_states"].contains(rows)
    one_hot = np.eye(3)[observation["b"]]
    assert rows[0].tolist() == pytest.approx(
        [1, 1, *observation["a"], 0, 1, 0]
    )  # state, own observation padded, id
    assert rows[1].tolist() == [1, 1, *one_hot, 0, 1]
    with pytest.raises(ValueError, match="without images"):
        JointEnv(HeterogeneousTeam(), state="agent")


def test_a_function_as_state() -> None:
    team = team_with_state()

    def state(env: Any, observations: dict) -> np.ndarray:
        assert env is team
        assert set(observations) == {"a", "b"}
        return observations["a"] * 2

    env = JointEnv(team, state=state)
    observation, _ = env.reset()
    assert np.array_equal(observation["state"], observation["a"] * 2)


def test_a_state_that_changes_shape_or_fails() -> None:
    class Broken(WithState):
        def state(self) -> np.ndarray:
            if self._t == 2:
                raise KeyError("walker_1")
            return np.zeros(2 + self._t)

    env = JointEnv(Broken(dict.fromkeys("ab", spaces.Discrete(2))))
    env.reset()
    with pytest.raises(
        ValueError, match=r"shape \(3,\), where it had \(2,\).*state='observations'"
    ):
        env.step({"a": 0, "b": 0})
    with pytest.raises(RuntimeError, match="state='observations'"):
        env.step({"a": 0, "b": 0})


def test_a_state_is_not_changed_afterwards() -> None:
    class InPlace(WithState):
        array = np.zeros(2, np.float32)

        def state(self) -> np.ndarray:
            self.array[:] = self._t
            return self.array

    env = JointEnv(InPlace(dict.fromkeys("ab", spaces.Discrete(2))))
    before = env.reset()[0]["state"]
    env.step({"a": 0, "b": 0})
    assert before.tolist() == [0, 0]


def test_mpe_state_is_its_observations() -> None:
    mpe = pytest.importorskip("mpe2.simple_spread_v3")
    quick, asked = (JointEnv(mpe.parallel_env(), state=state) for state in (None, "env"))
    for ours, theirs in zip(episode(quick), episode(asked), strict=True):
        assert np.array_equal(ours[0]["state"], theirs[0]["state"])
