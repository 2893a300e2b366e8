"""Facts of a step: the same arrays from every vectorised environment, wrapped or not."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecMonitor,
    VecNormalize,
)

from sb3_happo import JointEnv
from sb3_happo.envs import joint_action_dtype
from sb3_happo.vec_env import (
    JointDummyVecEnv,
    JointSubprocVecEnv,
    StepFacts,
    StepInfos,
    VecTeamOfOne,
    initial_facts,
    step_facts,
)
from sb3_happo.vec_env.actions import as_joint_actions, sample_actions
from tests.envs import HeterogeneousTeam, RandomTeam, TurnGame

Transition = tuple[np.ndarray, list[dict[str, Any]], list[dict[str, Any]], StepFacts]


def dying(length: int) -> gym.Env:
    """Agents die, and some return; ends by truncation."""
    return JointEnv(HeterogeneousTeam(length))


def turns(n_rounds: int) -> gym.Env:
    """One agent is active at a time, from the reset on; ends by termination."""
    return JointEnv(TurnGame(n_rounds=n_rounds))


def complete(length: int) -> gym.Env:
    """All agents are active; ends by truncation."""
    return JointEnv(RandomTeam({"a": spaces.Discrete(3), "b": spaces.Discrete(2)}, length))


TEAMS: dict[str, list[Callable[[], gym.Env]]] = {
    "dying": [partial(dying, length) for length in (12, 11, 7)],
    "turns": [partial(turns, n_rounds) for n_rounds in (4, 2, 3)],
    "complete": [partial(complete, length) for length in (4, 5, 6)],
}
VEC_ENVS: dict[str, Callable[..., VecEnv]] = {
    "JointDummyVecEnv": JointDummyVecEnv,
    "JointSubprocVecEnv": partial(JointSubprocVecEnv, n_workers=2, start_method="fork"),
    "full infos": partial(
        JointSubprocVecEnv, n_workers=2, start_method="fork", full_infos=True, parent_works=False
    ),
    "DummyVecEnv": DummyVecEnv,
    "SubprocVecEnv": partial(SubprocVecEnv, start_method="fork"),
}
WRAPPERS: dict[str, Callable[[VecEnv], VecEnv]] = {
    "bare": lambda venv: venv,
    "VecMonitor": VecMonitor,
    "VecNormalize": partial(VecNormalize, norm_obs=False),
}


def play(venv: VecEnv, n_steps: int = 30) -> Iterator[Transition]:
    """
    Random legal actions from a seed.

    :param venv: Joint vectorised environment, closed at the end
    :param n_steps: Number of steps
    :return: Dones, infos, reset infos and facts of each step
    """
    action_space: Any = copy.deepcopy(venv.action_space)
    action_space.seed(7)
    dtype = joint_action_dtype(action_space)
    with contextlib.closing(venv):
        venv.seed(7)
        obs: Any = venv.reset()
        for _ in range(n_steps):
            sampled = sample_actions(action_space, obs, venv.num_envs)
            actions = as_joint_actions(sampled, action_space, dtype, venv.num_envs)
            obs, _, dones, infos = venv.step(actions)
            facts = step_facts(infos, dones, venv, len(action_space))
            yield dones, infos, copy.copy(venv.unwrapped.reset_infos), facts


def from_dicts(
    name: str, dones: np.ndarray, infos: list[Any], reset_infos: list[Any], n_agents: int
) -> np.ndarray | None:
    """Flags of the next observations, as the infos of a step and of the resets give them."""
    flags = [info.get(name) for info in infos]
    for index in np.flatnonzero(dones):
        flags[index] = reset_infos[index].get(name)
    if all(flag is None for flag in flags):
        return None
    usual = np.full(n_agents, name == "active")
    return np.stack([usual if flag is None else flag for flag in flags])


def assert_equal(one: Any, other: Any, name: str) -> None:
    assert (one is None) == (other is None), name
    if one is not None:
        np.testing.assert_array_equal(one, other, err_msg=name)
        assert one.dtype == other.dtype, name


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("kind", VEC_ENVS)
@pytest.mark.parametrize("team", TEAMS)
def test_facts_equal_the_dicts(team: str, kind: str, wrapper: str) -> None:
    venv = WRAPPERS[wrapper](VEC_ENVS[kind](TEAMS[team]))
    n_agents = len(venv.action_space)  # type: ignore[arg-type]
    n_episodes = 0
    some_inactive = False
    # The dicts of SB3's own DummyVecEnv, and those of the environment itself
    for expected, step in zip(play(DummyVecEnv(TEAMS[team])), play(venv), strict=True):
        facts = step[-1]
        for dones, infos, reset_infos, _ in (expected, step):
            rewards = np.stack([info["agent_rewards"] for info in infos])
            cut = [info.get("TimeLimit.truncated", False) for info in infos]
            assert_equal(facts.agent_rewards, rewards.astype(np.float32), "agent_rewards")
            assert_equal(facts.dones, dones, "dones")
            assert_equal(facts.truncated, np.array(cut), "truncated")
            active = from_dicts("active", dones, infos, reset_infos, n_agents)
            waiting = from_dicts("waiting_agents", dones, infos, reset_infos, n_agents)
            assert_equal(facts.active, active, "active")
            assert_equal(facts.waiting, waiting, "waiting")
        n_episodes += int(facts.dones.sum())
        some_inactive = some_inactive or facts.active is not None
    assert n_episodes >= 6
    assert some_inactive == (team != "complete")


@pytest.mark.parametrize("kind", ["JointDummyVecEnv", "JointSubprocVecEnv"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_who_carries_the_facts(kind: str, wrapper: str) -> None:
    """VecMonitor alone copies the list, and the facts come from the dicts."""
    for _, infos, _, facts in play(WRAPPERS[wrapper](VEC_ENVS[kind](TEAMS["turns"])), 5):
        assert isinstance(infos, StepInfos) == (wrapper != "VecMonitor")
        if isinstance(infos, StepInfos):
            assert infos.facts is facts


@pytest.mark.parametrize("kind", VEC_ENVS)
def test_dying_agents(kind: str) -> None:
    """The masks are those of the next observations; the last step's stay in the dicts."""
    team = HeterogeneousTeam()
    lengths = (12, 11, 7)
    times = np.zeros(3, dtype=int)
    for dones, infos, _, facts in play(VEC_ENVS[kind](TEAMS["dying"])):
        times += 1
        assert dones.tolist() == (times == lengths).tolist()
        assert facts.truncated.tolist() == dones.tolist()
        for index in np.flatnonzero(dones):
            alive = team.alive(int(times[index]))
            dead = len(alive) < len(team.possible_agents)
            assert ("active" in infos[index]) == dead
            if dead:
                last = [agent in alive for agent in team.possible_agents]
                assert infos[index]["active"].tolist() == last
        times[dones] = 0
        expected = [
            [agent in team.alive(time) for agent in team.possible_agents] for time in times.tolist()
        ]
        assert (facts.active is None) == np.all(expected)
        if facts.active is not None:
            assert facts.active.tolist() == expected


@pytest.mark.parametrize("kind", VEC_ENVS)
def test_turns(kind: str) -> None:
    for _, _, _, facts in play(VEC_ENVS[kind](TEAMS["turns"])):
        assert facts.active is not None and facts.waiting is not None
        assert (facts.active.sum(axis=1) == 1).all()
        np.testing.assert_array_equal(facts.waiting, ~facts.active)
        assert not facts.truncated.any()  # these episodes end by termination


@pytest.mark.parametrize("kind", VEC_ENVS)
@pytest.mark.parametrize("team", TEAMS)
def test_initial_facts(team: str, kind: str) -> None:
    with contextlib.closing(VEC_ENVS[kind](TEAMS[team])) as venv:
        venv.reset()
        n_agents = len(venv.action_space)  # type: ignore[arg-type]
        facts = initial_facts(venv, n_agents)
        reset_infos = venv.unwrapped.reset_infos
    everywhere = np.ones(3, dtype=bool)
    assert_equal(facts.agent_rewards, np.zeros((3, n_agents), np.float32), "agent_rewards")
    assert_equal(facts.dones, everywhere, "dones")
    assert_equal(facts.truncated, ~everywhere, "truncated")
    active = from_dicts("active", everywhere, [{}] * 3, reset_infos, n_agents)
    waiting = from_dicts("waiting_agents", everywhere, [{}] * 3, reset_infos, n_agents)
    assert_equal(facts.active, active, "active")
    assert_equal(facts.waiting, waiting, "waiting")
    assert (active is None) == (team == "complete")


@pytest.mark.parametrize("kind", ["JointDummyVecEnv", "JointSubprocVecEnv"])
def test_facts_belong_to_the_caller(kind: str) -> None:
    kept: list[tuple[StepFacts, StepFacts]] = []
    for *_, facts in play(VEC_ENVS[kind](TEAMS["dying"])):
        kept.append((facts, copy.deepcopy(facts)))
    for facts, copied in kept:
        for name, one, other in zip(facts._fields, facts, copied, strict=True):
            assert_equal(one, other, name)


# ---------------------------------------------------------------- a team of one


class Mood(gym.Env):
    """One agent, whose environment uses the info keys of a team for something else."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self) -> None:
        self._t = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        self._t = 0
        return np.zeros(2, np.float32), {"active": "very", "waiting_agents": 3}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self._t += 1
        info = {"active": "hardly", "waiting_agents": -1, "agent_rewards": "none"}
        return np.zeros(2, np.float32), 0.1 * self._t, False, self._t == 3, info


@pytest.mark.parametrize(
    "wrap",
    [
        VecTeamOfOne,
        lambda venv: VecTeamOfOne(VecMonitor(venv)),
        lambda venv: VecMonitor(VecTeamOfOne(venv)),
        lambda venv: VecTeamOfOne(VecNormalize(venv)),
        lambda venv: JointDummyVecEnv([lambda: JointEnv(Mood())] * 2),
    ],
    ids=["bare", "VecMonitor inside", "VecMonitor outside", "VecNormalize inside", "JointEnv"],
)
def test_team_of_one(wrap: Callable[[VecEnv], VecEnv]) -> None:
    venv = wrap(DummyVecEnv([Mood] * 2))
    venv.reset()
    start = initial_facts(venv, 1)
    assert start.active is None and start.waiting is None
    actions = np.zeros(2, joint_action_dtype(venv.action_space))  # type: ignore[arg-type]
    for step in range(1, 7):
        _, rewards, dones, infos = venv.step(actions)
        facts = step_facts(infos, dones, venv, 1)
        assert facts.active is None and facts.waiting is None
        expected = rewards[:, np.newaxis].astype(np.float32)
        assert_equal(facts.agent_rewards, expected, "agent_rewards")
        assert facts.dones.tolist() == facts.truncated.tolist() == [step % 3 == 0] * 2


class Silent(gym.Wrapper):
    """Hides the individual rewards."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        del info["agent_rewards"]
        return obs, reward, terminated, truncated, info


def test_rewards_that_are_not_told() -> None:
    for *_, facts in play(JointDummyVecEnv([lambda: Silent(complete(4)), partial(complete, 4)]), 5):
        assert np.isnan(facts.agent_rewards[0]).all()
        assert np.isfinite(facts.agent_rewards[1]).all()
