"""MATD3 and MADDPG: losses against the others' actions, and critics of own rewards."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch as th

from sb3_happo import MADDPG, MATD3
from sb3_happo.common.replay_buffer import JointSamples
from tests.algorithms import alike_team
from tests.off_policy import SMALL


class Recorder(MATD3):
    """Keeps the others' actions in each agent's loss of the last update."""

    def _ascend(self, agent: str, decision: Any, others: Any, features: Any, data: Any) -> None:
        super()._ascend(agent, decision, others, features, data)
        self.seen = getattr(self, "seen", {}) | {agent: others}
        self.data = data


def trained(**kwargs: Any) -> Recorder:
    return Recorder("MlpPolicy", alike_team(), seed=0, **SMALL, **kwargs).learn(60)


def own_columns(model: MATD3, data: JointSamples, agent: str) -> th.Tensor:
    return model.policy.encode(data.actions)[:, model.policy.columns[agent]]


def test_others_act_as_in_the_buffer() -> None:
    model = trained()
    for others in model.seen.values():
        for agent in model.agents:
            assert th.equal(others[agent], own_columns(model, model.data, agent))


def test_others_act_by_their_policies_before_the_update() -> None:
    model = trained(other_actions="policies", policy_delay=1)
    first, *rest = model.seen.values()
    assert all(others is first for others in rest), "no agent sees the update of another one"
    agent = model.agents[0]
    assert not th.equal(first[agent], own_columns(model, model.data, agent))


def test_critics_of_own_rewards() -> None:
    """The targets of each agent's critic are made of its own rewards."""
    model = MADDPG(
        "MlpPolicy", alike_team(), seed=0, gamma=0.0, policy_kwargs={"own_critics": True}, **SMALL
    ).learn(60)
    assert model.critic.n_values == len(model.agents)
    data = model._sample(16)
    assert th.equal(model._targets(data), data.agent_rewards)
    assert data.agent_rewards.std(dim=1).max() > 0, "rewards differ"


def test_unknown_other_actions() -> None:
    with pytest.raises(ValueError, match=r"'bufer' is unknown\. Did you mean 'buffer'"):
        MATD3("MlpPolicy", alike_team(), other_actions="bufer", **SMALL)


def test_the_page_of_the_family_does_what_it_says() -> None:
    page = (Path(__file__).parents[1] / "docs/off_policy.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    space: dict[str, Any] = {}
    exec(code, space)
    assert space["soft"].num_timesteps == 200
