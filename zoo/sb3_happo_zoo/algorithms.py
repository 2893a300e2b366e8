"""Algorithms of the zoo by their names on the command line."""

from rl_zoo3.utils import ALGOS

from sb3_happo import (
    HAA2C,
    HADDPG,
    HAPPO,
    HASAC,
    HATD3,
    HATRPO,
    IPPO,
    IQL,
    MADDPG,
    MAPPO,
    MASAC,
    MATD3,
    QMIX,
    VDN,
)
from sb3_happo.common.multi_agent_algorithm import MultiAgentAlgorithm
from sb3_happo.common.off_policy_algorithm import MultiAgentOffPolicyAlgorithm
from sb3_happo.common.on_policy_algorithm import MultiAgentOnPolicyAlgorithm

ON_POLICY: dict[str, type[MultiAgentOnPolicyAlgorithm]] = {
    "happo": HAPPO,
    "hatrpo": HATRPO,
    "haa2c": HAA2C,
    "mappo": MAPPO,
    "ippo": IPPO,
}
TEAM_ALGOS: dict[str, type[MultiAgentAlgorithm]] = {
    **ON_POLICY,
    "hatd3": HATD3,
    "haddpg": HADDPG,
    "matd3": MATD3,
    "maddpg": MADDPG,
    "hasac": HASAC,
    "masac": MASAC,
    "iql": IQL,
    "vdn": VDN,
    "qmix": QMIX,
}
ALGOS.update(TEAM_ALGOS)  # RL Zoo's experiment manager looks algorithms up there


def is_off_policy(algo: str) -> bool:
    """
    :param algo: Name of an algorithm
    :return: True if it learns from a replay buffer
    """
    return issubclass(TEAM_ALGOS[algo], MultiAgentOffPolicyAlgorithm)
