"""Callback that makes checkpoints during a training."""

import errno
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from sb3_happo.common.checkpoint_files import (
    checkpoint_path,
    checkpoints_in,
    remove_leftovers,
    remove_old,
)
from sb3_happo.common.checkpoint_rows import RowsLostError, RowWriter
from sb3_happo.common.episode_states import RecordedSteps
from sb3_happo.common.folder_lock import FolderLock
from sb3_happo.common.interruptions import SavesOnInterruption, TrainingTerminated
from sb3_happo.common.monitor_files import cut_monitor_files, monitor_sizes
from sb3_happo.common.resumable_algorithm import ResumableAlgorithm, Snapshot

# Seconds that a training with a large state has to come to the end of an update
_PATIENCE = 5.0
# Share of the time in which such a training copies its state, for an interruption
_COPYING_SHARE = 0.02


class ResumableCheckpointCallback(SavesOnInterruption):
    """
    Makes checkpoints from which a training continues as if it had never ended::

        callback = ResumableCheckpointCallback(save_freq=10, save_path="run")
        model.learn(1_000_000, callback)

        # After an interruption, in a new process
        model = HAPPO.load_checkpoint("run", env=make_env())
        model.learn(1_000_000, callback)

    An unbroken training with this callback and one that is killed at any moment and continued have
    bit-equal parameters, optimisers, normalisers and logged figures, times aside. At each
    checkpoint the environments are reset with seeds that depend on the seed of the training and the
    timesteps; environments with ``get_state()`` and ``set_state(state)`` are kept. The first
    checkpoint is made before the first step.

    An exception, Ctrl-C and SIGTERM (the end of a slot of Slurm or a cloud) save one more
    checkpoint, of the end of the last update. The episodes that run then are continued by
    repeating their steps, so that this checkpoint resets nothing. Off-policy algorithms may go back
    some seconds, since they update too often for a copy of the state each time. SIGTERM ends the
    program with exit code 143, unless the program has a handler of its own or catches
    :class:`~sb3_happo.common.interruptions.TrainingTerminated`.

    A replay buffer is in files of its own, ``*.replay``: each holds the transitions that were new
    at a checkpoint, and they are removed when no checkpoint needs them.

    The states of the other callbacks are part of a checkpoint: their plain attributes, or what
    their ``state_dict()`` returns.

    One training at a time writes into the folder, which is locked during ``learn``; another one
    ends with :class:`~sb3_happo.common.folder_lock.FolderInUseError`.

    :param save_freq: Number of updates or timesteps between two checkpoints, >= 1
    :param save_path: Folder for the checkpoints
    :param unit: Unit of ``save_freq``: "updates" (of off-policy algorithms: collections of
        experience) or "timesteps"; a checkpoint is made after the update that reaches them
    :param keep: Number of checkpoints that stay, >= 1; an older one is used if the last is torn
    :param name_prefix: Beginning of the files' names
    :param monitor_dir: Folder with the files of ``Monitor``, which a continued training goes on
        with; rows of steps that are made again are removed. None for no such files
    :param max_recorded_bytes: Largest size of the record of the steps since the last checkpoint. A
        larger record is dropped; the episodes begin anew after an interruption then
    :param verbose: 1 to print the names of the files
    :raises ValueError: If an argument is wrong
    """

    def __init__(
        self,
        save_freq: int,
        save_path: str | Path,
        unit: Literal["updates", "timesteps"] = "updates",
        keep: int = 2,
        name_prefix: str = "checkpoint",
        monitor_dir: str | Path | None = None,
        max_recorded_bytes: int = 2**28,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        for name, value in (("save_freq", save_freq), ("keep", keep)):
            if isinstance(value, bool) or int(value) != value or value < 1:
                raise ValueError(f"{name} must be a whole number, at least 1, not {value!r}.")
        if unit not in ("updates", "timesteps"):
            raise ValueError(f"unit must be 'updates' or 'timesteps', not {unit!r}.")
        self.save_freq = int(save_freq)
        self.save_path = Path(save_path)
        self.unit = unit
        self.keep = int(keep)
        self.name_prefix = name_prefix
        self.monitor_dir = monitor_dir
        self.max_recorded_bytes = max_recorded_bytes
        self._n_updates = 0
        #: Number of updates or timesteps, divided by `save_freq`, at the last checkpoint
        self._interval = -1
        self._anchor = 0
        self._steps = RecordedSteps(max_recorded_bytes)
        self._monitor_sizes: dict[str, int] = {}
        self._snapshot: Snapshot | None = None
        #: Time of the snapshot, and seconds that it took
        self._copied_at, self._copying_time = 0.0, 0.0
        self._row_writer = RowWriter(self.save_path, name_prefix)
        #: Record and number of steps of the snapshot
        self._record, self._n_recorded = self._steps, 0
        self._continued = False
        self._terminated_at: float | None = None
        self._signum = 0
        self._lock = FolderLock(self.save_path)

    @property
    def algorithm(self) -> ResumableAlgorithm:
        """
        :return: Model
        """
        assert isinstance(self.model, ResumableAlgorithm)
        return self.model

    def _init_callback(self) -> None:
        if not isinstance(self.model, ResumableAlgorithm):
            raise TypeError(
                "ResumableCheckpointCallback needs an algorithm of sb3_happo; "
                f"{type(self.model).__name__} has no checkpoints. Use SB3's CheckpointCallback."
            )
        self._check_monitors()
        self._lock.acquire()
        self._check_folder()
        remove_leftovers(self.save_path, self.name_prefix)
        self._snapshot, self._terminated_at, self._continued = None, None, False
        self._n_updates, self._interval = 0, -1

    def _check_monitors(self) -> None:
        env = self.algorithm.env
        assert env is not None
        try:
            strict = env.has_attr("allow_early_resets") and not all(
                env.get_attr("allow_early_resets")
            )
        except (AttributeError, NotImplementedError):
            return
        if strict:
            raise ValueError(
                "The environments are reset at checkpoints, which Monitor(allow_early_resets="
                "False) refuses; pass monitor_kwargs=dict(allow_early_resets=True)."
            )

    def _check_folder(self) -> None:
        """Refuse a folder with checkpoints that a new training would mix with its own."""
        present = checkpoints_in(self.save_path, self.name_prefix)
        if self.algorithm.continues_checkpoint or not present:
            return
        n_timesteps, path = present[0]
        if n_timesteps > self.algorithm.num_timesteps:
            name = type(self.model).__name__
            raise ValueError(
                f"There are checkpoints of another training, such as {path}. Continue it with "
                f"{name}.load_checkpoint({str(self.save_path)!r}, env), or choose another "
                "`save_path` or `name_prefix`."
            )

    # ---------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """
        :return: State of this callback, plain data
        """
        return {
            "n_updates": self._n_updates,
            "interval": self._interval,
            "n_calls": self.n_calls,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :param state: Result of :meth:`state_dict`
        """
        self._n_updates = state["n_updates"]
        self._interval = state["interval"]
        self.n_calls = state["n_calls"]

    def before_continuing(self, episodes: dict[str, Any]) -> None:
        """
        Remove what the interrupted training has written after the checkpoint.

        :param episodes: Form in which the episodes pass the checkpoint
        """
        if self.monitor_dir is not None:
            cut_monitor_files(self.monitor_dir, episodes.get("monitor_sizes", {}))
        for n_timesteps, path in checkpoints_in(self.save_path, self.name_prefix):
            if n_timesteps > self.algorithm.num_timesteps:
                path.unlink(missing_ok=True)

    def after_continuing(self, episodes: dict[str, Any]) -> None:
        """
        Continue the record of the steps.

        :param episodes: Form in which the episodes have passed the checkpoint
        """
        self._continued = True
        self._anchor = episodes.get("anchor", self.algorithm.num_timesteps)
        self._monitor_sizes = dict(episodes.get("monitor_sizes", {}))
        self._steps = RecordedSteps(self.max_recorded_bytes)
        self._steps.set(episodes.get("actions"))
        rows = self.algorithm.checkpoint_rows()
        if rows is not None:
            path = self._path_at(self.algorithm.num_timesteps)
            self._row_writer.continue_after(path, rows)

    def _path_at(self, n_timesteps: int) -> Path:
        return checkpoint_path(self.save_path, self.name_prefix, n_timesteps)

    # ---------------------------------------------------------------- training

    def _on_rollout_start(self) -> None:
        if self._terminated_at is not None:
            self._copy_state()
            self._end_if_terminated()
        if self._continued:
            self._continued = False
            self._note_state()
        elif self._is_due():
            self._make_checkpoint()
        else:
            self.algorithm.seed_evaluations()
            self._note_state()

    def _is_due(self) -> bool:
        count = self._n_updates if self.unit == "updates" else self.algorithm.num_timesteps
        self._n_updates += 1
        interval, before = count // self.save_freq, self._interval
        self._interval = interval
        return interval != before

    def _make_checkpoint(self) -> None:
        model = self.algorithm
        self._monitor_sizes = self._present_sizes()
        episodes = model.episodes_at_checkpoint() | {"monitor_sizes": self._monitor_sizes}
        is_written = self._write(Snapshot(model.training_state(episodes)))
        model.begin_episodes_after(episodes)
        self._anchor = model.num_timesteps
        self._steps = RecordedSteps(self.max_recorded_bytes)
        if model.small_state or not is_written:
            self._copy_state()
        else:
            # The file holds it
            self._snapshot, self._copied_at = None, time.monotonic()

    def _present_sizes(self) -> dict[str, int]:
        return {} if self.monitor_dir is None else monitor_sizes(self.monitor_dir)

    def _note_state(self) -> None:
        """Copy the state, for an interruption before the next update ends, if it is time."""
        since = time.monotonic() - self._copied_at
        if self.algorithm.small_state or since * _COPYING_SHARE > self._copying_time:
            self._copy_state()

    def _copy_state(self) -> None:
        model = self.algorithm
        start = time.monotonic()
        self._record, self._n_recorded = self._steps, len(self._steps)
        self._snapshot = model.snapshot(self._present_episodes())
        self._copied_at = time.monotonic()
        self._copying_time = self._copied_at - start

    def _present_episodes(self) -> dict[str, Any]:
        """Form in which the running episodes go on, without the actions that are repeated."""
        model = self.algorithm
        if model.keeps_episodes:
            return model.episodes_at_checkpoint() | {"monitor_sizes": self._present_sizes()}
        sizes = {"monitor_sizes": self._monitor_sizes, "present_sizes": self._present_sizes()}
        return model.episodes_since(self._anchor) | sizes

    def _on_step(self) -> bool:
        # On-policy algorithms name the environment's actions `clipped_actions`, others `actions`
        actions = self.locals.get("clipped_actions")
        self._steps.add(self.locals["actions"] if actions is None else actions)
        if self._terminated_at is not None and time.monotonic() > self._terminated_at + _PATIENCE:
            self._end_if_terminated()
        return True

    # ---------------------------------------------------------------- files

    def _write(self, snapshot: Snapshot) -> bool:
        """Write a checkpoint; False if there is no room for it, which is said in one line."""
        model = self.algorithm
        path = self._path_at(snapshot.n_timesteps)
        try:
            content = model.checkpoint_content(snapshot)
            if content is None:
                _say(f"The checkpoint {path} is not written: the networks have NaN or infinities.")
                return False
            self._write_files(path, content, snapshot)
        except (OSError, RowsLostError) as error:
            _say(
                f"The checkpoint {path} could not be written: {error}. The training goes on, and "
                "the next one is tried at its time."
            )
            return False
        remove_old(self.save_path, self.name_prefix, self.keep)
        if self.verbose >= 1:
            _say(f"Checkpoint: {path}")
        return True

    def _write_files(self, path: Path, content: dict[str, Any], snapshot: Snapshot) -> None:
        try:
            self._write_both(path, content, snapshot)
        except OSError as error:
            older = checkpoints_in(self.save_path, self.name_prefix)[1:]
            if error.errno != errno.ENOSPC or not older:
                raise
            # Room for the new one, without the newest of the old ones
            remove_old(self.save_path, self.name_prefix, keep=1)
            self._write_both(path, content, snapshot)

    def _write_both(self, path: Path, content: dict[str, Any], snapshot: Snapshot) -> None:
        """Write the new rows of the replay buffer, and then the checkpoint, which names them."""
        rows = self.algorithm.checkpoint_rows()
        if rows is not None:
            progress = snapshot.state["replay"]["rows"]
            files = self._row_writer.write(rows, snapshot.n_timesteps, progress)
            content = content | {"rows": {"files": files, "own": None}}
        self.algorithm.write_checkpoint(path, content)

    # ---------------------------------------------------------------- interruptions

    def after_training(self) -> None:
        """Let others use the folder."""
        self._lock.release()

    def defer(self, signum: int) -> bool:
        """
        :param signum: Number of a signal that asks the training to end
        :return: True for algorithms with a large state, which end after the present update
        """
        if self.algorithm.small_state or self._terminated_at is not None:
            return False
        self._terminated_at, self._signum = time.monotonic(), signum
        return True

    def _end_if_terminated(self) -> None:
        if self._terminated_at is not None:
            raise TrainingTerminated(self._signum)

    def save_interrupted(self, error: BaseException) -> None:
        """
        Save the state at the end of the last update, unless it is in a file already.

        :param error: Exception that ends the training
        """
        snapshot = self._snapshot
        if snapshot is None:
            return
        path = self._path_at(snapshot.n_timesteps)
        if path.exists():
            return
        snapshot.state["episodes"] = self._with_actions(snapshot.state["episodes"])
        self._write(snapshot)

    def _with_actions(self, episodes: dict[str, Any]) -> dict[str, Any]:
        """Form in which the episodes go on, with the recorded actions."""
        if episodes["mode"] != "repeated":
            return episodes
        if self._record.complete:
            return episodes | {"actions": self._record.get(self._n_recorded)}
        assert self._snapshot is not None
        return {
            "mode": "reset",
            "anchor": self._snapshot.n_timesteps,
            "monitor_sizes": episodes["present_sizes"],
        }


def _say(text: str) -> None:
    # The output may be a file on the full disk
    with suppress(OSError):
        print(text, flush=True)
