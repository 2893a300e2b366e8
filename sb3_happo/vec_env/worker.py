"""Worker of a :class:`JointSubprocVecEnv`: its environments, its answers, its main loop."""

import contextlib
import faulthandler
import os
import pickle
import select
import signal
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.vec_env import CloudpickleWrapper

from sb3_happo.vec_env.joint_dummy_vec_env import JointDummyVecEnv, JointObs
from sb3_happo.vec_env.shared_memory import SharedBlock

# The messages that are not pickled
STEP = b"step"
CLOSE = b"close"
DONE = b""  # reply to STEP when the shared memory holds all results

# Infos that are sent through the shared memory, at every step or while the episode continues
_SHARED_INFOS = {"agent_rewards", "TimeLimit.truncated", "terminal_observation"}
_SHARED_FLAGS = {"active", "waiting_agents"}
_BUSY_SECONDS = 5e-3  # time of busy waiting before a process sleeps until the next message


def pack(message: Any) -> bytes:
    """
    :param message: Any object that cloudpickle takes
    :return: The object, pickled
    """
    return pickle.dumps(CloudpickleWrapper(message))


def unpack(message: bytes) -> Any:
    """
    :param message: Result of :func:`pack`
    :return: The object
    """
    return pickle.loads(message).var


class Failure(NamedTuple):
    """
    An exception in a worker.

    :param row: Index of the environment that was running, among the worker's own; None if unknown
    :param is_attribute_error: True if the environment lacks the requested attribute
    :param traceback: Traceback as Python prints it
    """

    row: int | None
    is_attribute_error: bool
    traceback: str


class _SharedVecEnv(JointDummyVecEnv):
    """
    Environments that write their observations into the shared memory.

    :param envs: Joint environments
    :param batch: Arrays for the observations, each ``(n_envs, ...)``
    """

    def __init__(self, envs: list[gym.Env], batch: JointObs) -> None:
        super().__init__([lambda env=env: env for env in envs])  # type: ignore[misc]
        self._batch = batch

    def _new_batch(self) -> JointObs:
        return self._batch


class Worker:
    """
    A share of the environments, and the requests that the parent can send.
    """

    full_infos: bool
    venv: _SharedVecEnv
    block: SharedBlock

    def __init__(self) -> None:
        self.envs: list[gym.Env] = []
        self._row: int | None = None

    @property
    def row(self) -> int | None:
        """
        :return: Index of the environment that is running or ran last
        """
        return self.venv.env_index if hasattr(self, "venv") else self._row

    def make(
        self, env_fns: list[Callable[[], gym.Env]], full_infos: bool, registry: dict[str, EnvSpec]
    ) -> list[tuple[spaces.Space, spaces.Space]]:
        """
        Make the environments.

        :param env_fns: Functions that return joint environments
        :param full_infos: Send the complete infos at every step
        :param registry: The parent's ``gymnasium.registry``
        :return: Observation and action space of each environment
        """
        self.full_infos = full_infos
        for env_id, spec in registry.items():
            gym.registry.setdefault(env_id, spec)
        for self._row, env_fn in enumerate(env_fns):
            self.envs.append(env_fn())
        self._row = None
        return [(env.observation_space, env.action_space) for env in self.envs]

    def join(self, n_envs: int, rows: slice, name: str) -> None:
        """
        Join the parent's shared memory.

        :param n_envs: Number of all environments
        :param rows: Indices of this worker's environments among them
        :param name: Name of the memory
        """
        observation_space, action_space = self.envs[0].observation_space, self.envs[0].action_space
        assert isinstance(observation_space, spaces.Dict)
        assert isinstance(action_space, spaces.Dict)
        self.block = SharedBlock(observation_space, action_space, n_envs, rows, name)
        self.venv = _SharedVecEnv(self.envs, self.block.arrays.obs)

    def reset(self, seeds: list[int | None], options: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """
        Start an episode in every environment.

        :param seeds: Seed of each environment
        :param options: Options of each environment
        :return: Reset info of each environment
        """
        self.venv._seeds, self.venv._options = seeds, options
        self.venv.reset()
        return self.venv.reset_infos

    def step(self) -> list[tuple[int, dict[str, Any], dict[str, Any]]]:
        """
        Make the step whose actions are in the shared memory, and write the results there.

        :return: Row, info and reset info of each environment with something else to report
        """
        arrays = self.block.arrays
        self.venv.step_async(arrays.actions)
        _, arrays.rewards[:], arrays.dones[:], infos = self.venv.step_wait()
        facts = infos.facts
        arrays.truncated[:] = facts.truncated
        arrays.partial[:] = facts.active is not None
        if facts.active is not None:
            arrays.active[:] = facts.active
            arrays.waiting[:] = False if facts.waiting is None else facts.waiting
        more = []
        for row, info in enumerate(infos):
            arrays.agent_rewards[row] = info["agent_rewards"]
            done = facts.dones[row]
            if done:
                for key, rows in arrays.terminal_obs.items():
                    rows[row] = info["terminal_observation"][key]
            if done or self.full_infos:
                own_info = _unshared(info, done)
                reset_info = self.venv.reset_infos[row] if done else {}
                if own_info or reset_info:
                    more.append((row, own_info, reset_info))
        return more

    def ask(self, rows: list[int], method: str, args: tuple, kwargs: dict[str, Any]) -> list[Any]:
        """
        Call a method of ``VecEnv`` for some environments.

        :param rows: Indices of the environments
        :param method: Name of the method
        :param args: Arguments of the method
        :param kwargs: Keyword arguments of the method
        :return: Result for each environment
        """
        answers: list[Any] = []
        for self.venv.env_index in rows:
            result = getattr(self.venv, method)(*args, indices=self.venv.env_index, **kwargs)
            answers += result or [None]
        return answers

    def has_attr(self, attr_name: str) -> bool:
        """
        :param attr_name: Name of an attribute
        :return: True if all environments have it
        """
        return self.venv.has_attr(attr_name)

    def answer(self, message: bytes | tuple) -> bytes:
        """
        Carry out a request.

        :param message: Request, pickled or not
        :return: Pickled reply, which may be a :class:`Failure`; or :data:`DONE`
        """
        method = ""
        try:
            if message == STEP:
                more = self.step()
                return pack(more) if more else DONE
            method, args = unpack(message) if isinstance(message, bytes) else message
            return pack(getattr(self, method)(*args))
        except Exception as error:
            is_attribute_error = method == "ask" and isinstance(error, AttributeError)
            return pack(Failure(self.row, is_attribute_error, traceback.format_exc()))

    def close(self) -> None:
        """
        Close the environments, and leave the shared memory.
        """
        for env in self.envs:
            env.close()
        if hasattr(self, "block"):
            del self.venv
            self.block.close()


def _unshared(info: dict[str, Any], done: bool) -> dict[str, Any]:
    """
    :param info: Info of a step
    :param done: End of the episode: the shared flags are then those of the next observation
    :return: Entries that are not sent through the shared memory
    """
    shared = _SHARED_INFOS if done else _SHARED_INFOS | _SHARED_FLAGS
    return {key: value for key, value in info.items() if key not in shared}


class InProcessWorker:
    """
    A worker in the current process, with the methods of a ``Connection``. It works when its reply
    is received.

    :param arguments: Arguments of :meth:`Worker.make`
    """

    def __init__(self, arguments: tuple) -> None:
        self._worker = Worker()
        self._message: bytes | tuple = ("make", arguments)

    def send_bytes(self, message: bytes) -> None:
        """
        :param message: Next request
        """
        self._message = message

    def recv_bytes(self) -> bytes:
        """
        :return: Reply to the last request
        """
        return self._worker.answer(self._message)

    def close(self) -> None:
        """Close the environments."""
        self._worker.close()


def busy_wait(connection: Connection) -> None:
    """
    Wait for a message without sleeping, for a few milliseconds. Steps are short: the wake-up
    of a process that sleeps, and in a virtual machine of its core, takes a large part of a step.

    :param connection: Connection on which the message arrives
    """
    has_message = _poll_of(connection)
    deadline = time.perf_counter() + _BUSY_SECONDS
    while not has_message(0) and time.perf_counter() < deadline:
        _let_others_run()


def _poll_of(connection: Connection) -> Callable[[int], Any]:
    """Function that is true if a message waits; its argument is 0."""
    if not hasattr(select, "poll"):
        return connection.poll  # Windows
    # Half as long as the connection's own, which makes such an object at each call
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return poll.poll


def _let_others_run() -> None:
    """Give the core to other processes that may need it."""
    if hasattr(os, "sched_yield"):
        os.sched_yield()
    else:
        time.sleep(0)


def _write_tracebacks() -> None:
    """Let a worker that hangs write to stderr where, at the signal of the parent's watchdog."""
    # Not on Windows, and not without a stderr
    with contextlib.suppress(AttributeError, OSError, RuntimeError, ValueError):
        faulthandler.register(signal.SIGUSR1)


def worker_main(connection: Connection, inherited: list[Connection], message: bytes) -> None:
    """
    Main loop of a worker process.

    :param connection: Connection to the parent
    :param inherited: The parent's connections, of which a forked process has copies
    :param message: First request
    """
    for other in inherited:
        other.close()
    # The parent ends the workers: at Ctrl-C, and at the SIGTERM of a slot's end, which all receive
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _write_tracebacks()
    worker = Worker()
    try:
        while message != CLOSE:
            connection.send_bytes(worker.answer(message))
            if message == STEP:
                busy_wait(connection)
            message = connection.recv_bytes()
    except (EOFError, OSError):
        pass  # the parent has ended
    finally:
        worker.close()
