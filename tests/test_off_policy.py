"""The off-policy family on teams of all kinds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_happo import HACrossQ, JointEnv, evaluate_policy
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.off_policy_algorithm import MultiAgentOffPolicyAlgorithm
from tests.algorithms import PLAIN_SPACES, alike_team
from tests.envs import HeterogeneousTeam, MaskedGame, RandomTeam, TurnGame
from tests.off_policy import ALGORITHMS, small

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS, ids=lambda cls: cls.__name__)


@every_algorithm
@pytest.mark.parametrize("n_envs", [1, 2])
def test_mixed_spaces(algorithm: type[MultiAgentOffPolicyAlgorithm], n_envs: int) -> None:
    team = DummyVecEnv([lambda: JointEnv(RandomTeam(PLAIN_SPACES))] * n_envs)
    model = small(algorithm, team, seed=0)
    before = {agent: policy.head.weight.clone() for agent, policy in model.policies.items()}
    model.learn(60)
    for agent, policy in model.policies.items():
        assert not th.equal(before[agent], policy.head.weight), agent


@every_algorithm
@pytest.mark.parametrize("team", [MaskedGame, TurnGame, HeterogeneousTeam])
def test_masks_turns_and_agents_that_die(
    algorithm: type[MultiAgentOffPolicyAlgorithm], team: Any
) -> None:
    model = small(algorithm, JointEnv(team()), seed=0, n_steps=2).learn(80)
    evaluate_policy(model, JointEnv(team()), 2, warn=False)


@every_algorithm
def test_shared_parameters(algorithm: type[MultiAgentOffPolicyAlgorithm]) -> None:
    box = spaces.Box(-1, 1, (2,))
    for append_agent_id in (False, True):
        kwargs: dict[str, Any] = dict(share_parameters=True, append_agent_id=append_agent_id)
        if algorithm is HACrossQ:
            with pytest.raises(ValueError, match=r"'agent_0', .* batch normalisation"):
                small(algorithm, alike_team(3, box), kwargs)
            kwargs["batch_norm"] = False
        model = small(algorithm, alike_team(3, box), kwargs).learn(60)
        assert model.policies["agent_0"].head is model.policies["agent_2"].head


@every_algorithm
def test_save_load_and_predict(
    algorithm: type[MultiAgentOffPolicyAlgorithm], tmp_path: Path
) -> None:
    env = JointEnv(RandomTeam(PLAIN_SPACES))
    model = small(algorithm, env, seed=0).learn(60)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = algorithm.load(tmp_path / "model", env=JointEnv(RandomTeam(PLAIN_SPACES)))
    loaded.load_replay_buffer(tmp_path / "buffer")
    obs, _ = env.reset(seed=0)
    expected, _ = model.predict(obs, deterministic=True)
    actions, _ = loaded.predict(obs, deterministic=True)
    for agent in model.agents:
        assert np.array_equal(expected[agent], actions[agent])
    loaded.learn(60, reset_num_timesteps=False)
    model.policies["box"].save(tmp_path / "agent")
    alone, _ = AgentPolicy.load(tmp_path / "agent").predict(obs["box"], deterministic=True)
    assert np.array_equal(alone, expected["box"])
