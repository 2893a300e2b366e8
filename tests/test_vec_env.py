"""Vectorised joint environments: equal results in all of them, and no process or memory left."""

import contextlib
import copy
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_happo import JointEnv
from sb3_happo.envs import joint_action_dtype
from sb3_happo.vec_env import JointDummyVecEnv, JointSubprocVecEnv, VecTeamOfOne, choose_vec_env
from sb3_happo.vec_env.actions import as_joint_actions, sample_actions
from tests.envs import HeterogeneousTeam, MatrixGame, RandomTeam, TurnGame

EnvFns = list[Callable[[], gym.Env]]
SHARED_MEMORY = Path("/dev/shm")
TWO_AGENTS = {"a": spaces.Discrete(3), "b": spaces.Box(-1, 1, (2,), np.float32)}


def heterogeneous(length: int) -> gym.Env:
    """Masks, images, nested actions, deaths and returns; ends by truncation."""
    return JointEnv(HeterogeneousTeam(length))


def turns(n_rounds: int) -> gym.Env:
    """Masks, and one agent active at a time, from the reset on; ends by termination."""
    return JointEnv(TurnGame(n_rounds=n_rounds))


class Talkative(gym.Wrapper):
    """Has infos of its own, renders, and fails on request."""

    render_mode = "rgb_array"

    def __init__(self, env: gym.Env, number: int = 0) -> None:
        super().__init__(env)
        self.number = number
        self.options: dict[str, Any] | None = None
        self.fail_in = ""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.options = options
        self._fail("reset")
        obs, info = self.env.reset(seed=seed)
        return obs, {**info, "seed": seed}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self._fail("step")
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated, truncated, {**info, "number": self.number}

    def _fail(self, where: str) -> None:
        if self.fail_in == where:
            raise ZeroDivisionError(f"number {self.number} fails in {where}")
        if self.fail_in == f"hang in {where}":
            time.sleep(1000)

    def render(self) -> Any:
        return np.full((2, 2, 3), self.number, np.uint8)

    def close(self) -> None:
        self._fail("close")
        super().close()

    def pid(self) -> int:
        """
        :return: The process that this runs in
        """
        return os.getpid()

    def add(self, number: int, times: int = 1) -> int:
        """
        :param number: A number
        :param times: Another
        :return: Their product plus this one's number
        """
        if number < 0:
            raise ValueError("no negative numbers")
        return self.number + number * times


def talkative(number: int) -> gym.Env:
    if number < 0:
        raise ZeroDivisionError("this one cannot be made")
    return Talkative(JointEnv(RandomTeam(TWO_AGENTS, length=4)), number)


def plain(length: int) -> gym.Env:
    """Vectors alone."""
    return JointEnv(RandomTeam(TWO_AGENTS, length))


def each(env_fn: Callable[[int], gym.Env], numbers: list[int]) -> EnvFns:
    return [partial(env_fn, number) for number in numbers]


class Thrifty(gym.Env):
    """Uses one array for all observations, keeps its actions, and has one non-empty reset info."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self) -> None:
        self.obs = np.zeros(2, np.float32)
        self.kept: list[np.ndarray] = []
        self.resets = -1  # of which JointEnv makes one

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self.resets += 1
        self.obs[:] = -self.resets
        return self.obs, {"hello": True} if self.resets == 1 else {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.kept.append(action)
        self.obs += 1 + abs(self.obs)
        return self.obs, 0.0, len(self.kept) % 3 == 0, False, {}


def forked(env_fns: EnvFns, n_workers: int = 2, **kwargs: Any) -> JointSubprocVecEnv:
    """Workers by the start method that takes least time."""
    return JointSubprocVecEnv(env_fns, n_workers, "fork", **{"parent_works": False} | kwargs)


@contextlib.contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """
    Let a test fail that would hang.

    :param seconds: Longest duration of the block
    :raises TimeoutError: If it takes longer
    """

    def fail(signum: int, frame: Any) -> None:
        raise TimeoutError(f"not finished after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    def left() -> set[str]:
        # Semaphores belong to other programs: these environments have none
        names = os.listdir(SHARED_MEMORY) if SHARED_MEMORY.exists() else []
        memory = [name for name in names if not name.startswith("sem.")]
        return {*memory, *(process.name for process in multiprocessing.active_children())}

    before = left()
    yield
    deadline = (
        time.monotonic() + 2
    )  # what other programs have in shared memory at the moment is not ours to judge
    while not left() <= before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left() <= before


class Course(NamedTuple):
    """Everything that a ``VecEnv`` returned at one step."""

    obs: dict[str, np.ndarray]
    rewards: np.ndarray | None
    dones: np.ndarray | None
    infos: list[dict[str, Any]]
    reset_infos: list[dict[str, Any]]


def run(venv: VecEnv, n_steps: int, seed: int = 7) -> list[Course]:
    """Take random legal actions from a seed; return the results, without copies."""
    action_space = copy.deepcopy(venv.action_space)
    action_space.seed(seed)
    dtype = joint_action_dtype(action_space)  # type: ignore[arg-type]
    with contextlib.closing(venv):
        venv.seed(seed)
        obs = venv.reset()
        courses = [Course(obs, None, None, [], list(venv.unwrapped.reset_infos))]  # type: ignore[arg-type]
        for _ in range(n_steps):
            sampled = sample_actions(action_space, obs, venv.num_envs)  # type: ignore[arg-type]
            joint = as_joint_actions(sampled, action_space, dtype, venv.num_envs)  # type: ignore[arg-type]
            obs, rewards, dones, infos = venv.step(joint)
            joint[...] = np.zeros((), dtype)  # the actions stay the caller's
            reset_infos = list(venv.unwrapped.reset_infos)
            courses.append(Course(obs, rewards, dones, list(infos), reset_infos))  # type: ignore[arg-type]
    return courses


def assert_same(left: Any, right: Any, where: str = "") -> None:
    if isinstance(left, dict):
        assert set(left) == set(right), where
        for key in left:
            assert_same(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    else:
        np.testing.assert_array_equal(left, right, err_msg=where)
        assert getattr(left, "dtype", None) == getattr(right, "dtype", None), where


def without_agent_infos(courses: list[Course]) -> list[Course]:
    """Remove the environments' own infos, except in final steps, and the duration of episodes."""
    for course in courses:
        for index, info in enumerate(course.infos):
            if course.dones is not None and not course.dones[index]:
                info.pop("agent_infos", None)
            info.get("episode", {}).pop("t", None)
    return courses


TEAMS = {
    "heterogeneous": each(heterogeneous, [12, 11, 7, 12, 9]),
    "turns": each(turns, [4, 2, 3, 1, 4]),
}
VEC_ENVS: dict[str, Callable[[EnvFns], VecEnv]] = {
    "in-process": JointDummyVecEnv,
    "1 worker, forkserver": partial(
        JointSubprocVecEnv, n_workers=1, full_infos=True, parent_works=False
    ),
    "2 workers, spawn": partial(
        JointSubprocVecEnv, n_workers=2, start_method="spawn", full_infos=True, parent_works=False
    ),
    "3 workers, fork": partial(
        JointSubprocVecEnv, n_workers=3, start_method="fork", full_infos=True
    ),
    "default": JointSubprocVecEnv,
}


@pytest.mark.parametrize(
    ("team", "kind"),
    # spawn imports everything again, once will do
    [
        (team, kind)
        for team in TEAMS
        for kind in VEC_ENVS
        if (team, kind) != ("turns", "2 workers, spawn")
    ],
)
def test_same_as_dummy_vec_env(team: str, kind: str) -> None:
    expected = run(DummyVecEnv(TEAMS[team]), 40)
    assert sum(int(course.dones.sum()) for course in expected if course.dones is not None) >= 15
    assert any("active" in info for course in expected for info in course.infos)
    assert any("active" in info for course in expected for info in course.reset_infos)
    courses = run(VEC_ENVS[kind](TEAMS[team]), 40)
    if kind == "default":
        expected, courses = without_agent_infos(expected), without_agent_infos(courses)
    # Compared when all is over: nothing that was returned may have been written over
    for step, (one, other) in enumerate(zip(courses, expected, strict=True)):
        assert_same(one._asdict(), other._asdict(), f"step {step}")


@pytest.mark.parametrize("kind", ["in-process", "3 workers, fork"])
def test_vec_env_contract(kind: str) -> None:
    venv = VEC_ENVS[kind](each(talkative, [10, 11, 12, 13, 14]))
    with contextlib.closing(venv):
        assert venv.num_envs == 5
        assert venv.render_mode == "rgb_array"
        venv.seed(3)
        venv.set_options([{"level": level} for level in range(5)])
        venv.reset()
        assert [info["seed"] for info in venv.reset_infos] == [3, 4, 5, 6, 7]
        assert venv.get_attr("options") == [{"level": level} for level in range(5)]
        venv.reset()  # seeds and options are for one reset
        assert [info["seed"] for info in venv.reset_infos] == [None] * 5

        assert venv.get_attr("number", [4, -3, 0]) == [14, 12, 10]
        assert venv.get_attr("agents", 2) == [("a", "b")]
        assert venv.env_method("add", 2, times=3, indices=[3, 1]) == [19, 17]
        venv.set_attr("number", 20, indices=[1, 4])
        assert venv.get_attr("number") == [10, 20, 12, 13, 20]
        assert venv.has_attr("number")
        assert not venv.has_attr("numeral")
        assert venv.env_is_wrapped(Talkative) == [True] * 5
        assert venv.env_is_wrapped(Monitor, indices=[0]) == [False]
        assert [image[0, 0, 0] for image in venv.get_images() if image is not None] == [
            10,
            20,
            12,
            13,
            20,
        ]
        assert venv.render().shape == (6, 4, 3) or venv.render().shape == (4, 6, 3)  # type: ignore[union-attr]

        # The caller may drop a step
        venv.step_async(np.zeros(5, joint_action_dtype(venv.action_space)))  # type: ignore[arg-type]
        venv.reset()
        assert not venv.step(np.zeros(5, joint_action_dtype(venv.action_space)))[2].any()  # type: ignore[arg-type]


def test_infos_are_sent_when_episodes_end() -> None:
    with contextlib.closing(forked([lambda: Monitor(talkative(5))] * 3)) as venv:
        venv.reset()
        joint = np.zeros(3, joint_action_dtype(venv.action_space))
        for _ in range(3):
            *_, infos = venv.step(joint)
            assert [set(info) for info in infos] == [{"agent_rewards", "TimeLimit.truncated"}] * 3
        *_, dones, infos = venv.step(joint)
        assert dones.all()
        assert [(info["number"], info["episode"]["l"]) for info in infos] == [(5, 4)] * 3
        assert [info["seed"] for info in venv.reset_infos] == [None] * 3


@pytest.mark.parametrize("make", [JointDummyVecEnv, forked])
def test_arrays_have_one_owner(make: Callable[[EnvFns], VecEnv]) -> None:
    with contextlib.closing(make([lambda: JointEnv(Thrifty())] * 2)) as venv:
        venv.reset()
        assert venv.reset_infos == [{"hello": True}] * 2
        joint = np.zeros(2, joint_action_dtype(venv.action_space))  # type: ignore[arg-type]
        for step in range(4):
            joint["agent_0"] = step / 10
            obs, _, dones, infos = venv.step(joint)
            if step == 2:
                assert dones.all()
                # From -1 by way of 1 and 3 to 7, and then a reset to -2
                assert [info["terminal_observation"]["agent_0"].tolist() for info in infos] == [
                    [7.0, 7.0]
                ] * 2
                assert obs["agent_0"].tolist() == [[-2.0, -2.0]] * 2  # type: ignore[call-overload]
        assert venv.reset_infos == [{}] * 2
        for env in venv.get_attr("env"):
            np.testing.assert_allclose(np.ravel(env.kept), [0, 0.1, 0.2, 0.3], rtol=1e-6)


@pytest.mark.parametrize("make", [JointDummyVecEnv, forked])
def test_joint_actions_in_every_form(make: Callable[[EnvFns], VecEnv]) -> None:
    spaces_ = {
        "a": spaces.Discrete(3),
        "b": spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (2,), np.float32)]),
    }
    fns: EnvFns = [lambda: JointEnv(RandomTeam(spaces_))] * 2
    with contextlib.closing(make(fns)) as venv:
        venv.reset()
        nested = [("0", np.int64), ("1", np.float64, (2,))]
        # Other order, other types
        joint = np.array(
            [((1, [0.5, -0.5]), 2), ((0, [0.25, 1.0]), 1)], dtype=[("b", nested), ("a", np.int32)]
        )
        venv.step(joint)
        assert [actions["a"] for actions in env_actions(venv)] == [2, 1]
        venv.step([{"b": (1, [0.5, -0.5]), "a": 2}, {"a": 1, "b": (0, [0.25, 1.0])}])  # type: ignore[arg-type]
        assert [actions["a"] for actions in env_actions(venv)] == [2, 1]
        for actions in env_actions(venv):
            assert spaces_["b"].contains(actions["b"])
        assert_same(
            [actions["b"][1].tolist() for actions in env_actions(venv)], [[0.5, -0.5], [0.25, 1.0]]
        )
        for wrong, error, message in [
            ({"a": np.zeros(2), "b": np.zeros(2)}, TypeError, "not a dict of arrays"),
            (np.zeros(2), TypeError, "structured array"),
            (np.zeros(3, joint.dtype), ValueError, "2 environments"),
            (np.zeros(2, [("a", int), ("c", int)]), ValueError, "the team is"),
        ]:
            with pytest.raises(error, match=message):
                venv.step(wrong)  # type: ignore[arg-type]
        venv.step(joint)  # no harm done


def env_actions(venv: VecEnv) -> list[dict[str, Any]]:
    return [env.actions for env in venv.get_attr("env")]


@pytest.mark.parametrize("make", [JointDummyVecEnv, forked])
def test_environments_that_do_not_fit(make: Callable[[EnvFns], VecEnv]) -> None:
    with pytest.raises(ValueError, match=r"Environment 3 .* one team"):
        make([*each(turns, [1, 2, 3]), partial(heterogeneous, 2)])
    with pytest.raises(TypeError, match="wrap it with JointEnv"):
        make([partial(gym.make, "CartPole-v1")] * 2)


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("where", ["step", "reset"])
def test_exception_in_a_worker(where: str) -> None:
    venv = forked(each(talkative, [10, 11, 12, 13, 14]))
    venv.reset()
    venv.set_attr("fail_in", where, indices=[3])
    joint = np.zeros(5, joint_action_dtype(venv.action_space))
    call = venv.reset if where == "reset" else partial(venv.step, joint)
    with pytest.raises(
        RuntimeError, match=rf"(?s)Environment 3 .*Traceback.*number 13 fails in {where}"
    ):
        call()
    with pytest.raises(RuntimeError, match="closed"):
        venv.reset()
    venv.close()


@pytest.mark.parametrize("start_method", ["forkserver", "fork"])
def test_exception_while_starting(start_method: str) -> None:
    with pytest.raises(
        RuntimeError, match=r"(?s)Environment 2 .*Traceback.*this one cannot be made"
    ):
        JointSubprocVecEnv(each(talkative, [1, 2, -1, 3]), 2, start_method)


def test_parent_that_works() -> None:
    """It has the first share, reports failures, and ends the workers if its own close fails."""
    venv = forked(each(talkative, [10, 11, 12, 13]), parent_works=True)
    pids = venv.env_method("pid")
    assert pids[0] == pids[1] == os.getpid() != pids[2] == pids[3]
    venv.reset()
    venv.set_attr("fail_in", "step", indices=[1])
    with pytest.raises(
        RuntimeError, match=r"(?s)^Environment 1 failed:.*Traceback.*number 11 fails in step"
    ):
        venv.step(np.zeros(4, joint_action_dtype(venv.action_space)))
    assert pids[2] not in {process.pid for process in multiprocessing.active_children()}

    venv = forked(each(talkative, [10, 11]), parent_works=True)
    venv.set_attr("fail_in", "close", indices=[0])
    with pytest.raises(ZeroDivisionError, match="number 10 fails in close"):
        venv.close()
    assert not multiprocessing.active_children()


def test_exceptions_that_a_vec_env_survives() -> None:
    with contextlib.closing(forked(each(talkative, [10, 11, 12]))) as venv:
        with pytest.raises(AttributeError, match="numeral"):
            venv.get_attr("numeral")
        with pytest.raises(RuntimeError, match=r"(?s)Environment 1 .*no negative numbers"):
            venv.env_method("add", -1, indices=[1, 2])
        with pytest.raises(RuntimeError, match="step_async"):
            venv.step_wait()
        venv.reset()
        venv.step_async(np.zeros(3, joint_action_dtype(venv.action_space)))
        with pytest.raises(RuntimeError, match="step_wait"):
            venv.get_attr("number")
        venv.step_wait()
        assert venv.get_attr("number") == [10, 11, 12]


@pytest.mark.parametrize("busy", [False, True])
def test_killed_worker(busy: bool) -> None:
    venv = forked(each(talkative, [10, 11, 12, 13]))
    venv.reset()
    (pid,) = venv.env_method("pid", indices=[2])
    if busy:
        venv.set_attr("fail_in", "hang in step", indices=[2, 3])
        threading.Timer(0.3, os.kill, (pid, signal.SIGKILL)).start()
    else:
        os.kill(pid, signal.SIGKILL)
    message = r"Environments 2 to 3 has died \(exit code -9"
    with time_limit(30), pytest.raises(RuntimeError, match=message):
        venv.step(np.zeros(4, joint_action_dtype(venv.action_space)))


def test_close_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JointSubprocVecEnv, "closing_time", 0.3)
    venv = forked(each(talkative, [10, 11]))
    venv.reset()
    pids = set(venv.env_method("pid"))
    venv.set_attr("fail_in", "hang in step", indices=[1])
    venv.step_async(np.zeros(2, joint_action_dtype(venv.action_space)))
    with time_limit(30):
        venv.close()
        venv.close()
    assert not pids & {process.pid for process in multiprocessing.active_children()}


def test_garbage_collection_closes() -> None:
    venv = forked(each(talkative, [10, 11]))
    venv.reset()
    pids = set(venv.env_method("pid"))
    assert pids <= {process.pid for process in multiprocessing.active_children()}
    del venv
    assert not pids & {process.pid for process in multiprocessing.active_children()}


def test_forked_process_closes_nothing() -> None:
    with contextlib.closing(forked(each(talkative, [10, 11]))) as venv:
        child = multiprocessing.get_context("fork").Process(target=venv.close)
        child.start()
        child.join()
        assert child.exitcode == 0
        assert venv.get_attr("number") == [10, 11]


SCRIPT = """
import os, signal, sys, time
import gymnasium as gym
import numpy as np
from gymnasium import spaces
from sb3_happo import JointEnv, make_joint_env
from sb3_happo.vec_env import JointSubprocVecEnv

class Slow(gym.Env):  # defined here, and registered here
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        time.sleep(0.2)
        return np.zeros(2, np.float32), float(os.getpid()), False, False, {}

gym.register("Slow-v0", entry_point=Slow)
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells disable it in background jobs
# without `if __name__ == "__main__":`
venv = JointSubprocVecEnv([lambda: make_joint_env("Slow-v0")] * 4, 2, sys.argv[1])
venv.reset()
actions = [{"agent_0": 0}] * 4
print(*{int(pid) for pid in venv.step(actions)[1]}, flush=True)
while sys.argv[2] != "end":
    venv.step(actions)
"""


@pytest.mark.parametrize(
    ("start_method", "end"), [("forkserver", "end"), ("spawn", "SIGINT"), ("fork", "SIGKILL")]
)
def test_nothing_outlives_the_parent(start_method: str, end: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[1]
    with subprocess.Popen(
        [sys.executable, script, start_method, end],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a group of its own, to which Ctrl-C can go
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        if end == "SIGINT":
            os.killpg(parent.pid, signal.SIGINT)
        elif end != "end":
            parent.send_signal(signal.Signals[end])
        with time_limit(60):
            complaints = parent.stderr.read()  # ends with the last process that could write there
    assert len(pids) == 2, complaints
    assert "leaked" not in complaints
    assert "ignored" not in complaints
    assert complaints.count("Traceback") == (end == "SIGINT")
    assert parent.returncode == {"end": 0, "SIGINT": -2, "SIGKILL": -9}[end]
    deadline = time.monotonic() + 5
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]


# ---------------------------------------------------------------- with Stable-Baselines3


@pytest.mark.parametrize(
    ("env_fns", "wrap"),
    [
        (TEAMS["heterogeneous"], VecMonitor),
        (
            TEAMS["heterogeneous"],
            partial(VecNormalize, norm_obs_keys=["arm/position", "crane", "console"]),
        ),
        (TEAMS["turns"], lambda venv: VecNormalize(VecMonitor(venv), norm_obs=False)),
        (each(plain, [4, 5, 6]), partial(VecFrameStack, n_stack=2)),
    ],
    ids=["VecMonitor", "VecNormalize", "both", "VecFrameStack"],
)
@pytest.mark.parametrize("make", [JointDummyVecEnv, forked])
def test_sb3_wrappers(
    make: Callable[[EnvFns], VecEnv], env_fns: EnvFns, wrap: Callable[[VecEnv], VecEnv]
) -> None:
    mine, theirs = (
        without_agent_infos(run(wrap(venv), 30)) for venv in (make(env_fns), DummyVecEnv(env_fns))
    )
    for step, (one, other) in enumerate(zip(mine, theirs, strict=True)):
        assert_same(one._asdict(), other._asdict(), f"step {step}")


class MirrorPlayer:
    """Plays the matrix game optimally."""

    def predict(self, observation: dict[str, np.ndarray], **_: Any) -> tuple[np.ndarray, None]:
        joint = np.zeros(len(observation["state"]), [("agent_0", np.int64), ("agent_1", np.int64)])
        joint["agent_1"] = 1
        return joint, None


@pytest.mark.parametrize("monitored", ["Monitor", "VecMonitor"])
@pytest.mark.parametrize("make", [JointDummyVecEnv, forked])
@pytest.mark.filterwarnings("error")
def test_evaluate_policy(make: Callable[[EnvFns], VecEnv], monitored: str) -> None:
    def env_fn() -> gym.Env:
        env = JointEnv(MatrixGame(2))
        return Monitor(env) if monitored == "Monitor" else env

    with contextlib.closing(make([env_fn] * 3)) as venv:
        venv = VecMonitor(venv) if monitored == "VecMonitor" else venv
        returns, lengths = evaluate_policy(MirrorPlayer(), venv, 7, return_episode_rewards=True)  # type: ignore[arg-type]
    assert returns == [1.0] * 7
    assert lengths == [1] * 7


# ---------------------------------------------------------------- the choice


class Sleepy(gym.Wrapper):
    """Sleeps, which workers do in parallel, and uses the global random generators."""

    def step(self, action: Any) -> Any:
        time.sleep(0.01)
        np.random.rand()
        random.random()
        th.rand(1)
        return self.env.step(action)


def sleepy(length: int) -> gym.Env:
    return Sleepy(heterogeneous(length))


def test_choice_of_workers(caplog: pytest.LogCaptureFixture) -> None:
    def randomness() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), th.get_rng_state().tolist()  # type: ignore[index]

    before = randomness()
    with caplog.at_level(logging.INFO, "sb3_happo"):
        venv = choose_vec_env(each(sleepy, [12] * 4), n_workers=4, start_method="fork", seconds=0.2)
    with contextlib.closing(venv):
        assert isinstance(venv, JointSubprocVecEnv)
        assert venv.n_workers == 4
    assert randomness() == before
    assert venv.choice is not None
    n_workers, in_process, in_workers = venv.choice
    assert n_workers == 4
    assert in_process is not None
    assert in_workers is not None
    assert in_process < 100  # one sleeps after the other
    assert in_workers > 1.1 * in_process
    assert str(venv.choice) in caplog.text
    # The trial has left no trace
    for one, other in zip(
        without_agent_infos(run(choose_vec_env(each(sleepy, [9, 8]), 2, "fork", seconds=0.05), 20)),
        without_agent_infos(run(DummyVecEnv(each(sleepy, [9, 8])), 20)),
        strict=True,
    ):
        assert_same(one._asdict(), other._asdict())


def test_choice_of_the_current_process(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = choose_vec_env(each(talkative, [1]), n_workers=4)
    assert isinstance(alone, JointDummyVecEnv)
    assert alone.choice == (0, None, None)
    assert isinstance(choose_vec_env(each(talkative, [1, 2]), n_workers=1), JointDummyVecEnv)

    rates: dict[type, list[float]] = {JointDummyVecEnv: [1e6]}

    def measured(trial: Any, seconds: float) -> float:
        return rates[type(trial.venv)].pop(0)

    with monkeypatch.context() as patch:
        patch.setattr("sb3_happo.vec_env.auto_vec_env.SpeedTrial.steps_per_second", measured)
        quick = choose_vec_env(each(talkative, [1, 2]), 2, "fork")
        assert quick.choice == (0, 1e6, None)  # not worth a try
        # Not worth the memory, at their best
        rates = {
            JointDummyVecEnv: [1000.0, 800.0, 1010.0, 500.0, 400.0],
            JointSubprocVecEnv: [100.0, 1050.0, 900.0, 700.0],
        }
        assert choose_vec_env(each(talkative, [1, 2]), 2, "fork").choice == (0, 1010.0, 1050.0)
        assert not any(rates.values())

    lock = threading.Lock()
    with pytest.warns(UserWarning, match="pickle"):
        unable = choose_vec_env([lambda: sleepy(3 if lock else 4)] * 2, n_workers=2, seconds=0.05)
    assert isinstance(unable, JointDummyVecEnv)


# ---------------------------------------------------------------- a team of one


class Plain(gym.Env):
    """
    A single agent, whose reward is the sum of its action's numbers.

    :param observation_space: Its observations, sampled
    :param action_space: Its actions, which are checked
    """

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self._t = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        self._t = 0
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self._t += 1
        reward = float(np.asarray(spaces.flatten(self.action_space, action)).sum())
        return self.observation_space.sample(), reward, False, self._t == 3, {"t": self._t}


VECTOR = spaces.Box(-1, 1, (3,), np.float64)
MATRIX = spaces.Box(-1, 1, (2, 3), np.float32)
IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
BOX = spaces.Box(-1, 1, (2,), np.float32)
HYBRID = spaces.Dict({"move": BOX, "kind": spaces.Discrete(3)})


@pytest.mark.parametrize("action_space", [spaces.Discrete(4), BOX, spaces.MultiBinary(3), HYBRID])
@pytest.mark.parametrize(
    ("observation_space", "shapes"),
    [
        (VECTOR, {"agent_0": (3,), "state": (3,)}),
        (MATRIX, {"agent_0": (2, 3), "state": (6,)}),
        (IMAGE, {"agent_0": (36, 36, 3), "state": (36, 36, 3)}),
        (spaces.Discrete(5), {"agent_0": (), "state": (5,)}),
        (
            spaces.Dict({"a": IMAGE, "b": MATRIX}),
            {
                "agent_0/a": (36, 36, 3),
                "agent_0/b": (2, 3),
                "state/agent_0/a": (36, 36, 3),
                "state/agent_0/b": (2, 3),
            },
        ),
        (
            spaces.Dict({"a": VECTOR, "b": MATRIX}),
            {"agent_0/a": (3,), "agent_0/b": (2, 3), "state": (9,)},
        ),
    ],
)
def test_team_of_one(
    observation_space: spaces.Space, shapes: dict[str, tuple[int, ...]], action_space: spaces.Space
) -> None:
    def make() -> VecEnv:
        return DummyVecEnv(
            [lambda: Plain(copy.deepcopy(observation_space), copy.deepcopy(action_space))] * 2
        )

    plain, team = make(), VecTeamOfOne(make())
    assert {key: space.shape for key, space in team.observation_space.items()} == shapes
    assert list(team.action_space) == ["agent_0"]
    # What is trained in one goes on in the other
    alone = JointEnv(Plain(observation_space, action_space))
    assert (
        team.observation_space == alone.observation_space
        and team.action_space == alone.action_space
    )
    plain.seed(5)
    team.seed(5)

    def assert_lifted(joint: dict[str, np.ndarray], obs: Any) -> None:
        for key, shape in shapes.items():
            assert joint[key].shape[joint[key].ndim - len(shape) :] == shape
            assert joint[key].dtype == team.observation_space[key].dtype != np.float64
            if isinstance(observation_space, spaces.Discrete) and key == "state":
                part = np.eye(5)[obs]
            elif isinstance(obs, dict) and key == "state":
                part = np.concatenate([obs["a"].reshape(-1, 3), obs["b"].reshape(-1, 6)], axis=1)
            else:
                part = obs[key.rpartition("/")[2]] if isinstance(obs, dict) else obs
            np.testing.assert_allclose(joint[key].ravel(), np.ravel(part), rtol=1e-6)

    assert_lifted(team.reset(), plain.reset())
    for step in range(7):
        actions = [action_space.sample() for _ in range(2)]
        obs, rewards, dones, infos = plain.step(actions)  # type: ignore[arg-type]
        joint = as_joint_actions(
            [{"agent_0": action} for action in actions], team.action_space, team_dtype(team), 2
        )
        team_obs, team_rewards, team_dones, team_infos = team.step(joint)
        assert_lifted(team_obs, obs)  # type: ignore[arg-type]
        assert_same((team_rewards, team_dones), (rewards, dones))
        assert dones.all() == (step % 3 == 2)
        for index, (team_info, info) in enumerate(zip(team_infos, infos, strict=True)):
            assert team_info.pop("agent_rewards").tolist() == [rewards[index]]
            if dones[index]:
                terminal = team_info.pop("terminal_observation")
                assert all(terminal[key].shape == shape for key, shape in shapes.items())
                assert_lifted(terminal, info.pop("terminal_observation"))
                assert team_info["TimeLimit.truncated"]
            assert team_info == info


def team_dtype(team: VecTeamOfOne) -> np.dtype:
    return joint_action_dtype(team.action_space)
