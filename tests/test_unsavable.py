"""What no file can hold is named before the training, and costs no model."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback
from stable_baselines3.common.utils import LinearSchedule

from sb3_happo import HAPPO, EvalCallback, ResumableCheckpointCallback
from tests.algorithms import alike_team, same, small, snapshot


def linear_schedule(initial: float) -> Any:
    """Schedule as in many scripts for Stable-Baselines3."""

    def rate(progress: float) -> float:
        return progress * initial

    return rate


def schedule_of_module(progress: float) -> float:
    return 1e-3 * progress


def model_with(rate: Any, **kwargs: Any) -> HAPPO:
    return small(HAPPO, alike_team(), learning_rate=rate, seed=0, **kwargs)


@pytest.mark.parametrize("rate", [lambda progress: 1e-3, linear_schedule(1e-3)])
def test_saving_is_an_error_with_the_way_out(rate: Any, tmp_path: Path) -> None:
    model = model_with(rate)
    path = tmp_path / "model.zip"
    path.write_text("before")
    with pytest.raises(ValueError) as caught:
        model.save(path)
    text = str(caught.value)
    for words in (
        "learning_rate is the function",
        "LinearSchedule",
        "a function",
        "custom_objects",
    ):
        assert words in text
    assert path.read_text() == "before"
    model.save(path, exclude=["learning_rate"])
    with pytest.raises(ValueError, match="custom_objects"):
        HAPPO.load(path)
    loaded = HAPPO.load(path, custom_objects={"learning_rate": LinearSchedule(1e-3, 0.0, 1.0)})
    assert same(snapshot(model.policy), snapshot(loaded.policy))


def test_what_can_be_saved_is_not_mentioned(tmp_path: Path) -> None:
    for rate in (1e-3, LinearSchedule(1e-3, 0.0, 1.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = model_with(rate).learn(32)
            model.save(tmp_path / "model", exclude=["gamma", "env", "policy", "nothing"])
        assert HAPPO.load(tmp_path / "model").gamma == 0.99
    # A function of a module is named in the file
    with pytest.warns(UserWarning, match="allow_in_files"):
        model_with(schedule_of_module).save(tmp_path / "model")
    HAPPO.load(tmp_path / "model", custom_objects={"schedule_of_module": schedule_of_module})


def checkpoints(folder: Path) -> BaseCallback:
    return CheckpointCallback(16, str(folder))


def best_model(folder: Path) -> BaseCallback:
    return EvalCallback(alike_team(), best_model_save_path=str(folder), eval_freq=16, verbose=0)


@pytest.mark.parametrize("make", [checkpoints, best_model])
@pytest.mark.parametrize("nested", [lambda one: one, lambda one: [CallbackList([one])]])
def test_callbacks_that_save_are_refused_at_the_start(
    make: Any, nested: Any, tmp_path: Path
) -> None:
    model = model_with(linear_schedule(1e-3))
    with pytest.raises(ValueError, match="learning_rate is the function"):
        model.learn(64, nested(make(tmp_path)))
    assert model.num_timesteps == 0


def test_other_trainings_are_warned_once() -> None:
    model = model_with(linear_schedule(1e-3))
    with pytest.warns(UserWarning, match="learning_rate is the function"):
        model.learn(32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(32)


class Fail(BaseCallback):
    def _on_step(self) -> bool:
        if self.num_timesteps > 40:
            raise RuntimeError("here")
        return True


@pytest.mark.filterwarnings("ignore:This HAPPO model cannot be saved")
def test_the_last_good_model_is_saved_all_the_same(tmp_path: Path) -> None:
    model = model_with(linear_schedule(1e-3))
    model.last_good_folder = str(tmp_path)
    with pytest.raises(RuntimeError, match=r"last_good\.zip"):
        model.learn(96, Fail())
    HAPPO.load(tmp_path / "last_good.zip", custom_objects={"learning_rate": 1e-3})


@pytest.mark.filterwarnings("ignore:This HAPPO model cannot be saved")
def test_checkpoints_need_no_schedule(tmp_path: Path) -> None:
    """A model that is made by the same program has its own."""
    model = model_with(linear_schedule(1e-3))
    with pytest.warns(UserWarning, match="learning_rate is the function"):
        model.learn(96, ResumableCheckpointCallback(1, tmp_path))
    again = model_with(linear_schedule(1e-3))
    again.restore_checkpoint(tmp_path)
    again.learn(96)
    assert same(snapshot(model.policy), snapshot(again.policy))
