"""Joint environments in worker processes, several to each, over shared memory."""

import contextlib
import itertools
import math
import multiprocessing as mp
import os
import pickle
import select
import signal
import sys
import time
import traceback
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env import CloudpickleWrapper, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_happo.envs.spaces import joint_action_dtype
from sb3_happo.vec_env.actions import as_joint_actions
from sb3_happo.vec_env.joint_dummy_vec_env import (
    JointDummyVecEnv,
    JointObs,
    VecEnvChoice,
    check_same_team,
)

# The messages that are no pickles
_STEP = b"step"
_CLOSE = b"close"
_DONE = (
    b""  # a step is done, and everything that there is to say about it stands in the shared memory
)

_SHARED_INFOS = {
    "agent_rewards",
    "active",
    "waiting_agents",
    "TimeLimit.truncated",
    "terminal_observation",
}
_ALIGNMENT = 64  # bytes in a cache line
_AWAKE = 5e-3  # seconds that parent and workers wait for each other's messages before they sleep
_CLOSING_TIME = (
    5.0  # seconds that the workers have for ending a step and closing their environments
)


class JointSubprocVecEnv(VecEnv):
    """
    Joint environments in worker processes, several to each. Observations, joint actions, rewards, dones, individual rewards
    and the infos of who is active or waiting go through shared memory; a step costs one short message to each worker and
    back. The current process takes a share of the environments itself, where it would only wait.

    The arrays that :meth:`reset` and :meth:`step` return belong to the caller: each call makes new ones.

    **Infos.** ``"agent_rewards"``, ``"TimeLimit.truncated"``, ``"terminal_observation"``, ``"active"`` and
    ``"waiting_agents"`` are as SB3 and :class:`~sb3_happo.JointEnv` define them, at every step. What else an environment says
    (``"episode"``, ``"is_success"``, ``"agent_infos"``, ...) is sent at the end of an episode only, unless ``full_infos``.

    **Start.** The environments' functions travel by cloudpickle, and what Gymnasium has registered goes with them. The workers
    do not run the user's script again, so it needs no ``if __name__ == "__main__":``.

    **Failures.** An exception in an environment is raised as ``RuntimeError`` with its traceback. If it came from a step or a
    reset, or if a worker died, or after Ctrl-C, all workers are closed. They end with the parent, however that ends.

    :param env_fns: Functions that return joint environments (:class:`~sb3_happo.JointEnv`), a new one each, all of one team
    :param n_workers: Number of processes that step environments, at most one per environment; by default one per available
        core
    :param parent_works: Whether the current process is one of them, which saves a process. Without it, environments that crash
        or hang take only a worker along
    :param start_method: "forkserver" (default where there is one), "spawn", or "fork" (unsafe while threads run, like torch's)
    :param full_infos: Send all that the environments say at every step, pickled
    :raises RuntimeError: If an environment cannot be made
    :raises TypeError: If an environment is not joint
    :raises ValueError: If there are no environments, or they are not of one team
    """

    observation_space: spaces.Dict
    action_space: spaces.Dict
    #: What was measured, if ``choose_vec_env`` has made this
    choice: VecEnvChoice | None = None

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        n_workers: int | None = None,
        start_method: str | None = None,
        full_infos: bool = False,
        parent_works: bool = True,
    ) -> None:
        n_envs = len(env_fns)
        if not n_envs:
            raise ValueError(
                "There are no environments; give at least one function that makes one."
            )
        if n_workers is not None and n_workers < 1:
            raise ValueError(f"`n_workers` must be at least 1, not {n_workers}.")
        self.n_workers = min(n_envs, n_workers or available_cores())
        starts = [n_envs * worker // self.n_workers for worker in range(self.n_workers + 1)]
        self._slices = [slice(start, end) for start, end in itertools.pairwise(starts)]
        self._connections: list[Connection | _Here] = []
        self._processes: list[BaseProcess] = []
        self._blocks: list[_SharedBlock] = []
        self._waiting = False
        # Runs at the latest when this object is collected as garbage, or the program ends
        self._finalizer = weakref.finalize(
            self, _close_workers, os.getpid(), self._connections, self._processes, self._blocks
        )
        try:
            self._start_workers(env_fns, start_method, full_infos, parent_works)
            teams = [
                team
                for worker_teams in self._receive(range(self.n_workers))
                for team in worker_teams
            ]
            for index, team in enumerate(teams):
                check_same_team(index, team, teams[0])
            observation_space, action_space = teams[0]
            self._action_dtype = joint_action_dtype(action_space)
            block = _SharedBlock(observation_space, action_space, n_envs)
            self._blocks.append(block)
            try:
                self._exchange(
                    {
                        worker: ("join", (n_envs, rows, block.memory.name))
                        for worker, rows in enumerate(self._slices)
                    }
                )
            finally:
                # Once all have it, it can lose its name: it lasts as long as the processes, whatever becomes of them
                block.memory.unlink()
            super().__init__(n_envs, observation_space, action_space)
        except BaseException:
            self.close()
            raise

    def _start_workers(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        start_method: str | None,
        full_infos: bool,
        parent_works: bool,
    ) -> None:
        if start_method is None:
            start_method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
        context = mp.get_context(start_method)
        if start_method == "forkserver":
            context.set_forkserver_preload(
                [__name__]
            )  # imported once, for all workers, now and later
        # The parent's own, before any worker is there: a worker's would remove the shared memory together with that worker
        resource_tracker.ensure_running()
        for worker, rows in enumerate(self._slices):
            arguments = (list(env_fns[rows]), full_infos, dict(gym.registry))
            if parent_works and worker == 0:
                self._connections.append(_Here(arguments))
                continue
            request = _pack(("make", arguments))
            ours, theirs = context.Pipe()
            self._connections.append(ours)
            # A forked worker has a copy of these, and would never see the parent's end of its connection closed
            inherited = (
                [other for other in self._connections if isinstance(other, Connection)]
                if start_method == "fork"
                else []
            )
            process = context.Process(target=_work, args=(theirs, inherited, request), daemon=True)  # type: ignore[attr-defined]
            with _without_main():
                process.start()
            self._processes.append(process)
            theirs.close()

    # ---------------------------------------------------------------- steps and resets

    def step_async(self, actions: np.ndarray | Sequence[Mapping[str, Any]]) -> None:
        """
        Let the workers begin a step.

        :param actions: Structured array ``(n_envs,)`` with one field per agent, or one ``{agent: action}`` per environment
        :raises RuntimeError: If the step before has not been waited for, or a worker has died
        """
        self._check_ready()
        self._arrays.actions[...] = as_joint_actions(
            actions, self.action_space, self._action_dtype, self.num_envs
        )
        self._waiting = True
        self._send(dict.fromkeys(range(self.n_workers), _STEP))

    def step_wait(self) -> tuple[JointObs, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """
        Wait for the step that :meth:`step_async` began.

        :return: Joint observation, each entry ``(n_envs, ...)``; team rewards, float32, and dones, ``(n_envs,)`` each; infos
        :raises RuntimeError: If an environment has raised an exception, or a worker has died
        """
        replies = self._end_step()
        arrays = self._arrays
        rewards, dones = arrays.rewards.copy(), arrays.dones.copy()
        infos: list[dict[str, Any]] = [
            {"agent_rewards": agent_rewards, "TimeLimit.truncated": False}
            for agent_rewards in arrays.agent_rewards.copy()
        ]
        for index in np.flatnonzero(dones).tolist():
            infos[index]["TimeLimit.truncated"] = bool(arrays.truncated[index])
            infos[index]["terminal_observation"] = {
                key: np.array(rows[index]) for key, rows in arrays.terminal_obs.items()
            }
            self.reset_infos[index] = {}
        if arrays.partial.any():
            active, waiting = arrays.active.copy(), arrays.waiting.copy()
            for index in np.flatnonzero(arrays.partial).tolist():
                infos[index]["active"] = active[index]
                if waiting[index].any():
                    infos[index]["waiting_agents"] = waiting[index]
        for rows, reply in zip(self._slices, replies, strict=True):
            for row, info, reset_info in reply or ():
                infos[rows.start + row].update(info)
                if reset_info:
                    self.reset_infos[rows.start + row] = reset_info
        return self._observation(), rewards, dones, infos

    def reset(self) -> JointObs:
        """
        Start an episode in every environment; a step that has not been waited for is dropped.

        :return: Joint observation, each entry ``(n_envs, ...)``
        :raises RuntimeError: If an environment has raised an exception, or a worker has died
        """
        if self._waiting:
            self._end_step()
        requests = {
            worker: ("reset", (self._seeds[rows], self._options[rows]))
            for worker, rows in enumerate(self._slices)
        }
        try:
            reset_infos = self._exchange(requests)
        except RuntimeError:
            self.close()
            raise
        self.reset_infos = [info for worker_infos in reset_infos for info in worker_infos]
        self._reset_seeds()
        self._reset_options()
        return self._observation()

    def close(self) -> None:
        """
        End the workers, and give the shared memory back.
        """
        self._waiting = False
        self._finalizer()

    def _observation(self) -> JointObs:
        return {key: rows.copy() for key, rows in self._arrays.obs.items()}

    # ---------------------------------------------------------------- the environments' attributes and methods

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """
        :param attr_name: Name of an attribute
        :param indices: Of which environments, all by default
        :return: Its value in each
        :raises AttributeError: If an environment lacks it
        """
        return self._ask("get_attr", (attr_name,), {}, indices)

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """
        :param attr_name: Name of an attribute
        :param value: Its new value
        :param indices: In which environments, all by default
        """
        self._ask("set_attr", (attr_name, value), {}, indices)

    def has_attr(self, attr_name: str) -> bool:
        """
        :param attr_name: Name of an attribute
        :return: Whether all environments have it
        """
        return all(self._exchange(dict.fromkeys(range(self.n_workers), ("has_attr", (attr_name,)))))

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: VecEnvIndices = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """
        :param method_name: Name of a method
        :param method_args: Its arguments
        :param indices: Of which environments to call it, all by default
        :param method_kwargs: Its keyword arguments
        :return: What it returns in each
        """
        return self._ask("env_method", (method_name, *method_args), method_kwargs, indices)

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None
    ) -> list[bool]:
        """
        :param wrapper_class: Class of a wrapper
        :param indices: Which environments to look at, all by default
        :return: Whether each is wrapped in it
        """
        return self._ask("env_is_wrapped", (wrapper_class,), {}, indices)

    def get_images(self) -> list[np.ndarray | None]:
        """
        :return: What each environment renders, None where its render mode is not "rgb_array"
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
        """Call a method of the workers' VecEnvs for some environments; the answers come in the order of ``indices``."""
        chosen = [range(self.num_envs)[index] for index in self._get_indices(indices)]
        requests = {}
        for worker, rows in enumerate(self._slices):
            local = [index - rows.start for index in chosen if rows.start <= index < rows.stop]
            if local:
                requests[worker] = ("ask", (local, method, args, kwargs))
        answers = {
            worker: iter(reply)
            for worker, reply in zip(requests, self._exchange(requests), strict=True)
        }
        owners = [
            worker for worker, rows in enumerate(self._slices) for _ in range(rows.start, rows.stop)
        ]
        return [next(answers[owners[index]]) for index in chosen]

    # ---------------------------------------------------------------- messages

    @property
    def _arrays(self) -> "_Arrays":
        return self._blocks[0].arrays

    def _check_ready(self) -> None:
        if not self._finalizer.alive:
            raise RuntimeError("This VecEnv is closed; make a new one.")
        if self._waiting:
            raise RuntimeError("A step is under way; call step_wait() first.")

    def _exchange(self, requests: dict[int, tuple]) -> list[Any]:
        """Send a request to some workers, and return their replies in the same order."""
        self._check_ready()
        self._send({worker: _pack(request) for worker, request in requests.items()})
        return self._receive(requests)

    def _end_step(self) -> list[Any]:
        if not self._waiting:
            self._check_ready()
            raise RuntimeError("There is no step to wait for; call step_async() first.")
        try:
            replies = self._receive(range(self.n_workers))
        except RuntimeError:
            self.close()  # some environments have made the step, and others have not
            raise
        self._waiting = False
        return replies

    def _send(self, messages: dict[int, bytes]) -> None:
        worker = 0
        try:
            for worker, message in messages.items():
                self._connections[worker].send_bytes(message)
        except OSError:
            raise self._worker_died(worker) from None
        except BaseException:
            self.close()  # who interrupts an exchange leaves replies behind that nobody waits for
            raise

    def _receive(self, workers: Iterable[int]) -> list[Any]:
        messages = []
        worker = 0
        try:
            for worker in workers:
                connection = self._connections[worker]
                if self._waiting and isinstance(connection, Connection):
                    _stay_awake(connection)
                messages.append(connection.recv_bytes())
        except (EOFError, OSError):
            raise self._worker_died(worker) from None
        except BaseException:
            self.close()
            raise
        replies = [_unpack(message) if message != _DONE else None for message in messages]
        for worker, reply in zip(workers, replies, strict=True):
            if isinstance(reply, _Failure):
                raise self._failure(worker, reply)
        return replies

    def _worker_died(self, worker: int) -> RuntimeError:
        process = self._processes[
            worker - self.n_workers
        ]  # from the end, for the current process is not among them
        process.join(_CLOSING_TIME)
        error = RuntimeError(
            f"The worker process of {_named(self._slices[worker])} has died (exit code {process.exitcode}"
            + (
                ", which means that it was killed, perhaps for want of memory"
                if process.exitcode == -9
                else ""
            )
            + "); what it wrote to stderr may say why. This VecEnv is closed."
        )
        self.close()
        return error

    def _failure(self, worker: int, failure: "_Failure") -> Exception:
        rows = self._slices[worker]
        if failure.row is not None:
            rows = slice(rows.start + failure.row, rows.start + failure.row + 1)
        kind = AttributeError if failure.is_attribute_error else RuntimeError
        place = "" if isinstance(self._connections[worker], _Here) else " in a worker process"
        return kind(f"{_named(rows)} failed{place}:\n\n{failure.traceback}")


class _Failure(NamedTuple):
    """
    What went wrong in a worker.

    :param row: Which of its environments was running, None if that is not known
    :param is_attribute_error: Whether the environment was asked for something that it does not have
    :param traceback: As Python would print it
    """

    row: int | None
    is_attribute_error: bool
    traceback: str


class _Arrays(NamedTuple):
    """
    What parent and workers share, one row per environment.

    :param obs: Joint observations
    :param terminal_obs: The last observations of the episodes that have just ended
    :param actions: Joint actions
    :param rewards: Team rewards, ``(n_envs,)``
    :param agent_rewards: Individual rewards, ``(n_envs, n_agents)``
    :param dones: ``(n_envs,)``
    :param truncated: SB3's ``"TimeLimit.truncated"``, ``(n_envs,)``, valid where ``dones``
    :param partial: Whether somebody is inactive, ``(n_envs,)``
    :param active: ``info["active"]``, ``(n_envs, n_agents)``, valid where ``partial``
    :param waiting: ``info["waiting_agents"]``, likewise, or nobody
    """

    obs: JointObs
    terminal_obs: JointObs
    actions: np.ndarray
    rewards: np.ndarray
    agent_rewards: np.ndarray
    dones: np.ndarray
    truncated: np.ndarray
    partial: np.ndarray
    active: np.ndarray
    waiting: np.ndarray


class _SharedBlock:
    """
    One block of shared memory for all :class:`_Arrays`, each in an aligned region of its own.

    :param observation_space: Joint observation space
    :param action_space: Joint action space
    :param n_envs: Number of environments
    :param rows: The environments that ``arrays`` shows, all by default
    :param name: Name of the block to join; None makes a new one
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Dict,
        n_envs: int,
        rows: slice | None = None,
        name: str | None = None,
    ) -> None:
        n_agents = len(action_space.spaces)
        keys = list(observation_space.spaces)
        obs: list[tuple[tuple[int, ...], Any]] = [
            (space.shape, space.dtype) for space in observation_space.values()
        ]  # type: ignore[misc]
        # In the order of _Arrays
        layout = [
            *obs,
            *obs,
            ((), joint_action_dtype(action_space)),
            ((), np.float32),
            ((n_agents,), np.float64),
            ((), np.bool_),
            ((), np.bool_),
            ((), np.bool_),
            ((n_agents,), np.bool_),
            ((n_agents,), np.bool_),
        ]
        regions = [((n_envs, *shape), np.dtype(dtype)) for shape, dtype in layout]
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in regions]
        offsets = list(
            itertools.accumulate(
                (math.ceil(size / _ALIGNMENT) * _ALIGNMENT for size in sizes), initial=0
            )
        )
        self.memory = SharedMemory(name, create=name is None, size=offsets[-1])
        # Unlike np.ndarray(..., buffer), this keeps the memory from being unmapped under an array that somebody still holds
        whole = np.frombuffer(self.memory.buf, np.uint8)  # type: ignore[arg-type]
        arrays = [
            whole[offset : offset + size].view(dtype).reshape(shape)[rows or slice(n_envs)]
            for (shape, dtype), size, offset in zip(regions, sizes, offsets, strict=False)
        ]
        n_keys = len(keys)
        self.arrays = _Arrays(
            dict(zip(keys, arrays[:n_keys], strict=True)),
            dict(zip(keys, arrays[n_keys : 2 * n_keys], strict=True)),
            *arrays[2 * n_keys :],
        )

    def close(self) -> None:
        """Give the memory back."""
        del self.arrays
        with contextlib.suppress(
            BufferError
        ):  # a traceback still holds an array, and the memory will go with it
            self.memory.close()


def available_cores() -> int:
    """
    :return: Number of cores that this process may run on
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """
    Let a process start without running the user's script again, which would train a second time, or fail, where it lacks
    ``if __name__ == "__main__":``. Nothing is missed: what the script defines travels by value with cloudpickle.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _pack(message: Any) -> bytes:
    return pickle.dumps(CloudpickleWrapper(message))


def _unpack(message: bytes) -> Any:
    return pickle.loads(message).var


def _named(rows: slice) -> str:
    return (
        f"Environment {rows.start}"
        if rows.stop == rows.start + 1
        else f"Environments {rows.start} to {rows.stop - 1}"
    )


def _close_workers(
    pid: int,
    connections: "list[Connection | _Here]",
    processes: list[BaseProcess],
    blocks: list[_SharedBlock],
) -> None:
    if os.getpid() != pid:
        return  # in a process that was forked from the one whose workers these are
    with contextlib.ExitStack() as at_last:  # whatever an environment's own `close` raises here
        for block in blocks:
            at_last.callback(block.close)
        for connection in connections:
            if isinstance(connection, _Here):
                at_last.callback(connection.close)
                continue
            # A closed connection says the same, unless a process that was forked from this one has inherited it
            with contextlib.suppress(OSError):
                connection.send_bytes(_CLOSE)
            connection.close()
        deadline = time.monotonic() + _CLOSING_TIME
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            process.close()


# ---------------------------------------------------------------- in the worker


class _SharedVecEnv(JointDummyVecEnv):
    """
    Environments that leave their observations where the parent reads them.

    :param envs: The environments
    :param batch: Where the observations go
    """

    def __init__(self, envs: list[gym.Env], batch: JointObs) -> None:
        super().__init__([lambda env=env: env for env in envs])  # type: ignore[misc]
        self._batch = batch

    def _new_batch(self) -> JointObs:
        return self._batch


class _Worker:
    """
    What the parent can ask for.
    """

    full_infos: bool
    venv: _SharedVecEnv
    block: _SharedBlock

    def __init__(self) -> None:
        self.envs: list[gym.Env] = []
        self._row: int | None = None

    @property
    def row(self) -> int | None:
        """
        :return: Which environment is running, or ran last
        """
        return self.venv.env_index if hasattr(self, "venv") else self._row

    def make(
        self, env_fns: list[Callable[[], gym.Env]], full_infos: bool, registry: dict[str, EnvSpec]
    ) -> list[tuple[spaces.Space, spaces.Space]]:
        """
        Make the environments.

        :param env_fns: Their functions
        :param full_infos: Whether all that they say is wanted
        :param registry: The parent's ``gymnasium.registry``
        :return: Their observation and action spaces
        """
        self.full_infos = full_infos
        gym.registry.update({id: spec for id, spec in registry.items() if id not in gym.registry})
        for self._row, env_fn in enumerate(env_fns):
            self.envs.append(env_fn())
        self._row = None
        return [(env.observation_space, env.action_space) for env in self.envs]

    def join(self, n_envs: int, rows: slice, name: str) -> None:
        """
        Join the parent's shared memory.

        :param n_envs: Number of all environments
        :param rows: Which of them are here
        :param name: Name of the memory
        """
        observation_space, action_space = self.envs[0].observation_space, self.envs[0].action_space
        assert isinstance(observation_space, spaces.Dict) and isinstance(action_space, spaces.Dict)
        self.block = _SharedBlock(observation_space, action_space, n_envs, rows, name)
        self.venv = _SharedVecEnv(self.envs, self.block.arrays.obs)

    def reset(self, seeds: list[int | None], options: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        :param seeds: Of the environments
        :param options: Of the environments
        :return: Their reset infos
        """
        self.venv._seeds, self.venv._options = seeds, options
        self.venv.reset()
        return self.venv.reset_infos

    def step(self) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
        """
        Make the step that the shared memory holds, and leave there what came of it.

        :return: For each environment with more to say: its row, info, and reset info
        """
        arrays = self.block.arrays
        _, arrays.rewards[:], arrays.dones[:], infos = self.venv.step(arrays.actions)
        more = []
        for row, info in enumerate(infos):
            arrays.agent_rewards[row] = info["agent_rewards"]
            active = info.get("active")
            arrays.partial[row] = active is not None
            if active is not None:
                arrays.active[row] = active
                arrays.waiting[row] = info.get("waiting_agents", False)
            done = "terminal_observation" in info
            if done:
                arrays.truncated[row] = info["TimeLimit.truncated"]
                for key, rows in arrays.terminal_obs.items():
                    rows[row] = info["terminal_observation"][key]
            if done or self.full_infos:
                own_info = {key: value for key, value in info.items() if key not in _SHARED_INFOS}
                reset_info = self.venv.reset_infos[row] if done else {}
                if own_info or reset_info:
                    more.append((row, own_info, reset_info))
        return more

    def ask(self, rows: list[int], method: str, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
        """
        :param rows: Environments
        :param method: Method of ``VecEnv`` to call for each
        :param args: Its arguments
        :param kwargs: Its keyword arguments
        :return: The answers
        """
        answers: list[Any] = []
        for self.venv.env_index in rows:
            answers += getattr(self.venv, method)(*args, indices=self.venv.env_index, **kwargs) or [
                None
            ]
        return answers

    def has_attr(self, attr_name: str) -> bool:
        """
        :param attr_name: Name of an attribute
        :return: Whether all environments have it
        """
        return self.venv.has_attr(attr_name)

    def answer(self, message: bytes | tuple) -> bytes:
        """
        :param message: A request, pickled or not
        :return: The reply, which may be a :class:`_Failure`
        """
        method = ""
        try:
            if message == _STEP:
                more = self.step()
                return _pack(more) if more else _DONE
            method, args = _unpack(message) if isinstance(message, bytes) else message
            return _pack(getattr(self, method)(*args))
        except Exception as error:
            is_attribute_error = method == "ask" and isinstance(error, AttributeError)
            return _pack(_Failure(self.row, is_attribute_error, traceback.format_exc()))

    def close(self) -> None:
        """
        Close the environments, and leave the shared memory.
        """
        for env in self.envs:
            env.close()
        if hasattr(self, "block"):
            del self.venv
            self.block.close()


def _stay_awake(connection: Connection) -> None:
    """
    Wait for a message without sleeping, for a moment. A step is so short that to fall asleep and wake up again, for a process
    and, in a virtual machine, for its core, takes a good part of it.

    :param connection: From where it comes
    """
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    deadline = time.perf_counter() + _AWAKE
    while not poll.poll(0) and time.perf_counter() < deadline:
        os.sched_yield()  # to whoever else wants this core


class _Here:
    """
    A worker in the current process, with the methods of a connection to one. It works when its answer is asked for.

    :param arguments: Of :meth:`_Worker.make`
    """

    def __init__(self, arguments: tuple) -> None:
        self._worker = _Worker()
        self._message: bytes | tuple = ("make", arguments)

    def send_bytes(self, message: bytes) -> None:
        """
        :param message: The next request
        """
        self._message = message

    def recv_bytes(self) -> bytes:
        """
        :return: The answer to the last request
        """
        return self._worker.answer(self._message)

    def close(self) -> None:
        """Close the environments."""
        self._worker.close()


def _work(connection: Connection, inherited: list[Connection], message: bytes) -> None:
    """
    What a worker process does.

    :param connection: To the parent
    :param inherited: The parent's connections, of which a forked process has a copy
    :param message: The first request
    """
    for other in inherited:
        other.close()
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C is for the parent, which then ends the workers
    worker = _Worker()
    try:
        while message != _CLOSE:
            connection.send_bytes(worker.answer(message))
            if message == _STEP:
                _stay_awake(connection)
            message = connection.recv_bytes()
    except (EOFError, OSError):
        pass  # the parent is gone
    finally:
        worker.close()
