"""Soccer of Littman (1994)."""

import itertools
from typing import Any, ClassVar, TypeAlias

import numpy as np

from sb3_happo.envs.games.markov_game import COLOURS, KnownGame, Outcome, draw_board, fill_field

Cell: TypeAlias = tuple[int, int]
#: Cells of both players, and the player that has the ball
State: TypeAlias = tuple[Cell, Cell, int]

NORTH, EAST, SOUTH, WEST, STAND = range(5)
_MOVES = {NORTH: (-1, 0), EAST: (0, 1), SOUTH: (1, 0), WEST: (0, -1), STAND: (0, 0)}


class Soccer(KnownGame):
    """
    Soccer on a small field, of Littman, "Markov games as a framework for multi-agent reinforcement
    learning", ICML 1994. A zero-sum game.

    The actions are 0 north, 1 east, 2 south, 3 west, 4 stand. Both are chosen at the same time and
    carried out one after the other, in an order drawn with equal probability. A player that would
    enter the other one's cell does not move, and the other one has the ball then. ``agent_0``
    scores by carrying the ball off the left edge in a row of the goal, ``agent_1`` off the right
    edge. The scorer gets 1, the other player -1, and the game ends. Other moves off the field have
    no effect. The first owner of the ball is drawn.

    Optimal play is random. With the discount 0.9 the value of the start for the owner of the ball,
    computed exactly by Shapley iteration (:func:`~sb3_happo.tabular.shapley_iteration`), is
    0.2185 on the field of 4x5, which has 760 states, and 0.2594 on the field of 2x3, which has 60.
    Before the ball is drawn it is 0, by symmetry.

    :param n_rows: Rows of the field, at least 2
    :param n_columns: Columns of the field, at least 3
    :param random_starts: Start of the episodes in a random state
    :param max_steps: Steps after which an episode is truncated; None for no limit
    :param render_mode: None or "rgb_array"
    :raises ValueError: If the field is too small
    """

    metadata: ClassVar[dict[str, Any]] = KnownGame.metadata | {"name": "soccer"}

    def __init__(
        self,
        n_rows: int = 4,
        n_columns: int = 5,
        random_starts: bool = False,
        max_steps: int | None = 100,
        render_mode: str | None = None,
    ) -> None:
        if n_rows < 2 or n_columns < 3:
            raise ValueError(
                f"The field needs at least 2 rows and 3 columns, not {n_rows} and {n_columns}"
            )
        self.n_rows = n_rows
        self.n_columns = n_columns
        margin = (n_rows - 1) // 2 if n_rows > 2 else 0
        #: Rows of both goals
        self.goal_rows = range(margin, n_rows - margin)
        cells = list(itertools.product(range(n_rows), range(n_columns)))
        states = []
        for first, second in itertools.permutations(cells, 2):
            states += [(first, second, 0), (first, second, 1)]
        super().__init__(states, (5, 5), random_starts, max_steps, render_mode)

    def initial_states(self) -> list[tuple[float, Any]]:
        """
        :return: The middle rows, ``agent_0`` in the right half and ``agent_1`` in the left half,
            with the ball for either of them
        """
        middle = (self.n_columns - 1) / 2
        distance = max(1.0, (self.n_columns // 2) / 2) if self.n_columns % 2 else 0.5
        upper = (self.n_rows - 1) // 2
        lower = self.n_rows // 2
        right, left = int(middle + distance), int(np.ceil(middle - distance))
        return [(0.5, ((upper, right), (lower, left), owner)) for owner in (0, 1)]

    def outcomes(self, state: State, actions: tuple[int, ...]) -> list[Outcome]:
        """
        :param state: Cells of both players, ``(row, column)`` each, from the upper left, and the
            player with the ball
        :param actions: Actions of both players
        :return: Possible results
        """
        results = [self._play(state, actions, order) for order in ((0, 1), (1, 0))]
        if results[0] == results[1]:
            return [Outcome(1.0, *results[0])]
        return [Outcome(0.5, *result) for result in results]

    def _play(
        self, state: State, actions: tuple[int, ...], order: tuple[int, int]
    ) -> tuple[State | None, tuple[float, ...]]:
        """Next state and rewards for one order of the actions."""
        cells = [state[0], state[1]]
        ball = state[2]
        for player in order:
            move = _MOVES[actions[player]]
            row, column = cells[player][0] + move[0], cells[player][1] + move[1]
            if ball == player and self._is_goal(row, column, player):
                return None, (1.0, -1.0) if player == 0 else (-1.0, 1.0)
            inside = 0 <= row < self.n_rows and 0 <= column < self.n_columns
            if (row, column) == cells[1 - player]:
                ball = 1 - player
            elif inside:
                cells[player] = (row, column)
        return (cells[0], cells[1], ball), (0.0, 0.0)

    def _is_goal(self, row: int, column: int, player: int) -> bool:
        """True for the place outside of the field where this player scores."""
        return row in self.goal_rows and column == (-1 if player == 0 else self.n_columns)

    def render(self) -> np.ndarray | None:
        """
        :return: Image, uint8 ``(height, width, 3)``, with a column for the goals on either side;
            None without ``render_mode="rgb_array"``
        """
        if self.render_mode is None:
            return None
        image = draw_board(self.n_rows, self.n_columns + 2)
        for row in range(self.n_rows):
            for column, colour in ((0, COLOURS[0]), (self.n_columns + 1, COLOURS[1])):
                is_goal = row in self.goal_rows
                fill_field(image, row, column, colour if is_goal else (200, 200, 200), margin=1)
        for player, colour in enumerate(COLOURS):
            row, column = self.present[player]
            fill_field(image, row, column + 1, colour)
            if self.present[2] == player:
                fill_field(image, row, column + 1, (255, 255, 255), margin=12)
        return image
