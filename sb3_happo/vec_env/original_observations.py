"""Observations before and after ``VecNormalize``, seen from outside the wrappers around it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecEnvWrapper,
    VecNormalize,
    VecTransposeImage,
    unwrap_vec_normalize,
)

from sb3_happo.vec_env.normalize import VecNormalizeTeam
from sb3_happo.vec_env.single_agent import AGENT, VecTeamOfOne


class OuterNormalizer:
    """
    The ``VecNormalize`` of a training environment, for the joint observations that leave the
    wrappers around it: a ``VecTeamOfOne`` around a single-agent ``VecNormalize``, and a
    ``VecTransposeImage``. SB3's replay buffers hold observations before normalisation, and those of
    ``VecNormalize.get_original_obs`` lack what these wrappers do.

    :param env: Training environment
    :param normalizer: ``VecNormalize`` within it
    :raises ValueError: If another wrapper around the ``VecNormalize`` changes observations
    """

    def __init__(self, env: VecEnv, normalizer: VecNormalize) -> None:
        self.normalizer = normalizer
        self._wrappers = _changing_wrappers(env, normalizer)
        #: True if the team is a single agent whose ``VecEnv`` is normalised
        self.is_team_of_one = any(isinstance(outer, VecTeamOfOne) for outer in self._wrappers)

    @property
    def norm_obs(self) -> bool:
        """
        :return: True if observations are normalised
        """
        return self.normalizer.norm_obs

    @property
    def norm_obs_keys(self) -> list[str]:
        """
        :return: Entries of the joint observation that :meth:`normalize_obs` needs
        """
        if not self.norm_obs:
            return []
        if not self.is_team_of_one:
            return list(self.normalizer.norm_obs_keys or ())
        if self.normalizer.norm_obs_keys is None:
            return [AGENT]
        return [f"{AGENT}/{key}" for key in self.normalizer.norm_obs_keys]

    def original_obs(self, shown: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """
        :param shown: Joint observation of the last step or reset, each entry ``(n_envs, ...)``
        :return: Values before normalisation, of the same shapes
        """
        if not self.norm_obs:
            return dict(shown)
        return dict(shown) | self._outwards(self.normalizer.get_original_obs(), (len(_any(shown)),))

    def original_reward(self) -> np.ndarray:
        """
        :return: Team rewards of the last step before normalisation, ``(n_envs,)``
        """
        return self.normalizer.get_original_reward()

    def original_agent_rewards(self, own: np.ndarray) -> np.ndarray:
        """
        :param own: Individual rewards of the last step as they arrived, ``(n_envs, n_agents)``
        :return: Values before normalisation, of the same shapes
        """
        return self.original_reward()[:, np.newaxis] if self.is_team_of_one else own

    def normalize_obs(
        self, obs: Mapping[str, np.ndarray], active: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """
        :param obs: Joint observations before normalisation, each entry ``(n, ...)``
        :param active: Active mask, ``(n, n_agents)``; None for all
        :return: Normalised joint observations
        """
        if not self.norm_obs:
            return dict(obs)
        own = self._inwards(obs)
        if isinstance(self.normalizer, VecNormalizeTeam):
            normalized = self.normalizer.normalize_obs(own, active)
        else:
            normalized = self.normalizer.normalize_obs(own)
        return dict(obs) | self._outwards(normalized, (len(_any(obs)),))

    def unnormalize_obs(self, obs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """
        :param obs: Normalised joint observation of one environment, as that at an episode's end
        :return: Observation before normalisation, up to the clipping
        """
        if not self.norm_obs:
            return dict(obs)
        own: Any = self.normalizer.unnormalize_obs(self._inwards(obs))
        return dict(obs) | self._outwards(own, ())

    def normalize_reward(self, rewards: np.ndarray) -> np.ndarray:
        """
        :param rewards: Team rewards before normalisation
        :return: Normalised rewards
        """
        return self.normalizer.normalize_reward(rewards)

    def normalize_agent_rewards(self, own: np.ndarray) -> np.ndarray:
        """
        :param own: Individual rewards before normalisation, ``(..., n_agents)``
        :return: Rewards normalised by the statistics of each agent's own returns, where there are
            such
        """
        env = self.normalizer
        if self.is_team_of_one:
            return env.normalize_reward(own)
        if not env.norm_reward or not isinstance(env, VecNormalizeTeam):
            return own
        scaled = own / np.sqrt(env.agent_ret_rms.var + env.epsilon)
        return np.clip(scaled, -env.clip_reward, env.clip_reward).astype(np.float32)

    def _outwards(self, obs: Any, batch_shape: tuple[int, ...]) -> Any:
        """Observation inside all wrappers, as it leaves them."""
        for wrapper in reversed(self._wrappers):
            if isinstance(wrapper, VecTeamOfOne):
                obs = wrapper.join(obs, batch_shape)
            else:
                obs = _transposed(wrapper, obs, (2, 0, 1))
        return obs

    def _inwards(self, obs: Any) -> Any:
        """Observation outside all wrappers, as it arrives from the ``VecNormalize``."""
        for wrapper in self._wrappers:
            if isinstance(wrapper, VecTeamOfOne):
                obs = wrapper.own_observation(obs)
            else:
                obs = _transposed(wrapper, obs, (1, 2, 0))
        return obs


def outer_normalizer(env: VecEnv | None) -> OuterNormalizer | None:
    """
    :param env: Training environment
    :return: ``VecNormalize`` within it, seen from outside; None if it has none
    :raises ValueError: If a wrapper around the ``VecNormalize`` changes observations
    """
    normalizer = None if env is None else unwrap_vec_normalize(env)
    if env is None or normalizer is None:
        return None
    return OuterNormalizer(env, normalizer)


def _changing_wrappers(env: Any, normalizer: VecNormalize) -> list[VecEnvWrapper]:
    """Wrappers around the normaliser that change observations, the outermost first."""
    wrappers: list[VecEnvWrapper] = []
    while env is not normalizer:
        is_transposing = isinstance(env, VecTransposeImage) and not env.skip
        if is_transposing or isinstance(env, VecTeamOfOne):
            wrappers.append(env)
        elif normalizer.norm_obs and env.observation_space != env.venv.observation_space:
            name = type(env).__name__
            raise ValueError(
                f"VecNormalize is inside {name}, which changes observations, and a replay buffer "
                f"holds them before normalisation; put VecNormalize outside: "
                f"VecNormalize({name}(...))."
            )
        env = env.venv
    return wrappers


def _transposed(wrapper: Any, obs: Any, axes: tuple[int, int, int]) -> Any:
    """
    :param wrapper: ``VecTransposeImage``
    :param obs: Observation of one environment or of a batch
    :param axes: New order of the last three axes of images
    :return: Observation with images transposed
    """
    if not isinstance(obs, Mapping):
        return _transposed_image(obs, axes)
    result = dict(obs)
    for key in wrapper.image_space_keys:
        if key in result:
            result[key] = _transposed_image(result[key], axes)
    return result


def _transposed_image(image: np.ndarray, axes: tuple[int, int, int]) -> np.ndarray:
    first = image.ndim - 3
    return np.transpose(image, (*range(first), *(first + axis for axis in axes)))


def _any(obs: Mapping[str, np.ndarray]) -> np.ndarray:
    return next(iter(obs.values()))
