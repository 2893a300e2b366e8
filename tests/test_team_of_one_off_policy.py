"""A team of one is TD3, or DDPG: with one agent and the same settings, the numbers are SB3's."""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo import HADDPG, HATD3, MADDPG, MATD3
from tests.off_policy import networks_of_critic

SETTINGS: dict[str, Any] = dict(
    learning_starts=100,
    batch_size=64,
    buffer_size=1000,
    seed=1,
    device="cpu",
    policy_kwargs=dict(net_arch=dict(pi=[32, 32], qf=[32, 24])),
)


def pairs(ours: HATD3, theirs: TD3) -> list[tuple[th.Tensor, th.Tensor]]:
    """Parameters of all networks and target networks side by side."""
    mine: list[th.Tensor] = []
    other: list[th.Tensor] = []
    for actor, critic in (
        (ours.policies["agent_0"], ours.critic),
        (ours.policy.target_actors[0], ours.policy.critic_target),
    ):
        mine += [*actor.body.parameters(), *actor.head.parameters()]
        for network in networks_of_critic(critic):
            mine += network
    for their_actor, their_critic in (
        (theirs.actor, theirs.critic),
        (theirs.actor_target, theirs.critic_target),
    ):
        other += [*their_actor.parameters(), *their_critic.parameters()]
    return list(zip(mine, other, strict=True))


def assert_equal(ours: HATD3, theirs: TD3, tolerance: float = 1e-5) -> None:
    assert ours._n_updates == theirs._n_updates
    for mine, other in pairs(ours, theirs):
        assert th.allclose(mine, other, rtol=0, atol=tolerance), (mine - other).abs().max()


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize(
    ("algorithm", "sb3s"), [(HATD3, TD3), (HADDPG, DDPG), (MATD3, TD3), (MADDPG, DDPG)]
)
def test_team_of_one_is_td3(algorithm: type[HATD3], sb3s: type[TD3], n_envs: int) -> None:
    """200 gradient steps, after which every parameter has changed."""
    models: list[Any] = []
    for make in (algorithm, sb3s):
        noise = NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))
        model = make(
            "MlpPolicy", make_vec_env("Pendulum-v1", n_envs), action_noise=noise, **SETTINGS
        )
        models.append(model.learn(100 + 200 * n_envs))
    assert models[1].num_timesteps == 100 + 200 * n_envs and models[1]._n_updates == 200
    assert_equal(*models)


def test_n_steps_correlated_noise_and_several_gradient_steps() -> None:
    """SB3's returns over several steps are those of its ``NStepReplayBuffer``."""
    models: list[Any] = []
    for make in (HATD3, TD3):
        noise = OrnsteinUhlenbeckActionNoise(np.zeros(1), 0.3 * np.ones(1))
        model = make(
            "MlpPolicy",
            make_vec_env("MountainCarContinuous-v0", 2),
            action_noise=noise,
            n_steps=3,
            train_freq=4,
            gradient_steps=-1,
            gamma=0.9,
            learning_rate=lambda progress: 1e-3 * progress,
            **SETTINGS,
        )
        models.append(model.learn(500))
    assert_equal(*models)


def test_normalised_observations_and_rewards() -> None:
    """``VecNormalize``: the buffer keeps the numbers as they are, and normalises samples."""
    models: list[Any] = []
    for make in (HATD3, TD3):
        env = VecNormalize(make_vec_env("Pendulum-v1", 2), gamma=0.99)
        models.append(make("MlpPolicy", env, **SETTINGS).learn(300))
    assert_equal(*models)
