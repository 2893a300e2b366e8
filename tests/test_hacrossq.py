"""HACrossQ: numbers of sb3-contrib's CrossQ for a team of one, and batch renormalisation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import CrossQ
from stable_baselines3.common.env_util import make_vec_env

from sb3_happo import HAD3QN, HAPPO, HASAC, HACrossQ, JointEnv
from sb3_happo.common.agent_policy import AgentPolicy
from tests.algorithms import PLAIN_SPACES, alike_team
from tests.envs import RandomTeam
from tests.off_policy import networks_of_critic, small

BOX = spaces.Box(-1, 1, (2,))

SETTINGS: dict[str, Any] = dict(
    learning_starts=100, batch_size=64, buffer_size=1000, seed=1, device="cpu"
)


def tensors_of_critic(model: Any) -> list[th.Tensor]:
    """Parameters and statistics of each network of the critic."""
    separate = getattr(model.critic.networks, "networks", None)
    found = []
    if separate is None:
        for params in networks_of_critic(model.critic):
            found += params
    for network in separate or ():
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


def test_agents_act_by_their_running_statistics(tmp_path: Path) -> None:
    """An answer does not depend on the batch, nor on whether an agent acts alone or is exported."""
    pytest.importorskip("onnxruntime")
    env = JointEnv(RandomTeam(PLAIN_SPACES))
    model = small(HACrossQ, env, seed=0).learn(60)
    obs, _ = env.reset(seed=0)
    expected, _ = model.predict(obs, deterministic=True)
    model.policies["box"].save(tmp_path / "agent")
    alone = AgentPolicy.load(tmp_path / "agent")
    several = np.stack([obs["box"], 2 * obs["box"]])
    for policy in (alone, model.policies["box"]):
        one, _ = policy.predict(obs["box"], deterministic=True)
        both, _ = policy.predict(several, deterministic=True)
        assert np.array_equal(one, expected["box"])
        assert np.allclose(both[0], one, atol=1e-6)
    # Compares the file with `predict`
    assert alone.export_onnx(tmp_path / "agent.onnx").largest_difference < 1e-4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"tau": 0.1}, "no target networks"),
        ({"batch_size": 1}, "batch_size"),
        ({"policy_delay": 0}, "policy_delay"),
    ],
)
def test_bad_settings(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HACrossQ("MlpPolicy", alike_team(2, BOX), device="cpu", **kwargs)


@pytest.mark.parametrize("algorithm", [HASAC, HAPPO])
def test_batch_normalisation_is_refused_elsewhere(algorithm: Any) -> None:
    with pytest.raises(ValueError, match="batch_norm=True is supported by HACrossQ"):
        algorithm("MlpPolicy", alike_team(2, BOX), policy_kwargs={"batch_norm": True})


def test_too_many_joint_actions_are_refused_by_had3qn() -> None:
    with pytest.raises(ValueError, match=r"32,768 .*'agent_0' 32"):
        HAD3QN("MlpPolicy", alike_team(3, spaces.Discrete(32)), device="cpu")
    with pytest.raises(ValueError, match="double_q"):
        HAD3QN("MlpPolicy", alike_team(2, spaces.Discrete(2)), double_q=True)
