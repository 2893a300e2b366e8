"""Environments that offer their state go on at checkpoints, instead of being reset."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from pettingzoo import ParallelEnv
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize

from sb3_happo import HAPPO, HASAC, ResumableCheckpointCallback, make_joint_vec_env
from sb3_happo.common.episode_states import keeps_episodes
from sb3_happo.vec_env import JointDummyVecEnv, JointSubprocVecEnv
from tests.resuming import N_ENVS, N_STEPS, TOTAL, UPDATE, Experiment, StopAt

SETTINGS: dict[str, Any] = dict(seed=7, device="cpu", policy_kwargs=dict(net_arch=[8]))


class Timer(gym.Env):
    """Environment with a state of its own that can be taken and set, and unrepeatable noise."""

    observation_space = spaces.Box(-10.0, 10.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.step_number = 0
        self.generator = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        self.step_number = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.step_number += 1
        return self._observation(), float(action), self.step_number >= 90, False, {}

    def _observation(self) -> np.ndarray:
        return np.array([self.step_number / 10, self.generator.normal()], np.float32)

    def get_state(self) -> dict[str, Any]:
        return {"step_number": self.step_number, "generator": self.generator}

    def set_state(self, state: dict[str, Any]) -> None:
        self.step_number, self.generator = state["step_number"], state["generator"]


class Timers(ParallelEnv):
    """The same for two agents, one of which leaves the episode."""

    metadata = {"name": "timers"}  # noqa: RUF012
    possible_agents = ["a", "b"]  # noqa: RUF012

    def __init__(self) -> None:
        self.timer = Timer()
        self.agents: list[str] = []

    def observation_space(self, agent: str) -> spaces.Space:
        return self.timer.observation_space

    def action_space(self, agent: str) -> spaces.Space:
        return self.timer.action_space

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.agents = self.possible_agents[:]
        obs, _ = self.timer.reset()
        return dict.fromkeys(self.agents, obs), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        obs, reward, done, _, _ = self.timer.step(sum(actions.values()))
        living = self.agents
        self.agents = [] if done else (["a"] if self.timer.step_number > 40 else living)
        flags = {agent: agent not in self.agents for agent in living}
        no_flags = dict.fromkeys(living, False)
        rewards = dict.fromkeys(living, reward)
        return dict.fromkeys(living, obs), rewards, flags, no_flags, {a: {} for a in living}

    def get_state(self) -> dict[str, Any]:
        return {"timer": self.timer.get_state(), "agents": self.agents}

    def set_state(self, state: dict[str, Any]) -> None:
        self.timer.set_state(state["timer"])
        self.agents = list(state["agents"])


class WithState(JointDummyVecEnv):
    """``VecEnv`` that offers the state itself, of environments that do not."""

    def get_state(self) -> list[Any]:
        # The monitors' rewards belong to the running episodes, too
        monitors: list[Any] = list(self.envs)
        return [[env.rewards, *env.unwrapped.env.parts()] for env in monitors]

    def set_state(self, states: list[Any]) -> None:
        monitors: list[Any] = list(self.envs)
        for env, state in zip(monitors, states, strict=True):
            env.rewards = state[0]
            env.unwrapped.env.take(state[1:])


class Parts(Timer):
    get_state = set_state = None  # type: ignore[assignment]

    def parts(self) -> list[Any]:
        return [self.step_number, self.generator]

    def take(self, state: list[Any]) -> None:
        self.step_number, self.generator = state


def limited() -> gym.Env:
    return TimeLimit(Timer(), 70)


def on_policy(env: VecEnv) -> Any:
    return HAPPO(env, n_steps=N_STEPS, batch_size=16, n_epochs=1, **SETTINGS)


def off_policy(env: VecEnv) -> Any:
    return HASAC(env, learning_starts=20, batch_size=8, train_freq=16, **SETTINGS)


def normalised(env: VecEnv) -> VecEnv:
    return VecNormalize(VecMonitor(env))


@pytest.mark.parametrize("killed", [True, False], ids=["killed", "interrupted"])
@pytest.mark.parametrize(
    ("make_env", "vec_env_cls", "wrap", "make_model"),
    [
        (Timers, None, normalised, on_policy),
        (limited, None, lambda env: env, off_policy),
        (Parts, WithState, lambda env: env, on_policy),
        pytest.param(Timers, JointSubprocVecEnv, normalised, on_policy, marks=pytest.mark.slow),
        pytest.param(Timers, None, normalised, off_policy, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore:The environment is already wrapped")
def test_episodes_go_on(
    make_env: Callable[[], Any],
    vec_env_cls: Any,
    wrap: Callable[[VecEnv], VecEnv],
    make_model: Callable[[VecEnv], Any],
    killed: bool,
    tmp_path: Path,
) -> None:
    """Noise that no seed determines is part of the state, so that nothing is reset."""

    def make() -> Any:
        if vec_env_cls is WithState:
            env: VecEnv = WithState([lambda: make_joint_vec_env(make_env, 1).envs[0]] * N_ENVS)  # type: ignore[attr-defined]
        else:
            env = make_joint_vec_env(make_env, N_ENVS, seed=3, vec_env_cls=vec_env_cls)
        assert keeps_episodes(env)
        return make_model(wrap(env))

    Experiment(make, tmp_path).check(5 * UPDATE + 10, killed)


class Lengths(StopAt):
    """Lengths of the episodes."""

    def __init__(self) -> None:
        super().__init__(10**9)
        self.lengths: list[int] = []

    def _on_step(self) -> bool:
        infos = self.locals["infos"]
        self.lengths += [info["episode"]["l"] for info in infos if "episode" in info]
        return True


def test_no_episode_is_cut_off(tmp_path: Path) -> None:
    lengths = Lengths()
    model = on_policy(make_joint_vec_env(Timer, N_ENVS))
    model.learn(TOTAL, [ResumableCheckpointCallback(1, tmp_path), lengths])
    assert lengths.lengths == [90] * N_ENVS


def test_other_methods_of_these_names_are_no_state() -> None:
    class Simulator(Timer):
        def set_state(self, positions: Any, velocities: Any) -> None:  # type: ignore[override]
            raise AssertionError

    class Unknown(gym.Wrapper):
        pass

    assert keeps_episodes(make_joint_vec_env(Timer, 1))
    assert not keeps_episodes(make_joint_vec_env(Simulator, 1))
    assert not keeps_episodes(make_joint_vec_env(lambda: Unknown(Timer()), 1))


def test_a_state_that_is_no_data_is_named(tmp_path: Path) -> None:
    class Bad(Timer):
        def get_state(self) -> Any:
            return {"self": self}

    model = on_policy(make_joint_vec_env(Bad, 1))
    with pytest.raises(ValueError, match=r"get_state\(\) of Bad returned an object"):
        model.learn(UPDATE, ResumableCheckpointCallback(1, tmp_path))
