"""Heterogeneous-Agent Deep Deterministic Policy Gradient."""

from sb3_happo.haddpg.haddpg import HADDPG

__all__ = ["HADDPG"]
