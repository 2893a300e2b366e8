"""What the tests of the off-policy algorithms share."""

from typing import Any, TypeVar

import pytest
import torch as th

from sb3_happo import HADDPG, HASAC, HATD3, MADDPG, MASAC, MATD3, HACrossQ
from sb3_happo.common.action_critics import ActionCritic
from sb3_happo.common.off_policy_algorithm import MultiAgentOffPolicyAlgorithm

Model = TypeVar("Model", bound=MultiAgentOffPolicyAlgorithm)

#: Algorithms for ``parametrize``; those that differ from another one by defaults are slow
ALGORITHMS: list[Any] = [
    HATD3,
    MATD3,
    HASAC,
    HACrossQ,
    pytest.param(HADDPG, marks=pytest.mark.slow),
    pytest.param(MADDPG, marks=pytest.mark.slow),
    pytest.param(MASAC, marks=pytest.mark.slow),
]

#: Small enough that a training of 100 steps takes some tenths of a second
SMALL: dict[str, Any] = dict(buffer_size=1000, learning_starts=20, batch_size=16, device="cpu")


def small(
    algorithm: type[Model], env: Any, policy_kwargs: dict[str, Any] | None = None, **kwargs: Any
) -> Model:
    """A small model of an off-policy algorithm."""
    return algorithm(
        "MlpPolicy",
        env,
        policy_kwargs={"net_arch": [16], **(policy_kwargs or {})},
        **{**SMALL, **kwargs},
    )


def networks_of_critic(critic: ActionCritic) -> list[list[th.Tensor]]:
    """Parameters of each network of a critic, as those of separate Linear layers."""
    stacked: Any = critic.networks
    layers = [layer for layer in stacked.layers if hasattr(layer, "weight")]
    networks: list[list[th.Tensor]] = []
    for index in range(critic.networks.n_networks):
        params = []
        for layer in layers:
            params += [layer.weight[index].T, layer.bias[index, 0]]
        networks.append(params)
    return networks
