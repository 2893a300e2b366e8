"""QMIX: monotonic value function factorisation."""

from sb3_happo.qmix.qmix import QMIX

__all__ = ["QMIX"]
