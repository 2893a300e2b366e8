"""Callbacks that save the model during a training, and what they could not save."""

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback

from sb3_happo.common.callback_states import all_callbacks
from sb3_happo.common.saved_algorithm import SavedAlgorithm
from sb3_happo.common.saved_notes import UnsavedError
from sb3_happo.common.warn_once import warn_once


def check_saving(model: SavedAlgorithm, callback: Any) -> None:
    """
    Find out before a training whether the model can be saved after it.

    :param model: Model
    :param callback: Argument ``callback`` of ``learn``
    :raises ValueError: If a callback saves the model, and :meth:`save` would refuse it; without
        such a callback there is a warning
    """
    try:
        model.check_savable()
    except UnsavedError as error:
        if _saves(callback):
            raise
        warn_once(model, "unsavable", str(error))


def _saves(callback: Any) -> bool:
    """
    :param callback: Callback, list of callbacks, function, or None
    :return: True if one of SB3's callbacks among them saves the model
    """
    if isinstance(callback, (list, tuple)):
        return any(map(_saves, callback))
    if not isinstance(callback, BaseCallback):
        return False
    for own in all_callbacks(callback).values():
        is_evaluation = isinstance(own, EvalCallback) and own.best_model_save_path is not None
        if is_evaluation or isinstance(own, CheckpointCallback):
            return True
    return False
