"""Levers: a game of pure coordination among agents who do not know one another."""

import math
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.games.drawing import BLACK, BLUE, GREY, Canvas
from sb3_happo.envs.games.game import Game, at_least, names

_CELL = 40


class Levers(Game):
    """
    Levers of Sukhbaatar et al. (2016), "Learning Multiagent Communication with Backpropagation",
    arXiv 1605.07736: as many agents as levers are drawn from a pool, and each pulls one lever. Each
    observes its own number in the pool and nothing else. The reward is the same for all,
    ``(d - 1) / (n_levers - 1)`` with ``d`` different levers pulled, as in the paper's code; with
    ``reward="share"`` it is ``d / n_levers``.

    Optimum: 1, which needs communication: the agents sort their numbers. Without communication
    every agent pulls a fixed lever for each number, at best with equally many numbers for each
    lever, see :meth:`best_without_messages`; random play yields :meth:`random_play`. With 500
    numbers and 5 levers these are 0.5925 and 0.5904, counted as ``(d - 1) / 4``: a value of 0.59 is
    that of random play. The paper's communicating agents reach 0.94.

    :param n_levers: Number of levers and of agents in a game
    :param pool: Number of agents in the pool
    :param reward: "distinct" for ``(d - 1) / (n_levers - 1)``, "share" for ``d / n_levers``
    :param render_mode: "rgb_array" or None
    :raises ValueError: If the pool is smaller than the number of levers, or an argument is unknown
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "levers"}

    def __init__(
        self,
        n_levers: int = 5,
        pool: int = 500,
        reward: str = "distinct",
        render_mode: str | None = None,
    ) -> None:
        self.n_levers = at_least("n_levers", n_levers, 2)
        self.pool = at_least("pool", pool, self.n_levers)
        if reward not in ("distinct", "share"):
            raise ValueError(f"reward must be 'distinct' or 'share', not {reward!r}.")
        self.reward = reward
        super().__init__(
            names(self.n_levers),
            [spaces.Discrete(self.pool) for _ in range(self.n_levers)],
            [spaces.Discrete(self.n_levers) for _ in range(self.n_levers)],
            render_mode=render_mode,
        )
        self._drawn = np.zeros(self.n_levers, np.int64)
        self._pulled: list[int] = []

    @property
    def optimum(self) -> float:
        """
        :return: Largest return of an episode
        """
        return 1.0

    def payoff(self, n_distinct: float) -> float:
        """
        :param n_distinct: Number of different levers pulled, or its mean
        :return: Reward
        """
        if self.reward == "share":
            return n_distinct / self.n_levers
        return (n_distinct - 1.0) / (self.n_levers - 1.0)

    def random_play(self) -> float:
        """
        :return: Expected return if all agents pull levers at random
        """
        missed = (1.0 - 1.0 / self.n_levers) ** self.n_levers
        return self.payoff(self.n_levers * (1.0 - missed))

    def best_without_messages(self) -> float:
        """
        :return: Largest expected return of agents that know only their own number
        """
        numbers, more = divmod(self.pool, self.n_levers)
        n_distinct = 0.0
        for lever in range(self.n_levers):
            others = self.pool - numbers - (lever < more)  # numbers that pull another lever
            missed = math.comb(others, self.n_levers) / math.comb(self.pool, self.n_levers)
            n_distinct += 1.0 - missed
        return self.payoff(n_distinct)

    def _begin(self) -> None:
        self._drawn = self._rng.choice(self.pool, self.n_levers, replace=False)
        self._pulled = []

    def _observations(self) -> list[np.int64]:
        return [np.int64(number) for number in self._drawn]

    def _play(self, actions: list[Any]) -> list[float]:
        self._pulled = actions
        return [self.payoff(len(set(actions)))] * self.n_levers

    def _draw(self) -> np.ndarray:
        """Levers as columns, and above each the agents that pull it."""
        canvas = Canvas(self.n_levers * _CELL, (self.n_levers + 1) * _CELL)
        bottom = self.n_levers * _CELL
        for lever in range(self.n_levers):
            canvas.rectangle(lever * _CELL + 4, bottom + 4, _CELL - 8, _CELL - 8, GREY)
            count = self._pulled.count(lever)
            canvas.text((lever + 0.5) * _CELL, bottom + _CELL / 2, str(count), BLACK)
            for place in range(count):
                y = bottom - (place + 0.5) * _CELL
                canvas.disc((lever + 0.5) * _CELL, y, 0.4 * _CELL, BLUE)
        return canvas.pixels
