"""HACrossQ: numbers of sb3-contrib's CrossQ for a team of one, and batch renormalisation."""

from typing import Any

import pytest
import torch as th
from sb3_contrib import CrossQ
from stable_baselines3.common.env_util import make_vec_env

from sb3_happo import HACrossQ

SETTINGS: dict[str, Any] = dict(
    learning_starts=100, batch_size=64, buffer_size=1000, seed=1, device="cpu"
)


def tensors_of_critic(model: Any) -> list[th.Tensor]:
    """Parameters and statistics of each network of the critic."""
    found = []
    for network in model.critic.networks.networks:
        found += tensors_of(network)
    return found


def tensors_of(layers: Any) -> list[th.Tensor]:
    """The same of Sequential layers."""
    found = []
    for layer in layers:
        if hasattr(layer, "ra_mean"):
            found += [layer.ra_mean, layer.ra_var, layer.scale, layer.bias, layer.steps]
        elif hasattr(layer, "weight"):
            found += [layer.weight, layer.bias]
    return found


@pytest.mark.parametrize(
    ("ent_coef", "n_envs", "kwargs"),
    [
        ("auto", 1, dict(renorm_warmup_steps=40)),
        pytest.param("auto_0.1", 2, dict(batch_norm_momentum=0.1), marks=pytest.mark.slow),
        pytest.param(0.2, 1, dict(batch_norm=False), marks=pytest.mark.slow),
    ],
)
def test_team_of_one_is_crossq(ent_coef: Any, n_envs: int, kwargs: dict[str, Any]) -> None:
    """200 gradient steps, the last 160 of them with the running statistics of the critic."""
    models: list[Any] = []
    for make in (HACrossQ, CrossQ):
        model = make(
            "MlpPolicy",
            make_vec_env("Pendulum-v1", n_envs),
            ent_coef=ent_coef,
            policy_kwargs=dict(net_arch=dict(pi=[32, 32], qf=[32, 24]), **kwargs),
            **SETTINGS,
        )
        models.append(model.learn(100 + 200 * n_envs))
    ours, theirs = models
    assert ours._n_updates == theirs._n_updates == 200
    actor = ours.policies["agent_0"]
    mine = tensors_of(actor.body)
    mine += [*actor.head.weight.chunk(2), *actor.head.bias.chunk(2)]
    mine += tensors_of_critic(ours)
    other = tensors_of(theirs.actor.latent_pi)
    other += [theirs.actor.mu.weight, theirs.actor.log_std.weight]
    other += [theirs.actor.mu.bias, theirs.actor.log_std.bias]
    for network in theirs.critic.q_networks:
        other += tensors_of(network)
    if ours.log_ent_coef is not None:
        mine.append(ours.log_ent_coef)
        other.append(theirs.log_ent_coef)
    difference = max(float((a - b).detach().abs().max()) for a, b in zip(mine, other, strict=True))
    print(f"largest difference {difference:.1e}")
    assert difference < 1e-5
