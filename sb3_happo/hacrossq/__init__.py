"""HACrossQ: Heterogeneous-Agent CrossQ."""

from sb3_happo.hacrossq.hacrossq import HACrossQ

__all__ = ["HACrossQ"]
