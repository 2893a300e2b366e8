"""Heterogeneous-Agent Twin Delayed Deep Deterministic Policy Gradient."""

from sb3_happo.hatd3.hatd3 import HATD3

__all__ = ["HATD3"]
