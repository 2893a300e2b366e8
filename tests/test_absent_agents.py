"""Agents without an active row in a minibatch: no momentum may move what is theirs."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_happo import HASAC, HATD3, QMIX, VDN, HACrossQ
from sb3_happo.common.replay_buffer import Activity, JointSamples
from tests.algorithms import alike_team
from tests.off_policy import small


class Absence:
    """
    Mixin of an algorithm whose minibatches lack "agent_1" from the second on.
    """

    n_samples = 0

    def _sample(self, batch_size: int) -> JointSamples:
        data: JointSamples = super()._sample(batch_size)  # type: ignore[misc]
        self.n_samples += 1
        present = th.ones(batch_size, len(self.agents), dtype=th.bool)  # type: ignore[attr-defined]
        present[:, 1] = self.n_samples == 1
        return data._replace(activity=Activity(present, present, present, present))


def tensors_of_agent_1(model: Any) -> list[th.Tensor]:
    """What belongs to the agent: its network, own critics, weights in a mixer, temperature."""
    found = list(model.policies["agent_1"].parameters())
    if getattr(model, "log_ent_coef", None) is not None:
        found.append(model.log_ent_coef[1:2])
    networks: Any = getattr(model.critic, "networks", None)
    if hasattr(networks, "layers"):
        own = [param[2:4] for param in networks.parameters()]
        found += own
    elif networks is not None:
        found += [*networks.networks[2].parameters(), *networks.networks[3].parameters()]
    if isinstance(model, QMIX):
        last = model.critic.first_weights[-1]
        found += [last.weight[32:64], last.bias[32:64]]
    return [tensor.detach().clone() for tensor in found]


@pytest.mark.parametrize("algorithm", [HASAC, HATD3, HACrossQ, VDN, QMIX])
def test_nothing_of_an_absent_agent_moves(algorithm: Any) -> None:
    absent: Any = type(f"Absent{algorithm.__name__}", (Absence, algorithm), {})
    is_value_based = issubclass(algorithm, VDN)
    space = spaces.Discrete(3) if is_value_based else spaces.Box(-1, 1, (2,))
    kwargs: dict[str, Any] = {} if is_value_based else {"policy_delay": 1}
    if algorithm is HASAC:
        kwargs = {}
    policy_kwargs = {} if is_value_based else {"own_critics": True}
    model = small(absent, alike_team(3, space), policy_kwargs, seed=0, learning_starts=50, **kwargs)
    model.learn(51)
    np.random.seed(0)
    start = tensors_of_agent_1(model)
    model.n_samples = 0
    model.train(1, 16)
    before = tensors_of_agent_1(model)
    assert not any(th.equal(*pair) for pair in zip(start[:2], before[:2], strict=True))
    others = [param.clone() for param in model.policies["agent_0"].parameters()]
    model.train(3, 16)
    after = tensors_of_agent_1(model)
    assert all(th.equal(*pair) for pair in zip(before, after, strict=True))
    moved = model.policies["agent_0"].parameters()
    assert not any(th.equal(*pair) for pair in zip(others, moved, strict=True))
