"""
Checker of multi-agent environments: what is wrong, how to mend it, what the algorithms will see.

``python -m sb3_happo.envs.checker mpe2/simple_spread_v3 N=2`` checks an id, with keyword arguments
of the environment.
"""

from sb3_happo.envs.checker.command import check_marl_env, main
from sb3_happo.envs.checker.report import Finding, Level, Report

__all__ = ["Finding", "Level", "Report", "check_marl_env", "main"]
