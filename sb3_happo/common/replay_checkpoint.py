"""Files of the off-policy algorithms: checkpoints, and the replay buffer."""

from typing import Any, ClassVar

from stable_baselines3.common.callbacks import BaseCallback

from sb3_happo.common.bootstrap import Presence
from sb3_happo.common.checkpoint_rows import row_progress
from sb3_happo.common.episode_states import with_layout
from sb3_happo.common.plain_state import plain_copy
from sb3_happo.common.replay_files import write_replay_buffer
from sb3_happo.common.replay_rows import NumberedRows
from sb3_happo.common.replay_state import ReplayState
from sb3_happo.common.saved_files import Location


class ReplayCheckpoint(ReplayState):
    """
    Part of an off-policy algorithm that belongs to checkpoints: last observations, activity and
    returns of the running episodes, action noise, and the replay buffer.
    """

    # Copies of parameters at every collection, which may be a single step, would be too slow
    small_state: ClassVar[bool] = False
    # Figures of the last update, which are in the log already
    other_attributes: ClassVar[tuple[str, ...]] = ("_figures",)

    def checkpoint_rows(self) -> NumberedRows | None:
        return self.replay_buffer

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        self._prepare_collection()
        self._continue_ended_training()
        return super()._setup_learn(*args, **kwargs)

    def _checkpoint_state(self) -> dict[str, Any]:
        assert self.replay_buffer is not None
        own = {
            "obs": dict(self._last_obs),  # type: ignore[arg-type]
            "original_obs": self._last_original_obs,
            "active": self._presence.active,
            "waiting": self._presence.waiting,
            "agent_returns": self._agent_returns.state(),
            "noise": None if self.action_noise is None else self.action_noise.state(),
            "rows": row_progress(self.replay_buffer),
        }
        return super()._checkpoint_state() | {"replay": plain_copy(own)}

    def _restore_checkpoint_state(self, state: dict[str, Any]) -> None:
        super()._restore_checkpoint_state(state)
        assert self.replay_buffer is not None and self._watch is not None
        own = plain_copy(state["replay"])
        original = own["original_obs"]
        if original is not None:
            original = with_layout(original, self._last_original_obs)
        self._last_obs = with_layout(own["obs"], self._last_obs)
        self._last_original_obs = original
        self._presence = Presence(own["active"], own["waiting"])
        self._agent_returns.restore(own["agent_returns"])
        if self.action_noise is not None and own["noise"] is not None:
            self.action_noise.restore(own["noise"])
        if self._resumed_rows is not None:
            self._resumed_rows.restore(self.replay_buffer, own["rows"])
            self._resumed_rows = None
        self._last_transition = self._watch.last

    def save_replay_buffer(self, path: Location) -> None:  # type: ignore[override]
        """
        Save the replay buffer. The file holds JSON and numbers, and is written whole or not at all,
        from the memory of the buffer, without a copy.

        :param path: Path of the file, ".pkl" is added to one without a suffix, as in SB3; or an
            open file
        :raises ValueError: If there is no buffer, as in a model that was loaded without an
            environment
        :raises OSError: If the file cannot be written, for example because the disk is full; an
            existing one is then as before
        """
        if self.replay_buffer is None:
            raise ValueError(
                f"This {type(self).__name__} model has no replay buffer, since it has no "
                "environment; load it with an environment, or call model.set_env(env)."
            )
        path = write_replay_buffer(path, self.replay_buffer)
        if self.verbose >= 2:
            print(f"Saved the replay buffer to {path}")
