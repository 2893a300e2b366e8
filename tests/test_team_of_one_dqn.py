"""A team of one is DQN: with one agent and the same settings, the numbers are SB3's."""

from typing import Any

import pytest
import torch as th
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_vec_env

from sb3_happo import IQL

SETTINGS: dict[str, Any] = dict(
    learning_starts=50,
    learning_rate=1e-3,
    buffer_size=1000,
    train_freq=1,
    target_update_interval=20,
    exploration_fraction=0.9,
    seed=1,
    device="cpu",
)


@pytest.mark.parametrize(
    "more",
    [{}, {"n_steps": 3, "tau": 0.5, "gamma": 0.9}, {"policy_kwargs": {"net_arch": [16]}}],
)
def test_team_of_one_is_dqn(more: dict[str, Any]) -> None:
    """200 gradient steps, with random and greedy actions and ten updates of the targets."""
    models: list[Any] = []
    for algorithm in (IQL, DQN):
        env = make_vec_env("CartPole-v1", 1)
        models.append(algorithm("MlpPolicy", env, **SETTINGS | more).learn(250))
    ours, theirs = models
    assert ours._n_updates == theirs._n_updates == 200
    assert ours.exploration_rate == theirs.exploration_rate
    for mine, other in (
        (ours.policies["agent_0"], theirs.q_net),
        (ours.policy.target_actors[0], theirs.q_net_target),
    ):
        for own, their in zip(mine.parameters(), other.parameters(), strict=True):
            assert th.allclose(own, their, rtol=0, atol=1e-6), (own - their).abs().max()
