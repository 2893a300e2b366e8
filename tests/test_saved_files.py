"""Files of an earlier version (see ``data/README.md``) load, act and learn as they did."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_happo import HAPPO, JointEnv, make_joint_vec_env
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.state_critics import Critic
from sb3_happo.vec_env import JointDummyVecEnv
from tests.algorithms import random_team
from tests.envs import HeterogeneousTeam

DATA = Path(__file__).parent / "data"
AGENTS = Path(__file__).parents[1] / "zoo" / "agents" / "happo"
EXPECTED = json.loads((DATA / "actions.json").read_text())
MASK = np.array([0, 1, 1, 0, 1], np.int8)


class SmallTeam(HeterogeneousTeam):
    """Two agents: "crane" has hybrid actions, "console" has action masks."""

    def __init__(self) -> None:
        super().__init__()
        self.possible_agents = ["crane", "console"]


def small_team() -> DummyVecEnv:
    return DummyVecEnv([lambda: JointEnv(SmallTeam())] * 2)


def observations(t: int) -> dict[str, np.ndarray]:
    """Fixed observations of step ``t``, drawn as for the file of actions."""
    rng = np.random.default_rng(t)
    crane = rng.uniform(-1, 1, 4).astype(np.float32)
    return {"crane": crane, "console": rng.uniform(-1, 1, 2).astype(np.float32)}


def numbers(action: Any) -> list[float]:
    """Numbers of an action, nested or not, in order."""
    if isinstance(action, dict):
        action = list(action.values())
    if isinstance(action, (list, tuple)):
        return [number for part in action for number in numbers(part)]
    return np.asarray(action, dtype=float).flatten().tolist()


def test_recurrent_team_acts_as_before() -> None:
    model = HAPPO.load(DATA / "happo_lstm.zip", device="cpu")
    assert model.agents == ("crane", "console") and model.num_timesteps == 64
    state = None
    for t, expected in enumerate(EXPECTED["team"]):
        masks = {"console": MASK}
        actions, state = model.predict(observations(t), state, None, True, masks)
        for agent, action in actions.items():
            assert numbers(action) == pytest.approx(numbers(expected[agent]), abs=1e-6)


def test_recurrent_team_learns_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the critic's output layer, which then did not change with the statistics."""
    monkeypatch.setattr(Critic, "change_outputs", lambda critic, change: None)
    model = HAPPO.load(DATA / "happo_lstm.zip", env=small_team(), device="cpu")
    model.set_random_seed(1)
    model.learn(32, reset_num_timesteps=False, log_interval=100)
    assert model.num_timesteps == 96
    assert model.logger.name_to_value["train/n_updates"] == 3
    # Names of parameters may change with the modules, sums of their absolute values not
    sums = sorted(value.double().abs().sum().item() for value in model.policy.parameters())
    assert sums == pytest.approx(sorted(EXPECTED["sums"].values()), rel=1e-4, abs=1e-6)


def test_a_recurrent_teams_actors_learn_as_before() -> None:
    model = HAPPO.load(DATA / "happo_lstm.zip", env=small_team(), device="cpu")
    model.set_random_seed(1)
    model.learn(32, reset_num_timesteps=False, log_interval=100)
    expected = list(EXPECTED["sums"].values())
    for value in model.policy.actors.parameters():
        total = value.double().abs().sum().item()
        assert any(total == pytest.approx(one, rel=1e-4, abs=1e-6) for one in expected)


def test_agent_acts_as_before() -> None:
    policy = AgentPolicy.load(str(DATA / "agent_crane.zip"), device="cpu")
    state = None
    for t, expected in enumerate(EXPECTED["crane"]):
        action, state = policy.predict(observations(t)["crane"], state, deterministic=True)
        assert policy.action_space.contains(action)
        assert numbers(action) == pytest.approx(numbers(expected), abs=1e-6)


def test_normalised_team_acts_and_learns_as_before() -> None:
    expected = EXPECTED["normalized"]
    env = VecNormalize.load(str(DATA / "vec_normalize.pkl"), random_team(2))
    model = HAPPO.load(DATA / "happo_normalized.zip", env=env, device="cpu")
    env.training = False
    given = {}
    for key, values in expected["observations"].items():
        given[key] = np.array(values, np.float32)
    inputs = env.normalize_obs(given)
    assert isinstance(inputs, dict)
    for key, values in expected["inputs"].items():
        assert np.allclose(inputs[key], values, atol=1e-6)
    actions, _ = model.predict(inputs, deterministic=True)
    for agent in model.agents:
        assert np.allclose(actions[agent], expected["actions"][agent], atol=1e-6)
    env.training = True
    model.learn(32, reset_num_timesteps=False)
    assert model.num_timesteps == 96


def test_former_modules_of_saved_classes() -> None:
    """Saved models name the classes of policies and of a given rollout buffer by these modules."""
    from sb3_happo.common import buffers, joint_policy, policies, rollout_buffer

    assert buffers.MultiAgentRolloutBuffer is rollout_buffer.MultiAgentRolloutBuffer
    for name in ("JointPolicy", "LstmJointPolicy", "GruJointPolicy"):
        assert getattr(policies, name) is getattr(joint_policy, name)


def test_shipped_team_plays() -> None:
    """A team of the zoo, with its statistics, plays as well as its record says."""
    pytest.importorskip("mpe2")
    folder = AGENTS / "mpe2-simple_speaker_listener_v4_1"
    record = json.loads((folder / "record.json").read_text())
    env = make_joint_vec_env(
        record["env"], 4, seed=0, vec_env_cls=JointDummyVecEnv, joint_kwargs=dict(team_reward="sum")
    )
    statistics = folder / "mpe2-simple_speaker_listener_v4" / "vecnormalize.pkl"
    normalized = VecNormalize.load(str(statistics), env)
    normalized.training = normalized.norm_reward = False
    model = HAPPO.load(folder / "mpe2-simple_speaker_listener_v4.zip", device="cpu")
    mean, _ = evaluate_policy(model, normalized, n_eval_episodes=40, warn=False)
    assert isinstance(mean, float)
    # The mean of 40 episodes, whose standard deviation is that of the record
    assert abs(mean - record["return"]) < 4 * record["return_std"] / 40**0.5
