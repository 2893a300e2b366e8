"""Algorithms of the zoo by their names on the command line."""

from rl_zoo3.utils import ALGOS

from sb3_happo import HAA2C, HAPPO, HATRPO, IPPO, MAPPO
from sb3_happo.common.on_policy_algorithm import MultiAgentOnPolicyAlgorithm

TEAM_ALGOS: dict[str, type[MultiAgentOnPolicyAlgorithm]] = {
    "happo": HAPPO,
    "hatrpo": HATRPO,
    "haa2c": HAA2C,
    "mappo": MAPPO,
    "ippo": IPPO,
}
ALGOS.update(TEAM_ALGOS)  # RL Zoo's experiment manager looks algorithms up there
