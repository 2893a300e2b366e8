"""Heterogeneous-Agent Advantage Actor-Critic."""

from sb3_happo.haa2c.haa2c import HAA2C

__all__ = ["HAA2C"]
