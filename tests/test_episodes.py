"""Episodes of a joint environment: agents that come and go, ends, rewards, infos."""

from typing import Any

import numpy as np
import pytest

from sb3_happo.envs import (
    JointEnv,
    joint_action_dtype,
)
from tests.envs import (
    HeterogeneousTeam,
    MatrixGame,
    Script,
    episode,
    one,
)


def test_agents_come_and_go() -> None:
    team = HeterogeneousTeam()
    env = JointEnv(team)
    total = np.zeros(5)
    steps = list(episode(env))
    assert len(steps) == 1 + team.length
    for t, (observation, _, _, _, info) in enumerate(steps):
        alive = [agent in team.alive(t) for agent in team.possible_agents]
        assert info.get("active", np.ones(5, bool)).tolist() == alive, t
        assert ("active" in info) == (not all(alive))
        for key, value in observation.items():
            assert env.observation_space[key].contains(np.asarray(value)), key
        for agent, is_alive in zip(env.agents, alive, strict=True):
            own = {
                key: value
                for key, value in observation.items()
                if key == agent or key.startswith(agent + "/")
            }
            if not is_alive:
                assert all(
                    np.all(value == key.endswith("/action_mask")) for key, value in own.items()
                ), agent
        total += info.get("agent_rewards", 0)
        if t == 9:
            assert info["agent_rewards"][0] >= 10, "the reward of the step in which camera died"
        if t > 9:
            assert info["agent_rewards"][0] == 0
    assert steps[-1][2:4] == (False, True)
    assert total[0] >= 10


def test_inactive_agents_do_not_act() -> None:
    steps = [
        {"a": (one(), 0, False, False)},
        {"a": (one(), 1, False, False), "b": (one(), 2, False, False)},
        {"a": (one(), 3, True, False), "b": (one(), 4, False, False)},
        {"b": (one(), 5, False, False)},
        {"b": (one(), 5, False, False), "a": (one(7), 6, False, False)},
        {"b": (one(), 7, True, False), "a": (one(), 8, True, False)},
    ]
    team = Script(steps, ["a", "b"])
    env = JointEnv(team)
    active = [env.reset()[1].get("active", np.ones(2, bool)).tolist()]
    rewards, ends = [], []
    row = np.ones(1, joint_action_dtype(env.action_space))[0]
    for _ in steps[1:]:
        _, reward, terminated, truncated, info = env.step(row)
        active.append(info.get("active", np.ones(2, bool)).tolist())
        rewards.append(info["agent_rewards"].tolist())
        ends.append((terminated, truncated))
        assert reward == np.mean(rewards[-1])
    assert active == [
        [True, False],
        [True, True],
        [False, True],
        [False, True],
        [True, True],
        [True, True],
    ]
    assert rewards == [[1, 2], [3, 4], [0, 5], [6, 5], [8, 7]]
    assert ends == [(False, False)] * 4 + [(True, False)]
    assert [list(actions) for actions in team.actions] == [
        ["a"],
        ["a", "b"],
        ["b"],
        ["b"],
        ["a", "b"],
    ]


@pytest.mark.parametrize(
    ("a", "b", "ends"),
    [
        ((True, False), (True, False), (True, False)),
        ((False, True), (False, True), (False, True)),
        ((True, False), (False, True), (False, True)),
        ((True, True), (True, True), (True, False)),
        ((True, True), (False, True), (False, True)),
        ((True, False), (False, False), (False, False)),
        ((False, True), (False, False), (False, False)),
    ],
)
def test_how_an_episode_ends(
    a: tuple[bool, bool], b: tuple[bool, bool], ends: tuple[bool, bool]
) -> None:
    env = JointEnv(
        Script(
            [
                dict.fromkeys("ab", (one(), 0, False, False)),
                {"a": (one(3), 0, *a), "b": (one(4), 0, *b)},
            ],
            ["a", "b"],
        )
    )
    env.reset()
    observation, _, terminated, truncated, info = env.step({"a": 0, "b": 0})
    assert (terminated, truncated) == ends
    if ends == (False, True) and a[0]:  # the game of one was cut off, that of the other was not
        assert info["active"].tolist() == [False, True]
        assert (observation["a"], observation["b"]) == (0, 4)
    elif any(ends):  # the value of the last observation may be asked for, so it is there
        assert "active" not in info
        assert (observation["a"], observation["b"]) == (3, 4)
    else:
        assert info["active"].tolist() == [False, True]
        assert observation["a"] == 0


def test_an_agent_that_was_truncated_before_does_not_make_the_end_a_truncation() -> None:
    start = dict.fromkeys("ab", (one(), 0, False, False))
    cut = {"a": (one(), 0, False, True), "b": (one(), 0, False, False)}
    env = JointEnv(Script([start, cut, {"b": (one(), 0, True, False)}], ["a", "b"]))
    env.reset()
    assert env.step({"a": 0, "b": 0})[2:4] == (False, False)
    assert env.step({"b": 0})[2:4] == (True, False)


def test_the_dead_that_are_still_observed_stay_dead_in_the_last_observation() -> None:
    alive, dead, cut = (one(), 0, False, False), (one(3), 0, False, True), (one(4), 0, False, True)
    scripts = [dict.fromkeys("ab", alive), {"a": dead, "b": alive}, {"a": dead, "b": cut}]
    env = JointEnv(Script(scripts, ["a", "b"], [["a", "b"]] * 3))
    env.reset()
    assert env.step({"a": 0, "b": 0})[4]["active"].tolist() == [False, True]
    observation, _, terminated, truncated, info = env.step({"b": 0})
    assert (terminated, truncated) == (False, True)
    assert info["active"].tolist() == [False, True]
    assert (observation["a"], observation["b"]) == (0, 4)

    scripts[2]["b"] = (one(4), 0, True, False)
    env = JointEnv(Script(scripts, ["a", "b"], [["a", "b"]] * 3))
    env.reset()
    env.step({"a": 0, "b": 0})
    assert env.step({"b": 0})[2:4] == (True, False), "the only one that was left has terminated"


def test_flags_of_those_who_are_gone_do_not_count() -> None:
    """Though the env repeats them, without the observation."""
    alive, gone, over = (one(), 0, False, False), (None, 0, False, True), (one(), 0, True, False)
    steps: list[Any] = [
        {"a": alive, "b": alive},
        {"a": gone, "b": alive},
        {"a": gone, "b": alive},
        {"a": gone, "b": over},
    ]
    env = JointEnv(Script(steps, ["a", "b"], [["a", "b"], ["b"], ["b"], ["b"]]))
    env.reset()
    for action in ({"a": 0, "b": 0}, {"b": 0}):
        assert env.step(action)[2:4] == (False, False)
    assert env.step({"b": 0})[2:4] == (True, False), "the only one that was left has terminated"


def test_who_is_away_when_the_episode_is_cut_off() -> None:
    """The env empties its list of agents then, as most do."""
    here, away, cut = (one(), 0, False, False), (None, 0, False, False), (one(4), 0, False, True)
    steps: list[Any] = [
        {"a": here, "b": here},
        {"a": away, "b": here},
        {"a": (None, 0, False, True), "b": cut},
    ]
    env = JointEnv(Script(steps, ["a", "b"], [["a", "b"], ["a", "b"], []]))
    env.reset()
    assert env.step({"a": 0, "b": 0})[4]["waiting_agents"].tolist() == [True, False]
    _, _, _, truncated, info = env.step({"b": 0})
    assert truncated
    assert info["active"].tolist() == [False, True]
    assert info["waiting_agents"].tolist() == [True, False]


def test_an_env_may_empty_its_agents_or_keep_them() -> None:
    start = dict.fromkeys("ab", (one(), 0, False, False))
    flagged = JointEnv(
        Script(
            [start, dict.fromkeys("ab", (one(), 0, True, False))],
            ["a", "b"],
            [["a", "b"], ["a", "b"]],
        )
    )
    flagged.reset()
    assert flagged.step({"a": 0, "b": 0})[2:4] == (True, False)
    emptied = JointEnv(Script([start, {}], ["a", "b"], [["a", "b"], []]))
    emptied.reset()
    assert emptied.step({"a": 0, "b": 0})[2:4] == (True, False)
    waiting = JointEnv(Script([start, {}, start], ["a", "b"], [["a", "b"], ["a"], ["a", "b"]]))
    waiting.reset()
    assert waiting.step({"a": 0, "b": 0})[2:4] == (False, False), (
        "nobody is there, but somebody will be"
    )
    assert "active" not in waiting.step({})[4]


def test_team_rewards() -> None:
    start = dict.fromkeys("ab", (one(), 0.0, False, False))
    steps = [start, {"a": (one(), 1.0, False, False), "b": (one(), 5.0, False, False)}]
    for team_reward, expected in [("mean", 3), ("sum", 6), ("b", 5), (np.min, 1)]:
        env = JointEnv(Script(steps, ["a", "b"]), team_reward=team_reward)  # type: ignore[arg-type]
        env.reset()
        _, reward, _, _, info = env.step({"a": 0, "b": 0})
        assert reward == expected
        assert type(reward) is float
        assert info["agent_rewards"].tolist() == [1, 5]
    with pytest.raises(ValueError, match="team_reward='c'"):
        JointEnv(Script(steps, ["a", "b"]), team_reward="c")


def test_infos_of_the_env_are_passed_on() -> None:
    class Telling(MatrixGame):
        def step(self, actions: Any) -> Any:
            *rest, infos = super().step(actions)
            return *rest, infos | {"agent_1": {"secret": 42}}

    env = JointEnv(Telling(2))
    assert "agent_infos" not in env.reset()[1]
    assert env.step({"agent_0": 0, "agent_1": 0})[4]["agent_infos"] == {"agent_1": {"secret": 42}}
