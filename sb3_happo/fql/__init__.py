"""FQL: factorised Q-learning."""

from sb3_happo.fql.fql import FQL

__all__ = ["FQL"]
