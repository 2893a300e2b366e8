"""HASAC: Heterogeneous-Agent Soft Actor-Critic."""

from sb3_happo.hasac.hasac import HASAC

__all__ = ["HASAC"]
