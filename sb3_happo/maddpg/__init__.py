"""MADDPG."""

from sb3_happo.maddpg.maddpg import MADDPG

__all__ = ["MADDPG"]
