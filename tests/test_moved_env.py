"""Training environments that somebody else resets or steps between or during calls of learn."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecMonitor

from sb3_happo import HAPPO, JointEnv
from sb3_happo.vec_env import JointDummyVecEnv, JointSubprocVecEnv
from sb3_happo.vec_env.transitions import TransitionWatch


class OneLegal(gym.Env):
    """One action is legal at a time, another one at every step; illegal actions raise."""

    observation_space = spaces.Dict(
        {"observation": spaces.Box(-1.0, 1.0, (2,)), "action_mask": spaces.Box(0, 1, (9,), np.int8)}
    )
    action_space = spaces.Discrete(9)

    def look(self) -> dict[str, np.ndarray]:
        self.legal = int(self.np_random.integers(9))
        mask = (np.arange(9) == self.legal).astype(np.int8)
        return {"observation": np.zeros(2, np.float32), "action_mask": mask}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self.look(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict]:
        if action != self.legal:
            raise RuntimeError("an illegal action")
        self.time += 1
        return self.look(), 1.0, False, self.time == 10, {}


def joint() -> gym.Env:
    return JointEnv(OneLegal())


def small(env: Any) -> HAPPO:
    model = HAPPO("MlpPolicy", env, n_steps=16, batch_size=8, n_epochs=1, seed=0, gamma=0.5)
    return model.learn(16)


def venv_of(model: HAPPO) -> VecEnv:
    """The environment that the model trains in."""
    venv = model.get_env()
    assert venv is not None
    return venv


def reset(model: HAPPO, env: Any) -> None:
    venv_of(model).reset()


def reset_inside(model: HAPPO, env: Any) -> None:
    venv_of(model).unwrapped.reset()


def reset_one(model: HAPPO, env: Any) -> None:
    venv_of(model).env_method("reset", indices=0)


def evaluate(model: HAPPO, env: Any) -> None:
    evaluate_policy(model, venv_of(model), n_eval_episodes=1, warn=False)


MAKERS: dict[str, Callable[[], Any]] = {
    "single": joint,
    "JointDummyVecEnv": lambda: VecMonitor(JointDummyVecEnv([joint] * 2)),
    "DummyVecEnv": lambda: DummyVecEnv([joint] * 2),
    "team of one": lambda: DummyVecEnv([OneLegal] * 2),
    "JointSubprocVecEnv": lambda: JointSubprocVecEnv([joint] * 2, n_workers=2),
    "SubprocVecEnv": lambda: SubprocVecEnv([joint] * 2),
}


@pytest.mark.parametrize("name", MAKERS)
def test_between_learns(name: str) -> None:
    env = MAKERS[name]()
    model = small(env)
    for move in (reset, reset_inside, reset_one, evaluate):
        move(model, env)
        model.learn(16, reset_num_timesteps=False)
        assert model.rollout_buffer.episode_starts[0].all()
    venv_of(model).close()


@pytest.mark.parametrize("wrap", [lambda env: env, JointEnv])
def test_the_callers_own_environment(wrap: Callable[[gym.Env], gym.Env]) -> None:
    """The environment is reset without the VecEnv around it, or used by another model."""
    env = wrap(OneLegal())
    model = small(env)
    env.reset()
    model.learn(16, reset_num_timesteps=False)
    other = small(env)
    for _ in range(2):
        model.learn(16, reset_num_timesteps=False)
        other.learn(16, reset_num_timesteps=False)


class Mover(BaseCallback):
    """
    Moves the training environment at one step of every rollout, or at its beginning.

    :param move: Function of the model and its environment
    :param at: Step, from 1; 0 for the beginning
    """

    def __init__(self, move: Callable[[HAPPO, Any], None], at: int) -> None:
        super().__init__()
        self.move, self.at = move, at

    def _move(self) -> None:
        assert isinstance(self.model, HAPPO)
        self.move(self.model, None)

    def _on_rollout_start(self) -> None:
        if self.at == 0:
            self._move()

    def _on_step(self) -> bool:
        if self.at == self.locals["n_steps"] + 1:
            self._move()
        return True


@pytest.mark.parametrize("at", [0, 5, 16])
@pytest.mark.parametrize("move", [reset, evaluate])
def test_during_learn(move: Callable[[HAPPO, Any], None], at: int) -> None:
    model = small(JointDummyVecEnv([joint] * 2))
    if at:
        with pytest.warns(UserWarning, match="was reset or stepped by something else"):
            model.learn(64, Mover(move, at))
    else:
        model.learn(64, Mover(move, at))


def test_cut_episodes_are_bootstrapped() -> None:
    """The last reward before the move contains the value of the observation after it."""
    model = small(JointDummyVecEnv([joint]))
    with pytest.warns(UserWarning, match="was reset or stepped"):
        model.learn(16, Mover(reset, 5))
    buffer = model.rollout_buffer
    starts = np.flatnonzero(np.asarray(buffer.episode_starts)[:, 0]).tolist()
    assert starts == [0, 5, 15]  # ten steps are an episode
    rewards = np.asarray(buffer.rewards).reshape(16)
    changed = np.flatnonzero(rewards != 1.0).tolist()
    assert changed == [4, 14]  # the move, and the time limit


def test_an_environment_that_nobody_moves_goes_on() -> None:
    model = small(JointDummyVecEnv([joint]))
    model.learn(16, reset_num_timesteps=False)
    starts = np.flatnonzero(np.asarray(model.rollout_buffer.episode_starts)[:, 0]).tolist()
    assert starts == [4, 14]  # the first rollout ended after six steps of an episode


def test_copies_of_watched_environments_are_their_own() -> None:
    env = OneLegal()
    venv: VecEnv = JointDummyVecEnv([lambda: JointEnv(env)])
    watch = TransitionWatch(venv)
    number = watch.last
    copy = deepcopy(env)
    copy.reset(seed=0)
    assert watch.last == number
    env.reset()
    assert watch.last != number
    assert TransitionWatch(venv).last == watch.last
