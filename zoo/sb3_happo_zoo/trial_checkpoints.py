"""Checkpoints of a study's trials: a lost trial goes on where it was, and ends as it would have."""

import shutil
import uuid
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_happo.common.checkpoint_files import CheckpointError, checkpoints_in
from sb3_happo.common.folder_lock import FolderInUseError, FolderLock, locked_folder
from sb3_happo.common.resumable_algorithm import ResumableAlgorithm
from sb3_happo_zoo.run_folder import CHECKPOINTS
from sb3_happo_zoo.study import EVALUATIONS, FOLDER

#: Values of the evaluations of one training: number of finished parts, and mean return
Values = list[tuple[int, float]]


class Evaluations(BaseCallback):
    """
    Evaluates after each part of the training except the last one, after which the caller evaluates.

    A training that goes on from a checkpoint reports the evaluations before it again.

    :param evaluate: Function that is called with the number of finished parts, and returns the
        mean return
    :param n_parts: Number of parts, of equal length
    :param report: Function that is called with the mean return and the number of finished parts
        of each evaluation; None if ``evaluate`` reports
    """

    def __init__(
        self,
        evaluate: Callable[[int], Any],
        n_parts: int,
        report: Callable[[float, int], None] | None = None,
    ) -> None:
        super().__init__()
        self.evaluate = evaluate
        self.n_parts = n_parts
        self.report = report
        self.n_over = 0
        self._values: Values = []

    def state_dict(self) -> dict[str, Any]:
        """
        :return: Number of finished parts, and the evaluations so far
        """
        return {"n_over": self.n_over, "values": [list(pair) for pair in self._values]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Report the evaluations before the checkpoint, as the lost trial has.

        :param state: Result of :meth:`state_dict`
        """
        self.n_over, self._values = state["n_over"], []
        for part, value in state["values"]:
            self._add(part, value)

    def _add(self, part: int, value: float) -> None:
        self._values.append((part, value))
        if self.report is not None:
            self.report(value, part)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        """Evaluate after an update, so that the length of the rollouts does not matter."""
        n_over = min(
            self.num_timesteps * self.n_parts // self.model._total_timesteps, self.n_parts - 1
        )
        if n_over > self.n_over:
            self.n_over = n_over
            self._add(n_over, self.evaluate(n_over))


class TrialCheckpoints:
    """
    Folder with the checkpoints of a trial, which a repetition of the trial goes on with. It is
    locked until :meth:`close`.

    :param trial: Trial, which notes the name of the folder
    :param parent: Folder for the folders of all trials of the study
    """

    def __init__(self, trial: optuna.Trial, parent: Path) -> None:
        name = trial.user_attrs.get(FOLDER)
        self._lock: FolderLock | None = None
        if name is not None:
            try:
                self._lock = locked_folder(parent / str(name))
            except FolderInUseError as error:
                # A worker that was taken for lost has woken up
                print(f"Trial {trial.number} begins anew: {error}", flush=True)
        if self._lock is None:
            name = uuid.uuid4().hex
            self._lock = locked_folder(parent / name)
            trial.set_user_attr(FOLDER, name)
        self.folder = self._lock.folder

    def of_training(self, index: int) -> Path:
        """
        :param index: Number of a training of the trial
        :return: Folder for its checkpoints
        """
        return self.folder / f"{CHECKPOINTS}_{index}"

    def close(self, remove: bool) -> None:
        """
        :param remove: True to remove the files too, at the end of the trial
        """
        assert self._lock is not None
        self._lock.release()
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)


def restore(model: BaseAlgorithm, folder: Path) -> None:
    """
    Let a training go on from its newest checkpoint. Without a whole one it begins anew.

    :param model: Model, made with the arguments of the lost training
    :param folder: Folder with the checkpoints of the training, which need not exist
    """
    assert isinstance(model, ResumableAlgorithm)
    if not checkpoints_in(folder):
        return
    try:
        model.restore_checkpoint(folder)
    except CheckpointError as error:
        warnings.warn(f"The training of the trial begins anew: {error}", stacklevel=2)
        shutil.rmtree(folder)
        return
    print(f"The trial goes on at {model.num_timesteps} timesteps.", flush=True)


def finished_trainings(trial: optuna.Trial) -> list[Values]:
    """
    :param trial: Repetition of a lost trial, or another one
    :return: Evaluations of the trainings that the lost trial had finished
    """
    found = trial.user_attrs.get(EVALUATIONS, [])
    return [[(int(part), float(value)) for part, value in values] for values in found]


def remove_folders(trials: Iterable[FrozenTrial], parent: Path) -> None:
    """
    Remove what lost trials of a study have left, when all its trials are finished.

    :param trials: Trials of the study
    :param parent: Folder for the folders of all trials
    """
    for trial in trials:
        name = trial.user_attrs.get(FOLDER)
        if name is not None:
            shutil.rmtree(parent / str(name), ignore_errors=True)
    if parent.is_dir() and not any(parent.iterdir()):
        parent.rmdir()
