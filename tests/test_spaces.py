"""Spaces of a joint environment: agents, actions, observations, and what can be learned on."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env

from sb3_happo.envs import (
    JointEnv,
    check_action_spaces,
    check_observation_spaces,
    check_team_spaces,
    joint_action_dtype,
    joint_action_to_dict,
)
from tests.envs import (
    ALL_KINDS,
    MatrixGame,
    RandomTeam,
    Script,
    episode,
)


def test_agents_keep_the_envs_own_order() -> None:
    names = [f"agent_{i}" for i in range(12)][::-1]
    env = JointEnv(RandomTeam({name: spaces.Discrete(2) for name in names}))
    assert (
        list(env.agents)
        == list(env.action_space)
        == list(joint_action_dtype(env.action_space).names or ())
        == names
    )
    assert list(env.observation_space)[:12] == names


@pytest.mark.parametrize("row", [False, True], ids=["dict", "row"])
def test_every_kind_of_action_reaches_its_agent(row: bool) -> None:
    team = RandomTeam(ALL_KINDS)
    env = JointEnv(team)
    env.reset(seed=0)
    env.action_space.seed(0)
    sample = env.action_space.sample()
    if row:
        actions = np.zeros(3, joint_action_dtype(env.action_space))
        for agent in env.agents:
            if agent not in ("tuple", "dict"):
                actions[1][agent] = sample[agent]
        actions["tuple"]["0"][1], actions["tuple"]["1"][1] = sample["tuple"]
        actions["dict"]["move"][1], actions["dict"]["say"]["0"][1] = (
            sample["dict"]["move"],
            sample["dict"]["say"][0],
        )
        env.step(actions[1])
        as_dict = joint_action_to_dict(env.action_space, actions[1])
        assert all(env.action_space[agent].contains(as_dict[agent]) for agent in env.agents)
    else:
        env.step(sample)
    for agent, space in ALL_KINDS.items():
        assert space.contains(team.actions[agent]), (agent, team.actions[agent])
    assert team.actions["discrete"] == sample["discrete"]
    assert np.allclose(team.actions["box"], sample["box"])
    assert team.actions["scalar"] == sample["scalar"]
    assert np.allclose(team.actions["tuple"][1], sample["tuple"][1])
    assert np.allclose(team.actions["dict"]["move"], sample["dict"]["move"])
    assert np.array_equal(team.actions["dict"]["say"][0], sample["dict"]["say"][0])


def test_actions_of_another_team_are_refused() -> None:
    env = JointEnv(MatrixGame(2))
    env.reset()
    with pytest.raises(ValueError, match="No action for agent 'agent_1'"):
        env.step({"agent_0": 0})
    swapped = np.zeros(1, np.dtype([("agent_1", np.int64), ("agent_0", np.int64)]))
    for action in (swapped[0], np.zeros(2), 1):
        with pytest.raises(ValueError, match="joint_action_dtype"):
            env.step(action)  # type: ignore[arg-type]


def test_odd_names_of_agents() -> None:
    names = ["a.b", "0", "", "keys", 7, "state_of_mind"]
    team = RandomTeam(dict.fromkeys(names, spaces.Discrete(2)))
    env = JointEnv(team)
    assert env.agents == ("a.b", "0", "agent_2", "keys", "7", "state_of_mind")
    env.reset()
    env.step(np.ones(1, joint_action_dtype(env.action_space))[0])
    assert team.actions == dict.fromkeys(names, 1)
    observation = env.step(dict.fromkeys(env.agents, 0))[0]
    assert env.observation_space.contains(observation)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["state"], "rename the agent"),
        (["agent_states", "b"], "rename the agent"),
        (["state/x"], "rename the agent"),
        (["1", 1], "different names"),
        (["a", "a/b"], "rename one of them"),
        ([], "no agents"),
    ],
)
def test_names_that_cannot_be_told_apart(names: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JointEnv(RandomTeam(dict.fromkeys(names, spaces.Discrete(2))))


def test_keys_of_observations_that_collide() -> None:
    box = spaces.Box(0, 1, (1,), np.float32)
    nested = spaces.Dict({"x/y": box, "x": spaces.Dict({"y": box})})
    with pytest.raises(ValueError, match="a/x/y"):
        JointEnv(RandomTeam({"a": spaces.Discrete(2)}, observation_spaces={"a": nested}))


def test_observations_are_flat_and_float32() -> None:
    observation_spaces = {
        "dict": spaces.Dict(
            {"a": spaces.Box(-1, 1, (2,), np.float64), "b": spaces.Dict({"c": spaces.Discrete(3)})}
        ),
        "tuple": spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]),
        "int": spaces.Box(0, 3, (2, 2), np.int16),
    }
    team = RandomTeam(
        dict.fromkeys(observation_spaces, spaces.Discrete(2)), observation_spaces=observation_spaces
    )
    env = JointEnv(team)
    assert list(env.observation_space) == [
        "dict/a",
        "dict/b/c",
        "tuple/0",
        "tuple/1",
        "int",
        "state",
    ]
    for observation, *_ in episode(env):
        assert set(observation) == set(env.observation_space)
        for key, space in env.observation_space.items():
            assert space.contains(np.asarray(observation[key])), key
    assert env.observation_space["dict/a"].dtype == np.float32
    assert env.observation_space["int"].dtype == np.int16


def test_bounds_beyond_float32_are_none() -> None:
    team = Script([{"a": (np.ones(1), 0, False, False)}], ["a"])
    team.space = spaces.Box(-np.finfo(np.float64).max, np.inf, (1,), np.float64)
    assert JointEnv(team).observation_space["a"] == spaces.Box(-np.inf, np.inf, (1,), np.float32)


def test_gymnasiums_own_checker() -> None:
    check_env(JointEnv(RandomTeam(ALL_KINDS)), skip_render_check=True)
    check_env(JointEnv(gym.make("CartPole-v1")), skip_render_check=True)


def test_spaces_that_cannot_be_learned_on() -> None:
    env = JointEnv(RandomTeam(ALL_KINDS))
    check_team_spaces(env.observation_space, env.action_space)
    nested = spaces.Dict({"move": spaces.Tuple([spaces.Box(-np.inf, 1, (2,))])})
    for space, error, message in [
        (
            spaces.Box(-np.inf, np.inf, (2,)),
            ValueError,
            "agent 'a' has an infinite Box action space .*wrap",
        ),
        (nested, ValueError, "agent 'a', part 'move' .*infinite Box"),
        (spaces.Box(0, 5, (2,), np.int64), TypeError, "MultiDiscrete"),
        (spaces.Text(5), TypeError, "agent 'a' has an unsupported action space"),
        (spaces.Dict({}), ValueError, "empty action space"),
        (spaces.Dict({"": spaces.Discrete(2)}), ValueError, "empty key"),
        (spaces.Box(-1, 1, (0,)), ValueError, "nothing to decide"),
    ]:
        with pytest.raises(error, match=message):
            check_action_spaces(spaces.Dict({"a": space}))
    with pytest.raises(ValueError, match="no agents"):
        check_action_spaces(spaces.Dict({}))
    with pytest.raises(TypeError, match="JointEnv"):
        check_action_spaces(spaces.Discrete(2))
    box = spaces.Box(0, 1, (1,))
    for observation_space, error, message in [
        (spaces.Dict({"a": box}), ValueError, "no entry 'state'"),
        (spaces.Dict({"a": spaces.Dict({"b": box}), "state": box}), TypeError, "must be flat"),
        (
            spaces.Dict({"a": spaces.Discrete(2, start=1), "state": box}),
            ValueError,
            "counts from 1",
        ),
        (box, TypeError, "JointEnv"),
    ]:
        with pytest.raises(error, match=message):
            check_observation_spaces(observation_space)
