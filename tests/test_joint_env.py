"""One team is one Gymnasium env, whatever it was before."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env, data_equivalence
from pettingzoo import ParallelEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_happo.envs import (
    JointEnv,
    as_joint_env,
    check_action_spaces,
    check_observation_spaces,
    check_team_spaces,
    joint_action_dtype,
    joint_action_to_dict,
)
from sb3_happo.envs.adapters import ConvertedAEC
from sb3_happo.envs.make import make_env
from sb3_happo.envs.mujoco import MujocoTeam
from sb3_happo.envs.spaces import flatten_mask, n_choices, split_mask
from tests.envs import (
    DictTeam,
    HeterogeneousTeam,
    MaskedGame,
    MatrixGame,
    RandomTeam,
    TupleTeam,
    TurnGame,
)

ALL_KINDS = {
    "discrete": spaces.Discrete(3, start=2),
    "multi": spaces.MultiDiscrete([2, 3]),
    "binary": spaces.MultiBinary(4),
    "box": spaces.Box(-1, 1, (2, 2), np.float32),
    "scalar": spaces.Box(-1, 1, (), np.float32),
    "double": spaces.Box(0, 5, (2,), np.float64),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (2,), np.float32)]),
    "dict": spaces.Dict(
        {
            "move": spaces.Box(-1, 1, (2,), np.float64),
            "say": spaces.Tuple([spaces.MultiDiscrete([2, 2])]),
        }
    ),
}


class Script(ParallelEnv):
    """
    Plays back prepared answers.

    :param answers: For the reset and each step, ``{agent: (observation, reward, terminated, truncated)}``
    :param possible_agents: All agents
    :param living: After the reset and each step, the env's ``agents``; by default whoever is observed and not flagged
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        answers: Sequence[Mapping[Any, tuple[Any, float, bool, bool]]],
        possible_agents: list[Any],
        living: list[list[Any]] | None = None,
    ) -> None:
        self.answers = answers
        self.possible_agents = possible_agents
        self.living = living
        self.space: spaces.Space | dict[Any, spaces.Space] = spaces.Box(-10, 10, (1,), np.float32)
        self.actions: list[dict[Any, Any]] = []

    def observation_space(self, agent: Any) -> spaces.Space:
        return self.space[agent] if isinstance(self.space, dict) else self.space

    def action_space(self, agent: Any) -> spaces.Space:
        return spaces.Discrete(2)

    def _turn(self) -> tuple[dict, ...]:
        answer = self.answers[self.t]
        self.agents = [agent for agent, (_, _, dead, cut) in answer.items() if not (dead or cut)]
        if self.living is not None:
            self.agents = self.living[self.t]
        observations, rewards, dead, cut = (
            {agent: value[i] for agent, value in answer.items()} for i in range(4)
        )
        observations = {agent: value for agent, value in observations.items() if value is not None}
        return observations, rewards, dead, cut, {agent: {} for agent in answer}

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.t = 0
        observations, _, _, _, infos = self._turn()
        return observations, infos

    def step(self, actions: dict) -> tuple[dict, ...]:
        self.actions.append(actions)
        self.t += 1
        return self._turn()


def one(value: float = 1.0) -> np.ndarray:
    return np.full(1, value, np.float32)


def legal_actions(env: JointEnv, observation: dict[str, Any]) -> dict[str, Any]:
    """Random actions of the whole team that keep to the masks."""
    actions = {}
    for agent, space in env.action_space.items():
        mask = observation.get(f"{agent}/action_mask")
        actions[agent] = space.sample(None if mask is None else split_mask(space, mask))
    return actions


def episode(env: JointEnv, seed: int = 0) -> Iterator[tuple[dict, float, bool, bool, dict]]:
    """One episode of random legal actions; the reset comes first, as a step without reward."""
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed)
    terminated = truncated = False
    yield observation, 0.0, False, False, info
    while not (terminated or truncated):
        observation, reward, terminated, truncated, info = env.step(legal_actions(env, observation))
        yield observation, reward, terminated, truncated, info


# ---------------------------------------------------------------- spaces and actions


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


# ---------------------------------------------------------------- life and death


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


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize("masks_in", ["observation", "info"])
def test_masks_come_in_both_forms(masks_in: str) -> None:
    team = MaskedGame(length=20, masks_in=masks_in)
    env = JointEnv(team)
    assert env.observation_space["agent_1/action_mask"] == spaces.Box(0, 1, (5,), np.int8)
    for observation, *_ in episode(env):
        for agent in env.agents:
            assert np.array_equal(
                observation[f"{agent}/action_mask"], np.concatenate(team._masks[agent])
            )
        assert observation["agent_0"].shape == (1,)
        assert observation["state"].shape == (2,), "masks are no part of the state"


def test_masks_of_nested_actions() -> None:
    space = spaces.Dict(
        {
            "a": spaces.Discrete(2),
            "b": spaces.Box(0, 1, (3,)),
            "c": spaces.Tuple([spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]),
        }
    )
    assert n_choices(space) == 7
    flat = np.array([0, 1, 1, 0, 0, 0, 1], np.int8)
    nested = split_mask(space, flat)
    assert np.array_equal(flatten_mask(space, nested), flat)
    assert np.array_equal(flatten_mask(space, flat.astype(bool)), flat)
    partly = {"a": np.array([0, 1], np.int8), "b": None, "c": None}
    assert flatten_mask(space, partly).tolist() == [0, 1, 1, 1, 1, 1, 1]
    for _ in range(20):
        sample = space.sample(nested)
        assert sample["a"] == 1
        assert sample["c"][0].tolist() == [0, 2]
    heads = spaces.MultiDiscrete(np.array([[2, 2], [3, 1]]))
    mask = np.array([1, 0, 0, 1, 0, 0, 1, 1], np.int8)
    assert np.array_equal(heads.sample(split_mask(heads, mask)), [[0, 1], [2, 0]])
    with pytest.raises(ValueError, match="needs 2 entries"):
        flatten_mask(spaces.Discrete(2), np.ones(3))


def test_a_mask_that_comes_too_late_or_only_once_or_is_too_long() -> None:
    class LateMask(MaskedGame):
        def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
            return super().reset(seed, options)[0], {}

    late = LateMask(masks_in="info")
    env = JointEnv(late)
    env.reset()
    best = {
        agent: np.array([np.flatnonzero(mask)[-1] for mask in masks])
        for agent, masks in late._masks.items()
    }
    with pytest.raises(ValueError, match="agent 'agent_0' has an action mask in its info now"):
        env.step({"agent_0": best["agent_0"][0], "agent_1": best["agent_1"]})

    class OnlyOneMask(MaskedGame):
        def step(self, actions: dict[str, Any]) -> Any:
            return *super().step(actions)[:4], {}

    once = OnlyOneMask(length=2, masks_in="info")
    env = JointEnv(once)
    env.reset()
    best = {
        agent: np.array([np.flatnonzero(mask)[-1] for mask in masks])
        for agent, masks in once._masks.items()
    }
    with pytest.raises(ValueError, match="agent 'agent_0' has no action mask in its info now"):
        env.step({"agent_0": best["agent_0"][0], "agent_1": best["agent_1"]})

    team = MaskedGame(masks_in="info")
    env = JointEnv(team)
    team.heads = {"agent_0": [4], "agent_1": [3, 3]}  # type: ignore[misc]
    with pytest.raises(ValueError, match="needs 5 entries"):
        env.reset()


# ---------------------------------------------------------------- turns


@pytest.mark.parametrize("truncate", [False, True])
def test_turns(truncate: bool) -> None:
    drops_out = {"player_1": 2}
    team = TurnGame(3, 4, drops_out, truncate)
    env = JointEnv(team)
    own = []
    joint_rewards = np.zeros(3)
    moves: list[int] = []
    on_turn: list[str] = []
    env.action_space.seed(3)
    observation, info = env.reset()
    while True:
        assert info["active"].sum() == 1
        agent = env.agents[int(np.argmax(info["active"]))]
        on_turn.append(agent)
        mask = observation[f"{agent}/action_mask"]
        own.append(mask)
        for other in env.agents:
            if other != agent:
                assert not observation[other].any()
                assert observation[f"{other}/action_mask"].all()
        # The critic sees what everyone who is there would see: the turn, and the player's number
        present = [1.0, 0.0 if len(moves) >= 6 else 2.0, 3.0]
        assert observation["state"][1::2].tolist() == present
        actions = legal_actions(env, observation)
        moves.append(int(actions[agent]))
        observation, reward, terminated, truncated, info = env.step(actions)
        assert reward == pytest.approx(info["agent_rewards"].mean())
        joint_rewards += info["agent_rewards"]
        if terminated or truncated:
            break
    assert (terminated, truncated) == (not truncate, truncate)
    assert on_turn == ["player_0", "player_1", "player_2"] * 2 + ["player_0", "player_2"] * 2
    assert observation["state"].any(), "the last observation is there for its value"

    # The same moves in PettingZoo's own loop
    team.reset()
    returns = dict.fromkeys(team.possible_agents, 0.0)
    remaining = iter(moves)
    for agent in team.agent_iter():
        _, reward, dead, cut, _ = team.last()
        returns[agent] += reward
        team.step(None if dead or cut else next(remaining))
    assert joint_rewards == pytest.approx(list(returns.values()))


def test_wrapped_turns() -> None:
    from pettingzoo.utils import wrappers

    env = JointEnv(wrappers.OrderEnforcingWrapper(wrappers.AssertOutOfBoundsWrapper(TurnGame())))
    assert sum(1 for _ in episode(env)) == 13


# ---------------------------------------------------------------- Gymnasium's envs


def seeded_action_spaces(env: Any) -> dict[Any, spaces.Space]:
    """From which the same actions are drawn each time."""
    spaces_of = {agent: env.action_space(agent) for agent in env.possible_agents}
    for index, space in enumerate(spaces_of.values()):
        space.seed(index)
    return spaces_of


CONVERTED: dict[str, dict[str, Any]] = {
    "mpe2/simple_spread_v3": {},
    "mpe2/simple_tag_v3": {"continuous_actions": True},
    "mpe2/simple_speaker_listener_v4": {},
    "pettingzoo.sisl/multiwalker_v9": {"remove_on_fall": True, "terminate_on_fall": False},
    "pettingzoo.butterfly/knights_archers_zombies_v11": {"spawn_delay": 3, "line_death": True},
    "pettingzoo.butterfly/pistonball_v6": {"n_pistons": 3, "max_cycles": 30},
}


@pytest.mark.parametrize("id", CONVERTED)
def test_converted_envs_do_the_same_with_less(id: str) -> None:
    """Two episodes and more, in which walkers fall and archers die."""

    def play(direct: bool) -> list[Any]:
        env = make_env(id, **CONVERTED[id])
        assert ConvertedAEC.supports(env)
        team = ConvertedAEC(env) if direct else env
        spaces_of = seeded_action_spaces(env)
        seen: list[Any] = []
        for step in range(200):
            if step == 0 or not team.agents:
                random.seed(step)
                seen.append(team.reset(seed=step))
            actions = {agent: spaces_of[agent].sample() for agent in team.agents}
            seen += [
                [dict(part) for part in team.step(actions)],
                list(team.agents),
                list(env.agents),
                env.num_agents,
            ]
        env.close()
        return seen

    ours, theirs = play(direct=True), play(direct=False)
    assert (
        len({answer for answer in ours if isinstance(answer, int)}) > ("multiwalker" in id) + 1
    ), "some ended"
    assert data_equivalence(ours, theirs, exact=True)


@pytest.mark.parametrize(
    ("id", "kwargs"),
    [
        ("mamujoco/HalfCheetah-2x3-v1", {}),
        ("mamujoco/Hopper-3x1-v1", {"agent_obsk": 2}),
        ("mamujoco/Walker2d-2x3-v1", {}),
        ("mamujoco/Ant-4x2-v1", {"agent_obsk": 0}),
        ("mamujoco/Swimmer-2x1-v1", {}),
        ("mamujoco/Humanoid-9p8-v1", {}),
        ("mamujoco/Humanoid-17x1-v1", {"max_episode_steps": 20}),
        ("mamujoco/HumanoidStandup-9p8-v1", {}),
    ],
)
def test_multi_agent_mujoco_does_the_same_with_less(id: str, kwargs: dict[str, Any]) -> None:
    """Falls, time limits, and joints that turn faster than a walker's state would show."""

    def play(direct: bool) -> tuple[list[Any], list[Any]]:
        env = make_env(id, **kwargs)
        assert MujocoTeam.supports(env)
        team = MujocoTeam(env) if direct else env
        spaces_of = seeded_action_spaces(env)
        observations: list[Any] = []
        others: list[Any] = []
        for step in range(150):
            if step == 0 or not team.agents:
                seen = team.reset(seed=step)
            else:
                seen = team.step({agent: spaces_of[agent].sample() for agent in team.agents})
            observations.append(
                {agent: own.astype(np.float32) for agent, own in seen[0].items()}
                | {"state": team.state()}
            )
            others += [seen[1:], list(team.agents), list(env.agents)]
        env.close()
        return observations, others

    ours, theirs = play(direct=True), play(direct=False)
    assert data_equivalence(ours, theirs, exact=True)


def test_multi_agent_mujoco_that_must_be_played_as_it_is() -> None:
    """Reacher's agents see functions of the joint observation; a wrapped robot's own observation is not the agents'."""
    assert not MujocoTeam.supports(make_env("mamujoco/Reacher-2x1-v1"))
    env = make_env("mamujoco/Hopper-3x1-v1")
    env.k_dicts[0][0][0].extra_obs["qpos"] = lambda data: np.cos(data.qpos[-1:])
    with pytest.raises(
        ValueError, match="agent_0 observes something that the joint observation does not hold"
    ):
        MujocoTeam(env)
    assert JointEnv(env).reset(seed=0)[0]["agent_0"][0] == pytest.approx(1.0, abs=1e-4)
    env.single_agent_env = gym.wrappers.TransformAction(env.single_agent_env, np.negative, None)
    assert not MujocoTeam.supports(env)


def test_converted_envs_refuse_what_the_env_refuses() -> None:
    """Actions out of bounds; and agents that do not take turns."""
    env = JointEnv(make_env("mpe2/simple_spread_v3"))
    env.reset()
    with pytest.raises(AssertionError, match="action is not in action space"):
        env.step(dict.fromkeys(env.agents, 7))
    env.env.unwrapped.agent_selection = "agent_2"
    with pytest.raises(RuntimeError, match="'agent_2' is on turn instead of 'agent_0'"):
        env.step(dict.fromkeys(env.agents, 0))


@pytest.mark.parametrize(
    ("cls", "names"), [(TupleTeam, ["agent_0", "agent_1"]), (DictTeam, ["left", "right"])]
)
def test_one_action_per_agent_in_gymnasium(cls: type[TupleTeam], names: list[str]) -> None:
    env = JointEnv(cls(), team_reward="sum")
    assert list(env.agents) == names
    env.reset()
    for t in range(1, 6):
        row = np.array([(1, 3)], joint_action_dtype(env.action_space))[0]
        observation, reward, terminated, truncated, info = env.step(row)
        assert info["agent_rewards"].tolist() == [1, 3]
        assert reward == 4
        assert observation[names[1]].tolist() == [10 + t] * 3
        assert info["t"] == t
    assert (terminated, truncated) == (False, True)


def test_who_the_agents_of_a_gymnasium_env_are() -> None:
    class OneForAll(TupleTeam):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Box(0, 100, (2,), np.float32)

        def _observation(self) -> Any:
            return np.full(2, self._t, np.float32)

        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
            observation, rewards, *rest = super().step(action)
            return observation, sum(rewards), *rest

    hybrid = JointEnv(OneForAll())
    assert hybrid.agents == ("agent_0",)
    assert hybrid.action_space["agent_0"] == TupleTeam().action_space
    hybrid.reset()
    assert hybrid.step(hybrid.action_space.sample())[0]["agent_0"].tolist() == [1, 1]

    team = JointEnv(OneForAll(), per_agent=True)
    assert team.agents == ("agent_0", "agent_1")
    team.reset()
    observation, _, _, _, info = team.step({"agent_0": 2, "agent_1": 3})
    assert observation["agent_1"].tolist() == [1, 1]
    assert info["agent_rewards"].tolist() == [5, 5]

    assert JointEnv(TupleTeam(), per_agent=False).agents == ("agent_0",)
    with pytest.raises(ValueError, match="per_agent"):
        JointEnv(gym.make("CartPole-v1"), per_agent=True)
    with pytest.raises(ValueError, match="per_agent"):
        JointEnv(MatrixGame(), per_agent=True)


def test_agents_of_a_gymnasium_env_that_end_one_by_one() -> None:
    class OneByOne(TupleTeam):
        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
            assert self.action_space.contains(action)
            observation, rewards, _, _, info = super().step(action)
            return observation, rewards, [True, self._t == 2], False, info  # type: ignore[return-value]

    idle = {JointEnv(OneByOne())._team._idle["agent_0"] for _ in range(20)}  # type: ignore[attr-defined]
    assert len(idle) == 1, "what stands in for the first agent must not be drawn anew in every copy"
    env = JointEnv(OneByOne())
    env.reset()
    _, _, terminated, _, info = env.step({"agent_0": 0, "agent_1": 0})
    assert not terminated
    assert info["active"].tolist() == [False, True]
    assert env.step({"agent_1": 0})[2]


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1"])
def test_a_team_of_one(id: str) -> None:
    alone, env = gym.make(id), JointEnv(gym.make(id))
    assert env.agents == ("agent_0",)
    alone.action_space.seed(0)
    expected, _ = alone.reset(seed=5)
    observation, _ = env.reset(seed=5)
    terminated = truncated = False
    while not (terminated or truncated):
        assert np.array_equal(observation["agent_0"], expected)
        assert np.array_equal(observation["state"], expected)
        action = alone.action_space.sample()
        expected, reward, terminated, truncated, _ = alone.step(action)
        row = np.zeros(1, joint_action_dtype(env.action_space))
        row["agent_0"] = action
        observation, team_reward, *ends, _ = env.step(row[0])
        assert team_reward == pytest.approx(reward)
        assert ends == [terminated, truncated]


def test_a_team_of_one_with_a_dict_observation_and_a_mask_in_the_info() -> None:
    class Masked(gym.Env):
        observation_space = spaces.Dict({"a": spaces.Box(0, 1, (2,)), "b": spaces.Discrete(3)})
        action_space = spaces.Discrete(2)

        def reset(
            self, *, seed: int | None = None, options: dict | None = None
        ) -> tuple[Any, dict]:
            return {"a": np.ones(2, np.float32), "b": 2}, {"action_mask": np.array([0, 1], np.int8)}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
            return *self.reset(), 1.0, True, False  # type: ignore[return-value]

    observation, info = JointEnv(Masked()).reset()
    assert observation["agent_0/action_mask"].tolist() == [0, 1]
    assert observation["state"].tolist() == [1, 1, 0, 0, 1]
    assert "action_mask" in info


# ---------------------------------------------------------------- the critic's state


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


# ---------------------------------------------------------------- rewards


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
        def step(self, actions: dict) -> Any:
            *rest, infos = super().step(actions)
            return *rest, infos | {"agent_1": {"secret": 42}}

    env = JointEnv(Telling(2))
    assert "agent_infos" not in env.reset()[1]
    assert env.step({"agent_0": 0, "agent_1": 0})[4]["agent_infos"] == {"agent_1": {"secret": 42}}


# ---------------------------------------------------------------- one team among others


def test_others_play_at_random_within_their_masks() -> None:
    team = MaskedGame(length=50)
    env = JointEnv(team, agents=["agent_0"], others="random")
    assert env.agents == ("agent_0",)
    assert list(env.observation_space) == ["agent_0", "agent_0/action_mask", "state"]
    first, again = ([reward for _, reward, *_ in episode(env, seed=4)] for _ in range(2))
    assert len(first) == 51
    assert first == again
    info = JointEnv(MaskedGame(length=50, masks_in="info"), agents=["agent_1"], others="random")
    assert sum(1 for _ in episode(info)) == 51


def test_others_as_functions_agents_and_models() -> None:
    class Highest:
        """An agent as SB3 saves it, that takes the highest legal number."""

        def __init__(self, kind: str) -> None:
            self.kind = kind
            self.seen: list[Any] = []

        def predict(
            self, observation: Any, deterministic: bool = False, action_masks: Any = None
        ) -> tuple[Any, None]:
            self.seen.append(observation)
            return np.flatnonzero(action_masks)[-1], None

    def highest(
        agent: str, observation: Any, action_space: spaces.Space, action_mask: np.ndarray
    ) -> int:
        assert agent == "agent_0"
        assert set(observation) == {"observation", "action_mask"}
        assert action_space.contains(int(action_mask.argmax()))
        return int(np.flatnonzero(action_mask)[-1])

    class Model:
        def __init__(self) -> None:
            self.policies = {"agent_0": Highest("model's")}

        def predict(self, *_: Any, **__: Any) -> None:
            raise AssertionError("the whole team's predict is not for one agent")

    saved, model = Highest("saved"), Model()
    for others in (
        highest,
        saved,
        model,
        {"agent_0": saved, "agent_9": None},
        [[highest], {"agent_0": model}],
    ):
        team = MaskedGame(length=10)
        env = JointEnv(team, agents=["agent_1"], others=others)
        rewards: list[float] = []
        step = team.step

        def spy(actions: dict, step: Any = step, rewards: list = rewards) -> Any:
            result = step(actions)
            rewards.append(result[1]["agent_0"])
            return result

        team.step = spy  # type: ignore[method-assign]
        assert sum(1 for _ in episode(env)) == 11
        assert rewards == [1.0] * 10
    assert all(
        observation.shape == (1,) for observation in saved.seen + model.policies["agent_0"].seen
    )


def test_a_mixture_is_drawn_once_per_episode() -> None:
    class Constant:
        def __init__(self, action: int) -> None:
            self.action = action

        def predict(self, observation: Any, deterministic: bool = False) -> tuple[int, None]:
            return self.action, None

    team = RandomTeam(dict.fromkeys("abc", spaces.Discrete(2)), length=5)
    env = JointEnv(team, agents=["a"], others=[Constant(0), Constant(1)])

    def opponents() -> list[int]:
        drawn = []
        for number in range(20):
            env.reset(seed=7 if number == 0 else None)
            played = set()
            for _ in range(5):
                env.step({"a": 0})
                played.add((team.actions["b"], team.actions["c"]))
            assert played in ({(0, 0)}, {(1, 1)})
            drawn.append(played.pop()[0])
        return drawn

    first = opponents()
    assert set(first) == {0, 1}
    assert opponents() == first


def test_others_take_their_turns() -> None:
    moves = []

    def opponent(
        agent: str, observation: Any, action_space: spaces.Space, action_mask: np.ndarray
    ) -> int:
        assert not action_mask[int(observation["observation"][0]) % 3], "the mask of its own turn"
        moves.append(agent)
        return int(np.flatnonzero(action_mask)[-1])

    env = JointEnv(TurnGame(3, 4), agents=["player_1"], others=opponent)
    moves.clear()
    observation, _ = env.reset()
    for turn in range(4):
        assert observation["player_1"].tolist() == [1 + 3 * turn, 2], "it is its turn"
        assert moves == (["player_0"] + ["player_2", "player_0"] * 3)[: 1 + 2 * turn]
        move = int(np.flatnonzero(observation["player_1/action_mask"])[-1])
        observation, _, terminated, truncated, info = env.step({"player_1": move})
        assert info["agent_rewards"] == pytest.approx([move - (0.2 if turn < 3 else 0.1)]), (
            "with what the others' moves cost it"
        )
    assert (terminated, truncated) == (True, False)
    assert len(moves) == 8


def test_the_episode_ends_when_none_of_the_team_is_left() -> None:
    start = dict.fromkeys("abc", (one(), 0, False, False))
    steps: list[dict[str, Any]] = [
        start,
        {
            "a": (one(), 1, True, False),
            "b": (one(), 1, False, False),
            "c": (one(), 1, False, False),
        },
        {"b": (one(), 1, True, False), "c": (one(), 1, False, False)},
    ]
    env = JointEnv(Script(steps, ["a", "b", "c"]), agents=["b", "a"], others="random")
    assert env.agents == ("a", "b"), "in the env's order"
    env.reset()
    assert env.step({"a": 0, "b": 0})[2:4] == (False, False)
    assert env.step({"b": 0})[2:4] == (True, False)


def test_others_that_cannot_play() -> None:
    team = MaskedGame()
    with pytest.raises(ValueError, match="other_agents='random'"):
        JointEnv(team, agents=["agent_0"])
    with pytest.raises(ValueError, match="must name some of"):
        JointEnv(team, agents=["agent_7"], others="random")
    with pytest.raises(ValueError, match="name the team with `agents`"):
        JointEnv(team, others="random")
    with pytest.raises(ValueError, match="no policy for agent 'agent_1'"):
        JointEnv(team, agents=["agent_0"], others={"agent_0": "random"})
    with pytest.raises(TypeError, match="cannot play agent 'agent_1'"):
        JointEnv(team, agents=["agent_0"], others=["random", 3])
    assert JointEnv(team, agents=["agent_1", "agent_0"]).agents == ("agent_0", "agent_1")


# ---------------------------------------------------------------- bad input


def test_what_cannot_be_joined() -> None:
    env = JointEnv(MatrixGame())
    assert as_joint_env(env) is env
    wrapped = gym.wrappers.TimeLimit(env, 5)
    assert as_joint_env(wrapped) is wrapped
    assert isinstance(as_joint_env(MatrixGame(), team_reward="sum"), JointEnv)
    with pytest.raises(ValueError, match="team_reward"):
        as_joint_env(env, team_reward="sum")
    for twice in (env, wrapped):
        with pytest.raises(TypeError, match="already"):
            JointEnv(twice)
    for wrong in ("mpe2/simple_spread_v3", object()):
        with pytest.raises(TypeError, match="cannot be joined"):
            JointEnv(wrong)


def test_spaces_that_change_between_resets() -> None:
    team = Script([dict.fromkeys("ab", (one(), 0, False, False))] * 2, ["a", "b"])
    env = JointEnv(team)
    env.reset()
    team.space = spaces.Box(-10, 10, (1,), np.float32)
    env.reset()  # another object that says the same
    team.space = spaces.Box(-10, 10, (2,), np.float32)
    with pytest.raises(ValueError, match="observation space of agent 'a' has changed"):
        env.reset()


def test_observations_that_do_not_fit() -> None:
    start = dict.fromkeys("ab", (one(), 0, False, False))
    env = JointEnv(
        Script(
            [start, {"a": (one(), 0, False, False), "b": (np.float32(1), 0, False, False)}],
            ["a", "b"],
        )
    )
    env.reset()
    with pytest.raises(ValueError, match=r"agent 'b': an observation of shape \(\) .* \(1,\)"):
        env.step({"a": 0, "b": 0})
    env = JointEnv(Script([start, start | {"c": (one(), 0, False, False)}], ["a", "b"]))
    env.reset()
    with pytest.raises(ValueError, match=r"agents \['c'\]"):
        env.step({"a": 0, "b": 0})
    team = Script([{"a": ({"x": one()}, 0, False, False)}] * 2, ["a"])
    team.space = spaces.Dict({"x": spaces.Box(-1, 1, (1,)), "y": spaces.Box(-1, 1, (1,))})
    with pytest.raises(ValueError, match="agent 'a': its observation lacks 'y'"):
        JointEnv(team)
    text = RandomTeam({"a": spaces.Discrete(2)}, observation_spaces={"a": spaces.Text(5)})
    with pytest.raises(TypeError, match="agent 'a' has an unsupported observation space Text"):
        JointEnv(text)


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


# ---------------------------------------------------------------- seeds, copies, VecEnvs


@pytest.mark.parametrize(
    "make", [HeterogeneousTeam, lambda: RandomTeam(ALL_KINDS)], ids=["heterogeneous", "random"]
)
def test_seeds(make: Any) -> None:
    def trajectory(env: JointEnv, seed: int | None) -> list[np.ndarray]:
        observation, _ = env.reset(seed=seed)
        return [np.ravel(observation[key]) for key in env.observation_space]

    first, second = JointEnv(make()), JointEnv(make())
    for a, b in zip(trajectory(first, 3), trajectory(second, 3), strict=True):
        assert np.array_equal(a, b)
    unseeded = zip(
        trajectory(JointEnv(make()), None), trajectory(JointEnv(make()), None), strict=True
    )
    assert any(not np.array_equal(a, b) for a, b in unseeded), "copies without a seed differ"


def test_joint_envs_can_be_pickled() -> None:
    env = JointEnv(HeterogeneousTeam(), team_reward="sum")
    copy = cloudpickle.loads(cloudpickle.dumps(env))
    for ours, theirs in zip(episode(env), episode(copy), strict=True):
        assert ours[1] == theirs[1]


def test_sb3_vec_envs_take_structured_actions() -> None:
    venv = DummyVecEnv([lambda: JointEnv(TupleTeam(), team_reward="sum") for _ in range(3)])
    venv.reset()
    actions = np.zeros(3, joint_action_dtype(venv.action_space))  # type: ignore[arg-type]
    actions["agent_0"] = [0, 1, 2]
    actions["agent_1"] = [3, 2, 2]
    observation, rewards, _, infos = venv.step(actions)
    assert rewards.tolist() == [3, 3, 4]
    assert [info["agent_rewards"].tolist() for info in infos] == [[0, 3], [1, 2], [2, 2]]
    assert observation["state"].shape == (3, 5)  # type: ignore[call-overload]


def test_activity_passes_through_sb3_vec_envs() -> None:
    venv = DummyVecEnv([lambda: JointEnv(HeterogeneousTeam())])
    venv.seed(0)
    observation: Any = venv.reset()
    team = HeterogeneousTeam()
    for t in range(1, team.length + 1):
        env = venv.envs[0].unwrapped
        own = {key: value[0] for key, value in observation.items()}
        action = legal_actions(env, own)  # type: ignore[arg-type]
        observation, _, dones, infos = venv.step([action])  # type: ignore[arg-type]
        active = infos[0].get("active", np.ones(5, bool))
        assert active.tolist() == [agent in team.alive(t) for agent in team.possible_agents]
    assert dones[0]
    assert venv.reset_infos[0]["active"].tolist() == [
        agent in team.alive(0) for agent in team.possible_agents
    ]
    assert infos[0]["terminal_observation"]["arm/position"].any()


def test_rendering_and_closing() -> None:
    env = JointEnv(gym.make("CartPole-v1", render_mode="rgb_array"))
    assert env.render_mode == "rgb_array"
    assert env.metadata["render_fps"] == 50
    env.reset()
    assert env.render().ndim == 3
    env.close()
