"""The update is the paper's: re-derived by hand, and held against exact enumeration."""

import copy
import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_happo import HAPPO, IPPO, JointEnv, make_joint_vec_env
from sb3_happo.common.bootstrap import Presence, values_of_all_agents
from sb3_happo.common.type_aliases import ActorBatch
from sb3_happo.vec_env import JointDummyVecEnv
from tests.algorithms import alike_team, collect, small
from tests.envs import MatrixGame, RandomTeam, TurnGame


def test_one_update_of_three_agents_by_hand() -> None:
    """
    Advantage, order, factor after each agent, clipped objective and gradient step, written out a
    second time.
    """
    order = ["agent_2", "agent_0", "agent_1"]
    action_spaces = {
        "agent_0": spaces.Discrete(3),
        "agent_1": spaces.Box(-1, 1, (2,), np.float32),
        "agent_2": spaces.MultiDiscrete([2, 3]),
    }
    epochs, rate, clip, ent, gamma, lam = 3, 0.05, 0.1, 0.02, 0.9, 0.8
    model = HAPPO(
        JointEnv(RandomTeam(action_spaces)),
        learning_rate=rate,
        n_steps=64,
        batch_size=None,
        n_epochs=epochs,
        gamma=gamma,
        gae_lambda=lam,
        clip_range=clip,
        ent_coef=ent,
        vf_coef=1.0,
        max_grad_norm=None,
        normalize_value=False,
        agent_order=lambda agents: order,
        policy_kwargs=dict(net_arch=[16], optimizer_class=th.optim.SGD),
        seed=1,
    )
    collect(model)
    state = model.collector_state
    twins = {agent: copy.deepcopy(policy) for agent, policy in model.policies.items()}
    critic = copy.deepcopy(model.critic)
    buffer = model.rollout_buffer
    model.train()

    # Advantages, one step after the other
    rewards, values, starts = (
        x.flatten().tolist() for x in (buffer.rewards, buffer.values, buffer.episode_starts)
    )
    last = {key: th.as_tensor(value) for key, value in state.obs.items()}
    values.append(critic.predict_values(last).item())
    starts.append(float(state.episode_starts[0]))
    advantages = [0.0] * 65
    for t in reversed(range(64)):
        alive = 1.0 - starts[t + 1]
        advantages[t] = (
            rewards[t]
            + gamma * values[t + 1] * alive
            - values[t]
            + gamma * lam * alive * advantages[t + 1]
        )
    assert any(starts[1:]), "the re-derivation should cross the end of an episode"
    advantage = th.tensor(advantages[:64])
    returns = advantage + th.tensor(values[:64])
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)

    def log_prob_and_entropy(agent: str) -> tuple[th.Tensor, th.Tensor]:
        twin = twins[agent]
        out = twin.head(twin.body(buffer.observations[agent].flatten(end_dim=1)))
        actions = buffer.actions[agent].flatten(end_dim=1)
        if agent == "agent_0":
            log_p = out.log_softmax(-1)
            return log_p.gather(1, actions.long()).squeeze(1), -(log_p.exp() * log_p).sum(-1)
        if agent == "agent_1":
            assert twin.log_std is not None
            std = twin.log_std.exp()
            log_p = -0.5 * ((actions - out) / std) ** 2 - twin.log_std - 0.5 * np.log(2 * np.pi)
            return log_p.sum(-1), (0.5 + 0.5 * np.log(2 * np.pi) + twin.log_std).sum().expand(64)
        heads = [out[:, :2].log_softmax(-1), out[:, 2:].log_softmax(-1)]
        chosen = [
            head.gather(1, actions[:, i : i + 1].long()).squeeze(1) for i, head in enumerate(heads)
        ]
        return chosen[0] + chosen[1], sum(-(h.exp() * h).sum(-1) for h in heads)

    m = advantage.clone()
    for agent in order:
        with th.no_grad():
            old = log_prob_and_entropy(agent)[0]
        for _ in range(epochs):
            new, entropy = log_prob_and_entropy(agent)
            ratio = (new - old).exp()
            objective = (
                th.minimum(ratio * m, ratio.clamp(1 - clip, 1 + clip) * m).mean()
                + ent * entropy.mean()
            )
            params = list(twins[agent].parameters())
            for param, grad in zip(params, th.autograd.grad(objective, params), strict=True):
                param.data += rate * grad
        with th.no_grad():
            m = m * (log_prob_and_entropy(agent)[0] - old).exp()
        for mine, theirs in zip(
            twins[agent].parameters(), model.policies[agent].parameters(), strict=True
        ):
            assert th.allclose(mine, theirs, atol=1e-6), agent
    for _ in range(epochs):
        loss = ((critic(buffer.critic_data().observations).squeeze(1) - returns) ** 2).mean()
        params = list(critic.parameters())
        for param, grad in zip(params, th.autograd.grad(loss, params), strict=True):
            param.data -= rate * grad
    for mine, theirs in zip(critic.parameters(), model.critic.parameters(), strict=True):
        assert th.allclose(mine, theirs, atol=1e-6)


class Probe(HAPPO):
    """HAPPO whose factor can be computed alone."""

    def next_factor(self, data: dict[str, ActorBatch], factor: th.Tensor) -> th.Tensor:
        """The hook, callable by the tests."""
        return self._next_factor(data, factor)


def test_dropout_has_no_part_in_the_factor() -> None:
    kwargs = dict(recurrent="lstm", n_lstm_layers=2, lstm_kwargs=dict(dropout=0.5), output_gain=1.0)
    model = small(Probe, alike_team(), kwargs, seed=0)
    collect(model)
    model.policy.set_training_mode(True)
    factor = th.ones(model.rollout_buffer.n_rows)
    data = {agent: model.rollout_buffer.agent_data(agent, factor) for agent in model.agents}
    assert th.allclose(model.next_factor(data, factor), factor, atol=1e-5), "nobody has changed"
    assert all(policy.training for policy in model.policies.values())


def test_advantage_decomposition_lemma_holds_for_the_factor() -> None:
    """
    Lemma 1 of the paper, in expectation and exactly. Over all joint actions of a one-step game,
    weighted by their old probabilities, ``E[factor * (ratio - 1) * A]`` of the agents in turn adds
    up to the expected joint advantage of the new joint policy; factor and ratios are HAPPO's own.
    """
    n_agents = 3
    rng = np.random.default_rng(0)
    payoff = 3 * rng.normal(size=(2,) * n_agents)
    model = Probe(
        JointEnv(MatrixGame(n_agents, payoff)),
        n_steps=2,
        batch_size=None,
        policy_kwargs=dict(net_arch=[]),
        seed=0,
    )
    buffer = model.rollout_buffer = model.rollout_buffer.__class__(2**n_agents, model.policy)
    joint = list(itertools.product(range(2), repeat=n_agents))
    assert model.env is not None
    first = model.env.reset()
    assert isinstance(first, dict)
    obs = {key: th.as_tensor(value) for key, value in first.items()}
    for row, actions in enumerate(joint):
        for key in buffer.observations:
            buffer.observations[key][row] = obs[key]
        for agent, action in zip(model.agents, actions, strict=True):
            buffer.actions[agent][row] = float(action)
            log_prob, _ = model.policies[agent].evaluate_actions(
                obs[agent], th.tensor([[float(action)]])
            )
            buffer.log_probs[agent][row] = log_prob.detach()
    old = th.stack([buffer.log_probs[agent] for agent in model.agents]).sum(dim=0).exp().flatten()
    value = (old * th.tensor(payoff.flatten())).sum()
    advantage = th.tensor(payoff.flatten()).float() - value.float()
    buffer.advantages[:] = advantage.reshape(-1, 1, 1)

    factor, gains = th.ones(len(joint)), 0.0
    for agent in ("agent_1", "agent_2", "agent_0"):
        data = {agent: buffer.agent_data(agent, factor)}
        with th.no_grad():
            model.policies[agent].head.bias.add_(th.tensor(rng.normal(size=2)).float())
        following = model.next_factor(data, factor)
        gains += float((old * (following - factor) * advantage).sum())
        factor = following
    new = old * factor
    assert new.sum().item() == pytest.approx(1.0, abs=1e-5)
    exact = float((new * th.tensor(payoff.flatten())).sum() - value)
    assert abs(exact) > 0.05
    assert gains == pytest.approx(exact, abs=1e-5)


def test_counter_example_of_proposition_1() -> None:
    """
    Reward only where the first half plays 0 and the second 1, or the mirror: shared parameters
    cannot exceed 2 / 2^n.
    """
    env_fn = partial(MatrixGame, 4)
    copies = make_joint_vec_env(env_fn, 16, vec_env_cls=JointDummyVecEnv)
    model = HAPPO(
        copies,
        n_steps=16,
        batch_size=None,
        learning_rate=0.05,
        ent_coef=0.01,
        policy_kwargs=dict(net_arch=[32]),
        seed=0,
    ).learn(3_000)
    games = make_joint_vec_env(env_fn, 200)
    observations = games.reset()
    assert isinstance(observations, dict)
    actions, _ = model.predict(observations)
    rewards = games.step(actions)[1]
    assert rewards.mean() >= 0.95


class IndependentProbe(IPPO):
    """IPPO whose value of agents that have left can be computed alone."""

    def value_after_leaving(self, values: th.Tensor, active: th.Tensor) -> th.Tensor:
        """The hook, callable by the tests."""
        return self._value_after_leaving(values, active)


def test_what_follows_death_is_not_guessed() -> None:
    """
    With a value for each agent, the advantage of a step at which an agent dies is its reward minus
    its value: nothing follows, whatever the critic, which never learns such steps, predicts there.
    """
    gamma, lam = 0.9, 0.8
    env = JointEnv(MatrixGame(2))
    settings: dict[str, Any] = dict(n_steps=4, batch_size=None, gamma=gamma, gae_lambda=lam)
    model = IndependentProbe(env, **settings)
    buffer = model.rollout_buffer
    guess = 100.0
    values = th.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, guess], [7.0, guess]])
    rewards = th.tensor([[1.0, 0.5], [2.0, -1.0], [0.0, 0.0], [1.0, 0.0]])
    buffer.values[:, 0], buffer.rewards[:, 0] = values, rewards
    buffer.active[2:, 0, 1] = False
    last = values_of_all_agents(
        th.tensor([[8.0, guess]]),
        values[1:2],
        Presence(np.array([[True, False]]), None),
        model.value_after_leaving,
    )
    buffer.compute_returns_and_advantage(last, np.array([False]))
    survivor, dead = buffer.advantages[:, 0, 0], buffer.advantages[:, 0, 1]
    # The second agent dies in the second step
    assert dead[1].item() == pytest.approx(-1.0 - 4.0)
    assert dead[0].item() == pytest.approx(0.5 + gamma * 4.0 - 2.0 + gamma * lam * dead[1].item())
    assert survivor[3].item() == pytest.approx(1.0 + gamma * 8.0 - 7.0)
    assert survivor[2].item() == pytest.approx(
        0.0 + gamma * 7.0 - 5.0 + gamma * lam * survivor[3].item()
    )


def always_say(model: HAPPO, value: float) -> None:
    """A critic that says the same of everything."""
    with th.no_grad():
        for network in model.critic.networks:
            network.head.weight.zero_()
            network.head.bias.fill_(value)


class Mortal(RandomTeam):
    """
    Of "a" and "b" the first one dies early.

    :param dies: In which step
    :param length: Of the other's life
    :param reward: Of each of the living at each step; None for random ones
    """

    def __init__(self, dies: int, length: int, reward: float | None = None) -> None:
        super().__init__({agent: spaces.Discrete(2) for agent in "ab"}, length)
        self.dies, self.reward = dies, reward

    def step(self, actions: dict[str, Any]) -> Any:
        team = self.agents
        obs, rewards, terminations, truncations, infos = super().step(actions)
        if self._t == self.dies:
            terminations["a"] = True
            self.agents = ["b"]
        if self.reward is not None:
            rewards = dict.fromkeys(team, self.reward)
        return tuple(
            {agent: of[agent] for agent in team}
            for of in (obs, rewards, terminations, truncations, infos)
        )


@pytest.mark.parametrize("n_steps", [6, 24])
def test_the_teams_reward_goes_on_without_the_dead(n_steps: int) -> None:
    """
    With a value for each agent, all of the team's reward and all correct, advantages are 0,
    wherever the rollout ends.
    """
    env = JointEnv(Mortal(3, 1000, reward=1.0), "b", state="agent")
    model = small(HAPPO, env, n_steps=n_steps, batch_size=None, gamma=0.9, normalize_value=False)
    always_say(model, 10.0)  # 1 / (1 - gamma)
    collect(model)
    buffer = model.rollout_buffer
    assert not buffer.active[3:, 0, 0].any() and buffer.active[:3].all()
    assert th.allclose(buffer.advantages[buffer.active], th.zeros(1), atol=1e-4)


def test_explained_variance_is_that_of_steps_that_are_learned() -> None:
    """Of absent agents value and return are the same, which explains nothing."""
    model = small(
        IPPO,
        Mortal(2, 20),
        n_steps=80,
        batch_size=None,
        gamma=0.0,
        gae_lambda=0.0,
        n_epochs=1,
        normalize_value=False,
    )
    always_say(model, 10.0)
    model.learn(80)
    assert (~model.rollout_buffer.active).sum() == 72
    assert model.logger.name_to_value["train/explained_variance"] == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("algorithm", [IPPO, HAPPO])
@pytest.mark.parametrize("truncate", [False, True], ids=["rollout ends", "episode is cut off"])
def test_who_waits_for_a_turn_is_not_dead(algorithm: type[HAPPO], truncate: bool) -> None:
    """
    A game of turns, a value for each agent, no discount, no rewards. A critic that predicts the
    same value at all steps is right, so that all advantages are 0, whichever agent was on turn at
    the end of the rollout or of a truncated episode.
    """

    class Unrewarded(TurnGame):
        def step(self, action: Any) -> None:
            super().step(action)
            self.rewards = dict.fromkeys(self.agents, 0.0)

    env = JointEnv(Unrewarded(3, 7 if truncate else 1000, truncate=True), state="agent")
    model = small(algorithm, env, seed=0, n_steps=32, gamma=1.0, normalize_value=False)
    always_say(model, 10.0)
    collect(model)
    buffer = model.rollout_buffer
    assert buffer.n_values == 3
    assert bool(buffer.episode_starts[1:].any()) == truncate
    assert (~buffer.active).sum() == 2 * 32
    assert th.allclose(buffer.advantages[buffer.active], th.zeros(32), atol=1e-4)
