"""Worker processes of a :class:`JointSubprocVecEnv`: start, messages, failures, end."""

import contextlib
import itertools
import multiprocessing as mp
import os
import sys
import time
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import gymnasium as gym

from sb3_happo.vec_env.shared_memory import SharedBlock
from sb3_happo.vec_env.watchdog import Watchdog, WorkerTimeoutError, named
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

#: Seconds that workers have at least for importing modules and making their environments
START_SECONDS = 300.0


class WorkerPool:
    """
    Workers, each with a share of the environments, and the messages to them. The pool is closed
    after an exception in a step, after the death of a worker, and when it is collected as garbage
    or the program ends.

    :param n_envs: Number of environments
    :param n_workers: Number of workers, at most ``n_envs``
    :param closing_time: Seconds for workers to end a step and close their environments, before they
        are killed
    :param step_timeout: Seconds for a worker to answer, before it is killed; None for no limit
    """

    def __init__(
        self,
        n_envs: int,
        n_workers: int,
        closing_time: float,
        step_timeout: float | None = None,
    ) -> None:
        starts = [n_envs * worker // n_workers for worker in range(n_workers + 1)]
        #: Indices of each worker's environments
        self.slices = [slice(start, end) for start, end in itertools.pairwise(starts)]
        #: Shared memory, which is given back when the pool is closed
        self.blocks: list[SharedBlock] = []
        #: True between :meth:`begin_step` and :meth:`end_step`
        self.step_running = False
        self._closing_time = closing_time
        self._watchdog = Watchdog(step_timeout)
        self._connections: list[Connection | InProcessWorker] = []
        self._processes: list[BaseProcess] = []
        self._finalizer = weakref.finalize(
            self,
            _close_workers,
            os.getpid(),
            self._watchdog,
            self._connections,
            self._processes,
            self.blocks,
            closing_time,
        )

    def start(
        self,
        env_fns: Sequence[Callable[[], gym.Env]],
        start_method: str | None,
        full_infos: bool,
        parent_works: bool,
    ) -> list[Any]:
        """
        Start the workers, and let them make their environments.

        :param env_fns: Functions that return joint environments, ``n_envs`` of them
        :param start_method: Start method of the processes, None for the default
        :param full_infos: Send complete infos at every step
        :param parent_works: Make the current process one of the workers
        :return: Reply of each worker: spaces of its environments
        :raises RuntimeError: If an environment cannot be made, or a worker process cannot start
        """
        if start_method is None:
            start_method = "forkserver" if "forkserver" in mp.get_all_start_methods() else "spawn"
        context: Any = mp.get_context(start_method)
        if start_method == "forkserver":
            # Imported once for all workers, now and later
            context.set_forkserver_preload([__name__])
        # Start the parent's resource tracker before any worker exists. The tracker of a worker
        # would remove the shared memory when that worker ends. Windows has no tracker, and needs
        # none: memory is freed there with its last handle.
        with contextlib.suppress(ImportError):
            resource_tracker.ensure_running()
        for worker, rows in enumerate(self.slices):
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
        return self._receive(range(len(self.slices)), START_SECONDS)

    def close(self) -> None:
        """
        End the workers, and give the shared memory back.
        """
        self.step_running = False
        self._finalizer()

    # ---------------------------------------------------------------- messages

    def check_ready(self) -> None:
        """
        Check that the workers wait for a request.

        :raises RuntimeError: If the pool is closed, or a step is under way
        """
        if not self._finalizer.alive:
            raise RuntimeError("This VecEnv is closed; make a new one.")
        if self.step_running:
            raise RuntimeError("A step is under way; call step_wait() first.")

    def exchange(self, requests: dict[int, tuple], at_least: float = 0.0) -> list[Any]:
        """
        Send a request to some workers, and wait for their replies.

        :param requests: ``(method, arguments)`` of :class:`~sb3_happo.vec_env.worker.Worker`, by
            the index of the worker
        :param at_least: Seconds for the reply even if the limit is shorter
        :return: Replies in the same order
        :raises AttributeError: If an environment lacks an attribute
        :raises RuntimeError: If an environment has raised another exception, or a worker has died
        """
        self.check_ready()
        self._send({worker: pack(request) for worker, request in requests.items()})
        return self._receive(requests, at_least)

    def begin_step(self) -> None:
        """
        Let all workers make the step whose actions are in the shared memory.

        :raises RuntimeError: If a worker has died
        """
        self.step_running = True
        self._send(dict.fromkeys(range(len(self.slices)), STEP))

    def end_step(self) -> list[Any]:
        """
        Wait for the end of the step.

        :return: Reply of each worker, None where all results are in the shared memory
        :raises RuntimeError: If an environment has raised an exception, or a worker has died
        """
        if not self.step_running:
            self.check_ready()
            raise RuntimeError("There is no step to wait for; call step_async() first.")
        try:
            replies = self._receive(range(len(self.slices)))
        except RuntimeError:
            self.close()  # some environments have made the step, and others have not
            raise
        self.step_running = False
        return replies

    def _send(self, messages: dict[int, bytes]) -> None:
        worker = 0
        try:
            for worker, message in messages.items():
                # A worker that was stopped does not read, and a long message waits for it
                self._watchdog.begin(named(self.slices[worker]), self._process(worker))
                self._connections[worker].send_bytes(message)
            self._watchdog.end()
        except OSError:
            raise self._worker_died(worker) from None
        except BaseException:
            self.close()  # after an interruption, replies would remain unread
            raise

    def _receive(self, workers: Iterable[int], at_least: float = 0.0) -> list[Any]:
        messages = []
        worker = 0
        try:
            for worker in workers:
                connection = self._connections[worker]
                owners = named(self.slices[worker])
                self._watchdog.begin(owners, self._process(worker), at_least)
                if self.step_running and not isinstance(connection, InProcessWorker):
                    busy_wait(connection)
                messages.append(connection.recv_bytes())
            self._watchdog.end()
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

    def _process(self, worker: int) -> BaseProcess | None:
        """Process of a worker; None for the current one."""
        if isinstance(self._connections[worker], InProcessWorker):
            return None
        # Counted from the end, since the current process may be a worker but is not in this list
        return self._processes[worker - len(self.slices)]

    def _worker_died(self, worker: int) -> RuntimeError:
        process = self._process(worker)
        assert process is not None
        process.join(self._closing_time)
        if process in self._watchdog.killed:
            timeout = WorkerTimeoutError(
                f"{named(self.slices[worker])} did not answer within "
                f"step_timeout={self._watchdog.limit:g} s; the worker process (pid {process.pid}) "
                f"{self._watchdog.killed[process]}. It was killed, and this VecEnv is closed. "
                "Longer steps and resets need a larger `step_timeout`."
            )
            self.close()
            return timeout
        cause = f"exit code {process.exitcode}"
        if process.exitcode == -9:
            cause += ", which means that it was killed, perhaps for lack of memory"
        error = RuntimeError(
            f"The worker process of {named(self.slices[worker])} has died ({cause}); what it "
            "wrote to stderr may say why. This VecEnv is closed."
        )
        self.close()
        return error

    def _as_exception(self, worker: int, failure: Failure) -> Exception:
        rows = self.slices[worker]
        if failure.row is not None:
            rows = slice(rows.start + failure.row, rows.start + failure.row + 1)
        kind = AttributeError if failure.is_attribute_error else RuntimeError
        in_process = isinstance(self._connections[worker], InProcessWorker)
        place = "" if in_process else " in a worker process"
        return kind(f"{named(rows)} failed{place}:\n\n{failure.traceback}")


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
    # On Windows they are of another class than Connection
    return [pipe for pipe in connections if not isinstance(pipe, InProcessWorker)]


def _close_workers(
    pid: int,
    watchdog: Watchdog,
    connections: "list[Connection | InProcessWorker]",
    processes: list[BaseProcess],
    blocks: list[SharedBlock],
    closing_time: float,
) -> None:
    if os.getpid() != pid:
        return  # this process was forked from the one that owns the workers
    watchdog.stop()
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
