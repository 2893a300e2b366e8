"""get_attr, set_attr, env_method and env_is_wrapped reach the environment that is played."""

from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from pettingzoo import ParallelEnv
from pettingzoo.utils import BaseParallelWrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_happo import JointEnv
from sb3_happo.vec_env import JointDummyVecEnv, JointSubprocVecEnv, VecTeamOfOne


class Paid(ParallelEnv):
    """Rewards are an attribute, under names that Monitor and JointEnv have as well."""

    metadata: ClassVar = {"name": "paid_v0"}
    possible_agents: ClassVar = ["a", "b"]

    def __init__(self) -> None:
        self.wage, self.rewards, self._state = 1.0, 10.0, 100.0

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(-1.0, 1.0, (2,), np.float32)

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(2)

    def pay(self, bonus: float = 0.0) -> float:
        new = getattr(self, "brand_new", 0.0)
        return self.wage + self.rewards + self._state + new + bonus

    def look(self) -> dict[str, np.ndarray]:
        return {agent: np.zeros(2, np.float32) for agent in self.agents}

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        self.agents = ["a", "b"]
        return self.look(), {}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        flags = dict.fromkeys(self.agents, False)
        return self.look(), dict.fromkeys(self.agents, self.pay()), flags, flags, {}


class Middle(BaseParallelWrapper):
    """Adds an attribute of its own."""

    def __init__(self, env: ParallelEnv) -> None:
        super().__init__(env)
        self.extra = 1000.0

    def step(self, actions: dict[str, Any]) -> Any:
        observations, rewards, *rest = self.env.step(actions)
        return observations, {agent: own + self.extra for agent, own in rewards.items()}, *rest


def team() -> gym.Env:
    return Monitor(JointEnv(BaseParallelWrapper(Middle(Paid()))))


def reward(env: VecEnv) -> list[float]:
    actions: Any = [{"a": 0, "b": 0}] * env.num_envs
    return env.step(actions)[1].tolist()


@pytest.mark.parametrize("cls", [JointDummyVecEnv, JointSubprocVecEnv])
def test_attributes_of_the_played_environment(cls: Callable[..., VecEnv]) -> None:
    env = cls([team] * 2)
    env.reset()
    assert reward(env) == [1111.0, 1111.0]
    values = {"wage": 2.0, "rewards": 20.0, "_state": 200.0, "brand_new": 0.5, "extra": 2000.0}
    for name, value in values.items():
        env.set_attr(name, value, indices=1)
        assert env.get_attr(name, indices=[1]) == [value]
    assert reward(env) == [1111.0, 2222.5]
    assert env.get_attr("wage") == [1.0, 2.0]
    assert env.env_method("pay", bonus=1.0, indices=[0, 1]) == [112.0, 223.5]
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert env.env_is_wrapped(Middle) == [True, True]
    assert env.env_is_wrapped(TimeLimit) == [False, False]
    assert env.has_attr("extra") and not env.has_attr("missing")
    with pytest.raises(AttributeError):
        env.get_attr("missing")
    env.close()


def test_team_reward_is_what_is_used() -> None:
    env = JointDummyVecEnv([team])
    env.reset()
    for team_reward, expected in (("sum", 2222.0), ("b", 1111.0), (np.ptp, 0.0)):
        env.set_attr("team_reward", team_reward)
        assert env.get_attr("team_reward") == [team_reward]
        assert reward(env) == [expected]
    with pytest.raises(ValueError, match="team_reward='all'"):
        env.set_attr("team_reward", "all")


class Single(gym.Env):
    """A single agent whose reward is an attribute."""

    observation_space, action_space = spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(2)
    wage = 1.0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        return np.zeros(2, np.float32), self.wage, False, False, {}


@pytest.mark.parametrize(
    "make",
    [
        lambda: VecTeamOfOne(DummyVecEnv([lambda: Monitor(TimeLimit(Single(), 9))])),
        lambda: JointDummyVecEnv([lambda: Monitor(JointEnv(TimeLimit(Single(), 9)))]),
    ],
)
def test_teams_of_one(make: Callable[[], VecEnv]) -> None:
    env = make()
    env.reset()
    env.set_attr("wage", 3.0)
    assert env.get_attr("wage") == [3.0]
    actions: Any = [{"agent_0": 0}]
    assert env.step(actions)[1].tolist() == [3.0]
    assert env.env_is_wrapped(TimeLimit) == [True]
    assert env.get_attr("_max_episode_steps") == [9]


def test_scenario_of_vmas() -> None:
    pytest.importorskip("vmas")
    from sb3_happo.vec_env.vmas_vec_env import VmasVecEnv

    env = VmasVecEnv("navigation", 2, seed=0, device="cpu", n_agents=2)
    env.set_attr("agent_collision_penalty", -7.0)
    assert env.get_attr("agent_collision_penalty") == [-7.0, -7.0]
    assert env.env.scenario.agent_collision_penalty == -7.0
    assert len(env.env_method("observation", env.env.agents[0])) == 2


def test_envpool_refuses_what_it_cannot_do() -> None:
    pytest.importorskip("envpool")
    from sb3_happo.vec_env import EnvPoolVecEnv

    env = EnvPoolVecEnv("envpool/HalfCheetah-2x3-v1", 2)
    assert env.get_attr("n_agents") == [2, 2]
    assert env.get_attr("team_reward", 0) == ["mean"]
    with pytest.raises(AttributeError, match="mamujoco/HalfCheetah-2x3-v1"):
        env.set_attr("frame_skip", 1)
