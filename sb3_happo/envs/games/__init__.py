"""
Games with known answers, PettingZoo environments with the ids ``"games/<name>"``.

Each docstring states the optimum or the equilibrium and where it comes from. They are small enough
to be solved in seconds, and serve as tests of algorithms and as teaching material.
"""

from sb3_happo.envs.games.catalogue import GAMES, NAMESPACE, game_class
from sb3_happo.envs.games.game import Game
from sb3_happo.envs.games.grid_games import GridGame
from sb3_happo.envs.games.ising import Ising
from sb3_happo.envs.games.levers import Levers
from sb3_happo.envs.games.lq_team import LQTeam
from sb3_happo.envs.games.matrix import (
    Climbing,
    Halves,
    MatchingPennies,
    MatrixGame,
    Penalty,
    Qtran,
    RockPaperScissors,
)
from sb3_happo.envs.games.recall import Recall, Relay
from sb3_happo.envs.games.soccer import Soccer
from sb3_happo.envs.games.squeeze import GaussianSqueeze
from sb3_happo.envs.games.tennis import Tennis
from sb3_happo.envs.games.two_step import TwoStep

__all__ = [
    "GAMES",
    "NAMESPACE",
    "Climbing",
    "Game",
    "GaussianSqueeze",
    "GridGame",
    "Halves",
    "Ising",
    "LQTeam",
    "Levers",
    "MatchingPennies",
    "MatrixGame",
    "Penalty",
    "Qtran",
    "Recall",
    "Relay",
    "RockPaperScissors",
    "Soccer",
    "Tennis",
    "TwoStep",
    "game_class",
]
