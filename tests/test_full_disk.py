"""A full disk during training: nothing is lost, and files are written later."""

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo import HAPPO, EvalCallback
from sb3_happo.common.unwritten_files import UnwrittenFiles
from tests.algorithms import alike_team, random_team, small

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
