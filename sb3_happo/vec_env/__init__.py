"""Vectorised joint environments."""

from sb3_happo.vec_env.auto_vec_env import VecEnvChoice, choose_vec_env
from sb3_happo.vec_env.envpool_vec_env import EnvPoolVecEnv
from sb3_happo.vec_env.joint_dummy_vec_env import JointDummyVecEnv
from sb3_happo.vec_env.joint_subproc_vec_env import JointSubprocVecEnv
from sb3_happo.vec_env.make import make_joint_vec_env
from sb3_happo.vec_env.normalize import VecNormalizeTeam
from sb3_happo.vec_env.single_agent import VecTeamOfOne
from sb3_happo.vec_env.step_facts import StepFacts, StepInfos, initial_facts, step_facts

__all__ = [
    "EnvPoolVecEnv",
    "JointDummyVecEnv",
    "JointSubprocVecEnv",
    "StepFacts",
    "StepInfos",
    "VecEnvChoice",
    "VecNormalizeTeam",
    "VecTeamOfOne",
    "choose_vec_env",
    "initial_facts",
    "make_joint_vec_env",
    "step_facts",
]
