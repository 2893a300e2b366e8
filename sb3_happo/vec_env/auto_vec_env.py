"""Which of the two ways to run joint environments is faster."""

import contextlib
import copy
import logging
import random
import sys
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
# What else runs on the machine slows down now the one and now the other: they take turns, and their best is compared
_TURNS = 4
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

    The trial uses environments of its own and restores the global random generators (Python's, NumPy's, PyTorch's), so that no
    later result depends on it, as long as environments do not write into what they share: files, say. It is left out where
    workers cannot win: with one environment, one core, or very quick environments. What was found is logged, and is the
    attribute ``choice`` of the result, a :class:`VecEnvChoice`.

    :param env_fns: Functions that return joint environments, each call a new one, all of one team
    :param n_workers: Number of processes that step environments, by default one per available core
    :param start_method: How to start them
    :param full_infos: Whether they send all that the environments say, see :class:`JointSubprocVecEnv`
    :param seconds: How long to measure each; 0 for not at all, and no workers
    :return: The vectorised environment
    """
    n_envs = len(env_fns)
    n_workers = min(n_envs, n_workers or available_cores())
    in_process = in_workers = None
    if n_workers > 1 and seconds > 0:
        with (
            _global_randomness_kept(),
            _Trial(JointDummyVecEnv(env_fns[:1])) as alone,
        ):  # more would only take turns
            in_process = alone.steps_per_second(seconds / _TURNS)
            if n_envs / in_process > _WORTH_A_TRY:
                try:
                    with _Trial(
                        JointSubprocVecEnv(env_fns, n_workers, start_method, full_infos)
                    ) as workers:
                        pairs = [
                            (
                                workers.steps_per_second(seconds / _TURNS),
                                alone.steps_per_second(seconds / _TURNS),
                            )
                            for _ in range(_TURNS)
                        ]
                    in_workers, in_process = map(max, zip(*pairs, strict=True))
                except (
                    Exception
                ) as error:  # nothing that goes wrong out there need stop the training here
                    warnings.warn(
                        f"Worker processes failed, so the environments stay in this one: {error}",
                        stacklevel=2,
                    )
    venv: JointDummyVecEnv | JointSubprocVecEnv
    if in_process is not None and in_workers is not None and in_workers > _MARGIN * in_process:
        venv = JointSubprocVecEnv(env_fns, n_workers, start_method, full_infos)
        venv.choice = VecEnvChoice(n_workers, in_process, in_workers)
    else:
        venv = JointDummyVecEnv(env_fns)
        venv.choice = VecEnvChoice(0, in_process, in_workers)
    logger.info("%d environments run in %s", n_envs, venv.choice)
    return venv


class _Trial:
    """Random legal actions for a while, and a while later for another."""

    def __init__(self, venv: JointDummyVecEnv | JointSubprocVecEnv) -> None:
        self.venv = venv
        self._space = copy.deepcopy(venv.action_space)
        self._dtype = joint_action_dtype(self._space)
        self._masked = any(key.endswith("/" + ACTION_MASK) for key in venv.observation_space.spaces)

    def __enter__(self) -> "_Trial":
        try:
            self._obs = self.venv.reset()
            self._actions = self._sample()
            self._step()  # the first may do what is only done once
        except BaseException:
            self.venv.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.venv.close()

    def _sample(self) -> np.ndarray:
        sampled = sample_actions(self._space, self._obs, self.venv.num_envs)
        return as_joint_actions(sampled, self._space, self._dtype, self.venv.num_envs)

    def _step(self) -> float:
        if self._masked:  # otherwise drawn only once: a team decides in less time than that takes
            self._actions = self._sample()
        start = time.perf_counter()
        self.venv.step_async(self._actions)
        self._obs = self.venv.step_wait()[0]
        return time.perf_counter() - start

    def steps_per_second(self, seconds: float) -> float:
        """
        :param seconds: How long to go on, at least a step
        :return: Steps of single environments per second, counting only the time that the environments take
        """
        begin = time.perf_counter()
        stepping = [self._step()]
        while time.perf_counter() - begin < seconds:
            stepping.append(self._step())
        return len(stepping) * self.venv.num_envs / sum(stepping)


@contextlib.contextmanager
def _global_randomness_kept() -> Iterator[None]:
    python, numpy = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")  # workers do without
    torch_state = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch is not None:
            torch.set_rng_state(torch_state)
