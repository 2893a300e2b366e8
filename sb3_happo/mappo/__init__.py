"""Multi-Agent PPO."""

from sb3_happo.mappo.mappo import MAPPO

__all__ = ["MAPPO"]
