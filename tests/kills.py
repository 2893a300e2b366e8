"""
Trainings of the zoo that are killed with ``kill -9`` at random moments and resumed.

``python -m tests.kills 100 7`` kills so many trainings, with a seed for the moments: in process and
in workers, with feed-forward and recurrent policies. Each is resumed and compared with an unbroken
training.
"""

import argparse
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from sb3_happo import HAPPO
from sb3_happo.common.checkpoint_files import read_checkpoint
from sb3_happo_zoo import train
from tests.zoo_kills import PATIENCE, RUN, alive, arguments, differences, resume

SHM = Path("/dev/shm")
TIMESTEPS = 1500
#: Kinds of trainings: whether the policy is recurrent, and the kind of the environments
KINDS = [(False, "dummy"), (False, "subproc"), (True, "dummy"), (True, "subproc")]


class Killed(NamedTuple):
    """
    Result of one killed and resumed training.

    :param name: Kind of the training
    :param seconds: Seconds from its start to the signal
    :param n_checkpoints: Number of its checkpoints at the signal
    :param faults: Descriptions of what is wrong
    """

    name: str
    seconds: float
    n_checkpoints: int
    faults: list[str]


def start(words: list[str], folder: Path) -> int:
    """
    Start a training in a fork, which has the imports already. Its workers are in its group.

    :param words: Arguments of ``train.py``
    :param folder: Folder for the output, ``log.txt``
    :return: Id of the process
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        # Workers import the main module, and this one would import PyTorch
        sys.modules["__main__"] = ModuleType("__main__")
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        train.main(words)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, seconds: float) -> int | None:
    """
    :param pid: Id of a process
    :param seconds: Seconds to wait
    :return: Exit code, negative for a signal; None if it goes on
    """
    end = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(min(0.002, max(end - time.monotonic(), 0)))


def finish(words: list[str], folder: Path) -> int | None:
    """
    :param words: Arguments of ``train.py``
    :param folder: Folder for the output
    :return: Exit code of the training
    """
    pid = start(words, folder)
    code = ended(pid, PATIENCE)
    if code is None:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return code


def killed(words: list[str], folder: Path, seconds: float) -> tuple[int | None, list[str]]:
    """
    :param words: Arguments of ``train.py``
    :param folder: Folder for the output
    :param seconds: Seconds from the start to the signal
    :return: Exit code, -9 unless the training has ended before; faults: workers that go on
    """
    pid = start(words, folder)
    code = ended(pid, seconds)
    if code is None:
        os.kill(pid, signal.SIGKILL)
        code = ended(pid, PATIENCE)
    end = time.monotonic() + 30
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    left = alive(pid)
    return code, [f"processes left: {left}"] if left else []


def unreadable(run: Path) -> list[str]:
    """
    :param run: Folder of a run
    :return: Faults: files that cannot be read
    """
    faults = []
    readers: dict[str, Any] = {
        "*.ckpt": read_checkpoint,
        "*.zip": lambda path: HAPPO.load(path, device="cpu"),
        "*.npz": lambda path: dict(np.load(path)),
    }
    for pattern, read in readers.items():
        for path in run.rglob(pattern):
            try:
                read(path)
            except Exception as error:
                faults.append(f"unreadable: {path}: {error}")
    return faults


def log_of(folder: Path) -> str:
    """
    :param folder: Folder of the output
    :return: End of the output
    """
    return (folder / "log.txt").read_text(errors="replace")[-2000:]


def kill_and_resume(
    kind: tuple[bool, str], whole: Path, duration: float, folder: Path, rng: random.Random
) -> Killed:
    """
    :param kind: Kind of the training, see ``KINDS``
    :param whole: Log folder of the unbroken training
    :param duration: Seconds that the unbroken training takes
    :param folder: Empty folder
    :param rng: Generator of the moment
    :return: Result
    """
    recurrent, vec_env = kind
    name = f"{'recurrent' if recurrent else 'feed-forward'}, {vec_env}"
    seconds, own = 0.0, folder
    code: int | None = 0
    faults: list[str] = []
    for attempt in range(20):
        own = folder / str(attempt)
        own.mkdir(parents=True)
        seconds = rng.random() * duration
        code, faults = killed(arguments(own, recurrent, vec_env, TIMESTEPS), own, seconds)
        # A training that has ended before is no kill
        if code != 0:
            break
    if code != -signal.SIGKILL:
        return Killed(name, seconds, 0, [*faults, f"ended with {code}: {log_of(own)}"])
    faults += unreadable(own / RUN)
    n_checkpoints = len(list((own / RUN / "checkpoints").glob("*.ckpt")))
    words = resume(own)
    if not n_checkpoints:
        # The command is started anew, as `--resume` says
        faults += refused(words, own)
        own = folder / "anew"
        own.mkdir()
        words = arguments(own, recurrent, vec_env, TIMESTEPS)
    code = finish(words, own)
    if code != 0:
        return Killed(name, seconds, n_checkpoints, [*faults, f"exit code {code}: {log_of(own)}"])
    faults += unreadable(own / RUN) + differences(whole, own)
    return Killed(name, seconds, n_checkpoints, faults)


def refused(words: list[str], folder: Path) -> list[str]:
    """
    :param words: Arguments that resume a run without a checkpoint
    :param folder: Folder for the output
    :return: Fault, unless the command is refused by name
    """
    code = finish(words, folder)
    if code == 2 and re.search("is no folder of a run|There is no checkpoint", log_of(folder)):
        return []
    return [f"--resume without a checkpoint ended with {code}: {log_of(folder)}"]


def blocks() -> set[Path]:
    """
    :return: Shared blocks
    """
    return set(SHM.glob("*")) if SHM.is_dir() else set()


def unmapped(found: set[Path]) -> list[str]:
    """
    :param found: Shared blocks
    :return: Names of those that no process uses
    """
    left = {path.name for path in found if path.exists()}
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            text = maps.read_text()
        except OSError:
            continue
        left -= {name for name in left if name in text}
    return sorted(left)


def trials(number: int, seed: int, folder: Path) -> Iterator[Killed]:
    """
    :param number: Number of kills
    :param seed: Seed for the moments
    :param folder: Empty folder
    :return: Result of each
    """
    rng = random.Random(seed)
    wholes: dict[tuple[bool, str], tuple[Path, float]] = {}
    for index in range(number):
        kind = KINDS[index % len(KINDS)]
        if kind not in wholes:
            whole = folder / f"whole_{index}"
            whole.mkdir()
            begin = time.monotonic()
            code = finish(arguments(whole, *kind, TIMESTEPS), whole)
            assert code == 0, log_of(whole)
            wholes[kind] = whole, time.monotonic() - begin
        whole, duration = wholes[kind]
        own = folder / "killed"
        yield kill_and_resume(kind, whole, duration, own, rng)
        shutil.rmtree(own)


def main() -> None:
    """Kill trainings and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("number", type=int, nargs="?", default=8, help="number of kills")
    parser.add_argument("seed", type=int, nargs="?", default=0, help="seed for the moments")
    args = parser.parse_args()
    before, begin = blocks(), time.monotonic()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for index, result in enumerate(trials(args.number, args.seed, Path(folder))):
            started = "resumed" if result.n_checkpoints else "without a checkpoint, started anew"
            counts[f"{result.name}: {started}, " + ("FAULT" if result.faults else "equal")] += 1
            counts["faults"] += len(result.faults)
            print(
                f"{index} {result.name}: killed after {result.seconds:.2f} s with "
                f"{result.n_checkpoints} checkpoints {result.faults or ''}",
                flush=True,
            )
    left = unmapped(blocks() - before)
    for text, count in sorted(counts.items()):
        print(f"{text}: {count}")
    print(f"Shared blocks left: {len(left)} {left or ''}")
    print(f"{args.number} kills in {time.monotonic() - begin:.0f} s")
    if counts["faults"] or left:
        sys.exit(1)


if __name__ == "__main__":
    main()
