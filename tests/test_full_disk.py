"""A full disk during training: nothing is lost, and files are written later."""

import errno
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize

from sb3_happo import HAPPO, EvalCallback
from sb3_happo.common.unwritten_files import UnwrittenFiles
from sb3_happo.vec_env import JointDummyVecEnv
from tests.algorithms import alike_team, random_team, small

ROOT = Path(__file__).parents[1]

FSYNC = os.fsync


class FullDisk(BaseCallback):
    """
    Make every write fail during some of the training's timesteps.

    :param monkeypatch: Fixture
    :param begin: First of these timesteps
    :param end: First timestep at which there is room again
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, begin: int, end: int) -> None:
        super().__init__()
        self.monkeypatch = monkeypatch
        self.begin, self.end = begin, end
        self.error = errno.ENOSPC

    def _fail(self, descriptor: int) -> None:
        raise OSError(self.error, os.strerror(self.error))

    def _on_step(self) -> bool:
        is_full = self.begin <= self.num_timesteps < self.end
        self.monkeypatch.setattr(os, "fsync", self._fail if is_full else FSYNC)
        return True


def test_checkpoints_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    disk = FullDisk(monkeypatch, 20, 40)
    checkpoints = CheckpointCallback(8, str(tmp_path), "team", save_vecnormalize=True)
    model = small(HAPPO, VecNormalize(random_team(1)), seed=0)
    model.learn(64, callback=CallbackList([disk, checkpoints]))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {
        f"team_{kind}{steps}_steps.{end}"
        for steps in range(8, 65, 8)
        for kind, end in (("", "zip"), ("vecnormalize_", "pkl"))
    }
    # Of the step at which they were saved, not of that at which they were written
    assert HAPPO.load(tmp_path / "team_24_steps.zip").num_timesteps == 24
    lines = capfd.readouterr().err.splitlines()
    assert lines and all("team_" in line and "the disk is full" in line for line in lines)
    assert "kept in memory" in lines[0] and "24_steps" in lines[0]


def test_the_best_model_stays_and_evaluations_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    model = small(HAPPO, alike_team(), seed=0)
    model.save(tmp_path / "best_model.zip")
    before = (tmp_path / "best_model.zip").read_bytes()
    disk = FullDisk(monkeypatch, 0, 10**9)
    evaluation = EvalCallback(
        alike_team(),
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        eval_freq=16,
        n_eval_episodes=1,
        verbose=0,
    )
    model.learn(32, callback=CallbackList([disk, evaluation]))
    assert (tmp_path / "best_model.zip").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["best_model.zip"], "no leftovers"
    assert "best_model.zip was not written, and is lost" in capfd.readouterr().err
    # With the next training, to which there is room
    monkeypatch.setattr(os, "fsync", FSYNC)
    model.learn(32, callback=evaluation)
    assert len(np.load(tmp_path / "evaluations.npz")["timesteps"]) == 4


def test_other_errors_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk(monkeypatch, 0, 100)
    disk.error = errno.EACCES
    checkpoints = CheckpointCallback(8, str(tmp_path))
    model = small(HAPPO, alike_team(), seed=0)
    with pytest.raises(PermissionError, match="cannot write"):
        model.learn(32, callback=CallbackList([disk, checkpoints]))
    # Outside of a training a full disk is an error, too
    disk.error = errno.ENOSPC
    with pytest.raises(OSError, match="the disk is full"):
        model.save(tmp_path / "model")


def test_the_memory_is_bounded(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def write(path: str, data: Any) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr("sb3_happo.common.unwritten_files._MAX_BYTES", 25)
    files = UnwrittenFiles(write)
    for name in ("a", "b", "b", "c"):
        files.write(name, b"x" * 10)
    assert files.paths == ["b", "c"]
    assert "a is given up" in capfd.readouterr().err


# ---------------------------------------------------------------- monitors and logs


class FullFile(BaseCallback):
    """
    Let a writer of text meet a full disk during some of the training's timesteps.

    :param owner: Object with an attribute for an open file
    :param name: Name of the attribute
    """

    def __init__(self, owner: Any, name: str) -> None:
        super().__init__()
        self.owner, self.name = owner, name
        self.file = getattr(owner, name)
        self.full = open("/dev/full", "w")  # noqa: SIM115

    def _on_step(self) -> bool:
        is_full = 20 <= self.num_timesteps < 60
        setattr(self.owner, self.name, self.full if is_full else self.file)
        return True


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("kind", "name"), [("csv", "progress.csv"), ("log", "log.txt"), ("json", "progress.json")]
)
def test_logs_end_no_training(kind: str, name: str, tmp_path: Path) -> None:
    model = small(HAPPO, alike_team(), seed=0)
    logger = configure(str(tmp_path), [kind])
    model.set_logger(logger)
    (output,) = logger.output_formats
    with pytest.warns(UserWarning, match=rf"{name} cannot be written|dev/full"):
        model.learn(128, FullFile(output, "file"))
    assert model.num_timesteps == 128
    assert len(lines_of(tmp_path / name)) >= 3


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("kind", ["ours", "sb3", "vec_monitor"])
def test_monitors_end_no_training(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "0.monitor.csv"
    single = Monitor(alike_team(length=4), None if kind == "vec_monitor" else str(path))
    env: Any = (
        DummyVecEnv([lambda: single]) if kind == "sb3" else JointDummyVecEnv([lambda: single])
    )
    owner: Any = single
    if kind == "vec_monitor":
        env = owner = VecMonitor(env, str(path))
    model = small(HAPPO, env, seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(128, FullFile(owner.results_writer, "file_handler"))
    assert sum("cannot be written" in str(one.message) for one in caught) <= 1
    assert model.num_timesteps == 128 and len(lines_of(path)) > 10


LIMITED = """
import resource, sys
from stable_baselines3.common.logger import configure
from sb3_happo import HAPPO, make_joint_vec_env
from sb3_happo.vec_env import JointSubprocVecEnv

kind = JointSubprocVecEnv if sys.argv[2] == "workers" else None
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
env = make_joint_vec_env("games/climbing", 2, vec_env_cls=kind, monitor_dir=sys.argv[1])
model = HAPPO(env, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
model.set_logger(configure(sys.argv[1], ["csv", "tensorboard", "json"]))
model.learn(800)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
model.learn(64)
env.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs limits of a process")
@pytest.mark.parametrize("kind", ["here", "workers"])
def test_limited_files(kind: str, tmp_path: Path) -> None:
    """Files of a few kB, where each write beyond is an error, and warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LIMITED, str(tmp_path), kind],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be written" in done.stderr
