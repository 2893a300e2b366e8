"""Games with known answers."""

from sb3_happo.envs.games.grid_games import GridGame
from sb3_happo.envs.games.soccer import Soccer

__all__ = ["GridGame", "Soccer"]
