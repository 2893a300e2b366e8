"""Grid games 1 and 2 of Hu and Wellman (2003)."""

import itertools
from typing import Any, ClassVar, TypeAlias

import numpy as np

from sb3_happo.envs.games.markov_game import COLOURS, KnownGame, Outcome, draw_board, fill_field

Cell: TypeAlias = tuple[int, int]
State: TypeAlias = tuple[Cell, Cell]

UP, RIGHT, DOWN, LEFT = range(4)
_MOVES = {UP: (-1, 0), RIGHT: (0, 1), DOWN: (1, 0), LEFT: (0, -1)}
_SIZE = 3
_STARTS: State = ((2, 0), (2, 2))
#: Goals of the agents by game
_GOALS: dict[int, State] = {1: ((0, 2), (0, 0)), 2: ((0, 1), (0, 1))}
_GOAL_REWARD = 100.0
_COLLISION_REWARD = -1.0


class GridGame(KnownGame):
    """
    Grid game 1 or 2 of Hu and Wellman, "Nash Q-Learning for General-Sum Stochastic Games", JMLR 4
    (2003).

    Two agents start in the lower corners of a 3x3 grid and move at the same time: 0 up, 1 right,
    2 down, 3 left. An agent that reaches its goal gets 100, and the game ends. Two agents that
    would meet in a cell which is not the goal of both stay where they are and get -1 each. A move
    off the grid has no effect.

    * Game 1: each agent's goal is the upper corner on the other side. In an equilibrium both arrive
      after 4 moves, without a collision. With the discount 0.99 the value of the start is
      ``100 * 0.99^3 = 97.03`` for both.
    * Game 2: both have one goal, the middle of the upper row, and moves up from the lower corners
      succeed with probability 1/2. One agent takes the way through the middle, which is certain,
      and arrives after 3 moves; the other must pass its barrier at once to arrive at the same
      time. With the discount 0.99 the equilibria in pure strategies have the values
      ``(98.01, 49.005)`` and ``(49.005, 98.01)``.

    Both values follow from the number of moves. ``nash_gap`` of :mod:`sb3_happo.tabular` checks
    policies exactly.

    :param game: 1 or 2
    :param random_starts: Start of the episodes in a random state
    :param max_steps: Steps after which an episode is truncated; None for no limit
    :param render_mode: None or "rgb_array"
    :raises ValueError: If ``game`` is neither 1 nor 2
    """

    metadata: ClassVar[dict[str, Any]] = KnownGame.metadata | {"name": "grid_game"}

    def __init__(
        self,
        game: int = 1,
        random_starts: bool = False,
        max_steps: int | None = 100,
        render_mode: str | None = None,
    ) -> None:
        if game not in _GOALS:
            raise ValueError(f"game must be 1 or 2, not {game!r}")
        self.game = int(game)
        self.goals = _GOALS[self.game]
        cells = list(itertools.product(range(_SIZE), repeat=2))
        states = []
        for first, second in itertools.permutations(cells, 2):
            if first != self.goals[0] and second != self.goals[1]:
                states.append((first, second))
        super().__init__(states, (4, 4), random_starts, max_steps, render_mode)

    def initial_states(self) -> list[tuple[float, Any]]:
        """
        :return: The lower corners, with probability 1
        """
        return [(1.0, _STARTS)]

    def outcomes(self, state: State, actions: tuple[int, ...]) -> list[Outcome]:
        """
        :param state: Cells of both agents, ``(row, column)`` each, from the upper left
        :param actions: Moves of both agents
        :return: Possible results
        """
        ways = []
        for cell, action in zip(state, actions, strict=True):
            target = self._target(cell, action)
            if self.game == 2 and action == UP and cell in _STARTS:
                ways.append([(0.5, target), (0.5, cell)])
            else:
                ways.append([(1.0, target)])
        outcomes = []
        for (p_first, first), (p_second, second) in itertools.product(*ways):
            outcomes.append(self._arrive(p_first * p_second, state, (first, second)))
        return outcomes

    @staticmethod
    def _target(cell: Cell, action: int) -> Cell:
        """Cell that a move leads to; the same cell at the edge."""
        row, column = cell[0] + _MOVES[action][0], cell[1] + _MOVES[action][1]
        inside = 0 <= row < _SIZE and 0 <= column < _SIZE
        return (row, column) if inside else cell

    def _arrive(self, probability: float, state: State, targets: State) -> Outcome:
        """Result of moves into these cells."""
        common_goal = targets == self.goals
        if targets[0] == targets[1] and not common_goal:
            return Outcome(probability, state, (_COLLISION_REWARD, _COLLISION_REWARD))
        arrived = [target == goal for target, goal in zip(targets, self.goals, strict=True)]
        rewards = tuple(_GOAL_REWARD * own for own in arrived)
        return Outcome(probability, None if any(arrived) else targets, rewards)

    def render(self) -> np.ndarray | None:
        """
        :return: Image, uint8 ``(height, width, 3)``, with the goals as frames and the agents as
            squares; None without ``render_mode="rgb_array"``
        """
        if self.render_mode is None:
            return None
        image = draw_board(_SIZE, _SIZE)
        for goal, colour in zip(self.goals, COLOURS, strict=True):
            fill_field(image, goal[0], goal[1], colour, margin=2)
            fill_field(image, goal[0], goal[1], (255, 255, 255), margin=5)
        for cell, colour in zip(self.present, COLOURS, strict=True):
            fill_field(image, cell[0], cell[1], colour, margin=9)
        return image
