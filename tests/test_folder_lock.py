"""Folders into which one training at a time writes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stable_baselines3.common.callbacks import ConvertCallback

from sb3_happo import HAPPO, ResumableCheckpointCallback
from sb3_happo.common.folder_lock import LOCK, FolderInUseError, FolderLock
from tests.algorithms import random_team, small

ROOT = Path(__file__).resolve().parents[1]
HOLD = """
import os, sys, time
from sb3_happo.common.folder_lock import FolderLock
lock = FolderLock(sys.argv[1])
lock.acquire()
child = os.fork()
if child:
    print(child, flush=True)
time.sleep(300)
"""


def test_a_lock_ends_with_its_process_and_not_with_its_children(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(FolderInUseError, match=f"is in use by process {process.pid} on"):
            FolderLock(tmp_path).acquire()
        process.send_signal(signal.SIGKILL)
        process.wait()
        with FolderLock(tmp_path) as lock:
            assert lock.is_held
        assert not (tmp_path / LOCK).exists()
    finally:
        os.kill(child, signal.SIGKILL)


def test_two_trainings_of_a_process(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path / "." / "x" / "..")
    (tmp_path / "x").mkdir()
    first.acquire()
    first.acquire()
    with pytest.raises(FolderInUseError, match="another training of this process"):
        second.acquire()
    first.release()
    first.release()
    second.acquire()
    with pytest.raises(FolderInUseError):
        first.acquire()
    del second
    first.acquire()
    first.release()


def test_a_training_locks_the_folder_of_its_checkpoints(tmp_path: Path) -> None:
    model = small(HAPPO, random_team(1), n_steps=16)
    callback = ResumableCheckpointCallback(1, tmp_path)
    with FolderLock(tmp_path), pytest.raises(FolderInUseError):
        model.learn(16, callback)
    with pytest.raises(ZeroDivisionError):
        model.learn(16, [callback, ConvertCallback(lambda *_: 1 / 0)])  # type: ignore[arg-type]
    model.learn(32, callback)
    with FolderLock(tmp_path):
        pass


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("sb3_happo.common.folder_lock._lock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked"), FolderLock(tmp_path):
        pass
