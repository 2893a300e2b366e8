"""A game in turns."""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces
from pettingzoo import AECEnv


class TurnGame(AECEnv):
    """
    Players take turns to choose a number; the number ``turn % 3`` is illegal. The player on turn
    gets the number as its reward, and every other living player loses 0.1. The last player of a
    round after which a player drops out gets 5.

    :param n_players: Number of players
    :param n_rounds: Rounds of an episode
    :param drops_out: ``{player: round}`` after which the player leaves
    :param truncate: Whether the episode ends by truncation
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "turn_game",
        "render_modes": [],
        "is_parallelizable": False,
    }
    render_mode = None

    def __init__(
        self,
        n_players: int = 3,
        n_rounds: int = 4,
        drops_out: dict[str, int] | None = None,
        truncate: bool = False,
    ) -> None:
        super().__init__()
        self.possible_agents = [f"player_{i}" for i in range(n_players)]
        self.n_rounds = n_rounds
        self.drops_out = drops_out or {}
        self.truncate = truncate
        self._observation_space = spaces.Dict(
            {
                "observation": spaces.Box(0, np.inf, (2,), np.float64),
                "action_mask": spaces.MultiBinary(3),
            }
        )
        self._action_spaces = {agent: spaces.Discrete(3) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Space:
        return self._observation_space

    def action_space(self, agent: str) -> spaces.Space:
        return self._action_spaces[agent]

    def observe(self, agent: str) -> dict[str, np.ndarray]:
        """
        :param agent: Player
        :return: Turn, number of the player counted from 1, and action mask
        """
        mask = np.ones(3, np.int8)
        mask[self.turn % 3] = 0
        own = np.array([self.turn, 1.0 + self.possible_agents.index(agent)])
        return {"observation": own, "action_mask": mask}

    def reset(self, seed: int | None = None, options: dict | None = None) -> None:
        self.turn = 0
        self.round = 0
        self.agents = self.possible_agents[:]
        self.rewards = dict.fromkeys(self.agents, 0.0)
        self._cumulative_rewards = dict.fromkeys(self.agents, 0.0)
        self.terminations = dict.fromkeys(self.agents, False)
        self.truncations = dict.fromkeys(self.agents, False)
        self.infos: dict[str, dict] = {agent: {} for agent in self.agents}
        self.agent_selection = self.agents[0]

    def step(self, action: int | None) -> None:
        if self.terminations[self.agent_selection] or self.truncations[self.agent_selection]:
            self._was_dead_step(action)
            return
        agent = self.agent_selection
        assert action != self.turn % 3, f"{agent} took the illegal action {action}"
        assert action is not None
        self._cumulative_rewards[agent] = 0.0
        self.rewards = {other: float(action) if other == agent else -0.1 for other in self.agents}
        self.turn += 1
        living = self.agents[:]
        if agent == living[-1]:
            self.round += 1
            leaving = [other for other in living if self.drops_out.get(other) == self.round]
            if leaving:
                self.rewards[agent] += 5.0
            for other in leaving:
                self.terminations[other] = True
            if self.round == self.n_rounds:
                flags = self.truncations if self.truncate else self.terminations
                flags.update(dict.fromkeys(self.agents, True))
            self.agent_selection = next(
                (other for other in living if not self.terminations[other]), living[0]
            )
        else:
            self.agent_selection = living[living.index(agent) + 1]
        self._accumulate_rewards()
        self._deads_step_first()
