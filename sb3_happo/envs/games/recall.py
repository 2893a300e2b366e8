"""Games of memory: what is needed at the end is shown at the beginning."""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.games.drawing import BLACK, BLUE, GREEN, GREY, RED, YELLOW, Canvas
from sb3_happo.envs.games.game import Game, at_least, names

_CELL = 40
_COLOURS = (RED, BLUE, GREEN, YELLOW)


def _one_hot(value: int, n_values: int) -> np.ndarray:
    vector = np.zeros(n_values, np.float32)
    vector[value] = 1.0
    return vector


def _draw_rows(marks: list[dict[int, int]], n_steps: int, now: int) -> np.ndarray:
    """
    Time line of each agent.

    :param marks: For each agent the value to show at each step
    :param n_steps: Number of steps
    :param now: Present step
    :return: Picture, ``(height, width, 3)``
    """
    canvas = Canvas(n_steps * _CELL, len(marks) * _CELL)
    for row, values in enumerate(marks):
        for step in range(n_steps):
            colour = GREY
            if step in values:
                colour = _COLOURS[values[step] % len(_COLOURS)]
            canvas.rectangle(step * _CELL + 2, row * _CELL + 2, _CELL - 4, _CELL - 4, colour)
            if step in values:
                canvas.text((step + 0.5) * _CELL, (row + 0.5) * _CELL, str(values[step]))
    canvas.outline(min(now, n_steps - 1) * _CELL, 0, _CELL, len(marks) * _CELL, BLACK)
    return canvas.pixels


class Recall(Game):
    """
    Each agent observes a cue of its own at the first step, one-hot, and zeros afterwards. At the
    last step, ``delay`` steps after the cue, its action must be the cue. The reward, the same for
    all, is the share of the agents that are right.

    Optimum: 1. Without memory the observation at the last step is the same for all cues, and the
    expected return is at most ``1 / n_cues``, see :attr:`best_without_memory`.

    :param n_agents: Number of agents
    :param n_cues: Number of cues
    :param delay: Steps from the cue to the answer
    :param render_mode: "rgb_array" or None
    :raises ValueError: If a number is too small
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "recall"}

    def __init__(
        self,
        n_agents: int = 2,
        n_cues: int = 2,
        delay: int = 10,
        render_mode: str | None = None,
    ) -> None:
        n_agents = at_least("n_agents", n_agents, 1)
        self.n_cues = at_least("n_cues", n_cues, 2)
        self.delay = at_least("delay", delay, 1)
        super().__init__(
            names(n_agents),
            [spaces.Box(0, 1, (self.n_cues,), np.float32) for _ in range(n_agents)],
            [spaces.Discrete(self.n_cues) for _ in range(n_agents)],
            length=self.delay + 1,
            render_mode=render_mode,
        )
        self._cues = np.zeros(n_agents, np.int64)
        self._answers: list[int] = []

    @property
    def optimum(self) -> float:
        """
        :return: Largest return of an episode
        """
        return 1.0

    @property
    def best_without_memory(self) -> float:
        """
        :return: Largest expected return of agents without memory
        """
        return 1.0 / self.n_cues

    def _begin(self) -> None:
        self._cues = self._rng.integers(self.n_cues, size=len(self.possible_agents))
        self._answers = []

    def _observations(self) -> list[np.ndarray]:
        if self._t == 0:
            return [_one_hot(int(cue), self.n_cues) for cue in self._cues]
        return [np.zeros(self.n_cues, np.float32) for _ in self._cues]

    def _play(self, actions: list[Any]) -> list[float]:
        reward = 0.0
        if self._t == self.delay:
            self._answers = actions
            reward = float(np.mean(np.array(actions) == self._cues))
        return [reward] * len(actions)

    def _draw(self) -> np.ndarray:
        marks = [{0: int(cue)} for cue in self._cues]
        for index, answer in enumerate(self._answers):
            marks[index][self.delay] = answer
        return _draw_rows(marks, self.length, self._t)


class Relay(Game):
    """
    A game of memory and of a message. ``scout`` observes a cue, 0 or 1, at the first step, and
    nothing later. Its action at that step is observed by ``runner`` at the second step. At the last
    step, ``delay`` steps after the cue, both get 1 if the action of ``runner`` equals the cue, else
    0.

    Optimum: 1; the two must agree on the meaning of the message. If ``runner`` has no memory and
    ``delay`` is larger than 1, the expected return is at most 0.5.

    :param delay: Steps from the cue to the answer
    :param render_mode: "rgb_array" or None
    :raises ValueError: If the delay is too small
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "relay"}

    def __init__(self, delay: int = 10, render_mode: str | None = None) -> None:
        self.delay = at_least("delay", delay, 1)
        super().__init__(
            ["scout", "runner"],
            [spaces.Box(0, 1, (2,), np.float32) for _ in range(2)],
            [spaces.Discrete(2) for _ in range(2)],
            length=self.delay + 1,
            render_mode=render_mode,
        )
        self._cue = 0
        self._message = 0
        self._answer: int | None = None

    @property
    def optimum(self) -> float:
        """
        :return: Largest return of an episode
        """
        return 1.0

    def _begin(self) -> None:
        self._cue = int(self._rng.integers(2))
        self._answer = None

    def _observations(self) -> list[np.ndarray]:
        nothing = np.zeros(2, np.float32)
        if self._t == 0:
            return [_one_hot(self._cue, 2), nothing]
        if self._t == 1:
            return [nothing, _one_hot(self._message, 2)]
        return [nothing, nothing.copy()]

    def _play(self, actions: list[Any]) -> list[float]:
        message, answer = actions
        if self._t == 0:
            self._message = message
        reward = 0.0
        if self._t == self.delay:
            self._answer = answer
            reward = float(answer == self._cue)
        return [reward, reward]

    def _draw(self) -> np.ndarray:
        scout, runner = {0: self._cue}, {}
        if self._t >= 1:
            runner[1] = self._message
        if self._answer is not None:
            runner[self.delay] = self._answer
        return _draw_rows([scout, runner], self.length, self._t)
