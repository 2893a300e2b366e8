"""Equilibria of games in normal form: known solutions, random games, degenerate games."""

import numpy as np
import pytest

from sb3_happo.tabular import equilibria, pure_equilibria, solve_zero_sum
from sb3_happo.tabular.matrix_games import (
    SELECTIONS,
    Equilibrium,
    n_support_pairs,
    solve_by_linprog,
    support_of,
)

PENNIES = np.array([[1.0, -1.0], [-1.0, 1.0]])
# Rock's win pays 2
ROCK_PAYS_2 = np.array([[0.0, -1.0, 2.0], [1.0, 0.0, -1.0], [-2.0, 1.0, 0.0]])


def gain(first: np.ndarray, second: np.ndarray, found: Equilibrium) -> float:
    """Largest gain of a player that deviates."""
    of_rows, of_columns = first @ found.column, found.row @ second
    return float(
        max(of_rows.max() - found.row @ of_rows, of_columns.max() - of_columns @ found.column)
    )


@pytest.mark.parametrize("solve", [solve_zero_sum, solve_by_linprog])
@pytest.mark.parametrize(
    ("payoffs", "row", "column", "value"),
    [
        (PENNIES, (1 / 2, 1 / 2), (1 / 2, 1 / 2), 0.0),
        (ROCK_PAYS_2, (1 / 4, 1 / 2, 1 / 4), (1 / 4, 1 / 2, 1 / 4), 0.0),
        ([[3, -1], [-2, 1]], (3 / 7, 4 / 7), (2 / 7, 5 / 7), 1 / 7),
        ([[2, 1], [0, -1]], (1, 0), (0, 1), 1.0),  # a saddle
    ],
)
def test_known_zero_sum_games(solve, payoffs, row, column, value) -> None:  # type: ignore[no-untyped-def]
    solution = solve(np.array(payoffs, float))
    assert solution.value == pytest.approx(value, abs=1e-9)
    assert solution.row == pytest.approx(row, abs=1e-9)
    assert solution.column == pytest.approx(column, abs=1e-9)


def test_both_solvers_agree() -> None:
    rng = np.random.default_rng(0)
    for n_rows, n_columns in rng.integers(1, 7, (40, 2)):
        payoffs = rng.normal(size=(n_rows, n_columns)).round(1)
        own, scipy = solve_zero_sum(payoffs), solve_by_linprog(payoffs)
        assert own.value == pytest.approx(scipy.value, abs=1e-7)
        for solution in (own, scipy):
            assert (solution.row @ payoffs).min() == pytest.approx(own.value, abs=1e-7)
            assert (payoffs @ solution.column).max() == pytest.approx(own.value, abs=1e-7)


def test_given_supports_do_not_change_the_value() -> None:
    rng = np.random.default_rng(1)
    payoffs = rng.normal(size=(5, 5))
    solution = solve_zero_sum(payoffs)
    right = support_of(solution.row), support_of(solution.column)
    for supports in (right, ((0, 1), (2, 3)), ((0,), (1,)), ((0, 1, 2), (1, 2))):
        assert solve_zero_sum(payoffs, supports).value == pytest.approx(solution.value, abs=1e-8)


def test_battle_of_the_sexes_has_three_equilibria() -> None:
    first, second = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [0.0, 2.0]])
    found = equilibria(first, second)
    assert [own.supports for own in found] == [((0,), (0,)), ((1,), (1,)), ((0, 1), (0, 1))]
    assert found[2].row == pytest.approx((2 / 3, 1 / 3))
    assert found[2].values == pytest.approx((2 / 3, 2 / 3))
    assert pure_equilibria((first, second)) == [(0, 0), (1, 1)]


def test_every_random_and_degenerate_game_has_an_equilibrium() -> None:
    rng = np.random.default_rng(2)
    for number in range(150):
        shape = tuple(rng.integers(1, 5, 2))
        first, second = rng.normal(size=(2, *shape))
        if number % 2:
            first, second = rng.integers(0, 3, (2, *shape)).astype(float)
        for found in equilibria(first, second):
            assert gain(first, second, found) < 1e-5
            assert found.row.sum() == pytest.approx(1.0)


def test_pure_equilibria_of_three_players() -> None:
    equal = np.zeros((2, 2, 2))
    equal[0, 0, 0] = equal[1, 1, 1] = 1.0
    assert (0, 0, 0) in pure_equilibria((equal,) * 3)
    assert (0, 0, 1) not in pure_equilibria((equal,) * 3)


def test_the_stable_rule_keeps_its_equilibrium() -> None:
    first = np.array([[2.0, 0.0], [0.0, 1.9]])
    kept = ((1,), (1,))
    for rule, expected in (
        ("stable", kept),
        ("largest_sum", ((0,), (0,))),
        ("first", ((0,), (0,))),
        ("second", kept),
    ):
        assert SELECTIONS[rule](first, first, kept, None).supports == expected
    # ... until it is none any more
    first[0, 1] = 3.0
    assert SELECTIONS["stable"](first, first, kept, None).supports != kept


def test_the_stable_rule_ignores_noise() -> None:
    payoffs = np.array([[2.0, 0.0], [0.0, 1.9]])
    noisy = payoffs.copy()
    noisy[0, 1] = 2.1  # leaving the second equilibrium gains 0.2
    kept = ((1,), (1,))
    errors = np.full((2, 2, 2), 0.2)
    assert SELECTIONS["stable"](noisy, payoffs, kept, errors).supports == kept
    assert SELECTIONS["stable"](noisy, payoffs, kept, errors / 10).supports != kept


def test_sizes_and_numbers_are_checked() -> None:
    assert n_support_pairs(3, 3) == 19
    with pytest.raises(ValueError, match="pairs of supports"):
        equilibria(np.zeros((12, 12)), np.zeros((12, 12)))
    with pytest.raises(ValueError, match="one shape"):
        equilibria(np.zeros((2, 2)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="finite"):
        solve_zero_sum(np.array([[np.nan, 1.0]]))
