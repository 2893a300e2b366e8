"""Games in normal form: every agent chooses one of some actions, and a table says who gets what."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from sb3_happo.envs.games.drawing import BLACK, YELLOW, Canvas, shade
from sb3_happo.envs.games.game import Game, at_least, constant_spaces, finite, names, positive

_CELL = 64
_MAX_DRAWN_CELLS = 64


class MatrixGame(Game):
    """
    Game in normal form with any payoffs. All agents choose at the same time; each observes the
    constant 1.

    With common payoffs the optimum of the team is the largest entry, see :attr:`optimum`.
    Equilibria depend on the payoffs; the named games below state theirs.

    :param payoffs: Common reward of each joint action, ``(n_actions_0, n_actions_1, ...)``, one
        axis per agent; or ``{agent: payoffs}``, an array of this shape for each agent
    :param zero_sum: For two agents: True if ``payoffs`` is the first agent's, and the second gets
        the negative of it
    :param agents: Names of the agents, by default "agent_0", "agent_1", ... or the keys of
        ``payoffs``
    :param length: Number of plays in an episode
    :param render_mode: "rgb_array" or None
    :raises ValueError: If payoffs are missing, not finite, or of different shapes, or do not fit
        the agents
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "matrix_game"}

    def __init__(
        self,
        payoffs: npt.ArrayLike | Mapping[str, npt.ArrayLike],
        zero_sum: bool = False,
        agents: Sequence[str] | None = None,
        length: int = 1,
        render_mode: str | None = None,
    ) -> None:
        if isinstance(payoffs, Mapping):
            table, agents = _table_of_each(payoffs, zero_sum, agents)
        else:
            table = _common_table(_array("payoffs", payoffs), zero_sum)
        n_agents = table.ndim - 1
        agents = names(n_agents) if agents is None else list(agents)
        if len(agents) != n_agents:
            raise ValueError(
                f"Payoffs of shape {table.shape[1:]} are those of {n_agents} agents, one axis for "
                f"each, but the agents are {agents}."
            )
        #: Rewards, ``(n_agents, n_actions_0, n_actions_1, ...)``, read-only
        self.payoffs = table
        self.payoffs.flags.writeable = False
        choices = [spaces.Discrete(n) for n in table.shape[1:]]
        super().__init__(
            agents, constant_spaces(n_agents), choices, length, render_mode=render_mode
        )
        self._played: tuple[int, ...] | None = None

    @property
    def optimum(self) -> float:
        """
        :return: Largest return of an episode, the mean over the agents
        """
        return float(self.payoffs.mean(axis=0).max()) * self.length

    def _begin(self) -> None:
        self._played = None

    def _play(self, actions: list[Any]) -> np.ndarray:
        self._played = tuple(actions)
        own: Any = (slice(None), *self._played)
        return np.asarray(self.payoffs[own])

    def _draw(self) -> np.ndarray:
        team = self.payoffs.mean(axis=0)
        # Rows for the first half of the agents, columns for the rest
        half = (team.ndim + 1) // 2
        sizes = team.shape
        table = team.reshape(math.prod(sizes[:half]), -1)
        n_rows, n_columns = (min(size, _MAX_DRAWN_CELLS) for size in table.shape)
        canvas = Canvas(n_columns * _CELL, n_rows * _CELL)
        low, span = table.min(), max(np.ptp(table), 1e-12)
        zero_sum = len(self.payoffs) == 2 and np.array_equal(self.payoffs[0], -self.payoffs[1])
        shown = self.payoffs[0].reshape(table.shape) if zero_sum else table
        if zero_sum:
            low, span = shown.min(), max(np.ptp(shown), 1e-12)
        for row in range(n_rows):
            for column in range(n_columns):
                value = shown[row, column]
                left, top = column * _CELL, row * _CELL
                canvas.rectangle(left, top, _CELL - 1, _CELL - 1, shade((value - low) / span))
                canvas.text(left + _CELL / 2, top + _CELL / 2, f"{value:.4g}")
        if self._played is not None:
            row = int(np.ravel_multi_index(self._played[:half], sizes[:half]))
            column = 0
            if sizes[half:]:
                column = int(np.ravel_multi_index(self._played[half:], sizes[half:]))
            canvas.outline(column * _CELL, row * _CELL, _CELL - 1, _CELL - 1, BLACK, 5)
            canvas.outline(column * _CELL + 1, row * _CELL + 1, _CELL - 3, _CELL - 3, YELLOW, 3)
        return canvas.pixels


def _array(name: str, payoffs: npt.ArrayLike) -> np.ndarray:
    """Payoffs of one agent, float64, checked."""
    try:
        array = np.array(payoffs, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is no array of numbers: {error}.") from error
    if array.ndim == 0 or array.size == 0:
        raise ValueError(
            f"{name} has shape {array.shape}; it needs one axis per agent, with an entry for each "
            "of its actions."
        )
    if not np.isfinite(array).all():
        place = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
        raise ValueError(f"{name} has the entry {array[place]} at {place}; payoffs are finite.")
    return array


def _common_table(payoffs: np.ndarray, zero_sum: bool) -> np.ndarray:
    """Table of all agents from that of the team, or of the first agent of a zero-sum game."""
    if not zero_sum:
        # A view: with many agents the table is large, and it is the same for all
        return np.broadcast_to(payoffs, (payoffs.ndim, *payoffs.shape)).view()
    if payoffs.ndim != 2:
        raise ValueError(
            f"zero_sum=True needs payoffs of two agents, not of shape {payoffs.shape}; for more "
            "agents give {agent: payoffs}."
        )
    return np.stack([payoffs, -payoffs])


def _table_of_each(
    payoffs: Mapping[str, npt.ArrayLike], zero_sum: bool, agents: Sequence[str] | None
) -> tuple[np.ndarray, list[str]]:
    """Table of all agents and their names, from the payoffs of each agent."""
    if zero_sum:
        raise ValueError("zero_sum=True needs the payoffs of the first agent only, no dict.")
    if agents is None:
        agents = list(payoffs)
    if set(agents) != set(payoffs) or not payoffs:
        raise ValueError(f"There are payoffs of {list(payoffs)}, but the agents are {agents}.")
    tables = {}
    for agent in agents:
        tables[agent] = _array(f"payoffs[{agent!r}]", payoffs[agent])
    shapes = {agent: table.shape for agent, table in tables.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"The payoffs of all agents need one shape; they have {shapes}.")
    return np.stack(list(tables.values())), list(agents)


class Climbing(MatrixGame):
    """
    Climbing game of Claus and Boutilier (1998), "The Dynamics of Reinforcement Learning in
    Cooperative Multiagent Systems", AAAI: two agents, three actions, one reward::

         11  -30    0
        -30    7    6
          0    0    5

    Optimum: 11, where both play 0. The other pure equilibrium is 7, both play 1. A deviation from
    the optimum costs 41, so that independent learners, for whom the other one still explores,
    settle at 5 (both play 2). An agent that chooses for both, or a factorisation of the values of
    rank 1, finds 11.

    :param length: Number of plays in an episode
    :param render_mode: "rgb_array" or None
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "climbing"}

    def __init__(self, length: int = 1, render_mode: str | None = None) -> None:
        payoffs = [[11, -30, 0], [-30, 7, 6], [0, 0, 5]]
        super().__init__(payoffs, length=length, render_mode=render_mode)


class Penalty(MatrixGame):
    """
    Penalty game of Claus and Boutilier (1998): two agents, three actions, one reward::

        10   0   k
         0   2   0
         k   0  10

    Optima: 10, where both play 0 or both play 2; the two must agree on one. The third pure
    equilibrium is 2, both play 1. The larger the penalty, the more independent learners prefer the
    safe 2.

    :param k: Penalty, at most 0
    :param length: Number of plays in an episode
    :param render_mode: "rgb_array" or None
    :raises ValueError: If ``k`` is positive
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "penalty"}

    def __init__(self, k: float = -100.0, length: int = 1, render_mode: str | None = None) -> None:
        self.k = finite("k", k)
        if self.k > 0:
            raise ValueError(f"k is a penalty and at most 0, not {k!r}.")
        payoffs = np.array([[10, 0, self.k], [0, 2, 0], [self.k, 0, 10]])
        super().__init__(payoffs, length=length, render_mode=render_mode)


class Qtran(MatrixGame):
    """
    Matrix game of Son et al. (2019), "QTRAN", arXiv 1905.05408: two agents, three actions, one
    reward::

          8  -12  -12
        -12    0    0
        -12    0    0

    Optimum: 8, where both play 0. Additive and monotonic factorisations of the values (VDN, QMIX)
    cannot represent it and choose 0; a factorisation of rank 1 beside the agents' own terms is
    exact.

    :param length: Number of plays in an episode
    :param render_mode: "rgb_array" or None
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "qtran"}

    def __init__(self, length: int = 1, render_mode: str | None = None) -> None:
        payoffs = [[8, -12, -12], [-12, 0, 0], [-12, 0, 0]]
        super().__init__(payoffs, length=length, render_mode=render_mode)


class MatchingPennies(MatrixGame):
    """
    Matching pennies, a zero-sum game: the first agent gets 1 if both play the same and -1 if not,
    the second the negative of it.

    Equilibrium: both play each side with probability 1/2; the value is 0 for both. It is the only
    one (von Neumann 1928).

    :param length: Number of plays in an episode
    :param render_mode: "rgb_array" or None
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "matching_pennies"}

    def __init__(self, length: int = 1, render_mode: str | None = None) -> None:
        super().__init__([[1, -1], [-1, 1]], zero_sum=True, length=length, render_mode=render_mode)

    @property
    def equilibrium(self) -> np.ndarray:
        """
        :return: Probabilities of each agent's actions in the only equilibrium, ``(2, 2)``
        """
        return np.full((2, 2), 0.5)


class RockPaperScissors(MatrixGame):
    """
    Rock-paper-scissors, a zero-sum game: the actions are 0 (rock), 1 (paper) and 2 (scissors), and
    each kind of win may have a value of its own.

    Equilibrium: both play rock, paper and scissors in the proportion ``scissors : rock : paper`` of
    the values of the wins; the value is 0 for both. It is the only one: it makes the other one
    indifferent. With equal values this is (1/3, 1/3, 1/3), with ``rock=2`` (1/4, 1/2, 1/4).

    :param rock: Value of a win of rock against scissors, above 0
    :param paper: Value of a win of paper against rock, above 0
    :param scissors: Value of a win of scissors against paper, above 0
    :param length: Number of plays in an episode
    :param render_mode: "rgb_array" or None
    :raises ValueError: If a value is not positive
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "rock_paper_scissors"}

    def __init__(
        self,
        rock: float = 1.0,
        paper: float = 1.0,
        scissors: float = 1.0,
        length: int = 1,
        render_mode: str | None = None,
    ) -> None:
        self.rock = positive("rock", rock)
        self.paper = positive("paper", paper)
        self.scissors = positive("scissors", scissors)
        payoffs = [
            [0, -self.paper, self.rock],
            [self.paper, 0, -self.scissors],
            [-self.rock, self.scissors, 0],
        ]
        super().__init__(payoffs, zero_sum=True, length=length, render_mode=render_mode)

    @property
    def equilibrium(self) -> np.ndarray:
        """
        :return: Probabilities of each agent's actions in the only equilibrium, ``(2, 3)``
        """
        odds = np.array([self.scissors, self.rock, self.paper])
        return np.stack([odds, odds]) / odds.sum()


class Halves(Game):
    """
    Game of Proposition 1 of Kuba et al. (2021), arXiv 2109.11251: one step, the actions 0 and 1, a
    constant observation. All agents get 1 if the first half of them plays 0 and the second half 1,
    or the other way round, else 0.

    Optimum: 1. Agents with the same policy (shared parameters, equal observations) play 1 with one
    probability p and get ``2 p^(n/2) (1 - p)^(n/2)`` on average, at most ``2 / 2^n``, see
    :attr:`shared_optimum`.

    :param n_agents: Number of agents, even
    :param length: Number of plays in an episode
    :param render_mode: "rgb_array" or None
    :raises ValueError: If the number of agents is odd
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "halves"}

    def __init__(self, n_agents: int = 2, length: int = 1, render_mode: str | None = None) -> None:
        n_agents = at_least("n_agents", n_agents, 2)
        if n_agents % 2:
            raise ValueError(f"n_agents must be even, for two halves; it is {n_agents}.")
        choices = [spaces.Discrete(2) for _ in range(n_agents)]
        agents = names(n_agents)
        super().__init__(
            agents, constant_spaces(n_agents), choices, length, render_mode=render_mode
        )
        self._played: list[int] = []

    @property
    def optimum(self) -> float:
        """
        :return: Largest return of an episode
        """
        return float(self.length)

    @property
    def shared_optimum(self) -> float:
        """
        :return: Largest expected return of an episode of agents that share one policy
        """
        return self.length * 2.0 / 2.0 ** len(self.possible_agents)

    def _begin(self) -> None:
        self._played = []

    def _play(self, actions: list[Any]) -> list[float]:
        self._played = actions
        half = len(actions) // 2
        first, second = actions[:half], actions[half:]
        halves_agree = len(set(first)) == len(set(second)) == 1
        return [float(halves_agree and first[0] != second[0])] * len(actions)

    def _draw(self) -> np.ndarray:
        n_agents = len(self.possible_agents)
        canvas = Canvas(n_agents * _CELL, _CELL)
        for index, action in enumerate(self._played):
            canvas.rectangle(index * _CELL, 0, _CELL - 1, _CELL, shade(float(action)))
            canvas.text(index * _CELL + _CELL / 2, _CELL / 2, str(action), scale=4)
        canvas.rectangle(n_agents // 2 * _CELL - 3, 0, 5, _CELL, BLACK)
        return canvas.pixels
