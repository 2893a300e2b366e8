"""Time limit of the answers of worker processes."""

import contextlib
import logging
import numbers
import os
import signal
import threading
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

#: Seconds without an answer after which a message is logged, once per pool
SILENCE = 60.0
_LONGEST_TICK = 1.0
# Seconds for a worker to write its traceback
_TRACEBACK_SECONDS = 0.2


class WorkerTimeoutError(RuntimeError, TimeoutError):
    """A worker process has not answered within ``step_timeout``."""


class Watchdog:
    """
    Kills a worker process that does not answer in time, so that whoever waits for it gets an end of
    file. A thread counts the time in ticks: while the whole program is stopped (Ctrl-Z, a suspended
    job), none pass.

    :param limit: Seconds for an answer, None for no limit. In both cases a message is logged after
        :data:`SILENCE` seconds
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        #: Descriptions of the workers that were killed, by process
        self.killed: dict[BaseProcess, str] = {}
        self._tick = _LONGEST_TICK if limit is None else min(_LONGEST_TICK, limit / 10)
        self._allowed = limit
        self._waited = 0.0
        self._process: BaseProcess | None = None
        self._owners = ""
        self._watching = False
        self._has_spoken = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, owners: str, process: BaseProcess | None, at_least: float = 0.0) -> None:
        """
        Begin to count for one answer.

        :param owners: Name of the environments, for messages
        :param process: Process that is to answer; None for the current one, which cannot be killed
        :param at_least: Seconds to allow even if the limit is shorter
        """
        self._watching = False
        self._owners, self._process = owners, process
        self._allowed = None if self.limit is None else max(self.limit, at_least)
        self._waited = 0.0
        self._watching = True
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def end(self) -> None:
        """End the count: the answer is there."""
        self._watching = False

    def stop(self) -> None:
        """End the thread."""
        self._watching = False
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(self._tick):
            if not self._watching:
                continue
            self._waited += self._tick
            process = self._process
            over = self._allowed is not None and self._waited >= self._allowed
            if over and process is not None:
                self._watching = False
                self._kill(process)
            elif (over or self._waited >= SILENCE) and not self._has_spoken:
                self._has_spoken = True
                self._speak(process)

    def _kill(self, process: BaseProcess) -> None:
        """Note what a process does, let it write where, and kill it."""
        condition = describe_process(process.pid)
        self.killed[process] = condition
        with contextlib.suppress(OSError, ValueError):
            if hasattr(signal, "SIGUSR1") and process.pid is not None and "hang" in condition:
                os.kill(process.pid, signal.SIGUSR1)
                time.sleep(_TRACEBACK_SECONDS)
            process.kill()

    def _speak(self, process: BaseProcess | None) -> None:
        remedy = "`step_timeout=seconds` would end the training with an error instead of waiting"
        if process is None:
            remedy = (
                "They run in the current process, where they cannot be interrupted; "
                "`parent_works=False` and `step_timeout=seconds` let a worker process run them"
            )
        logger.warning(
            "%s %s for %.0f s. %s.",
            self._owners,
            "did not return" if process is None else "did not answer",
            self._waited,
            remedy,
        )


def describe_process(pid: int | None) -> str:
    """
    :param pid: Number of a process
    :return: Words on its state that complete "the process ..."
    """
    state = ""
    with contextlib.suppress(OSError, IndexError):
        # The name, in parentheses, may contain spaces
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    if state in ("T", "t"):
        return "was stopped by a signal (SIGSTOP, or a debugger)"
    return "hangs, and may have written to stderr where"


def checked_limit(step_timeout: Any) -> float | None:
    """
    :param step_timeout: Seconds, or None
    :return: The same
    :raises ValueError: If it is no number greater than 0
    """
    if step_timeout is None:
        return None
    is_number = isinstance(step_timeout, numbers.Real) and not isinstance(step_timeout, bool)
    if not is_number or not step_timeout > 0:
        raise ValueError(
            f"`step_timeout` must be a number of seconds greater than 0, or None for no limit, not "
            f"{step_timeout!r}."
        )
    return float(step_timeout)


def named(rows: slice) -> str:
    """
    :param rows: Indices of the environments of a worker
    :return: Name of them in messages
    """
    if rows.stop == rows.start + 1:
        return f"Environment {rows.start}"
    return f"Environments {rows.start} to {rows.stop - 1}"
