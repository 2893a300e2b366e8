"""Trainings of the zoo that are killed and resumed, compared with an unbroken one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.monitor import get_monitor_files

from sb3_happo import HAPPO

ROOT = Path(__file__).resolve().parents[1]
SPREAD = "mpe2/simple_spread_v3"
RUN = Path("happo") / "mpe2-simple_spread_v3_1"
#: Deadline of a process, in seconds
PATIENCE = 240


def arguments(folder: Path, recurrent: bool, vec_env: str, n_timesteps: int) -> list[str]:
    """
    :param folder: Log folder
    :param recurrent: True for a policy with memory
    :param vec_env: Argument ``--vec-env``
    :param n_timesteps: Timesteps of the training
    :return: Arguments of ``train.py`` for a small training
    """
    policy = "MlpLstmPolicy" if recurrent else "MlpPolicy"
    chunk = ["chunk_length:5"] if recurrent else []
    return [
        *("--env", SPREAD, "-f", str(folder), "-n", str(n_timesteps), "--seed", "3"),
        *("--vec-env", vec_env, "--verbose", "0", "--num-threads", "1", "--device", "cpu"),
        *("--checkpoint-freq", "200", "--eval-freq", "250", "--eval-episodes", "2"),
        *("-params", "n_envs:2", "n_steps:25", "n_epochs:1", "normalize:True"),
        *("learning_rate:'lin_1e-3'", "policy_kwargs:dict(net_arch=[8])", f"policy:'{policy}'"),
        *("batch_size:50", "target_kl:None", *chunk),
    ]


def start(words: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """
    :param words: Arguments of ``train.py``
    :param log: File for the output
    :return: Process, in a group of its own
    """
    path = os.pathsep.join([str(ROOT), str(ROOT / "zoo")])
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "sb3_happo_zoo.train", *words],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path},
            cwd=log.parent,
            start_new_session=True,
        )


def wait_for(condition: Any, process: "subprocess.Popen[bytes]") -> None:
    """
    :param condition: Function without arguments
    :param process: Process that should make it true
    """
    end = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "The training has not begun."
        time.sleep(0.005)


def interrupt(
    words: list[str], folder: Path, seconds: float, signum: int = signal.SIGKILL
) -> int | None:
    """
    Start a training and send it a signal.

    :param words: Arguments of ``train.py``
    :param folder: Log folder
    :param seconds: Seconds between its first new checkpoint and the signal
    :param signum: Signal
    :return: Exit code
    """
    checkpoints = folder / RUN / "checkpoints"
    before = {path.name for path in checkpoints.glob("*.ckpt")}
    process = start(words, folder / "log.txt")
    try:
        wait_for(lambda: {path.name for path in checkpoints.glob("*.ckpt")} - before, process)
        time.sleep(seconds)
        process.send_signal(signum)
        code = process.wait(PATIENCE)
        end = time.monotonic() + 10
        while alive(process.pid) and time.monotonic() < end:
            time.sleep(0.05)
        assert not alive(process.pid), "Workers go on after the end of the training."
        return code
    finally:
        process.kill()


def finish(words: list[str], folder: Path) -> None:
    """
    Run a training to its end.

    :param words: Arguments of ``train.py``
    :param folder: Log folder
    """
    process = start(words, folder / "log.txt")
    assert process.wait(PATIENCE) == 0, (folder / "log.txt").read_text()[-3000:]


def resume(folder: Path) -> list[str]:
    """
    :param folder: Log folder
    :return: Arguments that resume its run
    """
    return ["--resume", str(folder / RUN)]


def alive(group: int) -> list[int]:
    """
    :param group: Id of a group of processes
    :return: Ids of those that have not ended
    """
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, number = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it has ended
        if int(number) == group and state not in "ZX":
            found.append(int(path.parent.name))
    return found


def differences(first: Path, second: Path) -> list[str]:
    """
    :param first: Log folder of a finished run
    :param second: Log folder of another one
    :return: Parts in which their ends differ
    """
    runs = [first / RUN, second / RUN]
    found = []
    for name in ("mpe2-simple_spread_v3.zip", "best_model.zip"):
        models = [HAPPO.load(run / name, device="cpu") for run in runs]
        states = [model.policy.state_dict() for model in models]
        for key, value in states[0].items():
            if not th.equal(value, states[1][key]):
                found.append(f"{name}: {key}")
    evaluations = [dict(np.load(run / "evaluations.npz")) for run in runs]
    for key, own in evaluations[0].items():
        if not np.array_equal(own, evaluations[1][key]):
            found.append(f"evaluations.npz: {key}")
    if _rows(runs[0]) != _rows(runs[1]):
        found.append("monitor files")
    return found


def _rows(run: Path) -> dict[str, list[list[str]]]:
    """Returns and lengths in the monitor files, without times."""
    files = {}
    for path in sorted(get_monitor_files(str(run))):
        lines = Path(path).read_text().splitlines()
        assert lines[0].startswith("#") and lines[1] == "r,l,t"
        files[Path(path).name] = [line.split(",")[:2] for line in lines[2:]]
    return files
