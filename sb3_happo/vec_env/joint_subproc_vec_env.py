"""Joint environments in worker processes, several to each, over shared memory."""

import contextlib
import itertools
import multiprocessing as mp
import os
import sys
import time
import types
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices

from sb3_happo.envs.spaces import joint_action_dtype
from sb3_happo.vec_env.actions import as_joint_actions
from sb3_happo.vec_env.joint_dummy_vec_env import JointObs, check_same_team
from sb3_happo.vec_env.shared_memory import SharedArrays, SharedBlock
from sb3_happo.vec_env.step_facts import StepFacts, StepInfos
from sb3_happo.vec_env.worker import (
    CLOSE,
    DONE,
    STEP,
    Failure,
    InProcessWorker,
    busy_wait,
    pack,
    unpack,
    worker_main,
)

if TYPE_CHECKING:
    from sb3_happo.vec_env.auto_vec_env import VecEnvChoice


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
    closed. Workers end with the parent, however the parent ends.

    :param env_fns: Functions that return joint environments (:class:`~sb3_happo.JointEnv`), a new
        one each, all of one team
    :param n_workers: Number of processes that step environments, at most one per environment; by
        default one per available core
    :param start_method: "forkserver" (default where available), "spawn", or "fork" (unsafe while
        threads run, such as torch's)
    :param full_infos: Send complete infos at every step, pickled
    :param parent_works: Make the current process one of the workers, which saves a process. If
        False, environments that crash or hang affect a worker process only
    :raises RuntimeError: If an environment cannot be made
    :raises TypeError: If an environment is not joint
    :raises ValueError: If there are no environments, or they are not of one team
    """

    observation_space: spaces.Dict
    action_space: spaces.Dict
    #: Measurement of ``choose_vec_env``, if that has made this
    choice: "VecEnvChoice | None" = None
    #: Seconds for workers to end a step and close their environments, before they are killed
    closing_time: ClassVar[float] = 5.0

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
        self._connections: list[Connection | InProcessWorker] = []
        self._processes: list[BaseProcess] = []
        self._blocks: list[SharedBlock] = []
        self._waiting = False
        # Called when this object is collected as garbage or the program ends, if not before
        self._finalizer = weakref.finalize(
            self,
            _close_workers,
            os.getpid(),
            self._connections,
            self._processes,
            self._blocks,
            self.closing_time,
        )
        try:
            self._start_workers(env_fns, start_method, full_infos, parent_works)
            observation_space, action_space = self._receive_spaces()
            self._action_dtype = joint_action_dtype(action_space)
            self._share_memory(SharedBlock(observation_space, action_space, n_envs), n_envs)
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
        context: Any = mp.get_context(start_method)
        if start_method == "forkserver":
            # Imported once for all workers, now and later
            context.set_forkserver_preload([__name__])
        # Start the parent's resource tracker before any worker exists. The tracker of a worker
        # would remove the shared memory when that worker ends.
        resource_tracker.ensure_running()
        for worker, rows in enumerate(self._slices):
            arguments = (list(env_fns[rows]), full_infos, dict(gym.registry))
            if parent_works and worker == 0:
                self._connections.append(InProcessWorker(arguments))
                continue
            request = pack(("make", arguments))
            own_end, worker_end = context.Pipe()
            self._connections.append(own_end)
            # A forked worker has copies of the parent's connections. It must close them, or it
            # would never see the parent's end of its own connection closed.
            inherited: list[Connection] = []
            if start_method == "fork":
                inherited = _pipes(self._connections)
            process = context.Process(
                target=worker_main, args=(worker_end, inherited, request), daemon=True
            )
            with _without_main():
                process.start()
            self._processes.append(process)
            worker_end.close()

    def _receive_spaces(self) -> tuple[spaces.Dict, spaces.Dict]:
        """Receive the workers' replies to "make": the spaces of the team, which are checked."""
        replies = self._receive(range(self.n_workers))
        teams = list(itertools.chain.from_iterable(replies))
        for index, team in enumerate(teams):
            check_same_team(index, team, teams[0])
        return teams[0]

    def _share_memory(self, block: SharedBlock, n_envs: int) -> None:
        self._blocks.append(block)
        requests = {}
        for worker, rows in enumerate(self._slices):
            requests[worker] = ("join", (n_envs, rows, block.memory.name))
        try:
            self._exchange(requests)
        finally:
            # All have joined: without a name, the memory is freed when the last process ends
            block.memory.unlink()

    # ---------------------------------------------------------------- steps and resets

    def step_async(self, actions: np.ndarray | Sequence[Mapping[str, Any]]) -> None:
        """
        Let the workers begin a step.

        :param actions: Structured array ``(n_envs,)`` with one field per agent, or one
            ``{agent: action}`` per environment
        :raises RuntimeError: If the previous step has not been waited for, or a worker has died
        """
        self._check_ready()
        self._arrays.actions[...] = as_joint_actions(
            actions, self.action_space, self._action_dtype, self.num_envs
        )
        self._waiting = True
        self._send(dict.fromkeys(range(self.n_workers), STEP))

    def step_wait(self) -> tuple[JointObs, np.ndarray, np.ndarray, StepInfos]:
        """
        Wait for the step that :meth:`step_async` began.

        :return: Joint observation, each entry ``(n_envs, ...)``; team rewards, float32
            ``(n_envs,)``; dones, ``(n_envs,)``; infos
        :raises RuntimeError: If an environment has raised an exception, or a worker has died
        """
        replies = self._end_step()
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
            for index in np.flatnonzero(~dones & ~active.all(axis=1)).tolist():
                infos[index]["active"] = active[index]
                if waiting is not None and waiting[index].any():
                    infos[index]["waiting_agents"] = waiting[index]
        for index in np.flatnonzero(dones).tolist():
            infos[index]["TimeLimit.truncated"] = bool(facts.truncated[index])
            infos[index]["terminal_observation"] = {
                key: np.array(rows[index]) for key, rows in arrays.terminal_obs.items()
            }
            self.reset_infos[index] = {}
        for rows, reply in zip(self._slices, replies, strict=True):
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
        if self._waiting:
            self._end_step()
        requests = {}
        for worker, rows in enumerate(self._slices):
            requests[worker] = ("reset", (self._seeds[rows], self._options[rows]))
        try:
            reset_infos = self._exchange(requests)
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
        self._waiting = False
        self._finalizer()

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
        return all(self._exchange(dict.fromkeys(range(self.n_workers), request)))

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
        for worker, rows in enumerate(self._slices):
            owners[rows] = worker
            local = [index - rows.start for index in chosen if rows.start <= index < rows.stop]
            if local:
                requests[worker] = ("ask", (local, method, args, kwargs))
        replies = zip(requests, self._exchange(requests), strict=True)
        answers = {worker: iter(reply) for worker, reply in replies}
        return [next(answers[owner]) for owner in owners[chosen].tolist()]

    # ---------------------------------------------------------------- messages

    @property
    def _arrays(self) -> SharedArrays:
        return self._blocks[0].arrays

    def _check_ready(self) -> None:
        if not self._finalizer.alive:
            raise RuntimeError("This VecEnv is closed; make a new one.")
        if self._waiting:
            raise RuntimeError("A step is under way; call step_wait() first.")

    def _exchange(self, requests: dict[int, tuple]) -> list[Any]:
        """Send a request to some workers, and return their replies in the same order."""
        self._check_ready()
        self._send({worker: pack(request) for worker, request in requests.items()})
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
            self.close()  # an interrupted exchange leaves replies behind that nobody waits for
            raise

    def _receive(self, workers: Iterable[int]) -> list[Any]:
        messages = []
        worker = 0
        try:
            for worker in workers:
                connection = self._connections[worker]
                if self._waiting and isinstance(connection, Connection):
                    busy_wait(connection)
                messages.append(connection.recv_bytes())
        except (EOFError, OSError):
            raise self._worker_died(worker) from None
        except BaseException:
            self.close()
            raise
        # All messages are received before a failure is raised, so that none is left behind
        replies = [None if message == DONE else unpack(message) for message in messages]
        for worker, reply in zip(workers, replies, strict=True):
            if isinstance(reply, Failure):
                raise self._as_exception(worker, reply)
        return replies

    def _worker_died(self, worker: int) -> RuntimeError:
        # Counted from the end, since the current process may be a worker but is not in this list
        process = self._processes[worker - self.n_workers]
        process.join(self.closing_time)
        cause = f"exit code {process.exitcode}"
        if process.exitcode == -9:
            cause += ", which means that it was killed, perhaps for want of memory"
        error = RuntimeError(
            f"The worker process of {_named(self._slices[worker])} has died ({cause}); what it "
            "wrote to stderr may say why. This VecEnv is closed."
        )
        self.close()
        return error

    def _as_exception(self, worker: int, failure: Failure) -> Exception:
        rows = self._slices[worker]
        if failure.row is not None:
            rows = slice(rows.start + failure.row, rows.start + failure.row + 1)
        kind = AttributeError if failure.is_attribute_error else RuntimeError
        in_process = isinstance(self._connections[worker], InProcessWorker)
        place = "" if in_process else " in a worker process"
        return kind(f"{_named(rows)} failed{place}:\n\n{failure.traceback}")


def available_cores() -> int:
    """
    :return: Number of cores that this process may run on
    """
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def _without_main() -> Iterator[None]:
    """
    Let a process start without running the user's script again, which would train a second time,
    or fail if it lacks ``if __name__ == "__main__":``. Nothing is lost: cloudpickle sends by value
    what the script defines.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _pipes(connections: "list[Connection | InProcessWorker]") -> list[Connection]:
    return [connection for connection in connections if isinstance(connection, Connection)]


def _named(rows: slice) -> str:
    if rows.stop == rows.start + 1:
        return f"Environment {rows.start}"
    return f"Environments {rows.start} to {rows.stop - 1}"


def _close_workers(
    pid: int,
    connections: "list[Connection | InProcessWorker]",
    processes: list[BaseProcess],
    blocks: list[SharedBlock],
    closing_time: float,
) -> None:
    if os.getpid() != pid:
        return  # this process was forked from the one that owns the workers
    # The callbacks run last, whatever an environment's own `close` raises here
    with contextlib.ExitStack() as at_exit:
        for block in blocks:
            at_exit.callback(block.close)
        for connection in connections:
            if isinstance(connection, InProcessWorker):
                at_exit.callback(connection.close)
                continue
            # Closing the connection would end the worker as well, unless a process that was forked
            # from this one has inherited the connection
            with contextlib.suppress(OSError):
                connection.send_bytes(CLOSE)
            connection.close()
        deadline = time.monotonic() + closing_time
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
