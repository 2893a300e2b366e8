"""A team of one is PPO: with one agent and the same settings, HAPPO's numbers are those of SB3's PPO."""

from typing import Any

import gymnasium as gym
import pytest
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from sb3_happo import HAPPO
from sb3_happo.common.critics import ValueNet

N_ENVS, N_STEPS = 4, 128
SETTINGS: dict[str, Any] = dict(
    learning_rate=1e-3,
    n_steps=N_STEPS,
    batch_size=N_ENVS * N_STEPS,
    n_epochs=4,
    gamma=0.98,
    ent_coef=0.01,
    seed=3,
    device="cpu",
)


def pairs(happo: HAPPO, ppo: PPO) -> list[tuple[th.Tensor, th.Tensor]]:
    """The two models' parameters side by side."""
    actor, critic, theirs = happo.policies["agent_0"], happo.critic.networks[0], ppo.policy
    assert isinstance(critic, ValueNet)
    mine: list[th.Tensor] = [
        *actor.body.parameters(),
        *actor.head.parameters(),
        *critic.body.parameters(),
        *critic.head.parameters(),
    ]
    other = [
        *theirs.mlp_extractor.policy_net.parameters(),
        *theirs.action_net.parameters(),
        *theirs.mlp_extractor.value_net.parameters(),
        *theirs.value_net.parameters(),
    ]
    if actor.log_std is not None:
        mine.append(actor.log_std)
        other.append(theirs.log_std)
    return list(zip(mine, other, strict=True))


@pytest.mark.parametrize("extra", [{}, {"clip_range_vf": 0.2}])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_team_of_one_is_ppo(env_id: str, extra: dict[str, Any]) -> None:
    net = dict(net_arch=[64, 64], activation_fn=th.nn.Tanh)
    n_timesteps = 5 * N_ENVS * N_STEPS
    ppo = PPO("MlpPolicy", make_vec_env(env_id, N_ENVS), max_grad_norm=float("inf"), policy_kwargs=net, **SETTINGS, **extra)
    before = [param.detach().clone() for param in ppo.policy.parameters()]
    ppo.learn(n_timesteps)
    happo = HAPPO(
        "MlpPolicy",
        make_vec_env(env_id, N_ENVS),
        max_grad_norm=None,
        normalize_value=False,
        policy_kwargs=dict(rescale_actions=False, **net),
        **SETTINGS,
        **extra,
    )
    happo.learn(n_timesteps)
    for mine, theirs in pairs(happo, ppo):
        assert th.allclose(mine, theirs, atol=1e-5), (mine - theirs).abs().max()
    # The agreement would mean little had nothing been learned
    assert all((old - new).abs().max() > 1e-3 for old, new in zip(before, ppo.policy.parameters(), strict=True))


def test_bare_gymnasium_env_and_minibatches_learn() -> None:
    """A single Gymnasium environment is a team of one, and minibatches serve it as they serve PPO."""
    env = gym.make("CartPole-v1")
    model = HAPPO(env, n_steps=512, batch_size=64, learning_rate=1e-3, seed=0).learn(20_000)
    returns = []
    for episode in range(10):
        obs, _ = env.reset(seed=episode)
        done, total = False, 0.0
        while not done:
            action, _ = model.predict(obs, deterministic=True)
            obs, reward, terminated, truncated, _ = env.step(action)
            done, total = terminated or truncated, total + float(reward)
        returns.append(total)
    assert sum(returns) / len(returns) > 300
