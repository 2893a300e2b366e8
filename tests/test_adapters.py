"""Adapters: turn-based, converted and Gymnasium environments as teams."""

import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import data_equivalence

from sb3_happo.envs import (
    JointEnv,
    joint_action_dtype,
)
from sb3_happo.envs.adapters import ConvertedAEC
from sb3_happo.envs.make import make_env
from sb3_happo.envs.mujoco import MujocoTeam
from tests.envs import (
    DictTeam,
    MatrixGame,
    TupleTeam,
    TurnGame,
    episode,
    legal_actions,
)


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


def seeded_action_spaces(env: Any) -> dict[Any, spaces.Space]:
    """Action spaces that give the same samples each time."""
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
    """
    Reacher's agents observe functions of the joint observation, and a wrapper may change a robot's
    observation and not the agents'.
    """
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


def test_multi_agent_mujoco_behind_the_time_limit_of_rl_zoo() -> None:
    """Importing RL Zoo replaces ``gymnasium.wrappers.TimeLimit``, before or after this package."""
    patched = pytest.importorskip("rl_zoo3.gym_patches").PatchedTimeLimit
    for time_limit in (patched, patched.__base__):
        env = make_env("mamujoco/Hopper-3x1-v1")
        env.single_agent_env = time_limit(env.single_agent_env, 10)
        assert MujocoTeam.supports(env)

        class ChangedTimeLimit(time_limit):  # type: ignore[misc, valid-type]
            """May do anything."""

        env.single_agent_env = ChangedTimeLimit(env.single_agent_env, 10)
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
            self.last_action = action
            observation, rewards, _, _, info = super().step(action)
            ended = [True, self._t == 2]
            return observation, rewards, ended, False, info  # type: ignore[return-value]

    substitutes = set()
    for _ in range(20):
        game = OneByOne()
        env = JointEnv(game)
        env.reset()
        _, _, terminated, _, info = env.step({"agent_0": 0, "agent_1": 0})
        assert not terminated
        assert info["active"].tolist() == [False, True]
        assert env.step({"agent_1": 0})[2]
        substitutes.add(int(game.last_action[0]))
    assert len(substitutes) == 1, "the first agent's action must be the same in every copy"


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
