"""Which of the two ways to run joint environments is faster."""

import contextlib
import copy
import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import gymnasium as gym
import numpy as np

from sb3_happo.envs.spaces import ACTION_MASK, joint_action_dtype
from sb3_happo.vec_env.actions import as_joint_actions, sample_actions
from sb3_happo.vec_env.joint_dummy_vec_env import JointDummyVecEnv, VecEnvChoice
from sb3_happo.vec_env.joint_subproc_vec_env import JointSubprocVecEnv, available_cores

logger = logging.getLogger(__name__)

# Workers cost memory and withhold infos: they must be worth it
_MARGIN = 1.1
# Seconds that a step of all environments must take before workers can win: to rouse and await them takes some 0.1 ms
_WORTH_A_TRY = 3e-4


def choose_vec_env(
    env_fns: Sequence[Callable[[], gym.Env]],
    n_workers: int | None = None,
    start_method: str | None = None,
    full_infos: bool = False,
    seconds: float = 0.5,
) -> JointDummyVecEnv | JointSubprocVecEnv:
    """
    Make a :class:`JointDummyVecEnv` or a :class:`JointSubprocVecEnv`, whichever is faster with random legal actions.

    The trial uses environments of its own and restores the global random generators, so that no later result depends on it. It
    is left out where workers cannot win: with one environment, one core, or very quick environments. What was found is logged,
    and is the attribute ``choice`` of the result, a :class:`VecEnvChoice`.

    :param env_fns: Functions that return joint environments, each call a new one, all of one team
    :param n_workers: Number of processes that step environments, by default one per available core
    :param start_method: How to start them
    :param full_infos: Whether they send all that the environments say, see :class:`JointSubprocVecEnv`
    :param seconds: How long to measure each, > 0
    :return: The vectorised environment
    """
    n_envs = len(env_fns)
    n_workers = min(n_envs, n_workers or available_cores())
    in_process = in_workers = None
    if n_workers > 1:
        with _global_randomness_kept():
            in_process = _steps_per_second(JointDummyVecEnv(env_fns[:1]), seconds)  # more would only take turns
            if n_envs / in_process > _WORTH_A_TRY:
                try:
                    in_workers = _steps_per_second(JointSubprocVecEnv(env_fns, n_workers, start_method, full_infos), seconds)
                except Exception as error:  # nothing that goes wrong out there need stop the training here
                    warnings.warn(f"Worker processes failed, so the environments stay in this one: {error}", stacklevel=2)
    venv: JointDummyVecEnv | JointSubprocVecEnv
    if in_process is not None and in_workers is not None and in_workers > _MARGIN * in_process:
        venv = JointSubprocVecEnv(env_fns, n_workers, start_method, full_infos)
        venv.choice = VecEnvChoice(n_workers, in_process, in_workers)
    else:
        venv = JointDummyVecEnv(env_fns)
        venv.choice = VecEnvChoice(0, in_process, in_workers)
    logger.info("%d environments run in %s", n_envs, venv.choice)
    return venv


def _steps_per_second(venv: JointDummyVecEnv | JointSubprocVecEnv, seconds: float) -> float:
    """Steps of single environments per second, counting only the time that ``venv`` takes."""
    action_space = copy.deepcopy(venv.action_space)
    masked = any(key.endswith("/" + ACTION_MASK) for key in venv.observation_space.spaces)
    dtype = joint_action_dtype(action_space)
    actions: np.ndarray | None = None
    try:
        obs = venv.reset()
        begin = time.perf_counter()
        stepping, n_steps = 0.0, -1
        while n_steps < 1 or time.perf_counter() - begin < seconds:
            if masked or actions is None:  # drawn anew only where they must be legal: a team decides in less time
                sampled = sample_actions(action_space, obs, venv.num_envs)
                actions = as_joint_actions(sampled, action_space, dtype, venv.num_envs)
            start = time.perf_counter()
            venv.step_async(actions)
            obs = venv.step_wait()[0]
            if n_steps >= 0:  # the first step may do what is only done once
                stepping += time.perf_counter() - start
            n_steps += 1
    finally:
        venv.close()
    return n_steps * venv.num_envs / stepping


@contextlib.contextmanager
def _global_randomness_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
