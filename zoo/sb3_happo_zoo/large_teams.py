"""
Cost of large teams: ``python zoo/speed.py --agents 16 64 256 1024``.

All figures are processor time of one process with one thread of PyTorch, the least of several
repeats, so that other load on the machine counts little. Compare figures of one run.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_happo import HAPPO, IPPO, MAPPO, JointEnv
from sb3_happo.common.batched_actors import BatchedActors
from sb3_happo.common.on_policy_algorithm import MultiAgentOnPolicyAlgorithm
from sb3_happo.common.threads import torch_threads

N_INPUTS = 10
N_CHOICES = 5
#: Steps of a rollout, and thereby rows of each agent in an update
N_ROWS = 32
N_REPEATS = 7

#: Names of the figures, in the order of the table, and their units
FIGURES = {
    "joint step, one agent dead": "ms",
    "data of HAPPO's update": "ms",
    "decision in training, HAPPO": "ms",
    "predict, HAPPO": "ms",
    "decision in training, MAPPO": "ms",
    "predict, MAPPO": "ms",
    "pass of MAPPO's shared network": "ms",
    "pass of one agent with as many rows": "ms",
    "rollout of 1,024 steps, HAPPO": "MB",
    "rollout of 1,024 steps, IPPO": "MB",
}


class Crowd:
    """
    A PettingZoo ``ParallelEnv`` of equal agents, whose own work is small.

    :param n_agents: Number of agents
    :param n_dead: Number of agents that are terminated in the first step of each episode
    :param length: Steps of an episode, which a time limit ends
    """

    render_mode = None

    def __init__(self, n_agents: int, n_dead: int = 0, length: int = 25) -> None:
        self.metadata: dict[str, Any] = {}
        self.possible_agents = [f"agent_{index}" for index in range(n_agents)]
        self.agents = list(self.possible_agents)
        self._observation_space = spaces.Box(-1, 1, (N_INPUTS,), np.float32)
        self._action_space = spaces.Discrete(N_CHOICES)
        rng = np.random.default_rng(0)
        rows = rng.uniform(-1, 1, (n_agents, N_INPUTS)).astype(np.float32)
        self._rows = dict(zip(self.possible_agents, rows, strict=True))
        self._dead = set(self.possible_agents[:n_dead])
        self._length = length
        self._steps = 0

    def observation_space(self, agent: str) -> spaces.Space:
        """
        :param agent: Name of an agent
        :return: Observation space
        """
        return self._observation_space

    def action_space(self, agent: str) -> spaces.Space:
        """
        :param agent: Name of an agent
        :return: Action space
        """
        return self._action_space

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :param seed: Seed, without effect
        :param options: Options, without effect
        :return: Observations and infos
        """
        self.agents = list(self.possible_agents)
        self._steps = 0
        return {agent: self._rows[agent] for agent in self.agents}, {
            agent: {} for agent in self.agents
        }

    def step(self, actions: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """
        :param actions: Action of each living agent
        :return: Observations, rewards, terminations, truncations and infos
        """
        acting = self.agents
        self._steps += 1
        over = self._steps >= self._length
        terminations = dict.fromkeys(acting, False)
        if self._steps == 1:
            terminations.update(dict.fromkeys(self._dead, True))
            self.agents = [agent for agent in acting if agent not in self._dead]
        observations = {agent: self._rows[agent] for agent in acting}
        rewards = {agent: float(actions[agent] == 0) for agent in acting}
        truncations = dict.fromkeys(acting, over)
        if over:
            self.agents = []
        return observations, rewards, terminations, truncations, {agent: {} for agent in acting}

    def render(self) -> None:
        """Nothing to show."""

    def close(self) -> None:
        """Nothing to close."""


def milliseconds(function: Callable[[], Any], n_repeats: int = N_REPEATS) -> float:
    """
    :param function: Function to time
    :param n_repeats: Number of calls
    :return: Least processor time of a call, in milliseconds
    """
    function()
    times = []
    for _ in range(n_repeats):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return 1e3 * min(times)


def joint_step(n_agents: int) -> float:
    """
    :param n_agents: Number of agents, of which one is dead
    :return: Milliseconds of a step of the joint environment
    """
    env = JointEnv(Crowd(n_agents, n_dead=1, length=10**9))
    env.reset()
    action = {agent: np.int64(0) for agent in env.agents}
    env.step(action)
    n_steps = max(1, 2048 // n_agents)

    def steps() -> None:
        for _ in range(n_steps):
            env.step(action)

    return milliseconds(steps) / n_steps


def filled(
    algorithm: type[MultiAgentOnPolicyAlgorithm], n_agents: int, n_steps: int = N_ROWS
) -> MultiAgentOnPolicyAlgorithm:
    """
    :param algorithm: Class of the algorithm
    :param n_agents: Number of agents
    :param n_steps: Steps of the rollout
    :return: Model with a rollout; its networks have not learned
    """
    kwargs: dict[str, Any] = {"n_epochs": 1, "seed": 0, "device": "cpu"}
    model = algorithm("MlpPolicy", Crowd(n_agents), n_steps=n_steps, batch_size=n_steps, **kwargs)

    class Untrained(type(model)):  # type: ignore[misc]
        def train(self) -> None:
            """Leave the networks as they are."""

    model.__class__ = Untrained
    return model.learn(n_steps)


def decision(model: MultiAgentOnPolicyAlgorithm) -> dict[str, float]:
    """
    :param model: Model
    :return: Milliseconds of a decision of the whole team in training, and of ``predict``
    """
    assert model.env is not None
    obs = model.env.reset()
    assert isinstance(obs, dict)
    tensors = {key: th.as_tensor(value) for key, value in obs.items()}
    model.policy.set_training_mode(False)
    actors = BatchedActors(model.policy)
    return {
        "decision in training": milliseconds(
            lambda: actors.to_env_actions(actors(tensors).actions)
        ),
        "predict": milliseconds(lambda: model.predict(obs)),
    }


def update_data(model: MultiAgentOnPolicyAlgorithm) -> dict[str, Any]:
    """
    :param model: Model with a rollout
    :return: Data of an update by agent
    """
    factor = th.ones(model.rollout_buffer.n_rows)
    return {agent: model.rollout_buffer.agent_data(agent, factor) for agent in model.agents}


def shared_pass(n_agents: int) -> float:
    """
    :param n_agents: Number of agents that share one network
    :return: Milliseconds of one pass of the network over the samples of all agents
    """
    model = filled(MAPPO, n_agents)
    data = update_data(model)
    actors: Any = model._update_actors  # type: ignore[attr-defined]
    return milliseconds(lambda: actors(data))


def rollout_megabytes(algorithm: type[MultiAgentOnPolicyAlgorithm], n_agents: int) -> float:
    """
    :param algorithm: Class of the algorithm
    :param n_agents: Number of agents
    :return: Megabytes of a rollout of 1,024 steps
    """
    n_steps = 2
    model = algorithm("MlpPolicy", Crowd(n_agents), n_steps=n_steps, batch_size=None, device="cpu")
    parts: list[th.Tensor] = []
    for value in vars(model.rollout_buffer).values():
        parts += value.values() if isinstance(value, dict) else [value]
    tensors = [part for part in parts if isinstance(part, th.Tensor)]
    return sum(part.nbytes for part in tensors) * 1024 / n_steps / 1e6


def measure_team(n_agents: int) -> dict[str, float]:
    """
    :param n_agents: Number of equal agents
    :return: Figures by name, see :data:`FIGURES`
    """
    happo = filled(HAPPO, n_agents)
    figures = {
        "joint step, one agent dead": joint_step(n_agents),
        "data of HAPPO's update": milliseconds(lambda: update_data(happo)),
    }
    for name, model in {"HAPPO": happo, "MAPPO": filled(MAPPO, n_agents)}.items():
        figures |= {f"{key}, {name}": value for key, value in decision(model).items()}
    figures["pass of MAPPO's shared network"] = shared_pass(n_agents)
    one = filled(HAPPO, 1, n_agents * N_ROWS)
    data = update_data(one)
    actors: Any = one._update_actors  # type: ignore[attr-defined]
    figures["pass of one agent with as many rows"] = milliseconds(lambda: actors(data))
    for algorithm in (HAPPO, IPPO):
        name = f"rollout of 1,024 steps, {algorithm.__name__}"
        figures[name] = rollout_megabytes(algorithm, n_agents)
    return figures


def measure_large_teams(counts: list[int]) -> dict[int, dict[str, float]]:
    """
    :param counts: Numbers of agents
    :return: Figures of each team, see :data:`FIGURES`
    """
    runs = {}
    with torch_threads(1):
        for n_agents in counts:
            figures = measure_team(n_agents)
            runs[n_agents] = {name: round(figures[name], 3) for name in FIGURES}
    return runs


def table(runs: dict[int, dict[str, float]]) -> str:
    """
    :param runs: Figures of each team
    :return: Table in Markdown, one row per figure
    """
    lines = [
        "| | " + " | ".join(f"{n:,} agents" for n in runs) + " |",
        "|---|" + "---|" * len(runs),
    ]
    for name, unit in FIGURES.items():
        cells = [f"{figures[name]:,.3g}" for figures in runs.values()]
        lines.append(f"| {name} ({unit}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)
