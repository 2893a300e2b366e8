"""Mean-field actor-critic."""

from sb3_happo.mfac.mfac import MFAC

__all__ = ["MFAC"]
