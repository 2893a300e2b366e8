"""Small environments whose every answer is known, and random play of them."""

from sb3_happo.envs.games import Relay
from tests.envs.games import MaskedGame, MatrixGame, RandomTeam
from tests.envs.heterogeneous import HeterogeneousTeam
from tests.envs.play import ALL_KINDS, episode, legal_actions
from tests.envs.script import Script, one
from tests.envs.tuples import DictTeam, TupleTeam
from tests.envs.turns import TurnGame

__all__ = [
    "ALL_KINDS",
    "DictTeam",
    "HeterogeneousTeam",
    "MaskedGame",
    "MatrixGame",
    "RandomTeam",
    "Relay",
    "Script",
    "TupleTeam",
    "TurnGame",
    "episode",
    "legal_actions",
    "one",
]
