"""Catalogue of the games: the ids ``"games/<name>"`` and the classes behind them."""

import importlib

from pettingzoo import ParallelEnv

#: Namespace of the ids
NAMESPACE = "games"

#: Place of each game's class, ``"module:class"``, by the name in its id
GAMES: dict[str, str] = {
    "climbing": "sb3_happo.envs.games.matrix:Climbing",
    "gaussian_squeeze": "sb3_happo.envs.games.squeeze:GaussianSqueeze",
    "grid_game": "sb3_happo.envs.games.grid_games:GridGame",
    "halves": "sb3_happo.envs.games.matrix:Halves",
    "ising": "sb3_happo.envs.games.ising:Ising",
    "levers": "sb3_happo.envs.games.levers:Levers",
    "lq_team": "sb3_happo.envs.games.lq_team:LQTeam",
    "matching_pennies": "sb3_happo.envs.games.matrix:MatchingPennies",
    "matrix": "sb3_happo.envs.games.matrix:MatrixGame",
    "penalty": "sb3_happo.envs.games.matrix:Penalty",
    "qtran": "sb3_happo.envs.games.matrix:Qtran",
    "recall": "sb3_happo.envs.games.recall:Recall",
    "relay": "sb3_happo.envs.games.recall:Relay",
    "rock_paper_scissors": "sb3_happo.envs.games.matrix:RockPaperScissors",
    "soccer": "sb3_happo.envs.games.soccer:Soccer",
    "tennis": "sb3_happo.envs.games.tennis:Tennis",
    "two_step": "sb3_happo.envs.games.two_step:TwoStep",
}


def game_class(name: str) -> type[ParallelEnv]:
    """
    :param name: Name of a game, one of ``GAMES``
    :return: Class of the game
    """
    module, _, class_name = GAMES[name].partition(":")
    game: type[ParallelEnv] = getattr(importlib.import_module(module), class_name)
    return game
