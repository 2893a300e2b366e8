"""Lost trials of a study go on from their checkpoints; new storages that many open at once."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import optuna
import pytest
import sqlalchemy
from optuna.trial import TrialState

ROOT = Path(__file__).resolve().parents[1]
ARGUMENTS = [
    *("--env", "mpe2/simple_spread_v3", "-n", "600", "--n-trials", "2", "--sampler", "random"),
    *("--n-evaluations", "3", "--eval-episodes", "1", "--n-eval-envs", "1", "--n-seeds", "2"),
    *("--num-threads", "1", "--no-optim-plots", "--checkpoint-freq", "200", "--pruner", "none"),
    *("--hyperparams", "n_envs:2", "n_steps:50", "batch_size:50", "n_epochs:1", "normalize:True"),
]
OPEN = """
import sys
from sb3_happo_zoo.study import open_storage
import optuna
sys.stdin.readline()
optuna.create_study(storage=open_storage(sys.argv[1]), study_name="it", load_if_exists=True)
"""


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tune() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.tune")


def ends(study: optuna.Study) -> list[tuple[Any, ...]]:
    """What there is to compare of the finished trials."""
    found = []
    for trial in study.trials:
        if trial.state != TrialState.FAIL:
            seeds = trial.user_attrs.get("seeds")
            found.append((trial.params, trial.state, trial.value, seeds, trial.intermediate_values))
    return found


def test_a_lost_trial_goes_on_from_its_checkpoint(
    tune: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    unbroken = tune.main([*ARGUMENTS, "--study-name", "unbroken"])
    evaluate, calls = tune.evaluate_policy, [0]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        # In the second evaluation of a first seed, and of a second one
        if calls[0] in (2, 6):
            raise KeyboardInterrupt
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(tune, "evaluate_policy", interrupted)
    capsys.readouterr()
    for _ in range(3):
        broken = tune.main([*ARGUMENTS, "--study-name", "broken"])
    output = capsys.readouterr().out
    assert output.count("goes on at 400 timesteps") == 2, output
    # Twelve evaluations, and two that were interrupted: no finished one is made again
    assert calls[0] == 14
    assert sum(trial.state == TrialState.FAIL for trial in broken.trials) == 2
    assert ends(broken) == ends(unbroken)
    assert not list(tmp_path.rglob("*.ckpt")) and not list(tmp_path.rglob("trials"))


def test_checkpoints_that_cannot_be_used(
    tune: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Torn ones, and a folder in which the worker that was taken for lost still writes."""
    words = [*ARGUMENTS, "--n-trials", "1", "--n-seeds", "1"]
    unbroken = tune.main([*words, "--study-name", "unbroken"])
    evaluate = tune.evaluate_policy
    monkeypatch.setattr(tune, "evaluate_policy", Mock(side_effect=KeyboardInterrupt))
    tune.main([*words, "--study-name", "broken"])
    for path in Path().rglob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:500])
    monkeypatch.setattr(tune, "evaluate_policy", evaluate)
    locks = importlib.import_module("sb3_happo.common.folder_lock")
    (folder,) = Path().glob("logs/happo/study_broken/trials/*")
    with locks.FolderLock(folder):
        monkeypatch.setattr(tune, "evaluate_policy", Mock(side_effect=KeyboardInterrupt))
        tune.main([*words, "--study-name", "broken"])
        assert "begins anew" in capsys.readouterr().out
    for path in Path().rglob("*.ckpt"):
        path.write_bytes(path.read_bytes()[:500])
    monkeypatch.setattr(tune, "evaluate_policy", evaluate)
    with pytest.warns(UserWarning, match="begins anew"):
        broken = tune.main([*words, "--study-name", "broken"])
    assert ends(broken) == ends(unbroken)


def test_a_study_of_before_goes_on_without_checkpoints(tune: ModuleType) -> None:
    _, _, study = tune.open_tuning([*ARGUMENTS, "--checkpoint-freq", "-1"])
    settings = study.user_attrs["settings"]
    del settings["checkpoint_freq"]
    study.set_user_attr("settings", settings)
    where = ARGUMENTS.index("--checkpoint-freq")
    words = ARGUMENTS[:where] + ARGUMENTS[where + 2 :]
    assert tune.open_tuning(words)[0].checkpoint_freq == -1
    assert tune.open_tuning([*words, "--study-name", "new"])[0].checkpoint_freq == 0


# ---------------------------------------------------------------- storages


@pytest.mark.parametrize("url", ["sqlite:///{}/new.db", "{}/new.log"])
def test_processes_that_make_the_same_storage(tmp_path: Path, url: str) -> None:
    path = os.pathsep.join([str(ROOT), str(ROOT / "zoo")])
    processes = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", OPEN, url.format(tmp_path)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        )
        processes.append(process)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in processes:
        _, error = process.communicate(timeout=240)
        assert process.returncode == 0, error


@pytest.mark.parametrize("text", ["table studies already exists", "no such table: version_info"])
def test_tables_that_another_process_makes(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    study = importlib.import_module("sb3_happo_zoo.study")
    meanwhile = sqlalchemy.exc.OperationalError("CREATE TABLE", {}, Exception(text))
    made = Mock(side_effect=[meanwhile, meanwhile, "made"])
    monkeypatch.setattr(study, "RDBStorage", made)
    monkeypatch.setattr(study.time, "sleep", lambda seconds: None)
    assert study.open_storage("sqlite:///new.db") == "made"
    made.side_effect = sqlalchemy.exc.OperationalError("x", {}, Exception("unable to open file"))
    with pytest.raises(ValueError, match="cannot be opened"):
        study.open_storage("sqlite:///new.db")
    assert made.call_count == 4
