"""HASAC and MASAC: numbers of SB3's SAC for a team of one, and games with known answers."""

from typing import Any

import pytest
import torch as th
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env

from sb3_happo import HASAC, MASAC
from tests.off_policy import networks_of_critic

SETTINGS: dict[str, Any] = dict(
    learning_starts=100,
    batch_size=64,
    buffer_size=1000,
    seed=1,
    device="cpu",
    policy_kwargs=dict(net_arch=dict(pi=[32, 32], qf=[32, 24])),
)


@pytest.mark.parametrize(
    ("algorithm", "ent_coef"),
    [
        (HASAC, "auto"),
        (MASAC, 0.2),
        pytest.param(HASAC, "auto_0.1", marks=pytest.mark.slow),
        pytest.param(HASAC, 0.2, marks=pytest.mark.slow),
        pytest.param(MASAC, "auto", marks=pytest.mark.slow),
    ],
)
def test_team_of_one_is_sac(algorithm: type[HASAC], ent_coef: Any) -> None:
    """200 gradient steps, after which every parameter has changed."""
    models: list[Any] = []
    for make in (algorithm, SAC):
        # SB3's SAC adds to the dictionary
        settings = SETTINGS | {"policy_kwargs": dict(SETTINGS["policy_kwargs"])}
        model = make("MlpPolicy", make_vec_env("Pendulum-v1", 1), ent_coef=ent_coef, **settings)
        models.append(model.learn(300))
    ours, theirs = models
    assert ours._n_updates == theirs._n_updates == 200
    actor = ours.policies["agent_0"]
    mine = [*actor.body.parameters()]
    mine += [*actor.head.weight.chunk(2), *actor.head.bias.chunk(2)]
    other = [*theirs.actor.latent_pi.parameters()]
    other += [theirs.actor.mu.weight, theirs.actor.log_std.weight]
    other += [theirs.actor.mu.bias, theirs.actor.log_std.bias]
    for critic in (ours.critic, ours.policy.critic_target):
        for network in networks_of_critic(critic):
            mine += network
    other += [*theirs.critic.parameters(), *theirs.critic_target.parameters()]
    if ours.log_ent_coef is not None:
        mine.append(ours.log_ent_coef)
        other.append(theirs.log_ent_coef)
    for own, sb3s in zip(mine, other, strict=True):
        assert th.allclose(own, sb3s, rtol=0, atol=1e-5), (own - sb3s).abs().max()


@pytest.mark.parametrize("ent_coef", ["other", "auto_0", "auto_x", -1.0, True])
def test_wrong_temperatures(ent_coef: Any) -> None:
    with pytest.raises(ValueError, match="ent_coef"):
        HASAC("MlpPolicy", make_vec_env("Pendulum-v1", 1), ent_coef=ent_coef, device="cpu")
