"""
Checker of multi-agent environments: errors, their remedies, and the spaces that algorithms see.

``python -m sb3_happo.envs.checker mpe2/simple_spread_v3 N=2`` checks an id, with keyword arguments
of the environment.
"""

from sb3_happo.envs.checker.command import check_marl_env, main
from sb3_happo.envs.checker.report import Finding, Level, Report

__all__ = ["Finding", "Level", "Report", "check_marl_env", "main"]
