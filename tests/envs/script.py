"""An environment that plays back prepared answers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Script(ParallelEnv):
    """
    Environment that plays back prepared answers.

    :param answers: For the reset and each step, ``{agent: (observation, reward, terminated,
        truncated)}``
    :param possible_agents: All agents
    :param living: After the reset and each step, the env's ``agents``; by default the agents of the
        answer that are not flagged
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        answers: Sequence[Mapping[Any, tuple[Any, float, bool, bool]]],
        possible_agents: list[Any],
        living: list[list[Any]] | None = None,
    ) -> None:
        self.answers = answers
        self.possible_agents = possible_agents
        self.living = living
        self.space: spaces.Space | dict[Any, spaces.Space] = spaces.Box(-10, 10, (1,), np.float32)
        self.actions: list[dict[Any, Any]] = []

    def observation_space(self, agent: Any) -> spaces.Space:
        return self.space[agent] if isinstance(self.space, dict) else self.space

    def action_space(self, agent: Any) -> spaces.Space:
        return spaces.Discrete(2)

    def _turn(self) -> tuple[dict, ...]:
        answer = self.answers[self.t]
        self.agents = [agent for agent, (_, _, dead, cut) in answer.items() if not (dead or cut)]
        if self.living is not None:
            self.agents = self.living[self.t]
        observations, rewards, dead, cut = (
            {agent: value[i] for agent, value in answer.items()} for i in range(4)
        )
        observations = {agent: value for agent, value in observations.items() if value is not None}
        return observations, rewards, dead, cut, {agent: {} for agent in answer}

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.t = 0
        observations, _, _, _, infos = self._turn()
        return observations, infos

    def step(self, actions: dict) -> tuple[dict, ...]:
        self.actions.append(actions)
        self.t += 1
        return self._turn()


def one(value: float = 1.0) -> np.ndarray:
    return np.full(1, value, np.float32)
