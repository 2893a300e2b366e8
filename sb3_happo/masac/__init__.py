"""MASAC: Multi-Agent Soft Actor-Critic."""

from sb3_happo.masac.masac import MASAC

__all__ = ["MASAC"]
