"""Measured choice between the current process and worker processes."""

import contextlib
import copy
import logging
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import gymnasium as gym
import numpy as np

from sb3_happo.envs.spaces import ACTION_MASK, joint_action_dtype
from sb3_happo.vec_env.actions import as_joint_actions, sample_actions
from sb3_happo.vec_env.counts import checked_count
from sb3_happo.vec_env.joint_dummy_vec_env import JointDummyVecEnv
from sb3_happo.vec_env.joint_subproc_vec_env import (
    JointSubprocVecEnv,
    available_cores,
    in_daemon,
    warn_of_daemon,
)

logger = logging.getLogger(__name__)

# Workers cost memory and withhold infos, so they must be faster by this factor
_MARGIN = 1.1
# Other programs may slow down one kind for some time: both are measured in turns, and the best
# rates are compared
_TURNS = 4
# Seconds per step of all environments below which workers cannot win, since a round trip of
# messages takes about 0.1 ms
_MIN_STEP_SECONDS = 3e-4


class VecEnvChoice(NamedTuple):
    """
    Result of :func:`choose_vec_env`.

    :param n_workers: Number of processes that step environments, the current one among them; 0 for
        the current one alone
    :param in_process: Environment steps per second in the current process, None if not measured
    :param in_workers: Environment steps per second in several processes, None if not measured
    """

    n_workers: int
    in_process: float | None
    in_workers: float | None

    def __str__(self) -> str:
        rates = []
        if self.in_process is not None:
            rates.append(f"{self.in_process:,.0f} steps/s in the current process")
        if self.in_workers is not None:
            rates.append(f"{self.in_workers:,.0f} steps/s in several")
        place = f"{self.n_workers} processes" if self.n_workers else "the current process"
        return f"{place} ({', '.join(rates) or 'not measured'})"


def choose_vec_env(
    env_fns: Sequence[Callable[[], gym.Env]],
    n_workers: int | None = None,
    start_method: str | None = None,
    full_infos: bool = False,
    seconds: float = 0.5,
    step_timeout: float | None = None,
) -> JointDummyVecEnv | JointSubprocVecEnv:
    """
    Make a :class:`JointDummyVecEnv` or a :class:`JointSubprocVecEnv`, whichever is faster with
    random legal actions. Both run the same episodes.

    The trial uses environments of its own and restores the global random generators (Python's,
    NumPy's, PyTorch's), so that no later result depends on it, unless environments write to
    something that they share, such as files. There is no trial where workers cannot win: with one
    environment, one core, or very fast environments. The result is logged, and stored in the
    attribute ``choice`` of the returned object, a :class:`VecEnvChoice`.

    :param env_fns: Functions that return joint environments, a new one each, all of one team
    :param n_workers: Number of processes that step environments, by default one per available core
    :param start_method: Start method of the processes, see :class:`JointSubprocVecEnv`
    :param full_infos: Let workers send complete infos, see :class:`JointSubprocVecEnv`
    :param seconds: Duration of the measurement of each kind; 0 for no measurement and no workers
    :param step_timeout: Seconds for a worker to answer, see :class:`JointSubprocVecEnv`. Only
        workers can keep a limit: with one, they are used and nothing is measured. None for no limit
    :return: The vectorised environment
    """
    n_workers = available_cores() if n_workers is None else checked_count("n_workers", n_workers)
    n_workers = min(len(env_fns), n_workers)
    make_workers = partial(
        JointSubprocVecEnv, env_fns, n_workers, start_method, full_infos, step_timeout=step_timeout
    )
    choice = VecEnvChoice(0, None, None)
    if in_daemon():
        if n_workers > 1 or step_timeout is not None:
            warn_of_daemon(step_timeout)
    elif step_timeout is not None:
        choice = VecEnvChoice(n_workers, None, None)
    elif n_workers > 1 and seconds > 0:
        with _preserved_random_state():
            choice = _measure(env_fns, make_workers, n_workers, seconds)
    venv = make_workers() if choice.n_workers else JointDummyVecEnv(env_fns)
    venv.choice = choice
    logger.info("%d environments run in %s", len(env_fns), choice)
    return venv


def _measure(
    env_fns: Sequence[Callable[[], gym.Env]],
    make_workers: Callable[[], JointSubprocVecEnv],
    n_workers: int,
    seconds: float,
) -> VecEnvChoice:
    # One environment is enough here: several would be stepped one after the other
    with SpeedTrial(JointDummyVecEnv(env_fns[:1])) as alone:
        first_rate = alone.steps_per_second(seconds / _TURNS)
        if len(env_fns) / first_rate <= _MIN_STEP_SECONDS:
            return VecEnvChoice(0, first_rate, None)
        in_process = in_workers = 0.0
        try:
            with SpeedTrial(make_workers()) as workers:
                for _ in range(_TURNS):
                    in_workers = max(in_workers, workers.steps_per_second(seconds / _TURNS))
                    in_process = max(in_process, alone.steps_per_second(seconds / _TURNS))
        except Exception as error:
            # A failure of workers, whatever it is, need not stop the training in this process
            warnings.warn(
                f"Worker processes failed, so the environments stay in this one: {error}",
                stacklevel=3,
            )
            return VecEnvChoice(0, first_rate, None)
    faster = in_workers > _MARGIN * in_process
    return VecEnvChoice(n_workers if faster else 0, in_process, in_workers)


class SpeedTrial:
    """
    Random legal actions, timed; a context manager that closes the environments at the end.

    :param venv: Vectorised environment
    """

    def __init__(self, venv: JointDummyVecEnv | JointSubprocVecEnv) -> None:
        self.venv = venv
        self._space = copy.deepcopy(venv.action_space)
        self._dtype = joint_action_dtype(self._space)
        self._masked = any(key.endswith("/" + ACTION_MASK) for key in venv.observation_space.spaces)

    def __enter__(self) -> "SpeedTrial":
        try:
            self._obs = self.venv.reset()
            self._actions = self._sample()
            self._step()  # not timed, since the first step may include one-time work
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
        # Without masks the first actions are used again: a team of networks decides faster than
        # Gymnasium samples
        if self._masked:
            self._actions = self._sample()
        start = time.perf_counter()
        self.venv.step_async(self._actions)
        self._obs = self.venv.step_wait()[0]
        return time.perf_counter() - start

    def steps_per_second(self, seconds: float) -> float:
        """
        Measure the speed of the environments.

        :param seconds: Duration, at least one step
        :return: Steps of single environments per second, counting only time inside the environments
        """
        begin = time.perf_counter()
        stepping = [self._step()]
        while time.perf_counter() - begin < seconds:
            stepping.append(self._step())
        return len(stepping) * self.venv.num_envs / sum(stepping)


@contextlib.contextmanager
def _preserved_random_state() -> Iterator[None]:
    """Restore the global random generators at the end."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")  # this package's environments do not import it themselves
    torch_state = None if torch is None else torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        if torch is not None:
            torch.set_rng_state(torch_state)
