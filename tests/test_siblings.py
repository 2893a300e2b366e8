"""The siblings of HAPPO: shared parameters, own rewards, plain policy gradients."""

import ast
import copy
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_happo import HAA2C, HAPPO, HATRPO, IPPO, MAPPO, JointEnv
from sb3_happo.common.type_aliases import ActorBatch
from sb3_happo.envs.games import MatrixGame as Dilemma
from tests.algorithms import (
    PLAIN_SPACES,
    alike_team,
    collect,
    every_algorithm,
    random_team,
    same,
    small,
    snapshot,
)
from tests.envs import MatrixGame, RandomTeam

SGD: dict[str, Any] = dict(optimizer_class=th.optim.SGD, output_gain=1.0)


def everything(model: HAPPO) -> dict[str, ActorBatch]:
    """All agents' rows of the rollout, with a factor of 1."""
    return {
        agent: model.rollout_buffer.agent_data(agent, th.ones(model.rollout_buffer.n_rows))
        for agent in model.agents
    }


def categorical(
    model: HAPPO, agent: str, twin: Any, rows: ActorBatch
) -> tuple[th.Tensor, th.Tensor]:
    """Log-probability and entropy of Discrete actions, from the twin's network."""
    features = rows.observations
    assert isinstance(features, th.Tensor)
    one_hot = model.policies[agent].one_hot
    if one_hot is not None:
        features = th.cat([features, one_hot.expand(len(features), -1)], dim=1)
    log_p = twin.head(twin.body(features)).log_softmax(-1)
    return log_p.gather(1, rows.actions.long()).squeeze(1), -(log_p.exp() * log_p).sum(-1)


class SometimesTwo(RandomTeam):
    """Three agents alike, of whom the first is away at every third step."""

    def __init__(self) -> None:
        super().__init__({f"agent_{index}": spaces.Discrete(3) for index in range(3)})

    def _present(self, answers: dict[str, Any]) -> dict[str, Any]:
        return {
            agent: value
            for agent, value in answers.items()
            if agent != "agent_0" or self._t % 3 != 1
        }

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        return tuple(map(self._present, super().reset(seed, options)))  # type: ignore[return-value]

    def step(self, actions: dict[str, Any]) -> Any:
        return tuple(map(self._present, super().step(actions)))


def test_settings_in_the_order_of_happo() -> None:
    for algorithm in (HAPPO, HAA2C, MAPPO, IPPO):
        model = algorithm("MlpPolicy", alike_team(), 1.25e-4, 32)
        assert (model.learning_rate, model.n_steps) == (1.25e-4, 32)


# ---------------------------------------------------------------- MAPPO


@pytest.mark.parametrize("append_agent_id", [False, True])
@pytest.mark.parametrize(
    "team", [alike_team, lambda: JointEnv(SometimesTwo())], ids=["all there", "some away"]
)
def test_one_update_of_mappo_by_hand(append_agent_id: bool, team: Any) -> None:
    """One gradient step per pass, on the mean over all agents' samples; the factor is 1."""
    epochs, rate, clip, ent = 3, 0.2, 0.1, 0.02
    model = small(
        MAPPO,
        team(),
        learning_rate=rate,
        n_epochs=epochs,
        clip_range=clip,
        ent_coef=ent,
        max_grad_norm=None,
        seed=1,
        policy_kwargs=dict(append_agent_id=append_agent_id, **SGD),
    )
    collect(model)
    data = everything(model)
    twin = copy.deepcopy(model.policies["agent_0"])
    before = snapshot(twin)
    model.train()
    params = list(twin.parameters())
    for _ in range(epochs):
        terms = []
        for agent, rows in data.items():
            log_prob, entropy = categorical(model, agent, twin, rows)
            advantages = (rows.advantages - rows.advantages.mean()) / (rows.advantages.std() + 1e-8)
            ratio = (log_prob - rows.old_log_prob).exp()
            terms.append(
                th.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
                + ent * entropy
            )
        for param, grad in zip(params, th.autograd.grad(th.cat(terms).mean(), params), strict=True):
            param.data += rate * grad
    assert not same(before, snapshot(twin))
    for agent in model.agents:
        for mine, theirs in zip(twin.parameters(), model.policies[agent].parameters(), strict=True):
            assert th.allclose(mine, theirs, atol=1e-6), agent


def test_shared_networks_learn_from_every_agent() -> None:
    """Where only one agent's samples have an advantage, the shared network learns from them."""
    changes = []
    for teacher in range(3):
        model = small(
            MAPPO,
            JointEnv(SometimesTwo(), state="agent"),
            normalize_advantage=False,
            seed=0,
            policy_kwargs=SGD,
        )
        collect(model)
        advantages = model.rollout_buffer.advantages
        advantages[..., [agent for agent in range(3) if agent != teacher]] = 0.0
        before = snapshot(model.policies["agent_1"])
        model.train()
        after = snapshot(model.policies["agent_1"])
        changes.append(after["head.weight"] - before["head.weight"])
        assert changes[-1].any()
    assert not th.allclose(changes[0], changes[1])


@pytest.mark.parametrize("algorithm", [MAPPO, IPPO])
def test_who_shares_by_default(algorithm: type[HAPPO]) -> None:
    """Agents whose spaces agree."""
    team = {
        **PLAIN_SPACES,
        "discrete_2": PLAIN_SPACES["discrete"],
        "box_2": PLAIN_SPACES["box"],
        "other": spaces.Discrete(3),
    }
    model = small(algorithm, RandomTeam(team))
    assert sorted(model.policy.groups) == sorted(
        [
            ("discrete", "discrete_2"),
            ("box", "box_2"),
            ("multi_discrete",),
            ("multi_binary",),
            ("other",),
        ]
    )
    first, second = model.policies["box"], model.policies["box_2"]
    assert (
        first.head is second.head
        and first.log_std is second.log_std
        and first.optimizer is second.optimizer
    )
    assert model.policies["discrete"].head is not model.policies["other"].head, (
        "Discrete(3, start=2) is not Discrete(3)"
    )


def test_agents_who_see_different_things_do_not_share() -> None:
    observation_spaces = {
        "left": spaces.Box(-1, 1, (3,)),
        "right": spaces.Box(-2, 1, (3,)),
        "up": spaces.Box(-1, 1, (3,)),
    }
    team = RandomTeam(
        dict.fromkeys(observation_spaces, spaces.Discrete(2)), observation_spaces=observation_spaces
    )
    assert small(MAPPO, team).policy.groups == [("left", "up"), ("right",)]


def test_agents_with_overrides_do_not_share_with_others() -> None:
    model = small(
        MAPPO, alike_team(), policy_kwargs=dict(agent_kwargs={"agent_1": dict(net_arch=[3])})
    )
    assert model.policy.groups == [("agent_0", "agent_2"), ("agent_1",)]


@every_algorithm
def test_sharing_choices_are_open_to_all(algorithm: type[HAPPO]) -> None:
    """No agents share, or all, or groups; an update changes each group as one network."""
    for share, n_networks in (
        (False, 3),
        (True, 1),
        ([["agent_0", "agent_2"]], 2),
        ([["agent_2", "agent_1"], ["agent_0"]], 2),
    ):
        model = small(algorithm, alike_team(), policy_kwargs=dict(share_parameters=share), seed=0)
        heads = {agent: policy.head for agent, policy in model.policies.items()}
        assert len({id(head) for head in heads.values()}) == n_networks
        assert len({id(policy.optimizer) for policy in model.policies.values()}) == n_networks
        before = {agent: head.weight.detach().clone() for agent, head in heads.items()}
        model.learn(32)
        assert all(not th.equal(before[agent], head.weight) for agent, head in heads.items())
        if share == [["agent_0", "agent_2"]]:
            assert heads["agent_0"] is heads["agent_2"] is not heads["agent_1"]


@pytest.mark.parametrize("algorithm", [HAPPO, HATRPO, HAA2C])
def test_the_heterogeneous_share_nothing_by_default(algorithm: type[HAPPO]) -> None:
    assert small(algorithm, alike_team()).policy.groups == [
        ("agent_0",),
        ("agent_1",),
        ("agent_2",),
    ]


def test_agent_ids_tell_sharers_apart() -> None:
    """The same network, the same observation, other actions; a group of one needs no id."""
    kwargs = dict(append_agent_id=True, share_parameters=[["agent_0", "agent_2"]], output_gain=1.0)
    model = small(MAPPO, alike_team(), policy_kwargs=kwargs, seed=0)
    obs = th.randn(1, 3)
    logits: dict[str, th.Tensor] = {}
    for agent, policy in model.policies.items():
        logits[agent] = policy.get_distribution(obs).distribution.logits  # type: ignore[union-attr]
    assert not th.allclose(logits["agent_0"], logits["agent_2"])
    assert model.policies["agent_0"].agent_id == (0, 2) and model.policies["agent_2"].agent_id == (
        1,
        2,
    )
    assert model.policies["agent_1"].agent_id is None
    model = small(MAPPO, alike_team(), policy_kwargs=dict(output_gain=1.0), seed=0)
    distributions = [policy.get_distribution(obs) for policy in model.policies.values()]
    plain = [own.distribution.logits for own in distributions]  # type: ignore[union-attr]
    assert th.equal(plain[0], plain[1]) and th.equal(plain[1], plain[2])


def test_agent_ids_solve_what_sharers_cannot() -> None:
    """One must play 0 and the other 1: a shared policy gets 1/2 at best, with ids it gets all."""
    returns = {}
    for append_agent_id in (False, True):
        model = small(
            MAPPO,
            DummyVecEnv([lambda: JointEnv(MatrixGame(2))] * 8),
            n_steps=16,
            learning_rate=0.02,
            n_epochs=5,
            seed=0,
            policy_kwargs=dict(append_agent_id=append_agent_id, output_gain=1.0),
        ).learn(3000)
        obs = th.ones(1, 1)
        distributions = [policy.get_distribution(obs) for policy in model.policies.values()]
        p, q = (own.distribution.probs[0, 1].item() for own in distributions)  # type: ignore[union-attr]
        returns[append_agent_id] = p * (1 - q) + q * (1 - p)
    assert returns[False] <= 0.5 + 1e-6 and returns[True] >= 0.95


@pytest.mark.parametrize("algorithm", [MAPPO, IPPO])
def test_the_factor_stays_1(algorithm: type[HAPPO]) -> None:
    model = small(algorithm, random_team(), learning_rate=1e-2, seed=0).learn(32, log_interval=100)
    values = model.logger.name_to_value
    assert (
        values["train/factor_mean"],
        values["train/factor_std"],
        values["train/factor_ess"],
    ) == (1.0, 0.0, 1.0)


def test_unshared_mappo_updates_do_not_depend_on_each_other() -> None:
    """HAPPO's second agent learns from the first one's change; MAPPO's as if it were first."""
    after = {}
    for algorithm, order in ((HAPPO, "fixed"), (HAPPO, "reverse"), (MAPPO, "fixed")):
        kwargs = dict(share_parameters=False)
        model = small(
            algorithm,
            alike_team(2),
            agent_order=order,
            learning_rate=0.02,
            seed=0,
            policy_kwargs=kwargs,
        ).learn(32)
        after[algorithm.__name__, order] = {
            agent: snapshot(policy) for agent, policy in model.policies.items()
        }
    mappo = after["MAPPO", "fixed"]
    assert same(mappo["agent_0"], after["HAPPO", "fixed"]["agent_0"])
    assert same(mappo["agent_1"], after["HAPPO", "reverse"]["agent_1"])
    assert not same(mappo["agent_1"], after["HAPPO", "fixed"]["agent_1"])


# ---------------------------------------------------------------- IPPO


def rivals() -> Dilemma:
    """One step, two agents: 1 pays for the agent itself, and costs the other one twice as much."""
    return Dilemma({"left": [[0, -2], [1, -1]], "right": [[0, 1], [-2, -1]]})


def test_ippo_learns_from_own_rewards() -> None:
    """In a dilemma 0 is better for the team, 1 for each alone: independent agents play 1."""
    env = DummyVecEnv([lambda: JointEnv(rivals())] * 4)
    for algorithm, wanted in ((IPPO, 1), (MAPPO, 0), (HAPPO, 0)):
        model = small(algorithm, env, learning_rate=0.02, n_epochs=5, seed=0).learn(1500)
        obs = dict.fromkeys(("left", "right"), np.ones(1, np.float32))
        assert model.predict(obs, deterministic=True)[0] == {"left": wanted, "right": wanted}
        if algorithm is IPPO:
            collect(model)
            taken = th.cat(
                [model.rollout_buffer.actions[agent] for agent in ("left", "right")], dim=-1
            )
            own = taken - 2 * taken.flip(-1)
            assert th.equal(model.rollout_buffer.rewards, own)


def test_ippo_may_be_given_a_shared_critic_and_mappo_local_ones() -> None:
    assert small(IPPO, alike_team()).critic.n_values == 3
    assert small(IPPO, alike_team(), policy_kwargs=dict(share_parameters=False)).policy.groups == [
        ("agent_0",),
        ("agent_1",),
        ("agent_2",),
    ]
    model = small(MAPPO, alike_team(), policy_kwargs=dict(local_critics=True), seed=0).learn(32)
    assert model.critic.n_values == 3
    collect(model)
    rewards = model.rollout_buffer.rewards
    assert th.equal(rewards[..., 0], rewards[..., 2]), "MAPPO's reward is the team's"


# ---------------------------------------------------------------- HAA2C


def test_one_update_of_haa2c_by_hand() -> None:
    """The plain policy gradient of factor * advantage, one agent after the other."""
    rate, ent = 0.3, 0.05
    order = ["agent_1", "agent_2", "agent_0"]
    model = small(
        HAA2C,
        alike_team(),
        n_epochs=1,
        learning_rate=rate,
        ent_coef=ent,
        max_grad_norm=None,
        agent_order=lambda agents: order,
        seed=1,
        policy_kwargs=SGD,
    )
    collect(model)
    data = everything(model)
    twins = {agent: copy.deepcopy(policy) for agent, policy in model.policies.items()}
    model.train()
    factor = th.ones(32)
    for agent in order:
        rows, twin = data[agent], twins[agent]
        log_prob, entropy = categorical(model, agent, twin, rows)
        advantages = (rows.advantages - rows.advantages.mean()) / (rows.advantages.std() + 1e-8)
        objective = (factor * advantages * log_prob).mean() + ent * entropy.mean()
        params = list(twin.parameters())
        for param, grad in zip(params, th.autograd.grad(objective, params), strict=True):
            param.data += rate * grad
        with th.no_grad():
            factor = factor * (categorical(model, agent, twin, rows)[0] - rows.old_log_prob).exp()
        for mine, theirs in zip(twin.parameters(), model.policies[agent].parameters(), strict=True):
            assert th.allclose(mine, theirs, atol=1e-6), agent
    assert (factor - 1).abs().max() > 1e-3


# ---------------------------------------------------------------- their form


@pytest.mark.parametrize("algorithm", [HATRPO, HAA2C, MAPPO, IPPO])
def test_a_sibling_says_only_how_it_differs(algorithm: type[HAPPO]) -> None:
    """Its file is under 150 lines without the class docstring, and HAPPO's knows nothing of it."""
    source = Path(inspect.getfile(algorithm)).read_text()
    tree = ast.parse(source)
    doc = next(node.body[0] for node in tree.body if isinstance(node, ast.ClassDef))
    assert isinstance(doc, ast.Expr) and doc.end_lineno is not None
    assert len(source.splitlines()) - (doc.end_lineno - doc.lineno + 1) < 150
    assert f"sb3_happo.{algorithm.__name__.lower()}" not in Path(inspect.getfile(HAPPO)).read_text()
