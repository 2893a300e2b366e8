"""
The critics: what they see, what they are fitted to, in which units, and where episodes are cut.
"""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from pettingzoo import ParallelEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_happo import HAPPO, IPPO, MAPPO, JointEnv
from sb3_happo.common.networks import ValueNorm
from sb3_happo.common.state_critics import CentralizedCritic, Critic, LocalCritics
from sb3_happo.common.type_aliases import CriticBatch
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
from tests.envs import HeterogeneousTeam, RandomTeam, TurnGame

# ---------------------------------------------------------------- normalisation of values


def test_value_norm_is_the_mean_and_standard_deviation_of_all_returns() -> None:
    """With a decay near 1, against NumPy over everything seen so far, from the first update on."""
    rng = np.random.default_rng(0)
    norm = ValueNorm()
    seen: list[np.ndarray] = []
    for _ in range(50):
        seen.append(rng.normal(40.0, 7.0, (200, 1)))
        norm.update(th.as_tensor(seen[-1], dtype=th.float32))
        everything = np.concatenate(seen)
        assert norm.mean.item() == pytest.approx(everything.mean(), rel=1e-3)
        assert norm.std.item() == pytest.approx(everything.std(), rel=1e-3)


def test_value_norm_forgets_at_its_decay() -> None:
    """
    The bias towards the initial zero is divided out: weights 0.8 * 0.2 and 0.2, over their sum.
    """
    norm = ValueNorm(decay=0.8)
    norm.update(th.full((10, 1), 1.0))
    assert norm.mean.item() == pytest.approx(1.0)
    norm.update(th.full((10, 1), 4.0))
    assert norm.mean.item() == pytest.approx((0.16 * 1 + 0.2 * 4) / 0.36)
    second = (0.16 * 1 + 0.2 * 16) / 0.36
    assert norm.std.item() == pytest.approx(np.sqrt(second - norm.mean.item() ** 2))


def test_value_norm_keeps_agents_apart() -> None:
    norm = ValueNorm(3)
    rng = np.random.default_rng(0)
    returns = rng.normal([0.0, 50.0, -3.0], [1.0, 9.0, 2.0], (500, 3)).astype(np.float32)
    active = np.ones((500, 3), bool)
    active[:250, 1] = False
    active[:, 2] = False
    returns[~active] = 1e6
    norm.update(th.from_numpy(returns), th.from_numpy(active))
    for column, rows in ((0, slice(None)), (1, slice(250, None))):
        assert norm.mean[column].item() == pytest.approx(returns[rows, column].mean(), abs=1e-3)
        assert norm.std[column].item() == pytest.approx(returns[rows, column].std(), abs=1e-3)
    assert norm.mean[2] == 0 and norm.std[2] == 1, (
        "nothing is known of an agent that was never there"
    )


def test_value_norm_of_all_columns_together() -> None:
    norm = ValueNorm(1)
    returns = th.tensor([[1.0, 3.0], [5.0, 7.0]])
    norm.update(returns)
    assert norm.mean.tolist() == [4.0] and norm.std.item() == pytest.approx(np.sqrt(5.0))
    norm = ValueNorm(1)
    norm.update(returns, th.tensor([[True, True], [False, True]]))
    assert norm.mean.item() == pytest.approx(11 / 3)


def test_normalising_and_back() -> None:
    for norm in (ValueNorm(), ValueNorm(2)):
        x = 1e3 + 20 * th.randn(100, 2)
        assert th.equal(norm.normalize(x), x), "nothing is known yet"
        norm.update(x)
        assert th.allclose(norm.denormalize(norm.normalize(x)), x, rtol=1e-5)
        assert abs(norm.normalize(x).mean().item()) < 1e-2
        assert norm.normalize(x).std().item() == pytest.approx(1.0, abs=0.02)


def test_constant_returns_do_not_divide_by_zero() -> None:
    norm = ValueNorm()
    norm.update(th.full((10, 1), 5.0))
    assert norm.std.item() == pytest.approx(0.1) and norm.normalize(
        th.tensor([[5.0]])
    ).item() == pytest.approx(0.0, abs=1e-4)


# ---------------------------------------------------------------- where episodes are cut


class Counter(ParallelEnv):
    """
    One agent sees the number of the step, the other what is left of 3; their rewards are 1 and 3
    per step.
    """

    metadata: dict[str, Any] = {"name": "counter"}  # noqa: RUF012
    render_mode = None
    possible_agents = ["left", "right"]  # noqa: RUF012

    def __init__(self, truncate: bool, length: int = 4) -> None:
        self.truncate, self.length = truncate, length

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(-1000, 1000, (1,), np.float32)

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(2)

    def _observations(self) -> dict[str, np.ndarray]:
        return {"left": np.full(1, self.t, np.float32), "right": np.full(1, 3 - self.t, np.float32)}

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.t = 0
        self.agents = self.possible_agents[:]
        return self._observations(), {agent: {} for agent in self.agents}

    def step(self, actions: dict[str, int]) -> Any:
        self.t += 1
        end = self.t == self.length
        flags = [
            dict.fromkeys(self.possible_agents, end and self.truncate == kind)
            for kind in (False, True)
        ]
        self.agents = [] if end else self.agents
        rewards = {"left": 1.0, "right": 3.0}
        return self._observations(), rewards, *flags, {agent: {} for agent in self.possible_agents}


def make_linear(critic: Critic, weight: float) -> None:
    """
    Let every value network be ``weight * (first number it sees)``, before any normalisation is
    undone.
    """
    for network in critic.networks:
        assert isinstance(network.head, th.nn.Linear)
        with th.no_grad():
            network.head.weight.zero_()
            network.head.weight[0, 0] = weight
            network.head.bias.zero_()


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("normalize_value", [True, False])
def test_time_limits_are_bootstrapped_with_the_terminal_value(
    truncate: bool, normalize_value: bool
) -> None:
    """
    ``r + gamma * V(last observation)``, the value in units of reward; a true end is worth its
    reward alone.
    """
    gamma = 0.9
    env = DummyVecEnv(
        [lambda: JointEnv(Counter(truncate)), lambda: JointEnv(Counter(truncate, length=3))]
    )
    model = small(
        HAPPO,
        env,
        gamma=gamma,
        n_steps=8,
        normalize_value=normalize_value,
        policy_kwargs=dict(net_arch=[]),
    )
    make_linear(model.critic, 0.1)
    if normalize_value:
        assert model.critic.value_norm is not None
        model.critic.value_norm.mean.fill_(5.0)
        model.critic.value_norm.std.fill_(2.0)

    def value(t: int) -> float:
        raw = 0.1 * t
        return 5.0 + 2.0 * raw if normalize_value else raw

    collect(model)
    expected = np.full((8, 2), 2.0)
    if truncate:
        expected[3::4, 0] += gamma * value(4)
        expected[2::3, 1] += gamma * value(3)
    assert np.allclose(model.rollout_buffer.rewards[..., 0], expected, atol=1e-5)
    assert np.allclose(
        model.rollout_buffer.values[:5, 0, 0], [value(t) for t in (0, 1, 2, 3, 0)], atol=1e-5
    )
    # Generalised advantage estimation over the cut: nothing flows across it
    lam = model.gae_lambda
    values, advantage, advantages = [value(t % 4) for t in range(9)], 0.0, []
    for t in reversed(range(8)):
        end = t % 4 == 3
        advantage = (
            expected[t, 0]
            + (not end) * gamma * values[t + 1]
            - values[t]
            + (not end) * gamma * lam * advantage
        )
        advantages.append(advantage)
    assert np.allclose(model.rollout_buffer.advantages[:, 0, 0], advantages[::-1], atol=1e-4)
    assert np.allclose(
        model.rollout_buffer.returns, model.rollout_buffer.advantages + model.rollout_buffer.values
    )


def test_the_rollouts_end_is_bootstrapped_too() -> None:
    model = small(
        HAPPO,
        Counter(True, length=1000),
        gamma=0.5,
        gae_lambda=0.0,
        n_steps=6,
        policy_kwargs=dict(net_arch=[]),
    )
    make_linear(model.critic, 0.1)
    collect(model)
    values = [0.1 * t for t in range(7)]
    expected = [2.0 + 0.5 * after - before for before, after in pairwise(values)]
    assert np.allclose(model.rollout_buffer.advantages.flatten(), expected, atol=1e-5)


def test_every_agents_own_bootstrap() -> None:
    """IPPO: each critic values its agent's own last observation, on top of its own reward."""
    model = small(
        IPPO,
        Counter(True),
        gamma=0.9,
        n_steps=8,
        normalize_value=False,
        policy_kwargs=dict(net_arch=[]),
    )
    make_linear(model.critic, 0.1)
    collect(model)
    expected = np.tile([1.0, 3.0], (8, 1))
    expected[3::4] += 0.9 * 0.1 * np.array([4.0, -1.0])
    assert np.allclose(model.rollout_buffer.rewards[:, 0], expected, atol=1e-5)


# ---------------------------------------------------------------- what they are fitted to


class Given(Critic):
    """Predicts what it is given."""

    def __init__(self) -> None:
        th.nn.Module.__init__(self)

    def evaluate(
        self, observations: dict[str, th.Tensor], sequences: Any = None, active: Any = None
    ) -> Any:
        return observations["state"], None


def value_loss(
    values: list[float], old: list[float], returns: list[float], **settings: Any
) -> float:
    model = small(HAPPO, alike_team(1), **settings)
    column = [th.tensor(numbers).unsqueeze(1) for numbers in (values, old, returns)]
    batch = CriticBatch({"state": column[0]}, column[1], column[2], None)
    return model.value_loss.of_batch(Given(), batch).mean().item()


def test_value_losses() -> None:
    values, old, returns = [1.0, 2.0, -1.0], [1.0, 0.0, 0.0], [3.0, 3.0, -1.2]
    errors = [2.0, 1.0, 0.2]
    assert value_loss(values, old, returns) == pytest.approx(sum(e**2 for e in errors) / 3)
    # Huber: quadratic (halved) up to delta, linear beyond
    huber = [1.5 * (2.0 - 0.75), 0.5 * 1.0, 0.5 * 0.2**2]
    assert value_loss(values, old, returns, huber_delta=1.5) == pytest.approx(sum(huber) / 3)
    # Clipped: a value may move 0.5 from the old one; SB3 takes the clipped error alone
    clipped = [2.0, 2.5, -0.5 + 1.2]
    assert value_loss(values, old, returns, clip_range_vf=0.5) == pytest.approx(
        sum(e**2 for e in clipped) / 3
    )
    # HARL and MAPPO take the larger of the two
    larger = [max(pair) for pair in zip(errors, clipped, strict=True)]
    settings: dict[str, Any] = dict(clip_range_vf=0.5, use_clipped_value_loss=True)
    assert value_loss(values, old, returns, **settings) == pytest.approx(
        sum(e**2 for e in larger) / 3
    )
    moved_away = dict(
        values=[1.0], old=[0.0], returns=[0.8]
    )  # clipped 0.5 is worse than 1.0, and 0.2 < 0.3
    assert value_loss(**moved_away, **settings) == pytest.approx(0.3**2)
    moved_back = dict(values=[1.0], old=[0.0], returns=[0.2])
    assert value_loss(**moved_back, **settings) == pytest.approx(0.8**2)
    assert value_loss(**moved_back, clip_range_vf=0.5) == pytest.approx(0.3**2)


@pytest.mark.parametrize("huber_delta", [None, 1.5])
def test_huber_loss_and_clipping_together(huber_delta: float | None) -> None:
    plain = value_loss([1.0], [0.0], [4.0], huber_delta=huber_delta, clip_range_vf=0.5)
    assert plain == pytest.approx(3.5**2 if huber_delta is None else 1.5 * (3.5 - 0.75))


@pytest.mark.parametrize("normalize_value", [True, False])
def test_the_critic_learns_known_values(normalize_value: bool) -> None:
    """The team's reward is 2 per step, so that with gamma 0.5 the values are 3.75, 3.5, 3, 2."""
    model = small(
        HAPPO,
        DummyVecEnv([lambda: JointEnv(Counter(False))] * 4),
        gamma=0.5,
        learning_rate=0.02,
        n_epochs=10,
        seed=0,
        normalize_value=normalize_value,
    ).learn(4000)
    state = th.tensor([[t, 3 - t] for t in range(4)], dtype=th.float32)
    with th.no_grad():
        values = model.policy.predict_values({"state": state})
    assert np.allclose(values.flatten(), [3.75, 3.5, 3.0, 2.0], atol=0.3)
    assert (model.critic.value_norm is None) != normalize_value


def test_individual_critics_learn_individual_values() -> None:
    """Rewards 1 and 3 for the agents, 2 for the team."""
    env = DummyVecEnv([lambda: JointEnv(Counter(False, length=1))] * 4)
    settings: dict[str, Any] = dict(learning_rate=0.02, n_epochs=10, seed=0)
    values = {}
    for algorithm in (IPPO, MAPPO):
        model = small(algorithm, env, **settings).learn(1500)
        obs = {
            "left": th.zeros(1, 1),
            "right": th.full((1, 1), 3.0),
            "state": th.tensor([[0.0, 3.0]]),
        }
        with th.no_grad():
            values[algorithm.__name__] = model.policy.predict_values(obs).flatten().tolist()
    assert values["IPPO"] == pytest.approx([1.0, 3.0], abs=0.1)
    assert values["MAPPO"] == pytest.approx([2.0], abs=0.1)


# ---------------------------------------------------------------- what they see


def influence(model: HAPPO) -> dict[str, th.Tensor]:
    """Which entries of the joint observation move which values, ``(n_values,)`` per entry."""
    obs = model.env.reset()  # type: ignore[union-attr]
    tensors = {key: th.as_tensor(value).float().requires_grad_() for key, value in obs.items()}  # type: ignore[union-attr]
    values = model.critic(tensors)
    moved = {}
    for key, tensor in tensors.items():
        grads = [
            th.autograd.grad(values[:, i].sum(), tensor, retain_graph=True, allow_unused=True)[0]
            for i in range(values.shape[1])
        ]
        moved[key] = th.tensor([grad is not None and bool(grad.any()) for grad in grads])
    return moved


def test_the_shared_critic_sees_the_state_alone() -> None:
    moved = influence(small(HAPPO, random_team()))
    assert {key for key, which in moved.items() if which.any()} == {"state"}


def test_local_critics_see_their_agents_observation_alone() -> None:
    model = small(IPPO, random_team())
    assert isinstance(model.critic, LocalCritics) and model.critic.keys == list(PLAIN_SPACES)
    moved = influence(model)
    for index, agent in enumerate(PLAIN_SPACES):
        assert moved[agent].tolist() == [column == index for column in range(4)]
    assert not moved["state"].any()


def test_local_critics_of_dict_observations_and_images() -> None:
    model = small(IPPO, HeterogeneousTeam(), seed=0).learn(32)
    assert "arm/position" in model.critic.keys and "camera/action_mask" not in model.critic.keys
    assert model.rollout_buffer.values.shape == (32, 1, 5)
    assert model.critic.value_norm is not None and len(model.critic.value_norm.mean) == 5


def test_agent_specific_states() -> None:
    """
    One network, one row per agent, one statistic; every agent learns from the advantages of its own
    row.
    """
    env = JointEnv(Counter(False), state="agent")
    model = small(HAPPO, env, seed=0)
    critic = model.critic
    assert (
        isinstance(critic, CentralizedCritic)
        and critic.agent_specific
        and critic.n_values == 2
        and len(critic.networks) == 1
    )
    assert critic.value_norm is not None and critic.value_norm.mean.shape == (1,)
    collect(model)
    buffer = model.rollout_buffer
    rows = buffer.observations["agent_states"][:, 0]
    with th.no_grad():
        each = [critic.networks[0](rows[:, index]) for index in range(2)]
    assert th.allclose(critic({"agent_states": rows}), th.cat(each, dim=1), atol=1e-6)
    assert (buffer.rewards == 2.0).all(), "the team's reward for both"
    assert not th.equal(buffer.agent_advantages("left"), buffer.agent_advantages("right"))
    assert th.equal(buffer.agent_advantages("right"), buffer.advantages[..., 1].flatten())
    before = snapshot(critic)
    model.train()
    assert not same(before, snapshot(critic))


@every_algorithm
@pytest.mark.parametrize(
    "state", [None, "observations", "agent", lambda env, observations: observations["box"][:2]]
)
def test_every_form_of_state_trains(algorithm: type[HAPPO], state: Any) -> None:
    model = small(algorithm, JointEnv(RandomTeam(PLAIN_SPACES), state=state), seed=0).learn(64)
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())


def test_states_of_several_parts() -> None:
    """
    Images among vectors: the state has several entries, which the critic's extractor combines.
    """
    model = small(HAPPO, HeterogeneousTeam(), seed=0)
    keys = model.critic.keys
    assert {"state/camera", "state/arm/position", "state/switch"} <= set(keys) and all(
        key.startswith("state/") for key in keys
    )
    assert (influence(small(HAPPO, TurnGame()))["state"]).all()


def test_values_of_the_absent_do_not_count() -> None:
    """
    With a value per agent, rows at which it was inactive are left out; with one value for all,
    every row counts.
    """
    model = small(IPPO, TurnGame(), n_steps=12)
    collect(model)
    active = model.rollout_buffer.critic_data().active
    assert active is not None and active.sum() == 12 and (active.sum(dim=1) == 1).all()
    team = small(HAPPO, TurnGame(), n_steps=12)
    collect(team)
    assert team.rollout_buffer.critic_data().active is None


def test_explained_variance_is_of_returns_against_values() -> None:
    model = small(HAPPO, alike_team(), seed=0)
    collect(model)
    returns, values = model.rollout_buffer.returns.flatten(), model.rollout_buffer.values.flatten()
    expected = 1 - np.var((returns - values).numpy()) / np.var(returns.numpy())
    model.train()
    assert model.logger.name_to_value["train/explained_variance"] == pytest.approx(
        expected, abs=1e-4
    )
