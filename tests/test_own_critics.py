"""Critics of the team's reward, and of each agent's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_happo import HASAC, HATD3, MADDPG, MATD3, HACrossQ, JointEnv
from sb3_happo.common.critic_choice import rewards_differ
from tests.algorithms import alike_team
from tests.envs import RandomTeam
from tests.off_policy import small

BOX = spaces.Box(-1, 1, (2,))


class OneReward(RandomTeam):
    """All agents get the same reward until step ``start`` of the whole training."""

    def __init__(self, start: float = np.inf) -> None:
        super().__init__({f"agent_{index}": BOX for index in range(3)})
        self.start = start
        self.n_calls = 0

    def step(self, actions: dict[str, Any]) -> Any:
        obs, rewards, *rest = super().step(actions)
        self.n_calls += 1
        common = float(np.mean(list(rewards.values())))
        for index, agent in enumerate(rewards):
            rewards[agent] = common + (index if self.n_calls >= self.start else 0)
        return (obs, rewards, *rest)


@pytest.mark.parametrize("algorithm", [MATD3, pytest.param(MADDPG, marks=pytest.mark.slow)])
def test_one_critic_for_one_reward_and_one_each_where_rewards_differ(
    algorithm: Any, tmp_path: Path
) -> None:
    model = small(algorithm, JointEnv(OneReward()), seed=0).learn(30)
    assert model.critic.n_values == 1
    model = small(algorithm, JointEnv(OneReward(25)), seed=0).learn(24)
    assert model.critic.n_values == 1
    with th.no_grad():
        obs = {key: th.as_tensor(value) for key, value in model.env.reset().items()}
        before = model.critic(obs, th.zeros(1, 6))
    model.learn(20, reset_num_timesteps=False)
    assert model.critic.n_values == model.policy.critic_target.n_values == 3
    assert model.critic(obs, th.zeros(1, 6)).shape == (*before.shape[:2], 3)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=JointEnv(OneReward(0)))
    assert loaded.critic.n_values == 3
    loaded.learn(30, reset_num_timesteps=False)


@pytest.mark.parametrize("algorithm", [HATD3, HACrossQ])
def test_copies_continue_the_critic_of_the_team(algorithm: Any) -> None:
    """Values and the optimiser's moments are those of the team's critic."""
    model = small(algorithm, JointEnv(OneReward()), {"own_critics": "auto"}, seed=0).learn(40)
    obs = {key: th.as_tensor(value) for key, value in model.env.reset().items()}
    model.policy.set_training_mode(False)
    with th.no_grad():
        before = model.critic(obs, th.zeros(1, 6))
        model.policy.split_critics()
        after = model.critic(obs, th.zeros(1, 6))
    assert th.allclose(after, before.expand(-1, -1, 3), atol=1e-6)
    for param in model.critic.parameters():
        assert model.critic.optimizer.state[param]["exp_avg"].shape == param.shape


def test_cooperative_algorithms_learn_the_reward_of_the_team_unless_asked() -> None:
    for algorithm in (HATD3, HASAC):
        assert small(algorithm, alike_team(2, BOX)).learn(30).critic.n_values == 1
    model = small(HASAC, alike_team(2, BOX), {"own_critics": "auto"}).learn(30)
    assert model.critic.n_values == 2
    with pytest.raises(ValueError, match=r"own_critics must be .* 'always'"):
        small(HASAC, alike_team(2, BOX), {"own_critics": "always"})


def test_only_rewards_of_agents_that_are_there_count() -> None:
    nan = np.nan
    assert not rewards_differ(np.array([[1.0, 1.0], [2.0, 2.0]]), None)
    assert rewards_differ(np.array([[1.0, 1.0], [2.0, 2.1]]), None)
    assert not rewards_differ(np.array([[1.0, 0.0]]), np.array([[True, False]]))
    assert not rewards_differ(np.array([[1.0, 0.0]]), np.array([[False, False]]))
    assert not rewards_differ(np.array([[nan, nan]]), None)
