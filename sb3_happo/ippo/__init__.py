"""Independent PPO."""

from sb3_happo.ippo.ippo import IPPO

__all__ = ["IPPO"]
