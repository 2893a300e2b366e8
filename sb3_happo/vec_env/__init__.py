"""Vectorised joint environments: in this process, in workers, inside EnvPool, or around a single-agent ``VecEnv``."""

from sb3_happo.vec_env.auto_vec_env import choose_vec_env
from sb3_happo.vec_env.envpool_vec_env import EnvPoolVecEnv
from sb3_happo.vec_env.joint_dummy_vec_env import JointDummyVecEnv, VecEnvChoice
from sb3_happo.vec_env.joint_subproc_vec_env import JointSubprocVecEnv
from sb3_happo.vec_env.make import make_joint_vec_env
from sb3_happo.vec_env.team_of_one import VecTeamOfOne

__all__ = [
    "EnvPoolVecEnv",
    "JointDummyVecEnv",
    "JointSubprocVecEnv",
    "VecEnvChoice",
    "VecTeamOfOne",
    "choose_vec_env",
    "make_joint_vec_env",
]
