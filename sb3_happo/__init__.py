"""Heterogeneous-agent trust-region learning for Stable-Baselines3."""

from sb3_happo.a2po import A2PO
from sb3_happo.coma import COMA
from sb3_happo.common.checkpoint_callback import ResumableCheckpointCallback
from sb3_happo.common.evaluation import EvalCallback, evaluate_policy
from sb3_happo.common.plain_classes import allow_in_files
from sb3_happo.common.system_info import print_system_info
from sb3_happo.envs import CentralTeam, JointEnv, as_single_agent, make_joint_env
from sb3_happo.fql import FQL
from sb3_happo.haa2c import HAA2C
from sb3_happo.hacrossq import HACrossQ
from sb3_happo.had3qn import HAD3QN
from sb3_happo.haddpg import HADDPG
from sb3_happo.happo import HAPPO
from sb3_happo.hasac import HASAC
from sb3_happo.hatd3 import HATD3
from sb3_happo.hatrpo import HATRPO
from sb3_happo.ippo import IPPO
from sb3_happo.iql import IQL
from sb3_happo.maddpg import MADDPG
from sb3_happo.mappo import MAPPO
from sb3_happo.masac import MASAC
from sb3_happo.matd3 import MATD3
from sb3_happo.mfac import MFAC
from sb3_happo.mfq import MFQ
from sb3_happo.qmix import QMIX
from sb3_happo.tabular import (
    JAL,
    PR2Q,
    MinimaxQ,
    NashQ,
    TabularIQL,
    exploitability,
    nash_gap,
)
from sb3_happo.vdn import VDN
from sb3_happo.vec_env import VecNormalizeTeam, make_joint_vec_env
from sb3_happo.version import __version__

__all__ = [
    "A2PO",
    "COMA",
    "FQL",
    "HAA2C",
    "HAD3QN",
    "HADDPG",
    "HAPPO",
    "HASAC",
    "HATD3",
    "HATRPO",
    "IPPO",
    "IQL",
    "JAL",
    "MADDPG",
    "MAPPO",
    "MASAC",
    "MATD3",
    "MFAC",
    "MFQ",
    "PR2Q",
    "QMIX",
    "VDN",
    "CentralTeam",
    "EvalCallback",
    "HACrossQ",
    "JointEnv",
    "MinimaxQ",
    "NashQ",
    "ResumableCheckpointCallback",
    "TabularIQL",
    "VecNormalizeTeam",
    "__version__",
    "allow_in_files",
    "as_single_agent",
    "evaluate_policy",
    "exploitability",
    "make_joint_env",
    "make_joint_vec_env",
    "nash_gap",
    "print_system_info",
]
