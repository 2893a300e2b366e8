"""Value-decomposition networks."""

from sb3_happo.vdn.vdn import VDN

__all__ = ["VDN"]
