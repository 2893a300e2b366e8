"""
The uneven LQ team, whose optimum is known: x' = 0.9 x + 0.5 (u1 + u2) with the reward
-(x^2 + 0.1 u1^2 + 0.3 u2^2). By the Riccati equation u1 = -1.067 x and u2 = -0.356 x, and the mean
return of 20 steps from x in [-1, 1] is -0.398; without actions it is -1.728, with equal gains of
the same sum -0.416. The agents must differ.
"""

from typing import Any, ClassVar

import numpy as np
import pytest
from gymnasium import spaces
from pettingzoo import ParallelEnv
from stable_baselines3.common.noise import NormalActionNoise

from sb3_happo import HADDPG, HATD3, JointEnv

AGENTS = ("agent_0", "agent_1")
COSTS = {"agent_0": 0.1, "agent_1": 0.3}


class LQTeam(ParallelEnv):
    """
    Uneven LQ team. Training episodes are short, so that x is widely spread in the replay buffer.

    :param length: Steps of an episode, which ends by truncation
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "lq_team"}
    render_mode = None

    def __init__(self, length: int = 5) -> None:
        self.possible_agents = list(AGENTS)
        self.length = length

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Box(-2, 2, (1,), np.float32)

    def _observations(self) -> dict[str, np.ndarray]:
        return {agent: np.array([self.x], np.float32) for agent in AGENTS}

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        if seed is not None or not hasattr(self, "random"):
            self.random = np.random.default_rng(seed)
        self.agents = list(AGENTS)
        self.n_steps = 0
        self.x = self.random.uniform(-1, 1)
        return self._observations(), {agent: {} for agent in AGENTS}

    def step(self, actions: dict[str, Any]) -> Any:
        u = {agent: float(actions[agent][0]) for agent in AGENTS}
        reward = -(self.x**2) - sum(COSTS[agent] * u[agent] ** 2 for agent in AGENTS)
        self.x = 0.9 * self.x + 0.5 * sum(u.values())
        self.n_steps += 1
        over = self.n_steps >= self.length
        if over:
            self.agents = []
        return (
            self._observations(),
            dict.fromkeys(AGENTS, reward),
            dict.fromkeys(AGENTS, False),
            dict.fromkeys(AGENTS, over),
            {agent: {} for agent in AGENTS},
        )


def actions_at(model: Any, x: np.ndarray) -> np.ndarray:
    """Deterministic actions at states ``(n,)``, ``(n, 2)``."""
    column = x.astype(np.float32)[:, np.newaxis]
    obs = {**dict.fromkeys(AGENTS, column), "state": np.repeat(column, 2, axis=1)}
    joint, _ = model.predict(obs, deterministic=True)
    return np.concatenate([joint[agent] for agent in AGENTS], axis=1)


def gains_and_return(model: Any) -> tuple[np.ndarray, float]:
    """Gains -u / x by least squares over [-1, 1], and the mean return of 20 steps."""
    x = np.linspace(-0.95, 0.95, 20)  # midpoints of 20 equal parts of [-1, 1]
    gains = -(actions_at(model, x) * x[:, np.newaxis]).sum(axis=0) / np.square(x).sum()
    total = np.zeros_like(x)
    for _ in range(20):
        u = actions_at(model, x)
        total -= np.square(x) + np.square(u) @ np.array(list(COSTS.values()))
        x = 0.9 * x + 0.5 * u.sum(axis=1)
    return gains, float(total.mean())


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [HATD3, HADDPG])
def test_uneven_lq_team(algorithm: type[HATD3]) -> None:
    model = algorithm(
        "MlpPolicy",
        JointEnv(LQTeam()),
        gamma=0.95,
        buffer_size=10_000,
        learning_starts=500,
        action_noise=NormalActionNoise(np.zeros(2), 0.1 * np.ones(2)),
        policy_kwargs={"net_arch": [64, 64]},
        seed=0,
        device="cpu",
    ).learn(10_000)
    (first, second), mean_return = gains_and_return(model)
    print(f"{algorithm.__name__}: gains {first:.3f} and {second:.3f}, return {mean_return:.3f}")
    assert first > 1.5 * second > 0
    assert mean_return >= -0.48
