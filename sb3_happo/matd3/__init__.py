"""MATD3."""

from sb3_happo.matd3.matd3 import MATD3

__all__ = ["MATD3"]
