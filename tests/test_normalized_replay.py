"""Replay buffers behind ``VecNormalize``, wherever it is in the chain of wrappers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import SimpleMultiObsEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecNormalize

from sb3_happo import HATD3, JointEnv
from sb3_happo.vec_env import VecNormalizeTeam
from sb3_happo.vec_env.original_observations import outer_normalizer
from tests.envs import HeterogeneousTeam, RandomTeam
from tests.off_policy import small


def vectors() -> VecEnv:
    return VecNormalize(make_vec_env("Pendulum-v1", 2))


def entries_with_images() -> VecEnv:
    """Images are transposed outside the normaliser."""
    env = DummyVecEnv([lambda: SimpleMultiObsEnv(discrete_actions=False, random_start=False)] * 2)
    return VecNormalize(env, norm_obs_keys=["vec"])


def normalized_images() -> VecEnv:
    env = DummyVecEnv([lambda: SimpleMultiObsEnv(discrete_actions=False, random_start=False)] * 2)
    return VecNormalize(env, norm_obs_keys=["vec", "img"])


def team_with_images() -> VecEnv:
    box = spaces.Box(-1, 1, (2,))
    image = spaces.Box(0, 255, (36, 40, 3), np.uint8)
    observed: dict[str, spaces.Space] = {"eye": image, "hand": spaces.Box(-5, 5, (3,))}

    def team() -> JointEnv:
        return JointEnv(RandomTeam({"eye": box, "hand": box}, observation_spaces=observed))

    keys = ["hand", "state/hand"]
    return VecNormalize(DummyVecEnv([team] * 2), norm_obs_keys=keys)


def team_that_dies() -> VecEnv:
    return VecNormalizeTeam(DummyVecEnv([lambda: JointEnv(HeterogeneousTeam())] * 2))


def plain_team() -> VecEnv:
    box = spaces.Box(-1, 1, (2,))
    return VecNormalize(DummyVecEnv([lambda: JointEnv(RandomTeam({"a": box, "b": box}))] * 2))


def rewards_alone() -> VecEnv:
    return VecNormalize(make_vec_env("Pendulum-v1", 2), norm_obs=False)


@pytest.mark.parametrize(
    "make",
    [vectors, entries_with_images, normalized_images, team_with_images, team_that_dies],
)
def test_samples_are_what_the_agents_saw(make: Callable[[], VecEnv]) -> None:
    """With fixed statistics, transitions of the buffer hold the observations of the training."""
    env: Any = make()
    env.training = False
    for statistics in env.obs_rms.values() if isinstance(env.obs_rms, dict) else [env.obs_rms]:
        statistics.mean = statistics.mean + 0.3
        statistics.var = statistics.var * 4.0
    env.ret_rms.var = np.asarray(9.0)
    model = small(HATD3, env, buffer_size=200, seed=0, learning_starts=100)
    seen: list[dict[str, np.ndarray]] = []
    rewards: list[np.ndarray] = []

    def note(local: dict[str, Any], _: Any) -> bool:
        seen.append(local["new_obs"])
        for info in local["infos"]:
            last = info.get("terminal_observation")
            if last is not None:
                seen.append({key: value[np.newaxis] for key, value in last.items()})
        rewards.append(local["rewards"])
        return True

    model.learn(102, callback=note)
    assert model.replay_buffer is not None
    data = model.replay_buffer.sample(64, model.normalizer)
    shown = {key: np.concatenate([obs[key] for obs in seen]) for key in data.next_observations}
    for key, values in data.next_observations.items():
        known = shown[key].reshape(len(shown[key]), -1)
        for row in values.numpy().reshape(len(values), -1)[:8]:
            assert np.abs(known - row).max(axis=1).min() < 1e-5, key
    known_rewards = np.concatenate(rewards)
    for reward in data.rewards.numpy().ravel()[:8]:
        assert np.abs(known_rewards - reward).min() < 1e-5


@pytest.mark.parametrize(
    "make",
    [vectors, entries_with_images, normalized_images, team_with_images, rewards_alone],
)
def test_normalisation_undone_and_done_again(make: Callable[[], VecEnv]) -> None:
    model = small(HATD3, make(), buffer_size=200)
    assert model.env is not None
    normalizer = outer_normalizer(model.env)
    assert normalizer is not None
    shown: Any = model.env.reset()
    original = normalizer.original_obs(shown)
    again = normalizer.normalize_obs(original)
    assert list(again) == list(shown)
    for key, value in shown.items():
        assert original[key].shape == value.shape
        assert np.allclose(again[key], value, atol=1e-5), key
    last = {key: value[0] for key, value in shown.items()}
    for key, value in normalizer.unnormalize_obs(last).items():
        assert value.shape == last[key].shape


@pytest.mark.parametrize("inner", [vectors, plain_team])
def test_a_wrapper_around_it_that_changes_observations(inner: Callable[[], VecEnv]) -> None:
    with pytest.raises(ValueError, match=r"VecNormalize is inside VecFrameStack.*outside"):
        small(HATD3, VecFrameStack(inner(), 2))
    small(HATD3, VecNormalize(VecFrameStack(make_vec_env("Pendulum-v1", 2), 2))).learn(40)
