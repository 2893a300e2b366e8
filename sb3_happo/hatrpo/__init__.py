"""Heterogeneous-Agent Trust Region Policy Optimisation."""

from sb3_happo.hatrpo.hatrpo import HATRPO

__all__ = ["HATRPO"]
