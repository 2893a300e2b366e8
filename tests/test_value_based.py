"""IQL, VDN and QMIX on teams of all kinds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_happo import IQL, QMIX, VDN, JointEnv, evaluate_policy
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.mixers import MonotonicMixer
from sb3_happo.common.networks import NetworkOptions
from sb3_happo.common.value_based_algorithm import ValueBasedAlgorithm
from tests.algorithms import alike_team
from tests.envs import MaskedGame, RandomTeam, TurnGame
from tests.off_policy import small

Algorithm = type[ValueBasedAlgorithm]
every_algorithm = pytest.mark.parametrize(
    "algorithm", [IQL, VDN, QMIX], ids=lambda cls: cls.__name__
)
SPACES: dict[str, spaces.Space] = {
    "choice": spaces.Discrete(3, start=2),
    "choices": spaces.MultiDiscrete([3, 2]),
    "bits": spaces.MultiBinary(3),
    "nested": spaces.Dict(a=spaces.Discrete(2), b=spaces.MultiDiscrete([2, 2])),
}


@every_algorithm
@pytest.mark.parametrize("n_envs", [1, 2])
def test_all_discrete_spaces(algorithm: Algorithm, n_envs: int) -> None:
    team = DummyVecEnv([lambda: JointEnv(RandomTeam(SPACES))] * n_envs)
    model = small(algorithm, team, seed=0, n_steps=2)
    before = {agent: policy.head.weight.clone() for agent, policy in model.policies.items()}
    model.learn(80)
    for agent, policy in model.policies.items():
        assert not th.equal(before[agent], policy.head.weight), agent


@every_algorithm
@pytest.mark.parametrize("double_q", [False, True])
@pytest.mark.parametrize("team", [MaskedGame, TurnGame])
def test_masks_and_turns(algorithm: Algorithm, team: Any, double_q: bool) -> None:
    """Illegal actions raise in these games."""
    model = small(algorithm, JointEnv(team()), seed=0, n_steps=2, double_q=double_q).learn(80)
    evaluate_policy(model, JointEnv(team()), 2, warn=False)
    for policy in model.policies.values():
        assert all(param.abs().max() < 100 for param in policy.parameters())


@every_algorithm
@pytest.mark.parametrize("append_agent_id", [False, True])
def test_shared_parameters(algorithm: Algorithm, append_agent_id: bool) -> None:
    kwargs = dict(share_parameters=True, append_agent_id=append_agent_id)
    model = small(algorithm, alike_team(3, spaces.Discrete(3)), kwargs).learn(60)
    assert model.policies["agent_0"].head is model.policies["agent_2"].head
    separate = small(algorithm, alike_team(3, spaces.Discrete(3)))
    assert separate.policies["agent_0"].head is not separate.policies["agent_2"].head


@every_algorithm
def test_save_load_and_predict(algorithm: Algorithm, tmp_path: Path) -> None:
    env = JointEnv(RandomTeam(SPACES))
    model = small(algorithm, env, seed=0).learn(60)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "team")
    loaded = algorithm.load(tmp_path / "model", env=JointEnv(RandomTeam(SPACES)))
    obs, _ = env.reset(seed=0)
    expected, _ = model.predict(obs, deterministic=True)
    again, _ = type(model.policy).load(tmp_path / "team").predict(obs)
    actions, _ = loaded.predict(obs, deterministic=True)
    for agent in ("choice", "choices", "bits"):
        assert np.array_equal(expected[agent], actions[agent])
        assert np.array_equal(expected[agent], again[agent])
    assert loaded.exploration_rate == model.exploration_rate
    loaded.learn(60, reset_num_timesteps=False)
    model.policies["choices"].save(tmp_path / "agent")
    alone, _ = AgentPolicy.load(tmp_path / "agent").predict(obs["choices"])
    assert np.array_equal(alone, expected["choices"])


class LogCallback(BaseCallback):
    """Names in the log."""

    def _on_step(self) -> bool:
        self.names = set(self.logger.name_to_value)
        return True


@every_algorithm
def test_log(algorithm: Algorithm) -> None:
    callback = LogCallback()
    team = JointEnv(RandomTeam({"a": spaces.Discrete(2), "b": spaces.Discrete(3)}))
    small(algorithm, team, train_freq=1).learn(38, callback=callback)
    wanted = {"rollout/exploration_rate", "train/loss", "a/q_value", "b/q_value"}
    assert wanted <= callback.names, callback.names


@every_algorithm
@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.Tuple([spaces.Box(0, 1, (1,))])])
def test_continuous_actions_are_refused(algorithm: Algorithm, space: spaces.Space) -> None:
    team = JointEnv(RandomTeam({"a": spaces.Discrete(2), "b": space}))
    with pytest.raises(TypeError, match=rf"{algorithm.__name__} .* agent 'b' .* Discrete"):
        small(algorithm, team)


@every_algorithm
@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"exploration_fraction": 0.0}, "exploration_fraction"),
        ({"exploration_final_eps": 1.5}, "exploration_final_eps"),
        ({"target_update_interval": 0}, "target_update_interval"),
        ({"hysteretic": 2.0}, "hysteretic"),
        ({"value_loss": "l1"}, "value_loss"),
        ({"action_noise": object()}, "action_noise"),
        ({"policy_kwargs": {"n_critics": 2}}, "n_critics"),
        ({"policy_kwargs": {"critic_kwargs": {"mixing": 2}}}, "mixing"),
        ({"policy_kwargs": {"recurrent": "gru"}}, "recurrent"),
    ],
)
def test_bad_settings(algorithm: Algorithm, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(algorithm, alike_team(2, spaces.Discrete(2)), **kwargs)


def test_wrapped_team_reward_is_refused_by_iql() -> None:
    """The agents' own rewards would not be those of the wrapper."""

    class Doubled(DummyVecEnv):
        def step_wait(self) -> Any:
            obs, rewards, dones, infos = super().step_wait()
            return obs, 2 * rewards + 1, dones, infos

    team = Doubled([lambda: alike_team(2, spaces.Discrete(2))])
    with pytest.raises(ValueError, match="IQL learns from each agent's own reward"):
        small(IQL, team).learn(30)


@every_algorithm
def test_normalised(algorithm: Algorithm) -> None:
    team = VecNormalize(DummyVecEnv([lambda: alike_team(2, spaces.Discrete(2))]))
    small(algorithm, team).learn(60)


def mixer(n_agents: int = 3) -> tuple[MonotonicMixer, dict[str, th.Tensor]]:
    """A mixer, and states."""
    th.manual_seed(0)
    team = spaces.Dict({"agent": spaces.Box(-1, 1, (2,)), "state": spaces.Box(-9, 9, (4,))})
    options = NetworkOptions(optimizer_kwargs={"fused": False})
    return MonotonicMixer(team, n_agents, lambda _: 1e-3, options, 8, 16), {
        "state": th.randn(64, 4) * 3
    }


def test_mixer_is_monotonic() -> None:
    network, states = mixer()
    values = th.randn(64, 3, requires_grad=True)
    (gradient,) = th.autograd.grad(network(values, states).sum(), values)
    assert (gradient >= 0).all() and gradient.max() > 0.01


def test_mixer_by_hand() -> None:
    """The equations of the paper, row by row."""
    network, states = mixer()
    values = th.randn(64, 3)
    mixed = network(values, states)
    assert mixed.shape == (64, 1)
    for row in range(4):
        state = states["state"][row]
        first = network.first_weights(state).abs().reshape(3, 8)
        hidden = values[row] @ first + network.first_bias(state)
        hidden = th.where(hidden > 0, hidden, hidden.exp() - 1)
        expected = hidden @ network.last_weights(state).abs() + network.last_bias(state)
        assert th.allclose(mixed[row], expected, atol=1e-5)
