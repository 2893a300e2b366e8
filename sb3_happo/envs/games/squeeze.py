"""Gaussian squeeze: many agents must bring a sum to a place that none of them sees."""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.games.drawing import BLUE, GREY, RED, Canvas
from sb3_happo.envs.games.game import Game, at_least, constant_spaces, finite, names, positive

_WIDTH, _HEIGHT = 450, 200


class GaussianSqueeze(Game):
    """
    Gaussian squeeze of Yang et al. (2018), "Mean Field Multi-Agent Reinforcement Learning", arXiv
    1802.05438: each agent chooses a number from 0 to ``n_choices - 1``; the reward, the same for
    all, is ``G(x) = x exp(-(x - mu)^2 / sigma^2)`` of the sum ``x`` of the numbers. Each agent
    observes the constant 1.

    Optimum: the largest ``G`` of an integer, 423.03 at the sum 445 with the defaults, see
    :attr:`optimum` and :attr:`best_sum`. With 500 agents random play sums up to about 2,250 and
    yields 0.0; with 100 it yields 412.9 and tells nothing.

    :param n_agents: Number of agents
    :param n_choices: Number of choices of each agent
    :param mu: Centre of the Gaussian factor
    :param sigma: Width of the Gaussian factor
    :param render_mode: "rgb_array" or None
    :raises ValueError: If a number is too small
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "gaussian_squeeze"}

    def __init__(
        self,
        n_agents: int = 500,
        n_choices: int = 10,
        mu: float = 400.0,
        sigma: float = 200.0,
        render_mode: str | None = None,
    ) -> None:
        n_agents = at_least("n_agents", n_agents, 1)
        self.n_choices = at_least("n_choices", n_choices, 2)
        self.mu = finite("mu", mu)
        self.sigma = positive("sigma", sigma)
        super().__init__(
            names(n_agents),
            constant_spaces(n_agents),
            [spaces.Discrete(self.n_choices) for _ in range(n_agents)],
            render_mode=render_mode,
        )
        self._sum: int | None = None

    def payoff(self, total: Any) -> Any:
        """
        :param total: Sum of the numbers, or an array of sums
        :return: Reward ``G``, of the same shape
        """
        return total * np.exp(-((total - self.mu) ** 2) / self.sigma**2)

    def _payoffs(self) -> np.ndarray:
        """Rewards of all sums from 0 on."""
        largest = len(self.possible_agents) * (self.n_choices - 1)
        return np.asarray(self.payoff(np.arange(largest + 1.0)))

    @property
    def best_sum(self) -> int:
        """
        :return: Sum with the largest reward
        """
        return int(self._payoffs().argmax())

    @property
    def optimum(self) -> float:
        """
        :return: Largest return of an episode
        """
        return float(self._payoffs().max())

    def _begin(self) -> None:
        self._sum = None

    def _play(self, actions: list[Any]) -> list[float]:
        self._sum = sum(actions)
        return [float(self.payoff(self._sum))] * len(actions)

    def _draw(self) -> np.ndarray:
        """Curve of the rewards, and the sum as a line."""
        canvas = Canvas(_WIDTH, _HEIGHT)
        payoffs = self._payoffs()
        highest = max(float(payoffs.max()), 1e-12)
        scale = (len(payoffs) - 1) / (_WIDTH - 1)
        for column in range(_WIDTH):
            height = float(payoffs[round(column * scale)]) / highest * 0.9 * _HEIGHT
            canvas.rectangle(column, _HEIGHT - height, 1, height, BLUE if height > 1 else GREY)
        if self._sum is not None:
            canvas.rectangle(self._sum / scale - 1, 0, 3, _HEIGHT, RED)
        return canvas.pixels
