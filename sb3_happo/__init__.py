"""Heterogeneous-agent trust-region learning for Stable-Baselines3."""

from sb3_happo.common.evaluation import EvalCallback, evaluate_policy
from sb3_happo.envs import JointEnv, make_joint_env
from sb3_happo.haa2c import HAA2C
from sb3_happo.haddpg import HADDPG
from sb3_happo.happo import HAPPO
from sb3_happo.hasac import HASAC
from sb3_happo.hatd3 import HATD3
from sb3_happo.hatrpo import HATRPO
from sb3_happo.ippo import IPPO
from sb3_happo.mappo import MAPPO
from sb3_happo.masac import MASAC
from sb3_happo.vec_env import make_joint_vec_env
from sb3_happo.version import __version__

__all__ = [
    "HAA2C",
    "HADDPG",
    "HAPPO",
    "HASAC",
    "HATD3",
    "HATRPO",
    "IPPO",
    "MAPPO",
    "MASAC",
    "EvalCallback",
    "JointEnv",
    "__version__",
    "evaluate_policy",
    "make_joint_env",
    "make_joint_vec_env",
]
