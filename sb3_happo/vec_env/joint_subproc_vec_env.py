"""Joint environments in worker processes, several to each, over shared memory."""

import itertools
import multiprocessing
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_happo.envs.spaces import joint_action_dtype
from sb3_happo.vec_env.actions import as_joint_actions
from sb3_happo.vec_env.counts import checked_count
from sb3_happo.vec_env.joint_dummy_vec_env import JointObs, check_same_team
from sb3_happo.vec_env.shared_memory import SharedArrays, SharedBlock
from sb3_happo.vec_env.step_facts import StepFacts, StepInfos
from sb3_happo.vec_env.watchdog import checked_limit
from sb3_happo.vec_env.worker_pool import START_SECONDS, WorkerPool


class JointSubprocVecEnv(VecEnv):
    """
    Joint environments in worker processes, several to each. Observations, joint actions, rewards,
    dones, individual rewards, and the flags of active and waiting agents are in shared memory; a
    step costs one short message to each worker and one back. The current process steps a share of
    the environments itself, since it would only wait otherwise.

    The arrays that :meth:`reset` and :meth:`step` return belong to the caller: each call makes new
    ones.

    **Infos.** ``"agent_rewards"``, ``"TimeLimit.truncated"``, ``"terminal_observation"``,
    ``"active"`` and ``"waiting_agents"`` are as SB3 and :class:`~sb3_happo.JointEnv` define them,
    at every step. Other entries (``"episode"``, ``"is_success"``, ``"agent_infos"``, ...) are sent
    at the end of an episode only, unless ``full_infos``.

    **Start.** The functions that make the environments are sent by cloudpickle, together with
    Gymnasium's registry. The workers do not run the user's script again, so that it needs no
    ``if __name__ == "__main__":``.

    **Failures.** An exception in an environment is raised as ``RuntimeError`` with its traceback.
    After an exception in a step or a reset, the death of a worker, or Ctrl-C, all workers are
    closed. Workers end with the parent, however the parent ends. A worker that hangs or was stopped
    is killed after ``step_timeout``, and :class:`~sb3_happo.vec_env.watchdog.WorkerTimeoutError`
    is raised, a ``RuntimeError``. In a daemon process, such as those of ``multiprocessing.Pool``,
    no processes may start: all environments run in it, with a warning.

    :param env_fns: Functions that return joint environments (:class:`~sb3_happo.JointEnv`), a new
        one each, all of one team
    :param n_workers: Number of processes that step environments, at most one per environment; by
        default one per available core
    :param start_method: "forkserver" (default where available), "spawn", or "fork" (unsafe while
        threads run, such as torch's)
    :param full_infos: Send complete infos at every step, pickled
    :param parent_works: Make the current process one of the workers, which saves a process. If
        False, environments that crash or hang affect a worker process only. None: True, unless
        there is a ``step_timeout``
    :param step_timeout: Seconds for a worker to answer a step, a reset or a call, > 0; None for no
        limit. Workers have 5 minutes at least to make their environments. Environments in the
        current process (``parent_works=True``) cannot be interrupted
    :raises RuntimeError: If an environment cannot be made
    :raises TypeError: If an environment is not joint
    :raises ValueError: If there are no environments, or they are not of one team
    """

    observation_space: spaces.Dict
    action_space: spaces.Dict
    #: :class:`~sb3_happo.vec_env.VecEnvChoice`, if ``choose_vec_env`` has made this
    choice: tuple[int, float | None, float | None] | None = None
    #: Seconds for workers to end a step and close their environments, before they are killed
    closing_time: ClassVar[float] = 5.0

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        n_workers: int | None = None,
        start_method: str | None = None,
        full_infos: bool = False,
        parent_works: bool | None = None,
        step_timeout: float | None = None,
    ) -> None:
        n_envs = len(env_fns)
        if not n_envs:
            raise ValueError(
                "There are no environments; give at least one function that makes one."
            )
        limit = checked_limit(step_timeout)
        n_workers = available_cores() if n_workers is None else n_workers
        n_workers = checked_count("n_workers", n_workers)
        if parent_works is None:
            parent_works = limit is None
        if in_daemon():
            n_workers, parent_works = 1, True
            warn_of_daemon(limit)
        self.n_workers = min(n_envs, n_workers)
        self._pool = WorkerPool(n_envs, self.n_workers, self.closing_time, limit)
        try:
            replies = self._pool.start(env_fns, start_method, full_infos, parent_works)
            teams = list(itertools.chain.from_iterable(replies))
            for index, team in enumerate(teams):
                check_same_team(index, team, teams[0])
            observation_space, action_space = teams[0]
            self._action_dtype = joint_action_dtype(action_space)
            self._share_memory(SharedBlock(observation_space, action_space, n_envs), n_envs)
            super().__init__(n_envs, observation_space, action_space)
        except BaseException:
            self.close()
            raise

    def _share_memory(self, block: SharedBlock, n_envs: int) -> None:
        self._pool.blocks.append(block)
        requests = {}
        for worker, rows in enumerate(self._pool.slices):
            requests[worker] = ("join", (n_envs, rows, block.memory.name))
        try:
            self._pool.exchange(requests, START_SECONDS)
        finally:
            # All workers have joined. Unlinked memory is freed when the last process ends
            block.memory.unlink()

    # ---------------------------------------------------------------- steps and resets

    def step_async(self, actions: np.ndarray | Sequence[Mapping[str, Any]]) -> None:
        """
        Let the workers begin a step.

        :param actions: Structured array ``(n_envs,)`` with one field per agent, or one
            ``{agent: action}`` per environment
        :raises RuntimeError: If the previous step has not been waited for, or a worker has died
        """
        self._pool.check_ready()
        self._arrays.actions[...] = as_joint_actions(
            actions, self.action_space, self._action_dtype, self.num_envs
        )
        self._pool.begin_step()

    def step_wait(self) -> tuple[JointObs, np.ndarray, np.ndarray, StepInfos]:
        """
        Wait for the step that :meth:`step_async` began.

        :return: Joint observation, each entry ``(n_envs, ...)``; team rewards, float32
            ``(n_envs,)``; dones, ``(n_envs,)``; infos
        :raises RuntimeError: If an environment has raised an exception, or a worker has died
        """
        replies = self._pool.end_step()
        arrays = self._arrays
        rewards, dones = arrays.rewards.copy(), arrays.dones.copy()
        agent_rewards = arrays.agent_rewards.copy()
        active, waiting = self._flags()
        facts = StepFacts(
            agent_rewards.astype(np.float32), dones, arrays.truncated.copy(), active, waiting
        )
        infos = StepInfos(
            ({"agent_rewards": own, "TimeLimit.truncated": False} for own in agent_rewards), facts
        )
        if active is not None:
            _write_flags(infos, active, waiting)
        for index in np.flatnonzero(dones).tolist():
            infos[index]["TimeLimit.truncated"] = bool(facts.truncated[index])
            infos[index]["terminal_observation"] = {
                key: np.array(rows[index]) for key, rows in arrays.terminal_obs.items()
            }
            self.reset_infos[index] = {}
        for rows, reply in zip(self._pool.slices, replies, strict=True):
            for row, info, reset_info in reply or ():
                infos[rows.start + row].update(info)
                if reset_info:
                    self.reset_infos[rows.start + row] = reset_info
        return self._observation(), rewards, dones, infos

    def _flags(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Active and waiting agents of the next observations, as in :class:`StepFacts`."""
        partial = self._arrays.partial[:, np.newaxis]
        if not partial.any():
            return None, None
        # Where `partial` is False the arrays hold flags of an earlier step
        active = self._arrays.active | ~partial
        waiting = self._arrays.waiting & partial
        return active, waiting if waiting.any() else None

    def reset(self) -> JointObs:
        """
        Start an episode in every environment; a step that has not been waited for is dropped.

        :return: Joint observation, each entry ``(n_envs, ...)``
        :raises RuntimeError: If an environment has raised an exception, or a worker has died
        """
        if self._pool.step_running:
            self._pool.end_step()
        requests = {}
        for worker, rows in enumerate(self._pool.slices):
            requests[worker] = ("reset", (self._seeds[rows], self._options[rows]))
        try:
            reset_infos = self._pool.exchange(requests)
        except RuntimeError:
            self.close()
            raise
        self.reset_infos = list(itertools.chain.from_iterable(reset_infos))
        self._reset_seeds()
        self._reset_options()
        return self._observation()

    def close(self) -> None:
        """
        End the workers, and give the shared memory back.
        """
        self._pool.close()

    @property
    def _arrays(self) -> SharedArrays:
        return self._pool.blocks[0].arrays

    def _observation(self) -> JointObs:
        return {key: rows.copy() for key, rows in self._arrays.obs.items()}

    # ---------------------------------------------------------------- attributes and methods

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: Name of an attribute
        :param indices: Indices of the environments to ask, all by default
        :return: Value of the attribute in each of them
        :raises AttributeError: If an environment lacks the attribute
        """
        return self._ask("get_attr", (attr_name,), {}, indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: Name of an attribute
        :param value: New value
        :param indices: Indices of the environments to change, all by default
        """
        self._ask("set_attr", (attr_name, value), {}, indices)

    def has_attr(self, attr_name: str) -> bool:
        """
        :param attr_name: Name of an attribute
        :return: True if all environments have it
        """
        request = ("has_attr", (attr_name,))
        return all(self._pool.exchange(dict.fromkeys(range(self.n_workers), request)))

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """
        :param method_name: Name of a method
        :param method_args: Arguments of the method
        :param indices: Indices of the environments whose method is called, all by default
        :param method_kwargs: Keyword arguments of the method
        :return: Result in each of them
        """
        return self._ask("env_method", (method_name, *method_args), method_kwargs, indices)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :param wrapper_class: Class of a wrapper
        :param indices: Indices of the environments to look at, all by default
        :return: For each of them, True if it is wrapped in ``wrapper_class``
        """
        return self._ask("env_is_wrapped", (wrapper_class,), {}, indices)

    def keep_episodes(self) -> list[bool]:
        """
        :return: True for each environment that offers the state of its running episode
        """
        return self._ask("keep_episodes", (), {}, None)

    def episode_states(self) -> list[dict[str, Any]]:
        """
        :return: State of each running episode, plain data
        """
        return self._ask("episode_states", (), {}, None)

    def restore_episodes(self, states: Sequence[dict[str, Any]]) -> None:
        """
        :param states: Result of :meth:`episode_states`, for environments that are reset
        """
        for index, state in enumerate(states):
            self._ask("restore_episodes", ([state],), {}, [index])

    def get_images(self) -> list[np.ndarray | None]:
        """
        :return: Image of each environment, None where the render mode is not "rgb_array"
        """
        if self.render_mode != "rgb_array":
            warnings.warn(
                f"Images need the render mode 'rgb_array', and this is {self.render_mode!r}.",
                stacklevel=2,
            )
            return [None] * self.num_envs
        return self.env_method("render")

    def _ask(
        self, method: str, args: tuple, kwargs: dict[str, Any], indices: VecEnvIndices
    ) -> list[Any]:
        """Call a method of the workers' VecEnvs; the answers are in the order of ``indices``."""
        # Negative indices count from the end
        chosen = [range(self.num_envs)[index] for index in self._get_indices(indices)]
        owners = np.empty(self.num_envs, np.int64)
        requests = {}
        for worker, rows in enumerate(self._pool.slices):
            owners[rows] = worker
            local = [index - rows.start for index in chosen if rows.start <= index < rows.stop]
            if local:
                requests[worker] = ("ask", (local, method, args, kwargs))
        replies = zip(requests, self._pool.exchange(requests), strict=True)
        answers = {worker: iter(reply) for worker, reply in replies}
        return [next(answers[owner]) for owner in owners[chosen].tolist()]


def _write_flags(infos: StepInfos, active: np.ndarray, waiting: np.ndarray | None) -> None:
    """
    Write the flags of inactive agents into the infos of the environments whose episode continues.

    :param infos: Infos of the step, in which the entries are written
    :param active: Active mask of the next observations, ``(n_envs, n_agents)``
    :param waiting: Mask of the waiting agents, likewise; None for none
    """
    for index in np.flatnonzero(~infos.facts.dones & ~active.all(axis=1)).tolist():
        infos[index]["active"] = active[index]
        if waiting is not None and waiting[index].any():
            infos[index]["waiting_agents"] = waiting[index]


def in_daemon() -> bool:
    """
    :return: True if the current process is a daemon of ``multiprocessing``, which may not start
        processes
    """
    return multiprocessing.current_process().daemon


def warn_of_daemon(step_timeout: float | None) -> None:
    """
    :param step_timeout: Time limit that was asked for, or None
    """
    lost = "" if step_timeout is None else ", where `step_timeout` has no effect"
    warnings.warn(
        "Daemon processes, such as those of multiprocessing.Pool, may not start worker processes, "
        f"so the environments run in the current one{lost}.",
        stacklevel=3,
    )


def available_cores() -> int:
    """
    :return: Number of cores that this process may run on
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
