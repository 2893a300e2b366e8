"""Weights of the last good update, which a training that fails goes back to and saves."""

import copy
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EventCallback,
)
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo.common.checks import all_finite
from sb3_happo.common.finite import (
    ADVICE,
    NotFiniteError,
    agents_without_outputs,
    names_not_finite,
    outputs_error,
)

MODEL_FILE = "last_good.zip"


class Snapshot:
    """
    Copy of a model's weights, statistics and optimisers, and of the statistics of its
    ``VecNormalize``.

    :param model: Model
    """

    def __init__(self, model: Any) -> None:
        self.n_updates: int = model._n_updates
        self._tensors = [(tensor, tensor.clone()) for tensor in _tensors(model)]
        self._buffers = [
            {name: buffer.clone() for name, buffer in module.named_buffers(recurse=False)}
            for module in model.policy.modules()
        ]
        self._optimizers = [
            (optimizer, _copied(optimizer.state)) for optimizer in optimizers_of(model)
        ]
        self._statistics = copy.deepcopy(statistics_of(model.get_vec_normalize_env()))

    @th.no_grad()
    def restore(self, model: Any) -> None:
        """
        Write the copy back.

        :param model: The same model
        """
        model._n_updates = self.n_updates
        for tensor, before in self._tensors:
            tensor.copy_(before)
        for module, buffers in zip(model.policy.modules(), self._buffers, strict=True):
            for name, before in buffers.items():
                module._buffers[name] = before.clone()
        for optimizer, state in self._optimizers:
            optimizer.state.clear()
            optimizer.state.update(_copied(state))
        vars(model.get_vec_normalize_env() or self).update(copy.deepcopy(self._statistics))


def _tensors(model: Any) -> list[th.Tensor]:
    return [parameter.detach() for parameter in model.policy.parameters()]


def optimizers_of(model: Any) -> list[th.optim.Optimizer]:
    """
    :param model: Model
    :return: Optimisers of the networks inside its policy, each once
    """
    found = {}
    for module in model.policy.modules():
        optimizer = getattr(module, "optimizer", None)
        if isinstance(optimizer, th.optim.Optimizer):
            found[id(optimizer)] = optimizer
    return list(found.values())


def _copied(state: Any) -> dict[Any, dict[str, Any]]:
    """State of an optimiser by parameter, with copies of its tensors."""
    copies = {}
    for parameter, values in state.items():
        own = dict(values)
        for name, value in values.items():
            own[name] = value.clone() if isinstance(value, th.Tensor) else copy.copy(value)
        copies[parameter] = own
    return copies


def statistics_of(normalize: VecNormalize | None) -> dict[str, Any]:
    """
    :param normalize: ``VecNormalize``, or None
    :return: Attributes of it that hold running statistics, or dicts of them
    """
    if normalize is None:
        return {}
    kept = {}
    for name, value in vars(normalize).items():
        first = next(iter(value.values()), None) if isinstance(value, dict) else value
        if isinstance(first, RunningMeanStd):
            kept[name] = value
    return kept


class LastGood:
    """
    The last good weights of a training: those with which a rollout was collected without a fault.

    An algorithm calls :meth:`begin_rollout` and :meth:`end_rollout`. The weights after an update
    count as good at the end of the rollout that follows it.
    """

    def __init__(self) -> None:
        self._confirmed: Any = None
        self._tried: Any = None

    @property
    def in_rollout(self) -> bool:
        """
        :return: True from the beginning of a rollout to its end
        """
        return self._tried is not None

    def begin_rollout(self, model: Any) -> None:
        """
        Copy the weights after an update.

        :param model: Model
        :raises NotFiniteError: If weights are NaN or infinite
        """
        check_weights(model)
        self._tried = Snapshot(model)

    def end_rollout(self, model: Any) -> None:
        """
        Check what the networks returned during a rollout, and accept their weights.

        :param model: Model with a rollout buffer
        :raises NotFiniteError: If outputs are NaN, naming the agents or the critic
        """
        check_outputs(model)
        self._confirmed, self._tried = self._tried, None

    def snapshot(self, model: Any, outputs_failed: bool) -> Any:
        """
        :param model: Model after a fault
        :param outputs_failed: Whether finite weights gave outputs that are not finite
        :return: Copy to go back to, with a method ``restore``; None if there is none
        """
        if self._tried is None or outputs_failed:
            return self._confirmed
        return self._tried


def check_weights(model: Any) -> None:
    """
    :param model: Model
    :raises NotFiniteError: If weights or statistics are NaN or infinite, naming the agents or the
        critic
    """
    floats = [buffer for buffer in model.policy.buffers() if buffer.is_floating_point()]
    if all_finite([*_tensors(model), *floats]):
        return
    found = names_not_finite(model)
    if found:
        raise NotFiniteError(
            f"Weights are NaN or infinite after the last update: {', '.join(found[:3])}. {ADVICE}"
        )


def check_outputs(model: Any) -> None:
    """
    :param model: On-policy model
    :raises NotFiniteError: If log-probabilities or values of the rollout so far are NaN or infinite
    """
    buffer = model.rollout_buffer
    blamed = []
    for agent, log_probs in buffer.log_probs.items():
        log_probs = log_probs[: buffer.pos]
        if not all_finite([log_probs]) and bool(log_probs.isnan().any()):
            blamed.append(f"agent {agent!r}")
    values = buffer.values[: buffer.pos]
    if not all_finite([values]) and not bool(values.isfinite().all()):
        blamed.append("the critic")
    if blamed:
        raise outputs_error(blamed)


def check_next_outputs(model: Any) -> None:
    """
    :param model: On-policy model
    :raises NotFiniteError: If the agents' networks return NaN or infinity for the observations that
        the team would answer next
    """
    if not isinstance(model._last_obs, dict):
        return
    state = model.collector_state
    _check_outputs_for(model, state.obs, state.states)


def check_last_outputs(model: Any) -> None:
    """
    :param model: Off-policy model
    :raises NotFiniteError: If the agents' networks return NaN or infinity for the observations that
        the team would answer next
    """
    if isinstance(model._last_obs, dict):
        _check_outputs_for(model, model._last_obs, None)


def _check_outputs_for(model: Any, observations: Any, states: Any) -> None:
    """Refuse outputs of the agents' networks that are not finite for finite observations."""
    obs = model._to_tensors(observations)
    if not all_finite(list(obs.values())):
        return
    agents = agents_without_outputs(model.policy, obs, states)
    if agents:
        raise outputs_error([f"agent {agent!r}" for agent in agents])


# ---------------------------------------------------------------- faults


def as_named_error(model: Any, error: Exception) -> Exception:
    """
    Find out whether networks that are not finite are behind an error, as where PyTorch refuses the
    parameters of a distribution.

    :param model: Model whose training has ended in the error
    :param error: Error
    :return: Error that names the agent; the same error if networks are not to blame
    """
    if isinstance(error, NotFiniteError):
        return error
    checks = [check_weights]
    if hasattr(model, "rollout_buffer"):
        checks += [check_outputs, check_next_outputs]
    else:
        checks.append(check_last_outputs)
    for check in checks:
        try:
            check(model)
        except NotFiniteError as named:
            return named
        except Exception:  # a state that the error has left unfinished
            continue
    return error


def keep_last_good(model: Any, error: Exception, callback: Any) -> None:
    """
    Bring a model back to its last good weights, save it, and add to the error where.

    :param model: Model whose training has ended in the error
    :param error: Error, whose message is extended
    :param callback: Callbacks of the training
    """
    outputs_failed = isinstance(error, NotFiniteError) and not names_not_finite(model)
    snapshot = model._last_good.snapshot(model, outputs_failed)
    if snapshot is not None:
        snapshot.restore(model)
    if model._last_good.in_rollout:
        # The environments may have made another step than the one that is known: they are reset
        model._last_obs = None
    folder = folder_of_last_good(model, callback)
    if folder is None or not (model.num_timesteps or model._n_updates):
        return  # nothing was learned
    if names_not_finite(model) or (outputs_failed and snapshot is None):
        tell(error, "There is no good model to save, since this one was never finite.")
        return
    path = Path(folder, MODEL_FILE).absolute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        model.save(path)
    except Exception as failure:  # a full disk, among others, which must not hide the error
        tell(error, f"The last good model could not be saved as {path}: {failure}")
        return
    model.last_good_path = str(path)
    tell(
        error,
        f"The last good model ({model._n_updates} updates) is saved in {path}; "
        f"{type(model).__name__}.load(path, env=env) continues from it.",
    )


def tell(error: Exception, words: str) -> None:
    """
    Add words to an error: to its message if that is a text, otherwise as a note.

    :param error: Error
    :param words: Sentences
    """
    text = error.args[0] if len(error.args) == 1 else None
    if isinstance(text, str) and str(error) == text:
        error.args = (f"{text}\n\n{words}",)
    elif hasattr(error, "add_note"):
        error.add_note(words)
    else:  # Python 3.10
        warnings.warn(words, stacklevel=2)


def folder_of_last_good(model: Any, callback: Any) -> str | None:
    """
    :param model: Model
    :param callback: Callbacks of the training
    :return: Folder for the last good model: ``last_good_folder`` if it is set, the folder of
        TensorBoard's or the user's own logger, that of a ``CheckpointCallback`` or an
        ``EvalCallback``, otherwise the one that SB3 makes for its logger; None before there is one
    """
    logger = getattr(model, "_logger", None)
    of_logger = None if logger is None else logger.get_dir()
    candidates = [model.last_good_folder]
    if model.tensorboard_log is not None or model._custom_logger:
        candidates.append(of_logger)
    candidates += [_folder_of_callback(one) for one in _flat(callback)]
    return next(filter(None, candidates), of_logger)


def _folder_of_callback(callback: BaseCallback) -> str | None:
    """Folder into which a callback of SB3 writes models or results."""
    if isinstance(callback, CheckpointCallback):
        return callback.save_path
    if not isinstance(callback, EvalCallback):
        return None
    # SB3 adds the name of a file to `log_path`
    return callback.best_model_save_path or os.path.dirname(callback.log_path or "")


def _flat(callback: Any) -> Iterable[BaseCallback]:
    """Callbacks inside lists and inside other callbacks."""
    if isinstance(callback, CallbackList):
        callback = callback.callbacks
    if isinstance(callback, (list, tuple)):
        for one in callback:
            yield from _flat(one)
    elif isinstance(callback, BaseCallback):
        yield callback
        if isinstance(callback, EventCallback):
            yield from _flat(callback.callback)
