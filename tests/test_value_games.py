"""IQL, VDN, QMIX and HAD3QN in games with known answers, right and wrong ones."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from pettingzoo import ParallelEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_happo import HAD3QN, IQL, QMIX, VDN, JointEnv
from sb3_happo.common.off_policy_algorithm import MultiAgentOffPolicyAlgorithm
from sb3_happo.common.value_based_algorithm import ValueBasedAlgorithm

CLIMBING = [[[11, -30, 0], [-30, 7, 6], [0, 0, 5]]]
PENALTY = [[[10, 0, -100], [0, 2, 0], [-100, 0, 10]]]
#: The first agent's first action chooses the table
TWO_STEP = [[[7, 7], [7, 7]], [[0, 1], [1, 8]]]


class TableGame(ParallelEnv):
    """
    Two agents with a common reward. With several tables there is a step before, without reward.

    :param tables: Rewards of the joint actions
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "table_game", "render_modes": []}
    render_mode = None

    def __init__(self, tables: Any) -> None:
        self.tables = np.asarray(tables, np.float32)
        self.possible_agents = ["a", "b"]
        self.agents: list[str] = []
        self._node: int | None = None

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(0, 1, (1 + len(self.tables),), np.float32)

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(self.tables.shape[1])

    def _observations(self) -> dict[str, np.ndarray]:
        own = np.zeros(1 + len(self.tables), np.float32)
        own[0 if self._node is None else 1 + self._node] = 1.0
        return dict.fromkeys(self.possible_agents, own)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.agents = self.possible_agents[:]
        self._node = None if len(self.tables) > 1 else 0
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        reward, end = 0.0, self._node is not None
        if self._node is None:
            self._node = int(actions["a"])
        else:
            reward = float(self.tables[self._node, int(actions["a"]), int(actions["b"])])
        everyone = self.possible_agents
        if end:
            self.agents = []
        return (
            self._observations(),
            dict.fromkeys(everyone, reward),
            dict.fromkeys(everyone, end),
            dict.fromkeys(everyone, False),
            {agent: {} for agent in everyone},
        )


def play(model: MultiAgentOffPolicyAlgorithm, env: Any) -> float:
    """Return of one episode of the greedy team."""
    obs, _ = env.reset()
    total, end = 0.0, False
    while not end:
        actions, _ = model.predict(obs, deterministic=True)
        obs, reward, end, _, _ = env.step(actions)
        total += reward
    return total


CASES = [
    (IQL, CLIMBING, 5),
    (IQL, PENALTY, 2),
    (IQL, TWO_STEP, 7),
    (VDN, TWO_STEP, 7),
    (QMIX, TWO_STEP, 8),
    (HAD3QN, TWO_STEP, 8),
]


def learn(
    algorithm: type[ValueBasedAlgorithm], tables: Any, seed: int, timesteps: int
) -> ValueBasedAlgorithm:
    """Training on uniformly random actions, by which the answers are computed."""
    return algorithm(
        "MlpPolicy",
        DummyVecEnv([lambda: JointEnv(TableGame(tables))] * 16),
        learning_starts=480,
        learning_rate=3e-3,
        buffer_size=10_000,
        train_freq=1,
        gradient_steps=4,
        batch_size=64,
        target_update_interval=160,
        exploration_final_eps=1.0,
        value_loss="mse",
        policy_kwargs={"net_arch": [32]},
        seed=seed,
        device="cpu",
    ).learn(timesteps)


@pytest.mark.parametrize(("algorithm", "tables", "answer"), CASES)
def test_games(algorithm: type[ValueBasedAlgorithm], tables: Any, answer: float) -> None:
    model = learn(algorithm, tables, 0, 2000 if algorithm is QMIX else 1200)
    assert play(model, JointEnv(TableGame(tables))) == answer


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
@pytest.mark.parametrize(("algorithm", "tables", "answer"), CASES)
def test_games_of_several_seeds(
    algorithm: type[ValueBasedAlgorithm], tables: Any, answer: float, seed: int
) -> None:
    model = learn(algorithm, tables, seed, 6000)
    assert play(model, JointEnv(TableGame(tables))) == answer


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("tables", "answers"), [(CLIMBING, {11, 7}), (PENALTY, {10, 2})])
def test_had3qn_ends_where_no_agent_alone_can_improve(
    tables: Any, answers: set[int], seed: int
) -> None:
    model = learn(HAD3QN, tables, seed, 2000)
    found = play(model, JointEnv(TableGame(tables)))
    print(f"seed {seed}: {found}")
    assert found in answers


class Mortal(TableGame):
    """
    Three steps. Agent "a" gets 1 per step, agent "b" 5 at the first step, after which it is gone.
    """

    def __init__(self) -> None:
        super().__init__(np.zeros((1, 2, 2)))
        self._t = 0

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self._t = 0
        return super().reset(seed, options)

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        self._t += 1
        present = self.agents
        own = np.array([0.0, self._t / 3], np.float32)
        rewards = {"a": 1.0, "b": 5.0}
        ended = {"a": self._t == 3, "b": True}
        self.agents = [agent for agent in present if not ended[agent]]
        return (
            dict.fromkeys(present, own),
            {agent: rewards[agent] for agent in present},
            {agent: ended[agent] for agent in present},
            dict.fromkeys(present, False),
            {agent: {} for agent in present},
        )


@pytest.mark.parametrize("algorithm", [IQL, VDN, QMIX, HAD3QN])
def test_agents_that_die(algorithm: type[ValueBasedAlgorithm]) -> None:
    """The dead have no value: 3 and 5 at the first step, or 8 together."""
    model = algorithm(
        "MlpPolicy",
        DummyVecEnv([lambda: JointEnv(Mortal(), team_reward="sum")] * 8),
        learning_starts=160,
        learning_rate=5e-3,
        buffer_size=2000,
        train_freq=1,
        gradient_steps=4,
        gamma=1.0,
        target_update_interval=80,
        value_loss="mse",
        policy_kwargs={"net_arch": [32]},
        seed=0,
        device="cpu",
    ).learn(720)
    obs: Any = model.env.reset()  # type: ignore[union-attr]
    tensors = {key: th.as_tensor(value[:1]) for key, value in obs.items()}
    values = []
    for agent in model.agents:
        own = model.policy.values(tensors, agent)
        values.append(model.policy.best(own, agent).item())
    if algorithm is IQL:
        assert np.allclose(values, [3, 5], atol=0.4), values
    elif algorithm is HAD3QN:
        joint = model.critic(tensors).max().item()
        assert abs(joint - 8) < 0.6, joint
        assert np.allclose(values, joint, atol=1.5), values
    else:
        joint = model.critic(th.tensor([values]), tensors).item()
        assert abs(joint - 8) < 0.6, joint
