"""Means of continuous actions that pass through tanh."""

from pathlib import Path

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_happo import HAPPO, HATD3
from sb3_happo.common.agent_policy import AgentPolicy
from tests.test_gsde import BOX, SMALL, team


def test_means_are_bounded_in_every_form_of_a_policy(tmp_path: Path) -> None:
    """Agents that act in one call, alone, from a file; discrete columns keep their logits."""
    hybrid = spaces.Dict({"push": BOX, "tool": spaces.Discrete(3)})
    env = team(a=BOX, b=BOX, hybrid=hybrid)
    kwargs = dict(tanh_mean=True, output_gain=50.0, log_std_form="constant", log_std_init=-20.0)
    model = HAPPO(env, policy_kwargs=kwargs, **SMALL).learn(64)
    obs = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    batch = dict.fromkeys(model.agents, obs)
    together, _ = model.predict(batch, deterministic=True)
    for agent in ("a", "b"):
        policy = model.policies[agent]
        policy.save(tmp_path / f"{agent}.zip")
        loaded = AgentPolicy.load(tmp_path / f"{agent}.zip")
        taken, _ = loaded.predict(obs, deterministic=True)
        assert loaded.tanh_mean and np.allclose(together[agent], taken, atol=1e-5)
        with th.no_grad():
            params, _ = policy.parameters_of_actions(th.as_tensor(obs))
            latent = policy.body(policy.features_extractor(th.as_tensor(obs)))
            linear = th.nn.functional.linear(latent, policy.head.weight, policy.head.bias)
        assert linear.abs().max() > 1
        assert th.allclose(params, linear.tanh(), atol=1e-6)
    mixed, _ = model.policies["hybrid"].parameters_of_actions(th.as_tensor(obs))
    assert mixed[:, :2].abs().max() <= 1 < mixed[:, 2:].abs().max()


def test_other_heads_and_squashed_actions_refuse_it() -> None:
    with pytest.raises(ValueError, match="tanh_mean=True is for the Gaussian policies"):
        HATD3(team(), policy_kwargs=dict(tanh_mean=True))
    kwargs = dict(tanh_mean=True, squash_output=True)
    with pytest.raises(ValueError, match="omit tanh_mean"):
        HAPPO(team(), use_sde=True, policy_kwargs=kwargs, **SMALL)
