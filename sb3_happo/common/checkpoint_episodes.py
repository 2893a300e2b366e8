"""Episodes of the training environment at a checkpoint."""

import warnings
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_happo.common.callback_states import evaluation_envs
from sb3_happo.common.checks import takes_tensors
from sb3_happo.common.episode_states import (
    drawn_seed,
    episode_states,
    keeps_episodes,
    repeat_steps,
    restore_episodes,
    seeded_reset,
)
from sb3_happo.common.plain_state import plain_copy
from sb3_happo.common.saved_algorithm import SavedAlgorithm


class CheckpointEpisodes(SavedAlgorithm):
    """
    Part of :class:`~sb3_happo.common.resumable_algorithm.ResumableAlgorithm` that decides how the
    episodes of the environments pass a checkpoint: they begin anew, are kept, or are repeated.
    """

    #: Callbacks of the training, whose evaluations are seeded
    _callbacks: Any = None
    _episode_seed: int | None = None
    _keeps_episodes: bool | None = None

    @property
    def keeps_episodes(self) -> bool:
        """
        :return: True if the episodes of the training environment are kept at a checkpoint
        """
        assert self.env is not None
        if self._keeps_episodes is None:
            self._keeps_episodes = keeps_episodes(self.env)
        return self._keeps_episodes

    def episodes_at_checkpoint(self) -> dict[str, Any]:
        """
        :return: Form in which the episodes pass a checkpoint, plain data
        """
        assert self.env is not None
        if self.keeps_episodes:
            return {"mode": "kept", "states": episode_states(self.env)}
        return {"mode": "reset", "anchor": self.num_timesteps}

    def episodes_since(self, anchor: int) -> dict[str, Any]:
        """
        :param anchor: Timesteps at the last reset of a checkpoint
        :return: Form in which running episodes are continued by repeating their steps, to which
            "actions" are added, see :meth:`~sb3_happo.common.episode_states.RecordedSteps.get`
        """
        normalizer = self.get_vec_normalize_env()
        last = self._last_obs if normalizer is None else normalizer.get_original_obs()
        last_obs = plain_copy(dict(last)) if isinstance(last, dict) else plain_copy(last)
        return {"mode": "repeated", "anchor": anchor, "actions": None, "last_obs": last_obs}

    def begin_episodes_after(self, episodes: dict[str, Any]) -> None:
        """
        Begin new episodes after a checkpoint, unless they go on, and seed the evaluations that
        follow.

        :param episodes: Form in which the episodes pass the checkpoint
        """
        assert self.env is not None
        if episodes["mode"] == "reset":
            anchor = episodes["anchor"]
            with _UncountedReset(self.env, uncounted=anchor == 0):
                obs = seeded_reset(self.env, self._seed_at(anchor))
            self._begin_episodes(obs)
        self.seed_evaluations()

    def _seed_at(self, n_timesteps: int) -> int:
        """Seed of the environments' reset at a checkpoint; the training's own at the start."""
        assert self._episode_seed is not None
        if n_timesteps == 0:
            return self._episode_seed
        return drawn_seed(self._episode_seed, n_timesteps)

    def seed_evaluations(self) -> None:
        """
        Seed the next episodes of the callbacks' evaluations, so that they depend on the seed of the
        training and the timesteps of the last update alone.
        """
        assert self._episode_seed is not None
        for index, env in enumerate(evaluation_envs(self._callbacks, self.env)):
            env.seed(drawn_seed(self._episode_seed, self.num_timesteps, index + 1))

    def _prepare_episodes(self, episodes: dict[str, Any]) -> dict[str, Any]:
        """
        Bring the environment to the state of a checkpoint, where its episodes go on.

        :param episodes: Form in which the episodes pass the checkpoint
        :return: The same, or a reset where the episodes cannot be continued
        """
        assert self.env is not None
        if episodes["mode"] == "kept":
            # The environment was reset before
            restore_episodes(self.env, episodes["states"])
        if episodes["mode"] != "repeated":
            return episodes
        anchor = episodes["anchor"]
        obs = seeded_reset(self.env, self._seed_at(anchor))
        as_tensors = takes_tensors(self.env)
        last = repeat_steps(self.env, episodes["actions"], self.device, as_tensors)
        normalizer = self.get_vec_normalize_env()
        last = obs if last is None else last
        if normalizer is not None:
            last = normalizer.get_original_obs()
        if _equal(last, episodes["last_obs"]):
            return episodes
        warnings.warn(
            "The environments did not come to the same state again when they were reset with the "
            "same seeds and given the same actions, so that their episodes begin anew. They draw "
            "random numbers that reset(seed=...) does not determine, or something else has moved "
            "them.",
            stacklevel=2,
        )
        return {"mode": "reset", "anchor": self.num_timesteps}

    def _begin_episodes(self, obs: Any) -> None:
        """
        Hook: continue from the observations ``obs`` that a reset of all environments returned.

        :param obs: Joint observation, each entry ``(n_envs, ...)``
        """
        self._last_obs = obs
        self._last_episode_starts = np.ones(self.n_envs, dtype=bool)
        normalizer = self.get_vec_normalize_env()
        if normalizer is not None:
            self._last_original_obs = normalizer.get_original_obs()


class _UncountedReset:
    """
    Leave the statistics of ``VecNormalize`` as they are at a reset.

    :param env: Vectorised environment
    :param uncounted: False for no effect
    """

    def __init__(self, env: VecEnv, uncounted: bool) -> None:
        self._normalizers: list[Any] = []
        while uncounted and isinstance(env, VecEnvWrapper):
            if isinstance(env, VecNormalize) and env.training:
                self._normalizers.append(env)
            env = env.venv

    def __enter__(self) -> None:
        for normalizer in self._normalizers:
            normalizer.training = False

    def __exit__(self, *error: object) -> None:
        for normalizer in self._normalizers:
            normalizer.training = True


def _equal(first: Any, second: Any) -> bool:
    """True if two observations are equal; NaN equals NaN."""
    if isinstance(first, dict):
        if not isinstance(second, dict) or first.keys() != second.keys():
            return False
        return all(_equal(first[key], second[key]) for key in first)
    array = _as_array(first)
    return np.array_equal(array, _as_array(second), equal_nan=array.dtype.kind == "f")


def _as_array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, th.Tensor) else np.asarray(value)
