"""Environments: any multi-agent env as one Gymnasium env."""

from sb3_happo.envs.central import CentralTeam, SingleAgentEnv, as_single_agent
from sb3_happo.envs.joint_env import JointEnv, as_joint_env
from sb3_happo.envs.make import make_joint_env, register_games, register_mamujoco
from sb3_happo.envs.space_checks import (
    check_action_spaces,
    check_observation_spaces,
    check_team_spaces,
)
from sb3_happo.envs.spaces import joint_action_dtype, joint_action_to_dict

__all__ = [
    "CentralTeam",
    "JointEnv",
    "SingleAgentEnv",
    "as_joint_env",
    "as_single_agent",
    "check_action_spaces",
    "check_observation_spaces",
    "check_team_spaces",
    "joint_action_dtype",
    "joint_action_to_dict",
    "make_joint_env",
]

register_games()
register_mamujoco()
