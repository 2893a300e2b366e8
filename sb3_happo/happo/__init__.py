"""Heterogeneous-Agent Proximal Policy Optimisation."""

from sb3_happo.happo.happo import HAPPO

__all__ = ["HAPPO"]
