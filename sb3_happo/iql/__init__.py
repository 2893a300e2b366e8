"""Independent Q-learning."""

from sb3_happo.iql.iql import IQL

__all__ = ["IQL"]
