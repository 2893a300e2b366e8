"""Checkpoints of the off-policy algorithms: transitions, noise, and the replay buffer."""

from typing import Any, ClassVar

from stable_baselines3.common.callbacks import BaseCallback

from sb3_happo.common.bootstrap import Presence
from sb3_happo.common.checkpoint_rows import row_progress
from sb3_happo.common.episode_states import with_layout
from sb3_happo.common.plain_state import plain_copy
from sb3_happo.common.replay_rows import NumberedRows
from sb3_happo.common.replay_state import ReplayState


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
