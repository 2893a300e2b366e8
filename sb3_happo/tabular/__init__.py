"""Algorithms with tables, for games with few states."""

from sb3_happo.tabular.game_model import GameModel
from sb3_happo.tabular.gaps import (
    exploitability,
    gains,
    nash_gap,
    policy_values,
    shapley_iteration,
    worst_case,
)
from sb3_happo.tabular.iql import TabularIQL
from sb3_happo.tabular.jal import JAL
from sb3_happo.tabular.matrix_games import equilibria, pure_equilibria, solve_zero_sum
from sb3_happo.tabular.minimax_q import MinimaxQ
from sb3_happo.tabular.nash_q import NashQ
from sb3_happo.tabular.pr2_q import PR2Q
from sb3_happo.tabular.tabular_algorithm import TabularAlgorithm

__all__ = [
    "JAL",
    "PR2Q",
    "GameModel",
    "MinimaxQ",
    "NashQ",
    "TabularAlgorithm",
    "TabularIQL",
    "equilibria",
    "exploitability",
    "gains",
    "nash_gap",
    "policy_values",
    "pure_equilibria",
    "shapley_iteration",
    "solve_zero_sum",
    "worst_case",
]
