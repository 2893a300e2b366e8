"""Small environments whose every answer is known."""

from tests.envs.games import MaskedGame, MatrixGame, RandomTeam, Relay
from tests.envs.heterogeneous import HeterogeneousTeam
from tests.envs.tuples import DictTeam, TupleTeam
from tests.envs.turns import TurnGame

__all__ = [
    "DictTeam",
    "HeterogeneousTeam",
    "MaskedGame",
    "MatrixGame",
    "RandomTeam",
    "Relay",
    "TupleTeam",
    "TurnGame",
]
