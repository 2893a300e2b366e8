"""HASAC: an update of three agents re-derived by hand, and games with known answers."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.distributions import Normal
from torch.nn import functional

from sb3_happo import HASAC, JointEnv
from tests.algorithms import alike_team
from tests.off_policy import networks_of_critic, small
from tests.test_hatd3 import Weights, actor, copies, mlp, sgd
from tests.test_lq_team import LQTeam, gains_and_return
from tests.test_value_games import TableGame, play

PENALTY = [[[10, 0, -30], [0, 2, 0], [-30, 0, 10]]]


def squashed(outputs: th.Tensor, noise: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """Actions of squashed Gaussians and their log-probabilities ``(batch, 1)``."""
    mean, log_std = outputs.chunk(2, dim=1)
    std = log_std.clamp(-20, 2).exp()
    gaussian = mean + std * noise
    action = gaussian.tanh()
    log_prob = Normal(mean, std).log_prob(gaussian) - (1 - action**2 + 1e-6).log()
    return action, log_prob.sum(dim=1, keepdim=True)


def test_update_of_three_agents_by_hand() -> None:
    """Each agent ascends the least soft value in view of the new actions of those before it."""
    rate, critic_rate, tau, gamma, alpha = 0.5, 0.2, 0.1, 0.9, 0.3
    order = ["agent_2", "agent_0", "agent_1"]
    model = small(
        HASAC,
        alike_team(3, spaces.Box(-1, 1, (2,))),
        {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {}},
        agent_order=lambda agents: order,
        ent_coef=alpha,
        learning_rate=rate,
        critic_learning_rate=critic_rate,
        tau=tau,
        gamma=gamma,
        seed=0,
        learning_starts=35,
    ).learn(40)
    assert model.replay_buffer is not None
    agents = model.agents
    actors = {agent: actor(model.policies[agent]) for agent in agents}
    critics = [copies(network) for network in networks_of_critic(model.critic)]
    targets = [copies(network) for network in networks_of_critic(model.policy.critic_target)]
    np.random.seed(1)
    data = model.replay_buffer.sample(16)
    np.random.seed(1)
    th.manual_seed(2)
    model.train(1, 16)

    obs, next_obs = data.observations, data.next_observations
    th.manual_seed(2)

    def noise() -> th.Tensor:
        return th.normal(th.zeros(16, 2), th.ones(16, 2))

    own_noise = {agent: noise() for agent in agents}
    nexts = [squashed(mlp(actors[agent], next_obs[agent]), noise()) for agent in agents]
    next_inputs = th.cat([next_obs["state"], *(action for action, _ in nexts)], dim=1)
    least = th.min(*[mlp(network, next_inputs) for network in targets])
    cost = alpha * sum(log_prob for _, log_prob in nexts)
    goal = (data.rewards + gamma * (1 - data.dones) * (least - cost)).detach()
    inputs = th.cat([obs["state"], data.actions], dim=1)
    new_critics: list[Weights] = []
    for network in critics:
        loss = 0.5 * functional.mse_loss(mlp(network, inputs), goal)
        new_critics.append(sgd(network, loss, critic_rate))
    moves = []
    actions = {a: squashed(mlp(actors[a], obs[a]), own_noise[a])[0].detach() for a in agents}
    for agent in order:
        action, log_prob = squashed(mlp(actors[agent], obs[agent]), own_noise[agent])
        parts = actions | {agent: action}
        joint = th.cat([obs["state"], *(parts[name] for name in agents)], dim=1)
        value = th.min(*[mlp(network, joint) for network in new_critics])
        before = actors[agent]
        actors[agent] = sgd(before, (alpha * log_prob - value).mean(), rate)
        moves.append(float((actors[agent][0] - before[0]).detach().abs().max()))
        if agent != order[-1]:
            actions[agent] = squashed(mlp(actors[agent], obs[agent]), noise())[0].detach()
    assert min(moves) > 1e-3, "each agent moves much more than the tolerance"

    compared = [(actor(model.policies[agent]), actors[agent]) for agent in agents]
    compared += zip(networks_of_critic(model.critic), new_critics, strict=True)
    moved = []
    for old, new in zip(targets, new_critics, strict=True):
        moved.append([(1 - tau) * a + tau * b for a, b in zip(old, new, strict=True)])
    compared += zip(networks_of_critic(model.policy.critic_target), moved, strict=True)
    for ours, expected in compared:
        for mine, other in zip(ours, expected, strict=True):
            assert th.allclose(mine, other, rtol=0, atol=1e-6), (mine - other).abs().max()


def learn(tables: Any, seed: int, timesteps: int, **kwargs: Any) -> HASAC:
    return HASAC(
        "MlpPolicy",
        DummyVecEnv([lambda: JointEnv(TableGame(tables))] * 16),
        learning_rate=1e-2,
        learning_starts=160,
        buffer_size=2000,
        train_freq=1,
        gradient_steps=4,
        batch_size=64,
        policy_kwargs={"net_arch": [32]},
        seed=seed,
        device="cpu",
        **kwargs,
    ).learn(timesteps)


def test_quantal_response_at_a_fixed_temperature() -> None:
    """Payoffs diag(4, 2) and alpha 2: both play the first action with 0.804."""
    model = learn([[[4, 0], [0, 2]]], 0, 1120, ent_coef=2.0)
    obs: Any = model.env.reset()  # type: ignore[union-attr]
    for agent, policy in model.policies.items():
        own = th.as_tensor(obs[agent][:1])
        outputs = policy.parameters_of_actions(own)[0]
        (probabilities,) = policy.action_head.probabilities(outputs)
        assert abs(probabilities[0, 0].item() - 0.804) < 0.03, agent


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_falling_temperatures_find_the_optimum_of_the_penalty_game(seed: int) -> None:
    """k = -30: independent learners end at 2; here entropy keeps them near both optima."""
    model: Any = learn(PENALTY, seed, 4000, ent_coef="auto_20", target_entropy=0.1)
    assert play(model, JointEnv(TableGame(PENALTY))) == 10


@pytest.mark.slow
def test_uneven_lq_team() -> None:
    model = HASAC(
        "MlpPolicy",
        JointEnv(LQTeam()),
        learning_rate=1e-3,
        gamma=0.95,
        buffer_size=10_000,
        learning_starts=500,
        ent_coef=0.005,
        policy_kwargs={"net_arch": [64, 64]},
        seed=0,
        device="cpu",
    ).learn(10_000)
    (first, second), mean_return = gains_and_return(model)
    print(f"HASAC: gains {first:.3f} and {second:.3f}, return {mean_return:.3f}")
    assert first > 1.5 * second > 0
    assert mean_return >= -0.48
