"""Linear system with quadratic costs that are uneven among the agents."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.games.drawing import BLACK, BLUE, GREEN, GREY, RED, YELLOW, Canvas
from sb3_happo.envs.games.game import Game, finite, names, positive

_WIDTH, _HEIGHT = 400, 120
_COLOURS = (BLUE, RED, GREEN, YELLOW)


class LQTeam(Game):
    """
    Team of agents that bring one number to zero, at different costs. The number follows
    ``x' = a x + b (u_1 + ... + u_n)`` from ``x ~ U(-x_range, x_range)``; the team's reward is
    ``-(x^2 + c_1 u_1^2 + ... + c_n u_n^2)``. All agents observe ``x``.

    Optimum: the linear-quadratic regulator, ``u_i = -k_i x``. Its gains solve the Riccati equation
    with discount factor ``gamma``, see :meth:`optimal_gains`, and are inversely proportional to the
    costs. With the defaults and ``gamma = 0.95`` they are 1.067 and 0.356; the expected return of
    20 steps, undiscounted, is -0.398, where doing nothing yields -1.728 and equal gains of the same
    sum -0.416. Agents with shared parameters have equal gains and cannot reach the optimum.

    :param costs: Cost of each agent's action, ``(n_agents,)``, all above 0
    :param length: Steps of an episode, which then is truncated
    :param x_range: Largest absolute value of ``x`` at the start
    :param a: Factor of ``x`` in its own development
    :param b: Factor of the actions
    :param max_action: Bound of the actions, which are in ``[-max_action, max_action]``
    :param render_mode: "rgb_array" or None
    :raises ValueError: If there are no costs, or one of them, a range or a bound is not positive
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "lq_team", "render_fps": 10}

    def __init__(
        self,
        costs: Sequence[float] = (0.1, 0.3),
        length: int = 20,
        x_range: float = 1.0,
        a: float = 0.9,
        b: float = 0.5,
        max_action: float = 2.0,
        render_mode: str | None = None,
    ) -> None:
        checked = [positive(f"costs[{index}]", cost) for index, cost in enumerate(costs)]
        if not checked:
            raise ValueError("costs is empty; it needs the cost of each agent's action.")
        #: Cost of each agent's action, ``(n_agents,)``
        self.costs = np.array(checked)
        self.x_range = positive("x_range", x_range)
        self.a = finite("a", a)
        self.b = finite("b", b)
        self.max_action = positive("max_action", max_action)
        n_agents = len(checked)
        bound = self.max_action
        super().__init__(
            names(n_agents),
            [spaces.Box(-np.inf, np.inf, (1,), np.float32) for _ in range(n_agents)],
            [spaces.Box(-bound, bound, (1,), np.float32) for _ in range(n_agents)],
            length,
            truncate=True,
            render_mode=render_mode,
        )
        self._x = 0.0
        self._actions = np.zeros(n_agents)

    def optimal_gains(self, gamma: float = 0.95) -> np.ndarray:
        """
        Gains of the regulator that maximises the discounted return of an endless episode without
        bounds of the actions.

        :param gamma: Discount factor
        :return: Gains ``k`` of ``u_i = -k_i x``, ``(n_agents,)``
        """
        value = 1.0  # of the cost to go, value * x^2
        gains = np.zeros(len(self.costs))
        for _ in range(10_000):
            curvature = np.diag(self.costs) + gamma * value * self.b**2
            gains = np.linalg.solve(
                curvature, np.full(len(self.costs), gamma * value * self.a * self.b)
            )
            rest = self.a - self.b * gains.sum()
            following = 1.0 + float(self.costs @ gains**2) + gamma * value * rest**2
            if abs(following - value) < 1e-14 * value:
                break
            value = following
        return gains

    def expected_return(self, gains: Sequence[float] | np.ndarray, gamma: float = 1.0) -> float:
        """
        Exact expected return of an episode under linear policies, as long as no action reaches its
        bound.

        :param gains: Gains ``k`` of ``u_i = -k_i x``, ``(n_agents,)``
        :param gamma: Discount factor
        :return: Expected return of the team
        """
        vector = np.asarray(gains, np.float64)
        rest = self.a - self.b * float(vector.sum())
        cost = 1.0 + float(self.costs @ vector**2)
        total = sum((gamma * rest**2) ** step for step in range(self.length))
        return -cost * total * self.x_range**2 / 3.0  # the mean of x^2 at the start

    @property
    def optimum(self) -> float:
        """
        :return: Expected return of an episode, undiscounted, under :meth:`optimal_gains`
        """
        return self.expected_return(self.optimal_gains())

    def state(self) -> np.ndarray:
        """
        :return: Present number, ``(1,)``
        """
        return np.array([self._x], np.float32)

    def _begin(self) -> None:
        self._x = float(self._rng.uniform(-self.x_range, self.x_range))
        self._actions[:] = 0.0

    def _observations(self) -> list[np.ndarray]:
        return [self.state() for _ in self.possible_agents]

    def _play(self, actions: list[Any]) -> list[float]:
        self._actions = np.concatenate(actions)
        reward = -(self._x**2) - float(self.costs @ self._actions**2)
        self._x = self.a * self._x + self.b * float(self._actions.sum())
        return [reward] * len(actions)

    def _draw(self) -> np.ndarray:
        canvas = Canvas(_WIDTH, _HEIGHT)
        middle, unit = _WIDTH / 2, 0.4 * _WIDTH / self.x_range
        canvas.rectangle(0, _HEIGHT / 2, _WIDTH, 2, GREY)
        canvas.rectangle(middle - 1, 0, 2, _HEIGHT, GREY)
        for index, action in enumerate(self._actions):
            width = float(action) * unit * self.b
            top = _HEIGHT / 2 + 12 + 10 * index
            colour = _COLOURS[index % len(_COLOURS)]
            canvas.rectangle(middle + min(width, 0.0), top, abs(width), 8, colour)
        canvas.disc(middle + self._x * unit, _HEIGHT / 2, 10, BLACK)
        return canvas.pixels
