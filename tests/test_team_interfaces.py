"""Teams of foreign, old and broken interfaces: understood, or refused with an error that helps."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import AECEnv, ParallelEnv
from pettingzoo.utils.conversions import parallel_to_aec

from sb3_happo import HAPPO
from sb3_happo.envs import JointEnv
from sb3_happo.envs.checker import check_marl_env

ALL = "__all__"
SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 8, "seed": 0}


class Three(ParallelEnv):
    """Three agents, ten steps, one point per step for each."""

    metadata = {"name": "three_v0"}  # noqa: RUF012

    def __init__(self) -> None:
        self.possible_agents = ["a", "b", "c"]
        self.steps_after_the_end = 0

    def observation_space(self, agent: Any) -> spaces.Space:
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def action_space(self, agent: Any) -> spaces.Space:
        return spaces.Discrete(3)

    def look(self, agents: list[str]) -> dict[str, Any]:
        return {agent: np.full(2, self.time / 20, np.float32) for agent in agents}

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.time = self.possible_agents[:], 0
        return self.look(self.agents), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self.steps_after_the_end += not self.agents
        self.time += 1
        team, over = self.agents, self.time == 10
        self.agents = [] if over else team
        flags = dict.fromkeys(team, False), dict.fromkeys(team, over)
        return self.look(team), dict.fromkeys(team, 1.0), *flags, {agent: {} for agent in team}


def play(env: Any, n_steps: int = 30) -> list[tuple[int, bool, bool]]:
    """Lengths and ends of the episodes of a joint environment, or of one to be joined."""
    joint = env if isinstance(env, JointEnv) else JointEnv(env)
    joint.action_space.seed(0)
    joint.reset(seed=0)
    ends, length = [], 0
    for _ in range(n_steps):
        _, _, terminated, truncated, _ = joint.step(joint.action_space.sample())
        length += 1
        if terminated or truncated:
            ends.append((length, terminated, truncated))
            joint.reset()
            length = 0
    return ends


# ---------------------------------------------------------------- flags


class AllFlag(Three):
    """Flags under "__all__" only."""

    flags: tuple[bool, bool] = (True, False)

    def step(self, actions: dict[str, Any]) -> Any:
        observations, rewards, _, over, infos = super().step(actions)
        terminated, truncated = (flag and over["a"] for flag in self.flags)
        return observations, rewards, {ALL: terminated}, {ALL: truncated}, infos


@pytest.mark.parametrize("flags", [(True, False), (False, True), (True, True)])
def test_a_flag_for_all_ends_the_episode(flags: tuple[bool, bool]) -> None:
    env = AllFlag()
    env.flags = flags
    assert play(env) == [(10, flags[0], not flags[0])] * 3
    report = check_marl_env(env)
    assert "'__all__', which is no agent" in str(report)
    team = JointEnv(env, agents=["a", "b"], other_agents="random")
    assert play(team) == [(10, flags[0], not flags[0])] * 3


def test_own_flags_come_before_that_of_all() -> None:
    class Mixed(AllFlag):
        def step(self, actions: dict[str, Any]) -> Any:
            observations, rewards, terminated, _, infos = super().step(actions)
            over = terminated[ALL]
            own = {"a": False, "b": over, "c": False, ALL: over}
            return observations, rewards, own, {"a": over, ALL: False}, infos

    joint = JointEnv(Mixed())
    joint.reset()
    for _ in range(10):
        *_, terminated, truncated, info = joint.step({"a": 0, "b": 0, "c": 0})
    assert (terminated, truncated) == (False, True)
    assert info["active"].tolist() == [True, False, False]


class AllFlagInTurns(AECEnv):
    """Two agents in turns, whose end is flagged under "__all__"."""

    metadata = {"name": "turns_v0"}  # noqa: RUF012

    def __init__(self) -> None:
        self.possible_agents = ["a", "b"]

    def observation_space(self, agent: Any) -> spaces.Space:
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def action_space(self, agent: Any) -> spaces.Space:
        return spaces.Discrete(3)

    def observe(self, agent: Any) -> Any:
        return np.zeros(2, np.float32)

    def reset(self, seed: int | None = None, options: Any = None) -> None:
        self.agents, self.time = self.possible_agents[:], 0
        self.rewards = self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys([*self.agents, ALL], False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos: dict[str, Any] = {agent: {} for agent in self.agents}
        self.agent_selection = "a"

    def step(self, action: Any) -> None:
        self.time += 1
        self.agent_selection = "ab"[self.time % 2]
        self.terminations[ALL] = self.time == 6


def test_a_flag_for_all_in_turns() -> None:
    assert play(AllFlagInTurns()) == [(6, True, False)] * 5


@pytest.mark.parametrize("part", ["rewards", "terminations", "truncations"])
def test_foreign_names_are_refused(part: str) -> None:
    index = ["observations", "rewards", "terminations", "truncations"].index(part)

    class Foreign(Three):
        def step(self, actions: dict[str, Any]) -> Any:
            returned = list(super().step(actions))
            returned[index] = {"team": 1}
            return tuple(returned)

    with pytest.raises(ValueError, match=rf"{part} for \['team'\].*\['a', 'b', 'c'\]"):
        play(Foreign())
    assert not check_marl_env(Foreign()).ok


# ---------------------------------------------------------------- lists of agents


class Alias(Three):
    """``agents`` and ``possible_agents`` are one list."""

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.time = self.possible_agents, 0
        return self.look(self.agents), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        self.time += 1
        team = list(self.agents)
        gone = {3: ["c"], 10: team}.get(self.time, [])
        for agent in gone:
            self.agents.remove(agent)
        flags = {agent: agent in gone for agent in team}, dict.fromkeys(team, False)
        return self.look(team), dict.fromkeys(team, 1.0), *flags, {agent: {} for agent in team}


def test_a_team_that_shrinks_for_good() -> None:
    with pytest.raises(
        ValueError, match=r"removed the agents \['a', 'b', 'c'\].*possible_agents\["
    ):
        play(Alias())
    with pytest.raises(ValueError, match="removed the agents"):
        play(parallel_to_aec(Alias()), n_steps=80)
    report = str(check_marl_env(Alias()))
    assert "removed from `possible_agents` and never return" in report
    assert "playing the env at random raises" not in report


def test_teams_that_vary_on_purpose_are_taken() -> None:
    class Varying(Three):
        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            whole = ["a", "b", "c"]
            self.possible_agents = whole[: 3 - getattr(self, "episodes", 0) % 2]
            self.episodes = getattr(self, "episodes", 0) + 1
            return super().reset(seed, options)

    assert play(Varying()) == [(10, False, True)] * 3


class Quiet(Three):
    """Empties ``agents`` at the end and raises no flags."""

    def step(self, actions: dict[str, Any]) -> Any:
        returned = list(super().step(actions))
        return *returned[:2], *(dict.fromkeys("abc", False) for _ in range(2)), returned[4]


def test_an_episode_is_over_when_nobody_is_listed() -> None:
    env = Quiet()
    assert play(env) == [(10, True, False)] * 3
    assert env.steps_after_the_end == 0
    assert "left `agents` without being terminated" in str(check_marl_env(Quiet()))
    assert play(JointEnv(Quiet(), agents=["b"], other_agents="random")) == [(10, True, False)] * 3


def test_an_agent_that_is_dropped_without_a_flag_is_inactive() -> None:
    class Dropping(Three):
        def step(self, actions: dict[str, Any]) -> Any:
            returned = super().step(actions)
            assert self.time < 5 or "c" not in actions
            if self.time == 4:
                self.agents = ["a", "b"]
            return self.look(["a", "b", "c"]), *returned[1:]

    joint = JointEnv(Dropping())
    joint.reset()
    for step in range(1, 11):
        info = joint.step({"a": 0, "b": 0, "c": 0})[-1]
        active = info.get("active", np.ones(3, bool)).tolist()
        assert active == [True, True, step < 4]


class Nobody(Three):
    """No agents for a number of resets."""

    empty_resets = 3

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        returned = super().reset(seed, options)
        self.empty_resets -= 1
        if self.empty_resets < 0:
            return returned
        self.agents = []
        return {}, {}


def test_nobody_at_a_reset() -> None:
    assert play(Nobody()) == [(10, False, True)] * 3
    env = Nobody()
    env.empty_resets = 10**6
    with pytest.raises(ValueError, match="no agents after each of 100 resets"):
        HAPPO(env, **SMALL)
    report = check_marl_env(env)
    assert not report.ok
    assert "`agents` is empty after reset" in str(report)


# ---------------------------------------------------------------- classes


class Both(ParallelEnv, gym.Env):
    """A team of PettingZoo's interface that is a Gymnasium environment too."""

    metadata = Three.metadata
    __init__ = Three.__init__
    look = Three.look
    observation_space = Three.observation_space  # type: ignore[assignment]
    action_space = Three.action_space  # type: ignore[assignment]
    reset = Three.reset
    step = Three.step  # type: ignore[assignment]


class BothInTurns(AllFlagInTurns, gym.Env):  # type: ignore[misc]
    """A game of PettingZoo's interface that is a Gymnasium environment too."""


class Bare:
    """PettingZoo's interface without its base class: no ``close``, no ``render``."""

    __init__ = Three.__init__
    look = Three.look
    observation_space = Three.observation_space
    action_space = Three.action_space
    reset = Three.reset
    step = Three.step


class BareInTurns:
    """PettingZoo's interface of turns without its base class, and without ``agent_iter``."""

    __init__ = AllFlagInTurns.__init__
    observation_space = AllFlagInTurns.observation_space
    action_space = AllFlagInTurns.action_space
    observe = AllFlagInTurns.observe
    reset = AllFlagInTurns.reset
    step = AllFlagInTurns.step

    def last(self) -> None:
        raise NotImplementedError


@pytest.mark.parametrize("make", [Both, Bare, BothInTurns, BareInTurns])
def test_the_interface_counts_and_not_the_class(make: Any) -> None:
    in_turns = make in (BothInTurns, BareInTurns)
    length = 6 if in_turns else 10
    assert {end[0] for end in play(make())} == {length}
    report = check_marl_env(make(), n_steps=50)
    assert "derives from gymnasium.Env" not in str(report)
    assert f"agents       {2 if in_turns else 3}" in str(report)
    model = HAPPO(make(), **SMALL).learn(16)
    assert model.env is not None
    model.env.close()


def test_a_team_inside_wrappers_of_gymnasium() -> None:
    gym.register("both-v0", Both)
    try:
        env = gym.make("both-v0", disable_env_checker=True)
        assert play(env) == [(10, False, True)] * 3
        HAPPO(gym.make("both-v0", disable_env_checker=True), **SMALL).learn(16)
    finally:
        del gym.registry["both-v0"]


# ---------------------------------------------------------------- old interfaces


def _changed(method: str, change: Any) -> Any:
    """Team of which a method returns something else."""

    class Changed(Three):
        pass

    original = getattr(Three, method)

    def changed(self: Any, *args: Any, **kwargs: Any) -> Any:
        return change(*original(self, *args, **kwargs))

    setattr(Changed, method, changed)
    return Changed()


OLD = {
    "no infos at reset": ("reset", lambda seen, infos: seen, "reset returns a dict .*infos"),
    "infos None at reset": ("reset", lambda seen, infos: (seen, None), "the infos are None"),
    "four values": (
        "step",
        lambda seen, rewards, ends, cuts, infos: (seen, rewards, cuts, infos),
        "step returns a tuple of 4 values and not five dicts.*`dones`",
    ),
    "one reward": (
        "step",
        lambda seen, rewards, *rest: (seen, 1.0, *rest),
        "the rewards are 1.0, no dict",
    ),
    "one flag": (
        "step",
        lambda seen, rewards, ends, cuts, infos: (seen, rewards, False, cuts, infos),
        "the terminations are False, no dict",
    ),
    "infos None": (
        "step",
        lambda seen, rewards, ends, cuts, infos: (seen, rewards, ends, cuts, None),
        "the infos are None",
    ),
    "reward arrays": (
        "step",
        lambda seen, rewards, *rest: (seen, dict.fromkeys(rewards, np.array([1.0, 2.0])), *rest),
        r"agent 'a': the reward array.* of shape \(2,\) is no number",
    ),
    "reward None": (
        "step",
        lambda seen, rewards, *rest: (seen, rewards | {"b": None}, *rest),
        "agent 'b': the reward None is no number",
    ),
}


@pytest.mark.parametrize(("method", "change", "message"), OLD.values(), ids=OLD)
def test_old_interfaces_are_explained(method: str, change: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        HAPPO(_changed(method, change), **SMALL).learn(16)
    assert not check_marl_env(_changed(method, change), n_steps=20).ok


def test_a_reset_without_seed_is_explained() -> None:
    class Seedless(Three):
        def reset(self) -> Any:  # type: ignore[override]
            return super().reset()

    with pytest.raises(TypeError, match="seed=None and options=None"):
        HAPPO(Seedless(), **SMALL)


def test_an_old_game_of_turns_is_explained() -> None:
    class Old(AllFlagInTurns):
        def reset(self, seed: int | None = None, options: Any = None) -> None:
            super().reset()
            del self.terminations

    with pytest.raises(TypeError, match=r"no \['terminations'\].*`dones`"):
        HAPPO(Old(), **SMALL)


@pytest.mark.parametrize("method", ["reset", "step", "reward"])
def test_old_gym_envs_are_explained(method: str) -> None:
    class Old(gym.Env):
        observation_space = spaces.Box(-1, 1, (2,), np.float32)
        action_space = spaces.Discrete(2)

        def reset(self, seed: int | None = None, options: Any = None) -> Any:
            seen = np.zeros(2, np.float32)
            return seen if method == "reset" else (seen, {})

        def step(self, action: Any) -> Any:
            if method == "reward":
                return np.zeros(2, np.float32), None, False, False, {}
            return np.zeros(2, np.float32), 0.0, False, {}

    message = {
        "reset": "reset returns a ndarray and not 2 values",
        "step": "step returns a tuple of 4 values and not 5 values",
        "reward": "the reward None is no number",
    }
    with pytest.raises(TypeError, match=message[method]):
        HAPPO(Old(), **SMALL).learn(16)
