"""Mean-field Q-learning."""

from sb3_happo.mfq.mfq import MFQ

__all__ = ["MFQ"]
