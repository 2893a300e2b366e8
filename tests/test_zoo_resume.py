"""``zoo/train.py --resume``: interrupted runs of the zoo end as unbroken ones."""

import importlib
import os
import random
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from stable_baselines3.common.callbacks import BaseCallback

from sb3_happo import ResumableCheckpointCallback
from sb3_happo.common.checkpoint_files import checkpoints_in
from sb3_happo.common.folder_lock import FolderLock
from tests.zoo_kills import RUN, SPREAD, arguments, differences, finish, interrupt, resume

SHM = Path("/dev/shm")
TOTAL = 600


@pytest.fixture
def train() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.train")


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def refused(train: ModuleType, capsys: pytest.CaptureFixture, *words: str) -> str:
    """The one line with which a command is refused."""
    with pytest.raises(SystemExit) as exit_:
        train.main(list(words))
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error and error.count("\n") == 1
    return error


class StopAt(BaseCallback):
    """
    Interrupt a training.

    :param n_timesteps: Timesteps at which to do so
    :param error: Exception or signal
    """

    def __init__(self, n_timesteps: int, error: Any) -> None:
        super().__init__()
        self.n_timesteps = n_timesteps
        self.error = error

    def _on_step(self) -> bool:
        if self.num_timesteps == self.n_timesteps:
            if isinstance(self.error, signal.Signals):
                os.kill(os.getpid(), self.error)
            else:
                raise self.error
        return True


def stopped(
    train: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    n_timesteps: int,
    error: Any,
) -> BaseException:
    """The exception with which an interrupted training in this process ends."""
    manager = importlib.import_module("sb3_happo_zoo.exp_manager").TeamExperimentManager
    create = manager.create_callbacks

    def create_callbacks(self: Any) -> None:
        create(self)
        self.callbacks.append(StopAt(n_timesteps, error))

    with monkeypatch.context() as patch:
        patch.setattr(manager, "create_callbacks", create_callbacks)
        with pytest.raises(BaseException) as raised:
            train.main(words)
    return raised.value


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Log folder of an unbroken run."""
    folder = tmp_path_factory.mktemp("whole")
    train = importlib.import_module("sb3_happo_zoo.train")
    train.main(arguments(folder, False, "dummy", TOTAL))
    return folder


def test_a_killed_run_ends_as_an_unbroken_one(
    train: ModuleType, whole: Path, tmp_path: Path
) -> None:
    seconds = random.Random(4).random() * 0.3
    code = interrupt(arguments(tmp_path, False, "dummy", TOTAL), tmp_path, seconds)
    assert code == -signal.SIGKILL
    train.main(resume(tmp_path))
    assert not differences(whole, tmp_path)


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (signal.SIGTERM, 143), (RuntimeError("broken"), None)],
)
def test_an_interruption_saves_a_checkpoint_and_is_told_from_the_end(
    train: ModuleType,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    error: Any,
    code: int | None,
) -> None:
    words = arguments(tmp_path, False, "dummy", TOTAL)
    raised = stopped(train, monkeypatch, words, 476, error)
    assert raised is error if code is None else getattr(raised, "code", None) == code
    assert f"--resume {tmp_path / RUN}" in capsys.readouterr().out
    assert checkpoints_in(tmp_path / RUN / "checkpoints")[0][0] == 450
    train.main(resume(tmp_path))
    assert not differences(whole, tmp_path)
    # The files of an unbroken run have the names of all others
    own, other = (sorted(path.name for path in (run / RUN).iterdir()) for run in (whole, tmp_path))
    assert set(own) <= set(other)


def test_a_run_with_a_random_seed_is_resumed_twice(
    train: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = arguments(tmp_path, False, "dummy", 400)
    words[words.index("--seed") + 1] = "-1"
    tensorboard = tmp_path / "tb"
    stopped(train, monkeypatch, [*words, "-tb", str(tensorboard)], 120, RuntimeError())
    stopped(train, monkeypatch, resume(tmp_path), 310, RuntimeError())
    train.main(resume(tmp_path))
    # The seed was written down; the same command, unbroken, has the same end
    details = tmp_path / RUN / RUN.name[:-2]
    seed = (details / "command.txt").read_text().split()[-1]
    words[words.index("--seed") + 1] = seed
    words[words.index("-f") + 1] = str(made(tmp_path / "whole"))
    train.main(words)
    assert not differences(tmp_path / "whole", tmp_path)
    assert len(list(tensorboard.glob("*/*"))) == 1, "one run in TensorBoard"


def test_the_kind_of_environments_is_kept(
    train: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(train, monkeypatch, arguments(tmp_path, False, "subproc", 200), 60, RuntimeError())
    (notes,) = (tmp_path / RUN).glob("*/run.yml")
    assert yaml.safe_load(notes.read_text())["vec_env"] == "subproc"
    command = notes.with_name("command.txt")
    command.write_text(command.read_text().replace("--vec-env subproc", "--vec-env auto"))
    manager = train.main(resume(tmp_path))
    assert manager.vec_env_type == "subproc" and manager.notes["finished"]


def test_what_cannot_be_resumed_is_said_in_a_line(
    train: ModuleType, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert "is finished" in refused(train, capsys, *resume(whole))
    assert "is no folder of a run" in refused(train, capsys, "--resume", str(tmp_path))
    assert "does not take -n 5" in refused(train, capsys, *resume(whole), "-n", "5")
    words = arguments(tmp_path, False, "dummy", 100)
    words[words.index("--checkpoint-freq") + 1] = "-1"
    folder = Path(train.main(words).save_path)
    assert not (folder / "checkpoints").exists()
    (notes,) = folder.glob("*/run.yml")
    notes.unlink()
    error = refused(train, capsys, "--resume", str(folder))
    assert "There is no checkpoint in" in error and "--checkpoint-freq -1" in error


def test_a_folder_names_no_code(
    train: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A folder may come from elsewhere: what it imports must be named again."""
    stopped(train, monkeypatch, arguments(tmp_path, False, "dummy", 100), 60, RuntimeError())
    (command,) = (tmp_path / RUN).glob("*/command.txt")
    text = command.read_text()
    for words in ("--gym-packages antigravity_x", "--trust-pickle", "-conf antigravity_x.py"):
        command.write_text(f"{text} {words}")
        error = refused(train, capsys, *resume(tmp_path))
        assert "antigravity_x" in error or "--trust-pickle" in error
    command.write_text(f"{text} --trust-pickle")
    train.main([*resume(tmp_path), "--trust-pickle"])


def test_networks_of_a_trained_agent_stay(
    train: ModuleType, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = str(whole / RUN / "mpe2-simple_spread_v3.zip")
    words = ["--env", SPREAD, "-n", "100", "-f", str(tmp_path), "-i", model, "-params"]
    for name, value in (("policy_kwargs", "dict(net_arch=[4])"), ("policy", "'MlpLstmPolicy'")):
        error = refused(train, capsys, *words, f"{name}:{value}")
        assert f"{name} cannot be given with -i" in error
    assert not list(tmp_path.iterdir())


def test_networks_of_an_entry_with_a_trained_agent(
    train: ModuleType, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """Chosen ones are refused, those of the entry by default are named, equal ones are taken."""
    model = str(whole / RUN / "mpe2-simple_spread_v3.zip")
    words = ["--env", SPREAD, "-n", "50", "-f", str(tmp_path / "logs"), "-i", model]
    words += ["--eval-freq", "-1", "--seed", "0", "--vec-env", "dummy", "--verbose", "0"]
    entry: dict[str, Any] = {"n_envs": 2, "n_steps": 25, "policy": "MlpPolicy", "normalize": True}
    config = tmp_path / "mine.yml"
    given = {
        "dict(net_arch=[4])": "policy_kwargs['net_arch'] is [4], and the agent has [8]",
        "dict(net_arch=[8], optimizer_kwargs=dict(eps=1))": "policy_kwargs['optimizer_kwargs']",
        "dict(net_arch=(8,), ortho_init=True)": None,
    }
    for kwargs, message in given.items():
        config.write_text(yaml.safe_dump({SPREAD: entry | {"policy_kwargs": kwargs}}))
        if message is None:
            train.main([*words, "-conf", str(config)])
        else:
            assert message in refused(train, capsys, *words, "-conf", str(config))
            assert not list((tmp_path / "logs").rglob("*.yml"))
    capsys.readouterr()
    train.main([*words, "-params", "n_envs:2", "n_steps:25", "batch_size:50", "normalize:True"])
    output = capsys.readouterr().out
    assert "stay as they are; the entry in" in output and "which are not used" in output


def test_one_process_at_a_time_goes_on_with_a_run(
    train: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    stopped(train, monkeypatch, arguments(tmp_path, False, "dummy", 100), 60, RuntimeError())
    before = sorted(tmp_path.rglob("*"))
    with FolderLock(tmp_path / RUN):
        assert "is in use by another training" in refused(train, capsys, *resume(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before
    train.main(resume(tmp_path))
    with FolderLock(tmp_path / RUN):
        pass


def test_continued_agents_are_resumed(
    train: ModuleType, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def words(folder: Path) -> list[str]:
        own = arguments(folder, False, "dummy", 400)
        kept = [word for word in own if not word.startswith(("policy", "target_kl"))]
        return [*kept, "-i", str(whole / RUN / "mpe2-simple_spread_v3.zip")]

    first, second = made(tmp_path / "first"), made(tmp_path / "second")
    train.main(words(first))
    stopped(train, monkeypatch, words(second), 334, RuntimeError())
    train.main(resume(second))
    assert not differences(first, second)


def test_the_callback_has_a_short_name() -> None:
    module = importlib.import_module("sb3_happo.common.checkpoint_callback")
    assert ResumableCheckpointCallback is module.ResumableCheckpointCallback


@pytest.mark.slow
@pytest.mark.parametrize("vec_env", ["dummy", "subproc"])
@pytest.mark.parametrize("recurrent", [False, True])
def test_ten_kills(tmp_path: Path, vec_env: str, recurrent: bool) -> None:
    """Two or three kills of each of four trainings, at random moments."""
    rng = random.Random(f"{vec_env} {recurrent}")
    blocks = set(SHM.glob("*")) if SHM.is_dir() else set()
    folders = [made(tmp_path / name) for name in ("whole", "killed")]
    finish(arguments(folders[0], recurrent, vec_env, 4000), folders[0])
    words = arguments(folders[1], recurrent, vec_env, 4000)
    n_kills = 3 if vec_env == "dummy" else 2
    for _ in range(n_kills):
        code = interrupt(words, folders[1], rng.random() * 1.5)
        assert code == -signal.SIGKILL, (folders[1] / "log.txt").read_text()[-3000:]
        words = resume(folders[1])
    finish(words, folders[1])
    assert not differences(*folders)
    left = set(SHM.glob("*")) - blocks if SHM.is_dir() else set()
    assert not {path.name for path in left if path.name.startswith(("psm_", "sb3", "joint"))}
