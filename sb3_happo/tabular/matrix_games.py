"""Equilibria of games in normal form: linear program, support enumeration, choice of one."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import linprog

#: Share of the largest payoff up to which payoffs count as equal
TOLERANCE = 1e-9
#: Pairs of supports that :func:`equilibria` tries at most
MAX_SUPPORT_PAIRS = 20_000
#: Standard errors by which a gain must exceed 0 for :func:`select_stable` to leave an equilibrium
SIGNIFICANCE = 2.0
# Smallest determinant, of matrices with payoffs in [0, 1], that counts as regular
_SINGULAR = 1e-11
# Pivots after which the simplex method is given up, for it may run in a circle
_MAX_PIVOTS = 100
# Size of the changes that make a degenerate game regular, as a share of the largest payoff
_PERTURBATION = 1e-7


class ZeroSumSolution(NamedTuple):
    """
    Solution of a zero-sum game.

    :param value: Value of the game for the player of the rows
    :param row: Optimal strategy of the player of the rows, ``(n_rows,)``
    :param column: Optimal strategy of the player of the columns, ``(n_columns,)``
    """

    value: float
    row: np.ndarray
    column: np.ndarray


class Equilibrium(NamedTuple):
    """
    Nash equilibrium of a game of two players.

    :param row: Strategy of the player of the rows, ``(n_rows,)``
    :param column: Strategy of the player of the columns, ``(n_columns,)``
    :param values: Expected payoffs of both
    :param supports: Actions of each player that have a positive probability
    """

    row: np.ndarray
    column: np.ndarray
    values: tuple[float, float]
    supports: tuple[tuple[int, ...], tuple[int, ...]]


#: Supports of both players, as in :class:`Equilibrium`
Supports = tuple[tuple[int, ...], tuple[int, ...]]


# ---------------------------------------------------------------- zero-sum games


def solve_zero_sum(payoffs: np.ndarray, supports: Supports | None = None) -> ZeroSumSolution:
    """
    Solve a zero-sum game. A saddle in pure strategies is looked for first, then the given supports
    are tried, then the linear program is solved: small ones by the simplex method here, whose
    answer is checked, the others by SciPy's ``linprog``.

    :param payoffs: Payoffs of the player of the rows, who maximises, ``(n_rows, n_columns)``
    :param supports: Supports that are likely optimal, such as those before a small change of the
        payoffs; they are checked, and save time where they still are
    :return: Value and optimal strategies
    :raises ValueError: If ``payoffs`` are not a matrix of finite numbers
    """
    payoffs = _check_matrix(payoffs)
    solution = pure_saddle(payoffs)
    if solution is None and supports is not None:
        solution = _solve_supports(payoffs, supports)
    if solution is None:
        solution = _solve_by_pivots(payoffs)
    if solution is None:
        solution = solve_by_linprog(payoffs)
    return solution


def pure_saddle(payoffs: np.ndarray) -> ZeroSumSolution | None:
    """
    :param payoffs: Payoffs of the player of the rows, ``(n_rows, n_columns)``
    :return: Saddle point in pure strategies, or None. Where a player has several such strategies,
        it mixes them equally, which is optimal too
    """
    worst = payoffs.min(axis=1)
    best = payoffs.max(axis=0)
    value = worst.max()
    if value != best.min():
        return None
    rows, columns = worst == value, best == value
    return ZeroSumSolution(float(value), rows / rows.sum(), columns / columns.sum())


def support_of(strategy: np.ndarray) -> tuple[int, ...]:
    """
    :param strategy: Probabilities of the actions, ``(n,)``
    :return: Actions with a probability that is not 0, up to rounding
    """
    return tuple(np.flatnonzero(strategy > TOLERANCE).tolist())


def _solve_supports(payoffs: np.ndarray, supports: Supports) -> ZeroSumSolution | None:
    """Solution with these supports; None if they are not optimal."""
    n_rows, n_columns = (len(support) for support in supports)
    if n_rows != n_columns or n_rows < 2:
        return None
    rows, columns = (np.array(support) for support in supports)
    part = payoffs[rows[:, None], columns]
    answer = _indifferent(part, part)
    if answer is None:
        return None
    p_part, q_part = answer
    row, column = np.zeros(payoffs.shape[0]), np.zeros(payoffs.shape[1])
    row[rows], column[columns] = p_part, q_part
    return _checked(payoffs, row, column)


def _checked(payoffs: np.ndarray, row: np.ndarray, column: np.ndarray) -> ZeroSumSolution | None:
    """Solution with these strategies; None if they are not optimal."""
    value = float(row @ payoffs @ column)
    allowed = TOLERANCE * max(1.0, float(np.abs(payoffs).max()))
    # False for NaN too
    is_optimal = (row @ payoffs).min() >= value - allowed
    is_optimal = is_optimal and (payoffs @ column).max() <= value + allowed
    return ZeroSumSolution(value, row, column) if is_optimal else None


def _indifferent(own: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """
    Strategies that make both players indifferent between all actions.

    :param own: Payoffs of the player of the rows, ``(n, n)``
    :param other: Payoffs of the player of the columns, ``(n, n)``
    :return: Strategies of both, None if they are not unique or have negative probabilities
    """
    n = len(own)
    systems = np.ones((2, n + 1, n + 1))
    systems[0, :n, :n] = other.T
    systems[1, :n, :n] = own
    systems[:, :n, n] = -1.0
    systems[:, n, n] = 0.0
    target = np.zeros((2, n + 1, 1))
    target[:, n] = 1.0
    try:
        solved = np.linalg.solve(systems, target)[..., 0]
    except np.linalg.LinAlgError:
        return None
    strategies = solved[:, :n]
    if not np.isfinite(solved).all() or strategies.min() < -TOLERANCE:
        return None
    strategies = strategies.clip(min=0.0)
    strategies /= strategies.sum(axis=1, keepdims=True)
    return strategies[0], strategies[1]


def _solve_by_pivots(payoffs: np.ndarray) -> ZeroSumSolution | None:
    """
    The simplex method, without the set-up of a general solver, which takes most of the time of a
    small program. None if it does not end, or for a wrong answer.
    """
    n_rows, n_columns = payoffs.shape
    low, high = float(payoffs.min()), float(payoffs.max())
    # Maximise sum(y) with (positive payoffs) @ y <= 1; the value is the inverse of the sum
    table = np.zeros((n_rows + 1, n_columns + n_rows + 1))
    table[:-1, :n_columns] = (payoffs - low) / (high - low) + 1.0
    table[:-1, n_columns:-1] = np.eye(n_rows)
    table[:-1, -1] = 1.0
    table[-1, :n_columns] = -1.0
    basis = np.arange(n_columns, n_columns + n_rows)
    for _ in range(_MAX_PIVOTS):
        entering = int(table[-1, :-1].argmin())
        if table[-1, entering] >= -TOLERANCE:
            columns = np.zeros(n_columns + n_rows)
            columns[basis] = table[:-1, -1]
            rows = table[-1, n_columns:-1]
            return _checked(payoffs, _normalized(rows), _normalized(columns[:n_columns]))
        candidates = np.flatnonzero(table[:-1, entering] > TOLERANCE)
        if not len(candidates):
            break
        ratios = table[candidates, -1] / table[candidates, entering]
        leaving = int(candidates[ratios.argmin()])
        pivot = table[leaving] / table[leaving, entering]
        table -= np.outer(table[:, entering], pivot)
        table[leaving] = pivot
        basis[leaving] = entering
    return None


def solve_by_linprog(payoffs: np.ndarray) -> ZeroSumSolution:
    """
    Solve a zero-sum game with SciPy's ``linprog``: maximise the value that the mixture of the rows
    has against every column.

    :param payoffs: Payoffs of the player of the rows, ``(n_rows, n_columns)``
    :return: Value and optimal strategies
    :raises ValueError: If ``payoffs`` are not a matrix of finite numbers
    :raises RuntimeError: If the solver fails
    """
    payoffs = _check_matrix(payoffs)
    n_rows, n_columns = payoffs.shape
    low, high = float(payoffs.min()), float(payoffs.max())
    if low == high:
        uniform = (np.full(n, 1.0 / n) for n in payoffs.shape)
        return ZeroSumSolution(low, *uniform)
    scaled = (payoffs - low) / (high - low)
    # Variables: the strategy, and the value
    result = linprog(
        np.r_[np.zeros(n_rows), -1.0],
        A_ub=np.c_[-scaled.T, np.ones(n_columns)],
        b_ub=np.zeros(n_columns),
        A_eq=np.r_[np.ones(n_rows), 0.0][None],
        b_eq=[1.0],
        # Upper bounds would take a part of the dual solution
        bounds=[(0.0, None)] * (n_rows + 1),
        method="highs",
    )
    if result.status != 0:
        raise RuntimeError(f"The linear program of the game {payoffs.tolist()}: {result.message}")
    # The other player's strategy is the dual solution
    row = _normalized(result.x[:n_rows])
    column = _normalized(-result.ineqlin.marginals)
    return ZeroSumSolution(low + (high - low) * float(result.x[n_rows]), row, column)


def _normalized(strategy: np.ndarray) -> np.ndarray:
    """Probabilities without the rounding of a solver; NaN if all are 0."""
    strategy = np.where(strategy > TOLERANCE, strategy, 0.0)
    total = strategy.sum()
    return strategy / total if total > 0.0 else np.full_like(strategy, np.nan)


def _pure(action: int, n: int) -> np.ndarray:
    strategy = np.zeros(n)
    strategy[action] = 1.0
    return strategy


def _check_matrix(payoffs: np.ndarray) -> np.ndarray:
    """Payoffs as a matrix of finite numbers."""
    payoffs = np.asarray(payoffs, np.float64)
    if payoffs.ndim != 2 or not payoffs.size or not np.isfinite(payoffs).all():
        raise ValueError(
            f"Payoffs are a matrix of finite numbers, (n_rows, n_columns), not {payoffs.tolist()}"
        )
    return payoffs


# ---------------------------------------------------------------- general-sum games


def pure_equilibria(payoffs: Sequence[np.ndarray]) -> list[tuple[int, ...]]:
    """
    Nash equilibria in pure strategies, for any number of players.

    :param payoffs: Payoffs of each player, each of the shape of the joint actions,
        ``(n_1, ..., n_players)``
    :return: Joint actions, in lexicographic order
    """
    stable: np.ndarray | bool = True
    for player, own in enumerate(payoffs):
        own = np.asarray(own, np.float64)
        allowed = TOLERANCE * max(1.0, float(np.abs(own).max()))
        stable = stable & (own >= own.max(axis=player, keepdims=True) - allowed)
    return [tuple(joint) for joint in np.argwhere(stable).tolist()]


def n_support_pairs(n_rows: int, n_columns: int) -> int:
    """
    :param n_rows: Number of actions of one player
    :param n_columns: Number of actions of the other
    :return: Number of pairs of supports of equal size
    """
    sizes = range(1, min(n_rows, n_columns) + 1)
    return sum(math.comb(n_rows, size) * math.comb(n_columns, size) for size in sizes)


def equilibria(first: np.ndarray, second: np.ndarray) -> list[Equilibrium]:
    """
    Nash equilibria of a game of two players, by enumeration of the supports of equal size. These
    are all equilibria of a game that is not degenerate; of a degenerate one they are some, and at
    least one.

    :param first: Payoffs of the player of the rows, ``(n_rows, n_columns)``
    :param second: Payoffs of the player of the columns, of the same shape
    :return: Equilibria: those in pure strategies in lexicographic order, then those with larger
        supports
    :raises ValueError: If the payoffs are not finite matrices of one shape, or too large
    """
    first, second = _check_matrix(first), _check_matrix(second)
    if first.shape != second.shape:
        raise ValueError(
            f"The payoffs of both players have one shape, not {first.shape} and {second.shape}"
        )
    if n_support_pairs(*first.shape) > MAX_SUPPORT_PAIRS:
        raise ValueError(
            f"A game with {first.shape[0]} and {first.shape[1]} actions has "
            f"{n_support_pairs(*first.shape)} pairs of supports; at most {MAX_SUPPORT_PAIRS} are "
            "enumerated."
        )
    found = _pure_equilibria_of_two(first, second)
    for size in range(2, min(first.shape) + 1):
        found += _mixed_equilibria(first, second, size)
    if not found:
        found = [_equilibrium_of_degenerate_game(first, second)]
    return found


def _pure_equilibria_of_two(first: np.ndarray, second: np.ndarray) -> list[Equilibrium]:
    found = []
    for row, column in pure_equilibria((first, second)):
        values = float(first[row, column]), float(second[row, column])
        strategies = _pure(row, first.shape[0]), _pure(column, first.shape[1])
        found.append(Equilibrium(*strategies, values, ((row,), (column,))))
    return found


@lru_cache(maxsize=64)
def _support_pairs(n_rows: int, n_columns: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of supports of a size: actions of both players, ``(n_pairs, size)`` each."""
    rows = list(itertools.combinations(range(n_rows), size))
    columns = list(itertools.combinations(range(n_columns), size))
    pairs = list(itertools.product(rows, columns))
    return np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs])


def _scaled(payoffs: np.ndarray) -> np.ndarray:
    """Payoffs in [0, 1]."""
    low, high = payoffs.min(), payoffs.max()
    return (payoffs - low) / (high - low if high > low else 1.0)


def _mixed_equilibria(first: np.ndarray, second: np.ndarray, size: int) -> list[Equilibrium]:
    """Equilibria in which both players mix this number of actions."""
    rows, columns = _support_pairs(*first.shape, size)
    own, other = _scaled(first), _scaled(second)
    parts = own[rows[:, :, None], columns[:, None, :]]
    # Each column of the system makes the opponent indifferent; the last row is the sum of 1
    p_support = _solve_indifference(other[rows[:, :, None], columns[:, None, :]].transpose(0, 2, 1))
    q_support = _solve_indifference(parts)
    fits = (p_support.min(axis=1) > TOLERANCE) & (q_support.min(axis=1) > TOLERANCE)
    found = []
    for index in np.flatnonzero(fits):
        row, column = np.zeros(first.shape[0]), np.zeros(first.shape[1])
        row[rows[index]], column[columns[index]] = p_support[index], q_support[index]
        if _gain(own, other, row, column) <= TOLERANCE * 10:
            values = float(row @ first @ column), float(row @ second @ column)
            supports = tuple(rows[index].tolist()), tuple(columns[index].tolist())
            found.append(Equilibrium(row, column, values, supports))
    return found


def _solve_indifference(parts: np.ndarray) -> np.ndarray:
    """
    :param parts: Payoffs of a player within the supports, ``(n_pairs, size, size)``, with its own
        actions along axis 1
    :return: Strategies of the other one that make it indifferent, ``(n_pairs, size)``; -1 where
        there is not exactly one
    """
    n_pairs, size, _ = parts.shape
    systems = np.ones((n_pairs, size + 1, size + 1))
    systems[:, :size, :size] = parts
    systems[:, :size, size] = -1.0
    systems[:, size, size] = 0.0
    regular = np.abs(np.linalg.det(systems)) > _SINGULAR
    strategies = np.full((n_pairs, size), -1.0)
    if regular.any():
        target = np.zeros((int(regular.sum()), size + 1, 1))
        target[:, size] = 1.0
        strategies[regular] = np.linalg.solve(systems[regular], target)[:, :size, 0]
    return strategies


def _gain(first: np.ndarray, second: np.ndarray, row: np.ndarray, column: np.ndarray) -> float:
    """Largest gain of a player that changes its strategy alone."""
    of_rows, of_columns = first @ column, row @ second
    return float(max(of_rows.max() - row @ of_rows, of_columns.max() - of_columns @ column))


def _equilibrium_of_degenerate_game(first: np.ndarray, second: np.ndarray) -> Equilibrium:
    """
    Equilibrium of a game of which no pair of supports has exactly one solution: that of the game
    with payoffs changed a little, which is regular.
    """
    own, other = _scaled(first), _scaled(second)
    rng = np.random.default_rng(0)  # the same changes in every call
    best: Equilibrium | None = None
    smallest = math.inf
    for _ in range(20):
        changes = rng.random((2, *first.shape)) * _PERTURBATION
        for size in range(1, min(first.shape) + 1):
            for candidate in _mixed_equilibria(own + changes[0], other + changes[1], size):
                gain = _gain(own, other, candidate.row, candidate.column)
                if gain < smallest:
                    smallest, best = gain, candidate
        if best is not None and smallest <= 10 * _PERTURBATION:
            break
    if best is None:
        raise RuntimeError(
            f"No equilibrium was found of the game {first.tolist()}, {second.tolist()}; please "
            "report it."
        )
    values = float(best.row @ first @ best.column), float(best.row @ second @ best.column)
    return best._replace(values=values)


# ---------------------------------------------------------------- choice of an equilibrium

#: Choice among equilibria: takes the payoffs of both players, the supports chosen for the state
#: before, or None, and the standard errors of the payoffs, ``(2, n_rows, n_columns)``, or None; and
#: returns an equilibrium
Selection = Callable[[np.ndarray, np.ndarray, Supports | None, np.ndarray | None], Equilibrium]


def select_first(
    first: np.ndarray,
    second: np.ndarray,
    before: Supports | None = None,
    errors: np.ndarray | None = None,
) -> Equilibrium:
    """
    :param first: Payoffs of the player of the rows
    :param second: Payoffs of the player of the columns
    :param before: Not used
    :param errors: Not used
    :return: First equilibrium of :func:`equilibria`
    """
    pure = _pure_equilibria_of_two(first, second)
    return pure[0] if pure else equilibria(first, second)[0]


def select_second(
    first: np.ndarray,
    second: np.ndarray,
    before: Supports | None = None,
    errors: np.ndarray | None = None,
) -> Equilibrium:
    """
    :param first: Payoffs of the player of the rows
    :param second: Payoffs of the player of the columns
    :param before: Not used
    :param errors: Not used
    :return: Second equilibrium of :func:`equilibria`, or the only one
    """
    pure = _pure_equilibria_of_two(first, second)
    found = pure if len(pure) > 1 else equilibria(first, second)
    return found[min(1, len(found) - 1)]


def select_largest_sum(
    first: np.ndarray,
    second: np.ndarray,
    before: Supports | None = None,
    errors: np.ndarray | None = None,
) -> Equilibrium:
    """
    :param first: Payoffs of the player of the rows
    :param second: Payoffs of the player of the columns
    :param before: Not used
    :param errors: Not used
    :return: Equilibrium of :func:`equilibria` with the largest sum of values; of equal ones the
        first
    """
    return max(equilibria(first, second), key=_sum_of_values)


def select_stable(
    first: np.ndarray,
    second: np.ndarray,
    before: Supports | None = None,
    errors: np.ndarray | None = None,
) -> Equilibrium:
    """
    The equilibrium of the supports chosen before, as long as nobody gains significantly by leaving
    it: the gain must exceed :data:`SIGNIFICANCE` standard errors of the difference. Noise of the
    payoffs, as learning makes it, does not lead to another equilibrium then. Without noise the
    supports are kept exactly as long as they are an equilibrium.

    :param first: Payoffs of the player of the rows
    :param second: Payoffs of the player of the columns
    :param before: Supports chosen before for the same state, or None
    :param errors: Standard errors of the payoffs, ``(2, n_rows, n_columns)``; None for 0
    :return: Equilibrium with these supports; if it was left, that of :func:`select_largest_sum`
    """
    kept = None if before is None else _kept_equilibrium(first, second, before, errors)
    return select_largest_sum(first, second) if kept is None else kept


def _kept_equilibrium(
    first: np.ndarray, second: np.ndarray, supports: Supports, errors: np.ndarray | None
) -> Equilibrium | None:
    """Equilibrium with these supports, None if a player gains by leaving it."""
    rows, columns = (np.array(support) for support in supports)
    if len(rows) != len(columns):
        return None
    row, column = np.zeros(first.shape[0]), np.zeros(first.shape[1])
    row[rows], column[columns] = 1.0, 1.0
    if len(rows) > 1:
        parts = (payoffs[rows[:, None], columns] for payoffs in (first, second))
        answer = _indifferent(*parts)
        if answer is None:
            return None
        row[rows], column[columns] = answer
    of_rows, of_columns = first @ column, row @ second
    values = float(row @ of_rows), float(of_columns @ column)
    for own, value, squares, strategy in (
        (of_rows, values[0], None if errors is None else errors[0] ** 2 @ column**2, row),
        (of_columns, values[1], None if errors is None else row**2 @ errors[1] ** 2, column),
    ):
        allowed: Any = TOLERANCE * max(1.0, float(np.abs(own).max()))
        if squares is not None:
            allowed = allowed + SIGNIFICANCE * np.sqrt(squares + strategy**2 @ squares)
        if (own - value > allowed).any():
            return None
    return Equilibrium(row, column, values, supports)


def _sum_of_values(equilibrium: Equilibrium) -> float:
    """Sum of the values, rounded, so that rounding errors do not decide."""
    return float(f"{sum(equilibrium.values):.9g}")


#: Rules by name
SELECTIONS: dict[str, Selection] = {
    "stable": select_stable,
    "first": select_first,
    "second": select_second,
    "largest_sum": select_largest_sum,
}
