"""Interruptions of a training: signals, exceptions, and callbacks that save its state before."""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback


class TrainingTerminated(SystemExit):
    """
    Raised in the main thread on SIGTERM, while a training is saved on interruptions. Python ends
    with its exit code unless a program catches it.

    :param signum: Number of the signal
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class SavesOnInterruption(BaseCallback):
    """Callback that saves the state of a training which an exception or a signal ends."""

    def save_interrupted(self, error: BaseException) -> None:
        """
        Save the state. Called before the exception leaves ``learn``.

        :param error: Exception that ends the training
        """
        raise NotImplementedError

    def before_continuing(self, episodes: dict[str, Any]) -> None:
        """
        Called before the environments are brought to the state of a checkpoint.

        :param episodes: Form in which the episodes pass it
        """

    def after_continuing(self, episodes: dict[str, Any]) -> None:
        """
        Called when the state of a checkpoint is restored.

        :param episodes: Form in which the episodes have passed it
        """

    def after_training(self) -> None:
        """Called when ``learn`` is left, however it ends."""

    def defer(self, signum: int) -> bool:
        """
        :param signum: Number of a signal that asks the training to end
        :return: True if the callback ends the training by itself, shortly
        """
        return False


def interruption_callbacks(callback: Any) -> list[SavesOnInterruption]:
    """
    :param callback: Argument ``callback`` of ``learn``: a callback, a list of them, a function, or
        None
    :return: Callbacks among them that save on interruptions, those inside lists included
    """
    if isinstance(callback, SavesOnInterruption):
        return [callback]
    found = []
    for inside in getattr(callback, "callbacks", callback if isinstance(callback, list) else ()):
        found += interruption_callbacks(inside)
    return found


@contextlib.contextmanager
def saved_on_interruption(callbacks: Sequence[SavesOnInterruption]) -> Iterator[None]:
    """
    Within, any exception and SIGTERM let the callbacks save the state before they leave.

    SIGTERM is caught in the main thread, and where the program has no handler of its own for it.

    :param callbacks: Callbacks that save
    """
    if not callbacks:
        yield
        return

    def terminate(signum: int, frame: FrameType | None) -> None:
        deferred = [callback.defer(signum) for callback in callbacks]
        if not all(deferred):
            raise TrainingTerminated(signum)

    with _handler(signal.SIGTERM, terminate):
        try:
            yield
        except BaseException as error:
            with _uninterrupted():
                for callback in callbacks:
                    callback.save_interrupted(error)
            raise
        finally:
            for callback in callbacks:
                callback.after_training()


@contextlib.contextmanager
def _handler(signum: signal.Signals, handler: Any) -> Iterator[None]:
    """Handle a signal within, if this is the main thread and the signal has no handler."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signum) is not signal.SIG_DFL:
        yield
        return
    before = signal.signal(signum, handler)
    try:
        yield
    finally:
        signal.signal(signum, before)


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignore further signals within, so that a second one does not cut off the saving."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        for signum in before:
            signal.signal(signum, signal.SIG_IGN)
        yield
    finally:
        for signum, handler in before.items():
            # None stands for a handler that was not installed from Python
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
