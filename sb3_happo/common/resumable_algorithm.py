"""Checkpoints from which a training continues as if it had never ended."""

import pathlib
import secrets
import warnings
from typing import Any, ClassVar, TypeVar

import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.type_aliases import MaybeCallback

from sb3_happo.common.callback_states import CallbackStates
from sb3_happo.common.checkpoint_episodes import CheckpointEpisodes
from sb3_happo.common.checkpoint_files import (
    VERSION,
    Checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from sb3_happo.common.checkpoint_rows import RowSource, row_content
from sb3_happo.common.episode_states import WrapperStates
from sb3_happo.common.interruptions import interruption_callbacks, saved_on_interruption
from sb3_happo.common.log_state import log_state, restore_log
from sb3_happo.common.plain_state import ChangingState, plain_copy
from sb3_happo.common.random_states import random_states, restore_random_states
from sb3_happo.common.replay_rows import NumberedRows
from sb3_happo.common.saved_algorithm import SavedAlgorithm
from sb3_happo.common.saved_files import check_saved_class, saved_model
from sb3_happo.common.saved_notes import warn_of_unsaved

SelfResumable = TypeVar("SelfResumable", bound="ResumableAlgorithm")

# Attributes that are not saved with a model
_OF_TRAINING = (
    *("_resumed", "_resumed_rows", "_callbacks", "_own_state", "_wrapper_states"),
    "_keeps_episodes",
)
# Attributes that are in other parts of a checkpoint, or belong to the program that trains
_NOT_STATE = (
    *("_last_obs", "_last_original_obs", "_last_episode_starts", "_last_transition"),
    *("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_learn_start"),
    *("seed", "verbose", "n_envs", "start_time", "saved_by", "_custom_logger", "_log_names"),
    *("policy_kwargs", "tensorboard_log", "_stats_window_size", *_OF_TRAINING),
)


class Snapshot:
    """
    State of a training between two updates, in memory.

    :param state: Plain data
    :param parameters: Parameters and optimisers, as ``get_parameters`` returns them, copied; None
        for those of the model as it is
    """

    def __init__(self, state: dict[str, Any], parameters: dict[str, Any] | None = None) -> None:
        self.state = state
        self.parameters = parameters

    @property
    def n_timesteps(self) -> int:
        """
        :return: Timesteps at the snapshot
        """
        return self.state["progress"]["num_timesteps"]


class TrainingCallbacks(CallbackList):
    """
    Callbacks of a training, with the state of a checkpoint if it is continued.

    :param model: Model
    :param callback: Callback of the user, initialised
    """

    def __init__(self, model: "ResumableAlgorithm", callback: BaseCallback) -> None:
        super().__init__([callback])
        self.model = model
        self.states = CallbackStates(callback)
        #: True between two updates, when a checkpoint may be made
        self.between_updates = False

    def on_training_start(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """
        :param locals_: Local variables of ``learn``
        :param globals_: Global variables
        """
        super().on_training_start(locals_, globals_)
        assert isinstance(self.model, ResumableAlgorithm)
        self.model._continue_training()

    def on_rollout_start(self) -> None:
        """Call the callbacks between two updates."""
        self.between_updates = True
        super().on_rollout_start()
        self.between_updates = False


class ResumableAlgorithm(CheckpointEpisodes):
    """
    Part of :class:`~sb3_happo.common.multi_agent_algorithm.MultiAgentAlgorithm` that makes
    checkpoints and continues from them.

    A checkpoint holds all that a training depends on, except the environments. Therefore every
    environment is reset at a checkpoint, with seeds drawn from the seed of the training and the
    number of timesteps, in the training that goes on and in the one that is continued alike. The
    episodes that run at that moment are in no statistic. Environments with ``get_state()`` and
    ``set_state(state)`` are kept instead.

    A subclass with further state overrides :meth:`_checkpoint_state`,
    :meth:`_restore_checkpoint_state` and :meth:`_begin_episodes`.
    """

    #: False if a state between two updates is too large for a copy in memory at each of them
    small_state: ClassVar[bool] = True
    #: Names of attributes that are not part of the state in :attr:`_own_state`
    other_attributes: ClassVar[tuple[str, ...]] = ()
    #: State of the checkpoint that the next ``learn`` continues, and its replay buffer
    _resumed: dict[str, Any] | None = None
    _resumed_rows: RowSource | None = None
    _callbacks: TrainingCallbacks | None = None
    _own_state: ChangingState | None = None
    _wrapper_states: WrapperStates | None = None
    _learn_start: int = 0

    # ---------------------------------------------------------------- saving

    def save_checkpoint(self, path: str | pathlib.Path) -> None:
        """
        Save all that the training depends on, and begin new episodes, as the training that is
        continued from the file does. Use
        :class:`~sb3_happo.common.checkpoint_callback.ResumableCheckpointCallback` during ``learn``.

        :param path: Path of the file
        :raises RuntimeError: During an update or the collection of experience, or before the first
            ``learn``
        """
        if self.env is None or self._last_obs is None:
            raise RuntimeError(
                "A checkpoint needs a training that has begun; save a new model with "
                "model.save(path)."
            )
        if self._callbacks is not None and not self._callbacks.between_updates:
            raise RuntimeError(
                "A checkpoint is made between two updates. During learn() pass "
                "ResumableCheckpointCallback(save_freq, save_path) as a callback."
            )
        self._prepare_states()
        episodes = self.episodes_at_checkpoint()
        content = self.checkpoint_content(Snapshot(self.training_state(episodes)))
        if content is None:
            raise ValueError("The networks have NaN or infinite parameters; nothing is saved.")
        rows = self.checkpoint_rows()
        if rows is not None:
            own = row_content(rows, rows.first_row, rows.n_added)["rows"]
            content["rows"] = {"files": [], "own": own}
        self.write_checkpoint(path, content)
        self.begin_episodes_after(episodes)

    def write_checkpoint(self, path: str | pathlib.Path, content: dict[str, Any]) -> None:
        """
        :param path: Path of the file
        :param content: Result of :meth:`checkpoint_content`, with the rows of a replay buffer
        :raises OSError: If the file cannot be written
        """
        unsaved = write_checkpoint(path, content, type(self))
        warn_of_unsaved(self, unsaved, path, type(self).__name__)

    @property
    def continues_checkpoint(self) -> bool:
        """
        :return: True from the loading of a checkpoint to the first step of ``learn``
        """
        return self._resumed is not None

    def training_state(self, episodes: dict[str, Any]) -> dict[str, Any]:
        """
        :param episodes: Form in which the episodes pass the checkpoint
        :return: State of the training without parameters and optimisers, plain data
        """
        progress = {
            "num_timesteps": self.num_timesteps,
            "total_timesteps": self._total_timesteps,
            "learn_start": self._learn_start,
        }
        state = {
            "version": VERSION,
            "class": type(self).__name__,
            "n_envs": self.n_envs,
            "progress": progress,
            "episodes": episodes,
            "callbacks": {},
        }
        if self._callbacks is not None:
            state["callbacks"] = self._callbacks.states.get()
        return state | self._checkpoint_state()

    def snapshot(self, episodes: dict[str, Any]) -> Snapshot:
        """
        :param episodes: Form in which the episodes pass the checkpoint
        :return: Copy of the whole state, with parameters and optimisers
        """
        return Snapshot(self.training_state(episodes), plain_copy(self.get_parameters()))

    def checkpoint_content(self, snapshot: Snapshot) -> dict[str, Any] | None:
        """
        :param snapshot: State of the training. Its parameters become those of the model
        :return: Content of a file, which shares memory with the model; None if a parameter is NaN
            or infinite
        """
        if snapshot.parameters is not None:
            self.set_parameters(plain_copy(snapshot.parameters), device=self.device)
        if not all(bool(value.isfinite().all()) for value in self.policy.parameters()):
            return None
        return {"state": snapshot.state, **self.saved_content()}

    # ---------------------------------------------------------------- loading

    @classmethod
    def load_checkpoint(
        cls: type[SelfResumable],
        path: str | pathlib.Path,
        env: Any = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> SelfResumable:
        """
        Load a checkpoint. The next call of ``learn``, with the same arguments as the one that was
        interrupted, goes on to the same end.

        :param path: Path of a checkpoint, or of a folder, of which the newest whole one is taken
        :param env: Environment, of any form that the constructor takes, made as before; not needed
            for ``predict``
        :param device: Device of the model
        :param custom_objects: Objects in the place of saved ones, by name
        :param kwargs: Attributes to change
        :return: Model
        :raises CheckpointError: If there is no whole checkpoint
        :raises ValueError: If it is of another algorithm or team, or of another number of
            environments
        """
        checkpoint = read_checkpoint(path)
        file = checkpoint.model
        saved = saved_model(file.manifest)
        check_saved_class(str(path), saved, cls, SavedAlgorithm, "load_checkpoint")
        model = cls._load_safe(file, env, device, custom_objects, True, kwargs)
        model._take_state(checkpoint)
        return model

    def restore_checkpoint(self, path: str | pathlib.Path) -> None:
        """
        Take over the state of a checkpoint, as :meth:`load_checkpoint`, into a model that was made
        with the same arguments. The settings are this model's, not the file's.

        :param path: Path of a checkpoint, or of a folder, of which the newest whole one is taken
        :raises CheckpointError: If there is no whole checkpoint
        :raises ValueError: If it does not fit this model
        """
        checkpoint = read_checkpoint(path)
        saved_by = checkpoint.state["class"]
        if saved_by != type(self).__name__:
            raise ValueError(
                f"{path} is a checkpoint of {saved_by}, and this model is a {type(self).__name__}."
            )
        words = f"a checkpoint of {saved_by}"
        self._set_parameters_of(checkpoint.model, words, True, self.device)
        self._take_state(checkpoint)

    def _take_state(self, checkpoint: Checkpoint) -> None:
        """Keep a state for the next ``learn``, and show its progress."""
        state = checkpoint.state
        if self.env is not None:
            self._check_number_of_envs(state)
        self._own_state = ChangingState(self, (*_NOT_STATE, *self.other_attributes))
        self._own_state.set(state["attributes"])
        self.num_timesteps = state["progress"]["num_timesteps"]
        self._total_timesteps = state["progress"]["total_timesteps"]
        self._learn_start = state["progress"]["learn_start"]
        self._last_obs = None
        self._resumed, self._resumed_rows = state, checkpoint.rows

    def _check_number_of_envs(self, state: dict[str, Any]) -> None:
        if self.n_envs != state["n_envs"]:
            raise ValueError(
                f"The checkpoint is of a training in {state['n_envs']} environments, and this one "
                f"has {self.n_envs}. To continue with another number, load the model: "
                f"{type(self).__name__}.load(path, env)."
            )

    # ---------------------------------------------------------------- training

    def learn(
        self: SelfResumable, total_timesteps: int, callback: MaybeCallback = None, *args: Any
    ) -> SelfResumable:
        """
        Train, and let callbacks save the state if something interrupts the training.

        :param total_timesteps: Timesteps to train for
        :param callback: Callback
        :param args: Further arguments of SB3's ``learn``
        :return: Trained model
        """
        try:
            with saved_on_interruption(interruption_callbacks(callback)):
                return super().learn(  # type: ignore[safe-super]
                    total_timesteps, callback, *args
                )
        finally:
            self._callbacks = None

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self._continue_ended_training()
        if self._resumed is None:
            self._learn_start = 0 if reset_num_timesteps else self.num_timesteps
        else:
            self._check_number_of_envs(self._resumed)
            total_timesteps = self._remaining(total_timesteps, reset_num_timesteps)
            reset_num_timesteps = False
        self._prepare_states()
        total_timesteps, callback = super()._setup_learn(
            total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar
        )
        self._callbacks = TrainingCallbacks(self, callback)
        return total_timesteps, self._callbacks

    def _prepare_states(self) -> None:
        """Note the settings, and the seed of the episodes after checkpoints."""
        assert self.env is not None
        if self._own_state is None:
            self._own_state = ChangingState(self, (*_NOT_STATE, *self.other_attributes))
        if self._wrapper_states is None or self._wrapper_states.env is not self.env:
            self._wrapper_states = WrapperStates(self.env)
            self._keeps_episodes = None
        if self._episode_seed is None:
            self._episode_seed = secrets.randbits(31) if self.seed is None else self.seed

    def _remaining(self, total_timesteps: int, reset_num_timesteps: bool) -> int:
        """
        Remaining timesteps of an interrupted call of ``learn``.

        :param total_timesteps: Argument of the present call
        :param reset_num_timesteps: Argument of the present call
        :return: Timesteps up to the end of the interrupted call if the present one has the same
            arguments or asks for the rest; otherwise up to the new end
        """
        done, end = self.num_timesteps, self._total_timesteps
        if total_timesteps != end - self._learn_start:
            start = self._learn_start if reset_num_timesteps else done
            end = start + total_timesteps
        if end != self._total_timesteps:
            warnings.warn(
                f"The training was interrupted on its way to {self._total_timesteps} timesteps and "
                f"goes on to {end}; its schedules follow the new end, so that it differs from an "
                "unbroken one.",
                stacklevel=2,
            )
        return end - done

    def _continue_training(self) -> None:
        """Restore the state of a checkpoint, when everything else is ready for the first step."""
        state, self._resumed = self._resumed, None
        if state is None:
            return
        assert self._callbacks is not None
        savers = interruption_callbacks(self._callbacks)
        for callback in savers:
            callback.before_continuing(state["episodes"])
        episodes = self._prepare_episodes(state["episodes"])
        self._restore_checkpoint_state(state)
        restore_log(self.logger, state["log"])
        self._callbacks.states.set(state["callbacks"])
        self.begin_episodes_after(episodes)
        for callback in savers:
            callback.after_continuing(episodes)

    def _continue_ended_training(self) -> None:
        """Restore the state of a checkpoint that was made after the end of ``learn``."""
        state = self._resumed
        if state is None or self.num_timesteps < self._total_timesteps:
            return
        self._check_number_of_envs(state)
        self._resumed = None
        self._prepare_states()
        assert self.env is not None
        self.env.reset()
        episodes = self._prepare_episodes(state["episodes"])
        self._restore_checkpoint_state(state)
        self.begin_episodes_after(episodes)

    # ---------------------------------------------------------------- hooks

    def checkpoint_rows(self) -> NumberedRows | None:
        """
        Hook: replay buffer, which checkpoints hold beside the state.

        :return: Buffer; None for algorithms without one
        """
        return None

    def _checkpoint_state(self) -> dict[str, Any]:
        """
        Hook: state of the training, without parameters, optimisers and callbacks. An override adds
        entries: ``return super()._checkpoint_state() | {"replay_buffer": ...}``.

        :return: Plain data, copied
        """
        assert self._own_state is not None and self._wrapper_states is not None
        return {
            "attributes": self._own_state.get(),
            "random": random_states(*self._action_spaces()),
            "wrappers": self._wrapper_states.get(),
            "log": log_state(getattr(self, "_logger", None)),
        }

    def _restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        """
        Hook: take over a state of :meth:`_checkpoint_state`. Environment, logger and callbacks
        exist; an environment whose episodes go on is in their state.

        :param state: State, with the entries of overrides
        """
        assert self._own_state is not None and self._wrapper_states is not None
        self._own_state.set(state["attributes"])
        self._wrapper_states.set(state["wrappers"])
        restore_random_states(state["random"], *self._action_spaces())

    # ---------------------------------------------------------------- parts

    def _action_spaces(self) -> list[Any]:
        assert self.env is not None
        own, other = self.action_space, self.env.action_space
        return [own] if other is own else [own, other]

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), *_OF_TRAINING, "_episode_seed"]

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | dict.fromkeys(_OF_TRAINING)
