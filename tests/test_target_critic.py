"""The target critic of the on-policy algorithms: whose values count, and in which units."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_happo import HAPPO, IPPO
from sb3_happo.common.joint_policy import JointPolicy
from tests.algorithms import ALGORITHMS
from tests.test_gsde import SMALL, team

NET: dict[str, Any] = dict(net_arch=[16])


def params(module: th.nn.Module) -> th.Tensor:
    return th.nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def make(algorithm: type[HAPPO] = HAPPO, **settings: Any) -> HAPPO:
    return algorithm(team(), policy_kwargs=NET, **SMALL, **settings)


@pytest.mark.parametrize("normalize_value", [False, True])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_with_tau_1_nothing_changes(algorithm: type[HAPPO], normalize_value: bool) -> None:
    """A target critic that copies the critic at each update has the critic's values."""
    plain = make(algorithm, normalize_value=normalize_value).learn(128)
    copied = make(algorithm, normalize_value=normalize_value, target_critic_tau=1.0).learn(128)
    assert plain.policy.target_critic is None and copied.policy.target_critic is not None
    assert th.equal(params(plain.critic), params(copied.critic))
    for agent, policy in plain.policies.items():
        assert th.equal(params(policy), params(copied.policies[agent]))


def test_the_target_takes_over_a_share_at_each_update() -> None:
    model = make(normalize_value=False, target_critic_tau=0.25)
    target = model.policy.target_critic
    assert target is not None
    before = params(target)
    assert th.equal(before, params(model.critic))
    model.learn(32)
    assert th.allclose(params(target), 0.75 * before + 0.25 * params(model.critic), atol=1e-6)


class Values(BaseCallback):
    """Values of the last rollout, and those of the two critics for its observations."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        policy: Any = self.locals["self"].policy
        with th.no_grad():
            self.target = policy.target_critic.predict_values(self.locals["obs"])
            self.critic = policy.critic.predict_values(self.locals["obs"])
        self.last = self.locals["last_values"]


@pytest.mark.parametrize("algorithm", [HAPPO, IPPO])
def test_values_of_the_rollout_are_the_targets(algorithm: type[HAPPO]) -> None:
    model = make(algorithm, target_critic_tau=0.1)
    callback = Values()
    model.learn(96, callback)
    assert th.equal(callback.last, callback.target)
    assert not th.allclose(callback.last, callback.critic)
    obs: Any = {key: th.as_tensor(value) for key, value in team().reset().items()}
    target = model.policy.target_critic
    assert target is not None
    assert th.equal(model.policy(obs).values, target.predict_values(obs))
    assert th.equal(model.policy.predict_values(obs), target.predict_values(obs))


def test_new_statistics_do_not_change_the_targets_values() -> None:
    """
    With a share that is nearly 0, and rewards whose statistics change at each update, the target's
    values stay as they were, in units of reward.
    """
    model = make(target_critic_tau=1e-9)
    obs: Any = {key: th.as_tensor(value) for key, value in team().reset().items()}
    target = model.policy.target_critic
    assert target is not None and target.value_norm is not None
    assert target.value_norm is model.critic.value_norm
    model.learn(32)
    values, statistics = target.step(obs)[0], target.value_norm.mean.clone()
    model.learn(64, reset_num_timesteps=False)
    assert not th.equal(target.value_norm.mean, statistics)
    assert th.allclose(target.step(obs)[0], values, atol=1e-5)


def test_files_hold_it(tmp_path: Path) -> None:
    model = make(target_critic_tau=0.1).learn(64)
    model.save(tmp_path / "model.zip")
    loaded = HAPPO.load(tmp_path / "model.zip", env=team())
    assert loaded.target_critic_tau == 0.1
    target, again = model.policy.target_critic, loaded.policy.target_critic
    assert target is not None and again is not None
    assert th.equal(params(again), params(target))
    assert again.value_norm is loaded.critic.value_norm
    loaded.learn(64, reset_num_timesteps=False)
    model.policy.save(tmp_path / "team.zip")
    policy = JointPolicy.load(tmp_path / "team.zip")
    assert policy.target_critic is not None
    assert th.equal(params(policy.target_critic), params(target))


@pytest.mark.parametrize("tau", [0, -0.1, 1.5, float("nan"), "0.1", True])
def test_wrong_shares_are_named(tau: Any) -> None:
    with pytest.raises(ValueError, match="target_critic_tau must be greater than 0 and at most 1"):
        make(target_critic_tau=tau)
    assert make(target_critic_tau=np.float32(0.5)).target_critic_tau == 0.5


def test_settings_that_do_not_go_together_are_named() -> None:
    with pytest.raises(ValueError, match=r"clip_range_vf.*target_critic_tau.*Omit one"):
        make(target_critic_tau=0.1, clip_range_vf=0.2)
    with pytest.raises(ValueError, match=r"recurrent critic.*enable_critic_lstm=False"):
        HAPPO("MlpLstmPolicy", team(), target_critic_tau=0.1, **SMALL)
    with pytest.raises(ValueError, match=r"HAPPO\(..., target_critic_tau="):
        HAPPO(team(), policy_kwargs=dict(target_critic=True), **SMALL)
    actors_only = dict(enable_critic_lstm=False, lstm_hidden_size=8)
    kwargs = SMALL | dict(policy_kwargs=actors_only)
    HAPPO("MlpLstmPolicy", team(), target_critic_tau=0.1, **kwargs).learn(32)
