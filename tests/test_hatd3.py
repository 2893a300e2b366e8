"""HATD3: one update re-derived by hand, and samples in which an agent did not act."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch.nn import functional

from sb3_happo import HATD3
from sb3_happo.common.replay_buffer import Activity, TeamFacts, TransitionInfos
from tests.algorithms import alike_team
from tests.off_policy import ALGORITHMS, networks_of_critic, small

BOX = spaces.Box(-1, 1, (2,))
Weights = list[th.Tensor]


def copies(weights: Any) -> Weights:
    return [weight.detach().clone().requires_grad_() for weight in weights]


def actor(policy: Any) -> Weights:
    return copies([*policy.body.parameters(), *policy.head.parameters()])


def mlp(weights: Weights, inputs: th.Tensor) -> th.Tensor:
    hidden = functional.relu(functional.linear(inputs, *weights[:2]))
    return functional.linear(hidden, *weights[2:])


def sgd(weights: Weights, loss: th.Tensor, rate: float) -> Weights:
    gradients = th.autograd.grad(loss, weights)
    return copies([w - rate * g for w, g in zip(weights, gradients, strict=True)])


def test_update_of_three_agents_by_hand() -> None:
    """Each agent ascends the first critic in view of the new actions of those before it."""
    rate, critic_rate, tau, gamma = 0.5, 0.2, 0.1, 0.9
    order = ["agent_2", "agent_0", "agent_1"]
    model = small(
        HATD3,
        alike_team(3, BOX),
        {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {}},
        agent_order=lambda agents: order,
        policy_delay=1,
        learning_rate=rate,
        critic_learning_rate=critic_rate,
        tau=tau,
        gamma=gamma,
        seed=0,
    ).learn(40)
    assert model.replay_buffer is not None
    agents = model.agents
    actors = {agent: actor(model.policies[agent]) for agent in agents}
    targets = {a: actor(net) for a, net in zip(agents, model.policy.target_actors, strict=True)}
    critics = [copies(network) for network in networks_of_critic(model.critic)]
    target_critics = [copies(net) for net in networks_of_critic(model.policy.critic_target)]

    np.random.seed(1)
    data = model.replay_buffer.sample(16)
    np.random.seed(1)
    th.manual_seed(2)
    model.train(1, 16)

    obs, next_obs = data.observations, data.next_observations
    th.manual_seed(2)
    noise = th.randn(16, 6).mul(0.2).clamp(-0.5, 0.5)
    next_parts = [mlp(targets[agent], next_obs[agent]).tanh() for agent in agents]
    next_actions = (th.cat(next_parts, dim=1) + noise).clamp(-1, 1)
    next_inputs = th.cat([next_obs["state"], next_actions], dim=1)
    least = th.min(*[mlp(network, next_inputs) for network in target_critics])
    goal = (data.rewards + gamma * (1 - data.dones) * least).detach()
    inputs = th.cat([obs["state"], data.actions], dim=1)
    critics = [
        sgd(network, functional.mse_loss(mlp(network, inputs), goal), critic_rate)
        for network in critics
    ]
    moves = []
    before = actors.copy()
    for agent in order:
        parts = {name: mlp(actors[name], obs[name]).tanh() for name in agents}
        joint = th.cat([obs["state"], *(parts[name] for name in agents)], dim=1)
        actors[agent] = sgd(actors[agent], -mlp(critics[0], joint).mean(), rate)
        moves.append(float((actors[agent][0] - before[agent][0]).detach().abs().max()))
    assert min(moves) > 1e-3, "each agent moves much more than the tolerance"

    target_actors = dict(zip(agents, model.policy.target_actors, strict=True))
    pairs: list[tuple[Any, Weights]] = []
    for agent in agents:
        moved = [
            (1 - tau) * old + tau * new
            for old, new in zip(targets[agent], actors[agent], strict=True)
        ]
        pairs += [(model.policies[agent], actors[agent]), (target_actors[agent], moved)]
    compared = [(actor(policy), expected) for policy, expected in pairs]
    compared += zip(networks_of_critic(model.critic), critics, strict=True)
    for ours, expected in compared:
        for mine, other in zip(ours, expected, strict=True):
            assert th.allclose(mine, other, rtol=0, atol=1e-6), (mine - other).abs().max()


def test_the_order_matters() -> None:
    """The update of the last agent sees those before it."""
    ends = []
    for order in ("fixed", "reverse"):
        kwargs: Any = dict(policy_delay=1, learning_rate=0.5, seed=0, agent_order=order)
        model = small(HATD3, alike_team(2, BOX), {"optimizer_class": th.optim.SGD}, **kwargs)
        ends.append(model.learn(21).policies["agent_1"].head.weight.detach().clone())
    first, second = ends
    assert not th.allclose(first, second, atol=1e-6)


# ---------------------------------------------------------------- agents that do not act


def model_with_transitions(algorithm: Any, dead_rows: slice, garbage: float = 0.0) -> Any:
    """
    A team of three before its first update, with 64 transitions of the same random numbers, in some
    of which "agent_1" does not act before and after the step.
    """
    env = alike_team(3, BOX)
    model = small(algorithm, env, learning_starts=1, buffer_size=64, seed=0)
    random = np.random.default_rng(0)
    shapes = {key: space.shape or () for key, space in env.observation_space.spaces.items()}
    for row in range(64):
        is_dead = row in range(64)[dead_rows]
        present = np.array([[True, not is_dead, True]])
        obs, next_obs = (
            {key: random.normal(size=(1, *shape)) for key, shape in shapes.items()}
            for _ in range(2)
        )
        action = random.uniform(-1, 1, (1, 6))
        rewards = random.normal(size=(1, 3))
        if is_dead:
            obs["agent_1"][:] += garbage
            next_obs["agent_1"][:] += garbage
            action[:, 2:4] *= 1.0 - garbage
        activity = Activity(present, present, present, present)
        facts = TransitionInfos([{}], TeamFacts(rewards, activity))
        model.replay_buffer.add(
            obs, next_obs, action, rewards.mean(axis=1), np.zeros(1, bool), facts
        )
    return model


def weights_of(model: Any) -> dict[str, Weights]:
    """Parameters of each agent and of the critic."""
    owners = {**model.policies, "critic": model.critic}
    return {owner: copies(network.parameters()) for owner, network in owners.items()}


def train(model: Any) -> dict[str, Weights]:
    """Parameters after four gradient steps."""
    model.learn(0)  # makes the log
    np.random.seed(3)
    th.manual_seed(3)
    model.train(4, 32)
    return weights_of(model)


def same(first: Weights, second: Weights) -> bool:
    return all(th.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_an_agent_that_never_acts_does_not_learn(algorithm: Any) -> None:
    model = model_with_transitions(algorithm, slice(None))
    before = weights_of(model)
    after = train(model)
    changed = [owner for owner in after if not same(before[owner], after[owner])]
    assert changed == ["agent_0", "agent_2", "critic"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_samples_of_a_dead_agent_change_nothing(algorithm: Any) -> None:
    """Its observations and actions in them enter nobody's loss."""
    first = train(model_with_transitions(algorithm, slice(0, 40)))
    second = train(model_with_transitions(algorithm, slice(0, 40), garbage=0.7))
    assert all(same(first[owner], second[owner]) for owner in first)
    everybody = train(model_with_transitions(algorithm, slice(0, 0)))
    assert not same(first["agent_1"], everybody["agent_1"])
