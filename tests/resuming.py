"""Trainings that are interrupted and continued, and their comparison with unbroken ones."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_happo.common.checkpoint_callback import ResumableCheckpointCallback
from sb3_happo.common.multi_agent_algorithm import MultiAgentAlgorithm
from sb3_happo.vec_env import VecNormalizeTeam

N_ENVS, N_STEPS, N_UPDATES = 2, 16, 8
UPDATE = N_ENVS * N_STEPS
TOTAL = N_UPDATES * UPDATE


class Figures(KVWriter):
    """Logged figures by timesteps, without those of time."""

    def __init__(self) -> None:
        self.rows: dict[int, dict[str, Any]] = {}

    def write(
        self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0
    ) -> None:
        row = self.rows.setdefault(step, {})
        for name, value in key_values.items():
            if name not in ("time/fps", "time/time_elapsed"):
                row[name] = repr(value)

    def close(self) -> None:
        pass


class Interrupted(Exception):
    """Raised by :class:`StopAt`."""


class StopAt(BaseCallback):
    """
    Interrupt the training.

    :param n_timesteps: Timesteps at which to do so
    :param action: Function that is called then
    """

    def __init__(self, n_timesteps: int, action: Callable[[], Any] | None = None) -> None:
        super().__init__()
        self.n_timesteps = n_timesteps
        self.action = action

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.n_timesteps:
            if self.action is not None:
                self.action()
            raise Interrupted
        return True


def equal(first: Any, second: Any) -> bool:
    """Whether two state dicts, or parts of them, are equal bit for bit."""
    if isinstance(first, th.Tensor):
        return first.dtype == second.dtype and th.equal(first, second)
    if isinstance(first, dict):
        return list(first) == list(second) and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        pairs = zip(first, second, strict=True)
        return all(equal(one, other) for one, other in pairs)
    return bool(first == second)


def normalizer_of(model: MultiAgentAlgorithm) -> dict[str, Any]:
    """Statistics of VecNormalize."""
    found = model.get_vec_normalize_env()
    if found is None:
        return {}
    statistics: dict[str, Any] = {"returns": found.ret_rms, **found.obs_rms}
    if isinstance(found, VecNormalizeTeam) and "agents" in vars(found.ret_rms):
        statistics["agents"] = found.agent_ret_rms
    result: dict[str, Any] = {"running returns": found.returns.tolist()}
    for name, own in statistics.items():
        result[name] = (own.mean.tolist(), own.var.tolist(), np.asarray(own.count).tolist())
    return result


def further_state(model: Any) -> dict[str, Any]:
    """Replay buffer, temperatures, and exploration rate of an off-policy model."""
    state: dict[str, Any] = {}
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        state["rows"] = (buffer.pos, buffer.full, buffer.size())
        state |= {name: th.as_tensor(own) for name, own in buffer.arrays().items()}
        # NaN stands for a reward that is not known
        state["agent_rewards"] = state["agent_rewards"].nan_to_num(1e30)
    for name in ("log_ent_coef", "exploration_rate"):
        state[name] = getattr(model, name, None)
    return state


class Experiment:
    """
    A training, whole or in parts.

    :param make: Function that makes the model
    :param folder: Folder for checkpoints
    :param make_callbacks: Function that makes further callbacks
    :param save_freq: Updates between checkpoints
    :param log_interval: Updates (off-policy: episodes) between logs
    :param total: Timesteps of the whole training
    """

    def __init__(
        self,
        make: Callable[[], Any],
        folder: Path,
        make_callbacks: Callable[[], list[BaseCallback]] = list,
        save_freq: int = 3,
        log_interval: int = 2,
        total: int = TOTAL,
    ) -> None:
        self.make = make
        self.folder = folder
        self.make_callbacks = make_callbacks
        self.save_freq = save_freq
        self.log_interval = log_interval
        self.total = total

    def run(
        self,
        model: MultiAgentAlgorithm,
        folder: Path,
        more: list[BaseCallback] | None = None,
        killed: bool = False,
    ) -> dict[int, dict[str, Any]]:
        """Figures of a training, which may be interrupted."""
        figures = Figures()
        model.set_logger(Logger(None, [figures]))
        saving = ResumableCheckpointCallback(self.save_freq, folder)
        if killed:
            # Nothing is saved at the moment of a kill
            saving.save_interrupted = lambda error: None  # type: ignore[method-assign]
        callbacks = [saving, *self.make_callbacks(), *(more or [])]
        with contextlib.suppress(Interrupted):
            model.learn(self.total, callbacks, log_interval=self.log_interval)
        return figures.rows

    def check(self, n_timesteps: int, killed: bool = False) -> int:
        """
        Check that a training that is interrupted after some timesteps ends as an unbroken one.

        :return: Timesteps from which it was continued
        """
        whole = self.make()
        expected = self.run(whole, self.folder / "whole")
        folder = self.folder / f"parts_{n_timesteps}_{killed}"
        first = self.make()
        self.run(first, folder, [StopAt(n_timesteps)], killed)
        second = self.make()
        # The generators of a new process are in another state
        th.manual_seed(99)
        np.random.seed(99)
        second.restore_checkpoint(folder)
        start = second.num_timesteps
        found = self.run(second, folder)
        assert second.num_timesteps == whole.num_timesteps
        assert equal(whole.get_parameters(), second.get_parameters())
        assert normalizer_of(whole) == normalizer_of(second)
        assert equal(further_state(whole), further_state(second))
        assert found == {step: row for step, row in expected.items() if step in found}
        assert {step for step in expected if step > start} <= set(found)
        for model in (whole, first, second):
            assert model.env is not None
            model.env.close()
        return start
