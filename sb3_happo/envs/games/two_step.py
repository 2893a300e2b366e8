"""Two-step game of the QMIX paper."""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.games.drawing import BLACK, YELLOW, Canvas, shade
from sb3_happo.envs.games.game import Game, finite, names

_CELL = 80


class TwoStep(Game):
    """
    Two-step game of Rashid et al. (2018), "QMIX", arXiv 1803.11485: two agents, two actions, one
    reward. In the first step the first agent chooses the matrix of the second step, and nothing is
    paid. In the second step the matrices are::

        after 0:  7  7     after 1:  0  1
                  7  7               1  8

    Optimum: 8: first 1, then both 1. The safe choice is worth 7. Under a partner that plays at
    random the second matrix is worth at most 4.5, so that independent learners choose 7. An
    additive factorisation (VDN) fits the second matrix under uniform exploration by
    (-1.5, 2.5; 2.5, 6.5) and chooses 7 as well; a monotonic one (QMIX) represents it and chooses 8.

    Every agent observes the present state, one-hot: the first step, the second one after 0, the
    second one after 1. At the end it stays that of the second step.

    :param safe: Reward of the second step after 0
    :param render_mode: "rgb_array" or None
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "two_step", "render_fps": 2}

    def __init__(self, safe: float = 7.0, render_mode: str | None = None) -> None:
        #: Rewards of the second step, ``(2, 2, 2)``: first choice, then the actions of both
        self.payoffs = np.array([np.full((2, 2), finite("safe", safe)), [[0.0, 1.0], [1.0, 8.0]]])
        super().__init__(
            names(2),
            [spaces.Box(0, 1, (3,), np.float32) for _ in range(2)],
            [spaces.Discrete(2) for _ in range(2)],
            length=2,
            render_mode=render_mode,
        )
        self._state = 0
        self._played: list[int] = []

    @property
    def optimum(self) -> float:
        """
        :return: Largest return of an episode
        """
        return float(self.payoffs.max())

    def state(self) -> np.ndarray:
        """
        :return: Present state, one-hot, ``(3,)``
        """
        return np.eye(3, dtype=np.float32)[self._state]

    def _begin(self) -> None:
        self._state = 0
        self._played = []

    def _observations(self) -> list[np.ndarray]:
        return [self.state() for _ in self.possible_agents]

    def _play(self, actions: list[Any]) -> list[float]:
        if self._state == 0:
            self._state = 1 + actions[0]
            return [0.0, 0.0]
        self._played = actions
        reward = float(self.payoffs[self._state - 1, actions[0], actions[1]])
        return [reward, reward]

    def _draw(self) -> np.ndarray:
        canvas = Canvas(5 * _CELL, 2 * _CELL)
        high = self.payoffs.max()
        for branch, table in enumerate(self.payoffs):
            start = branch * 3 * _CELL
            for (row, column), value in np.ndenumerate(table):
                left, top = start + column * _CELL, row * _CELL
                colour = shade(0.5 + 0.5 * value / high)
                canvas.rectangle(left, top, _CELL - 1, _CELL - 1, colour)
                canvas.text(left + _CELL / 2, top + _CELL / 2, f"{value:g}", scale=4)
            if self._state == branch + 1:
                canvas.outline(start, 0, 2 * _CELL - 1, 2 * _CELL - 1, BLACK, 4)
        if self._played:
            row, column = self._played
            left = (self._state - 1) * 3 * _CELL + column * _CELL
            canvas.outline(left + 4, row * _CELL + 4, _CELL - 9, _CELL - 9, YELLOW, 4)
        return canvas.pixels
