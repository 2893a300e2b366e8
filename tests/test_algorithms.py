"""
Behaviour that all algorithms share: any team, any call, equal numbers for equal seeds, and no
learning from inactive agents.
"""

import itertools
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_happo import (
    HAA2C,
    HAPPO,
    HATRPO,
    IPPO,
    MAPPO,
    JointEnv,
    make_joint_env,
    make_joint_vec_env,
)
from sb3_happo.common.rollout_buffer import MultiAgentRolloutBuffer
from sb3_happo.common.type_aliases import ActorBatch
from tests.algorithms import (
    ALGORITHMS,
    PLAIN_SPACES,
    alike_team,
    collect,
    every_algorithm,
    learn_half,
    random_team,
    same,
    small,
    snapshot,
)
from tests.envs import HeterogeneousTeam, MaskedGame, MatrixGame, RandomTeam, TupleTeam, TurnGame

ODD_NAMES = [
    "a.b",
    "red/0",
    "red/1",
    "0",
    "keys",
    "",
    "train",
    "type",
    "actors",
    "an agent of a very long name, 1",
    "an agent of a very long name, 2",
]


@every_algorithm
def test_mixed_team_learns_in_all_its_parts(algorithm: type[HAPPO]) -> None:
    model = small(algorithm, random_team(2), seed=0)
    before = snapshot(model.policy)
    assert model.learn(1e2) is model
    assert model.num_timesteps == 128
    assert model.logger.name_to_value["train/n_updates"] == 2
    after = snapshot(model.policy)
    assert all(value.isfinite().all() for value in after.values())
    for name in (name for name, _ in model.policy.named_parameters()):
        assert not th.equal(before[name], after[name]), name


@every_algorithm
@pytest.mark.parametrize(
    "team",
    [
        HeterogeneousTeam,
        MaskedGame,
        lambda: MaskedGame(masks_in="info"),
        TurnGame,
        TupleTeam,
        MatrixGame,
    ],
)
def test_every_kind_of_team_trains_and_acts(algorithm: type[HAPPO], team: Any) -> None:
    """
    The environments raise on actions that are illegal, outside their space, or of an inactive
    agent.
    """
    model = small(algorithm, team(), seed=0).learn(64)
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())
    env = JointEnv(team())
    for deterministic in (True, False):
        evaluate_policy(model, env, n_eval_episodes=2, deterministic=deterministic, warn=False)


def test_masked_actions_are_never_taken_in_10_000_steps() -> None:
    """`HeterogeneousTeam` and `MaskedGame` raise on an illegal action."""
    for team in (HeterogeneousTeam, MaskedGame):
        envs = DummyVecEnv([lambda team=team: JointEnv(team())] * 8)  # type: ignore[misc]
        model = small(HAPPO, envs, n_steps=128, n_epochs=1, learning_rate=1e-2, seed=0).learn(5120)
        assert model.num_timesteps == 5120


@every_algorithm
def test_two_runs_of_one_seed_are_equal(algorithm: type[HAPPO]) -> None:
    def run(seed: int) -> dict[str, th.Tensor]:
        env = DummyVecEnv(
            [lambda: JointEnv(HeterogeneousTeam()), lambda: JointEnv(HeterogeneousTeam())]
        )
        return snapshot(small(algorithm, env, batch_size=16, seed=seed).learn(128).policy)

    first = run(0)
    assert same(first, run(0))
    assert not same(first, run(1))


@every_algorithm
def test_every_way_to_say_which_environment(algorithm: type[HAPPO]) -> None:
    kwargs: dict[str, Any] = dict(n_steps=8, policy_kwargs=dict(net_arch=[8]), device="cpu")
    ways: list[tuple[Any, ...]] = [
        (MatrixGame(),),
        ("MlpPolicy", MatrixGame()),
        ("CnnPolicy", JointEnv(MatrixGame())),
        ("MultiInputPolicy", DummyVecEnv([lambda: JointEnv(MatrixGame())] * 2)),
        (make_joint_vec_env(MatrixGame, 3),),
        (gym.make("CartPole-v1"),),
        ("CartPole-v1",),
        ("MlpPolicy", "CartPole-v1"),
        (make_joint_env("CartPole-v1"),),
        (TurnGame(),),
    ]
    for way in ways:
        model = algorithm(*way, **kwargs)
        model.learn(8 * model.n_envs)
        assert model.num_timesteps == 8 * model.n_envs


@every_algorithm
def test_agents_of_any_name(algorithm: type[HAPPO], tmp_path: Any) -> None:
    team = RandomTeam(dict.fromkeys(ODD_NAMES, spaces.Discrete(3)))
    model = small(algorithm, team, verbose=1).learn(64)
    assert model.agents == tuple(name or f"agent_{index}" for index, name in enumerate(ODD_NAMES))
    model.save(tmp_path / "model")
    loaded = algorithm.load(
        tmp_path / "model", env=RandomTeam(dict.fromkeys(ODD_NAMES, spaces.Discrete(3)))
    )
    obs = dict.fromkeys(model.agents, np.ones(3, np.float32))
    assert loaded.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]


# HATRPO's line search asks for progress, which a policy near its optimum has no more: it ends a
# little lower
GOALS = {HAPPO: 0.95, HATRPO: 0.9, HAA2C: 0.95, MAPPO: 0.95, IPPO: 0.95}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_learns_to_prefer_the_highest_legal_action(algorithm: type[HAPPO]) -> None:
    """
    A sanity check of every part at once: rewards, advantages, masks, heads of MultiDiscrete, both
    agents' steps.
    """
    settings: dict[str, Any] = dict(
        n_steps=64, gamma=0.5, learning_rate=3e-3, n_epochs=5, batch_size=None
    )
    if algorithm is HAA2C:
        settings.update(n_steps=16, n_epochs=1, learning_rate=1e-2)
    if algorithm is HATRPO:
        settings.update(target_kl=0.05)
    env = DummyVecEnv([lambda: JointEnv(MaskedGame())] * 8)
    model = small(algorithm, env, seed=0, **settings).learn(10_000)
    reward, _ = evaluate_policy(model, JointEnv(MaskedGame()), n_eval_episodes=40, warn=False)
    assert isinstance(reward, float) and reward / 8 > GOALS[algorithm]


# ---------------------------------------------------------------- agents that come and go


class ComesAndGoes(RandomTeam):
    """Two agents of vectors and Discrete actions; `agent_0` is there only at some steps."""

    def __init__(self, n_agents: int = 2, away: tuple[int, ...] = (2, 3, 6)) -> None:
        super().__init__({f"agent_{index}": spaces.Discrete(3) for index in range(n_agents)})
        self.away = away

    def _without(self, answers: dict[str, Any]) -> dict[str, Any]:
        return {
            agent: value
            for agent, value in answers.items()
            if agent != "agent_0" or self._t not in self.away
        }

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        return tuple(map(self._without, super().reset(seed, options)))  # type: ignore[return-value]

    def step(self, actions: dict[str, Any]) -> Any:
        assert ("agent_0" in actions) == (self._t not in self.away), (
            "an action of somebody who is not there"
        )
        return tuple(map(self._without, super().step(actions)))


def dead_rows(model: HAPPO) -> th.Tensor:
    return ~model.rollout_buffer.active[..., 0]


def train_with(algorithm: type[HAPPO], disturb: Any, **kwargs: Any) -> HAPPO:
    """One update from a rollout in which the rows of an absent agent are disturbed."""
    model = small(algorithm, ComesAndGoes(), seed=0, n_steps=40, learning_rate=1e-2, **kwargs)
    collect(model)
    dead = dead_rows(model)
    assert dead.sum() == 12  # 4 episodes with 3 such steps each
    disturb(model.rollout_buffer, dead)
    model.set_random_seed(0)
    model.train()
    return model


def garbage_of_agent_0(buffer: MultiAgentRolloutBuffer, dead: th.Tensor) -> None:
    buffer.observations["agent_0"][dead] = 1e3
    buffer.actions["agent_0"][dead] = 2.0
    buffer.log_probs["agent_0"][dead] = -5.0
    if buffer.n_values > 1:
        buffer.advantages[..., 0][dead] = 1e3
        buffer.returns[..., 0][dead] = 1e3
        buffer.values[..., 0][dead] = -1e3


@every_algorithm
@pytest.mark.parametrize(
    "settings", [{}, {"batch_size": 8}, {"normalize_advantage": "rollout"}], ids=str
)
@pytest.mark.parametrize("order", ["fixed", "reverse"])
def test_steps_of_the_absent_count_nowhere(
    algorithm: type[HAPPO], settings: dict[str, Any], order: str
) -> None:
    """
    They count neither in the inactive agent's loss, nor in the next agent's factor, nor in the loss
    and statistics of a local critic.
    """
    plain = train_with(algorithm, lambda buffer, dead: None, agent_order=order, **settings)
    disturbed = train_with(algorithm, garbage_of_agent_0, agent_order=order, **settings)
    assert same(snapshot(plain.policy), snapshot(disturbed.policy))


@pytest.mark.parametrize("algorithm", [HAPPO, HATRPO, HAA2C])
def test_the_test_above_would_notice(
    algorithm: type[HAPPO], monkeypatch: pytest.MonkeyPatch
) -> None:
    """
    If inactive steps are let in, the inactive agent's update changes and, through the factor, the
    next agent's.
    """
    monkeypatch.setattr(MultiAgentRolloutBuffer, "active_rows", lambda self, agent: None)
    plain = train_with(algorithm, lambda buffer, dead: None, agent_order="fixed")
    disturbed = train_with(algorithm, garbage_of_agent_0, agent_order="fixed")
    for agent in ("agent_0", "agent_1"):
        assert not same(snapshot(plain.policies[agent]), snapshot(disturbed.policies[agent]))


@every_algorithm
@pytest.mark.parametrize("normalize_advantage", ["minibatch", "rollout"])
def test_the_absent_do_not_count_in_advantage_statistics(
    algorithm: type[HAPPO], normalize_advantage: str
) -> None:
    """The team's advantage at a step without `agent_0` moves the statistics of `agent_1` alone."""

    def shift(buffer: MultiAgentRolloutBuffer, dead: th.Tensor) -> None:
        buffer.advantages[dead] += 100.0

    settings: dict[str, Any] = dict(
        agent_order="fixed",
        normalize_advantage=normalize_advantage,
        policy_kwargs=dict(share_parameters=False),
    )
    plain = train_with(algorithm, lambda buffer, dead: None, **settings)
    shifted = train_with(algorithm, shift, **settings)
    assert same(snapshot(plain.policies["agent_0"]), snapshot(shifted.policies["agent_0"]))
    assert not same(snapshot(plain.policies["agent_1"]), snapshot(shifted.policies["agent_1"]))


@pytest.mark.parametrize("algorithm", [HAPPO, HATRPO, HAA2C])
def test_factor_is_the_product_of_the_active_agents_ratios(algorithm: type[HAPPO]) -> None:
    seen: list[th.Tensor] = []

    class Recording(algorithm):  # type: ignore[misc, valid-type]
        def _next_factor(self, data: dict[str, ActorBatch], factor: th.Tensor) -> th.Tensor:
            following = super()._next_factor(data, factor)
            seen.append(following.clone())
            return following

    settings: dict[str, Any] = dict(learning_rate=1e-2, n_epochs=3, agent_order="fixed")
    model = small(Recording, ComesAndGoes(3), seed=0, **settings)
    collect(model)
    expected = th.ones(32)
    old = {
        agent: log_probs.flatten().clone()
        for agent, log_probs in model.rollout_buffer.log_probs.items()
    }
    model.train()
    assert len(seen) == 3
    for agent in model.agents:
        obs = model.rollout_buffer.observations[agent].flatten(end_dim=1)
        with th.no_grad():
            log_prob, _ = model.policies[agent].evaluate_actions(
                obs, model.rollout_buffer.actions[agent].flatten(end_dim=1)
            )
        ratio = (log_prob - old[agent]).exp()
        if agent == "agent_0":
            ratio[dead_rows(model).flatten()] = 1.0
        expected *= ratio
    assert (expected - 1).abs().max() > 0.01
    assert th.allclose(seen[-1], expected, atol=1e-6)
    figures = model.logger.name_to_value
    assert figures["train/factor_mean"] == pytest.approx(expected.mean().item(), abs=1e-6)


@every_algorithm
def test_who_is_never_there_learns_nothing(algorithm: type[HAPPO]) -> None:
    env = JointEnv(ComesAndGoes(away=tuple(range(11))))
    model = small(algorithm, env, policy_kwargs=dict(share_parameters=False), seed=0)
    before = {agent: snapshot(policy) for agent, policy in model.policies.items()}
    model.learn(64)
    assert same(before["agent_0"], snapshot(model.policies["agent_0"]))
    assert not same(before["agent_1"], snapshot(model.policies["agent_1"]))
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())


@every_algorithm
def test_who_is_there_once_learns_without_nan(algorithm: type[HAPPO]) -> None:
    """A single sample has no standard deviation."""
    env = JointEnv(ComesAndGoes(away=tuple(range(1, 11))))
    model = small(
        algorithm, env, policy_kwargs=dict(share_parameters=False), n_steps=10, seed=0
    ).learn(20)
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())


def test_who_acts_at_the_first_step_of_an_episode() -> None:
    """
    After a reset, the active mask is that of the new episode: first reset, later resets, several
    environments.
    """
    env = DummyVecEnv(
        [lambda: JointEnv(ComesAndGoes(away=(0,))), lambda: JointEnv(ComesAndGoes(away=(10,)))]
    )
    model = small(HAPPO, env, n_steps=20, seed=0)
    collect(model)
    expected = np.ones((20, 2), bool)
    expected[[0, 10], 0] = False  # step 10 would be after the end
    assert (model.rollout_buffer.active[..., 0].numpy() == expected).all()
    assert model.rollout_buffer.active[..., 1].all()


# ---------------------------------------------------------------- turns


def test_turns_are_taken_by_one_agent_each() -> None:
    model = small(HAPPO, TurnGame(), seed=0, n_steps=12)
    collect(model)
    active = model.rollout_buffer.active[:, 0].numpy()
    assert (active == np.tile(np.eye(3, dtype=bool), (4, 1))).all()


# ---------------------------------------------------------------- order of the updates


def recording(algorithm: type[HAPPO], updated: list[str]) -> type[HAPPO]:
    """
    :param algorithm: Algorithm
    :param updated: List to which the names of the agents are appended as they are updated
    :return: Subclass of the algorithm
    """

    class Recording(algorithm):  # type: ignore[misc, valid-type]
        def _update_actors(self, data: dict[str, ActorBatch]) -> None:
            updated.extend(data)
            super()._update_actors(data)

    return Recording


def orders(
    agent_order: Any, n: int = 1, seed: int = 0, algorithm: type[HAPPO] = HAPPO
) -> list[tuple[str, ...]]:
    settings: dict[str, Any] = dict(
        n_steps=4, n_epochs=1, policy_kwargs=dict(share_parameters=False)
    )
    updated: list[str] = []
    algorithm = recording(algorithm, updated)
    model = small(algorithm, alike_team(), agent_order=agent_order, seed=seed, **settings)
    model.learn(4 * n)
    return [tuple(updated[3 * i : 3 * i + 3]) for i in range(n)]


@pytest.mark.parametrize("algorithm", [HAPPO, HATRPO, HAA2C])
def test_agent_order(algorithm: type[HAPPO]) -> None:
    agents = ("agent_0", "agent_1", "agent_2")
    assert orders("fixed", algorithm=algorithm) == [agents]
    assert orders("reverse", algorithm=algorithm) == [agents[::-1]]
    assert orders(lambda team: [team[1], team[0], team[2]], algorithm=algorithm) == [
        ("agent_1", "agent_0", "agent_2")
    ]
    drawn = orders("random", 40, algorithm=algorithm)
    assert set(drawn) == set(itertools.permutations(agents)), "every order should come up among 40"
    assert drawn == orders("random", 40, algorithm=algorithm)


@pytest.mark.parametrize("algorithm", [HAPPO, HATRPO, HAA2C])
def test_greedy_order_begins_with_who_matters_most(algorithm: type[HAPPO]) -> None:
    """The payoff depends strongly on `agent_1`, weakly on `agent_2` and not on `agent_0`."""
    mine, theirs = np.meshgrid([0, 1], [0, 1], indexing="ij")
    payoff = np.stack([mine + 0.3 * theirs] * 2)  # axes: agent_0, agent_1, agent_2
    settings: dict[str, Any] = dict(n_steps=256, n_epochs=1, learning_rate=1e-4, seed=0)
    updated: list[str] = []
    algorithm = recording(algorithm, updated)
    model = small(algorithm, MatrixGame(3, payoff), agent_order="greedy", **settings)
    model.learn(512)
    assert updated == ["agent_1", "agent_2", "agent_0"] * 2


def test_greedy_order_with_agents_that_come_and_go() -> None:
    for away in ((2, 3), tuple(range(11))):
        model = small(HAPPO, JointEnv(ComesAndGoes(3, away)), agent_order="greedy", seed=0).learn(
            64
        )
        assert all(value.isfinite().all() for value in model.policy.state_dict().values())


def test_wrong_orders_are_refused() -> None:
    with pytest.raises(ValueError, match="agent_order must be one of"):
        HAPPO(alike_team(), agent_order="alphabetical")  # type: ignore[arg-type]
    for wrong in (
        lambda agents: agents[:2],
        lambda agents: [*agents[:2], "nobody"],
        lambda agents: [*agents, agents[0]],
    ):
        with pytest.raises(ValueError, match="every agent once"):
            orders(wrong)


# ---------------------------------------------------------------- settings that all share


def test_defaults_are_documented_for_every_algorithm() -> None:
    for algorithm in ALGORITHMS:
        assert algorithm.__doc__ is not None and ":param policy:" in algorithm.__doc__


def rates(model: HAPPO) -> dict[str, float]:
    found = {
        agent: policy.optimizer.param_groups[0]["lr"] for agent, policy in model.policies.items()
    }
    return found | {"critic": model.critic.optimizer.param_groups[0]["lr"]}


@pytest.mark.parametrize("algorithm", [HAPPO, HAA2C, MAPPO, IPPO])
def test_learning_rates_follow_their_schedules(algorithm: type[HAPPO]) -> None:
    """
    Rates of the actors, of one agent with its own, and of the critic; half of the training remains
    at the first of two updates.
    """
    model = small(
        algorithm,
        alike_team(),
        learning_rate=lambda progress: 1e-3 * progress,
        critic_learning_rate=lambda progress: 1e-2 * progress,
        policy_kwargs=dict(
            agent_kwargs={"agent_1": {"learning_rate": lambda progress: 4e-3 * progress}}
        ),
    )
    assert rates(model) == pytest.approx(
        {"agent_0": 1e-3, "agent_1": 4e-3, "agent_2": 1e-3, "critic": 1e-2}
    )
    model.learn(128)  # the last of four updates sees no progress left
    assert rates(model) == {"agent_0": 0.0, "agent_1": 0.0, "agent_2": 0.0, "critic": 0.0}
    learn_half(model)
    assert rates(model) == pytest.approx(
        {"agent_0": 5e-4, "agent_1": 2e-3, "agent_2": 5e-4, "critic": 5e-3}
    )


def critic_steps(model: HAPPO) -> int:
    """How many gradient steps the critic takes in one update from 32 joint transitions."""
    steps: list[None] = []
    handle = model.critic.optimizer.register_step_post_hook(lambda *_: steps.append(None))
    assert model.n_steps * model.n_envs == 32
    model.learn(32)
    handle.remove()
    return len(steps)


def test_critic_takes_the_actors_rate_and_passes_by_default() -> None:
    model = small(HAPPO, alike_team(), learning_rate=2e-3, n_epochs=7, batch_size=16)
    assert rates(model)["critic"] == 2e-3
    assert critic_steps(model) == 7 * 2
    model.n_epochs, model.batch_size = 2, 32  # as after `load(path, n_epochs=2, batch_size=32)`
    assert critic_steps(model) == 2 * 1
    model = small(
        HAPPO, alike_team(), n_epochs=3, critic_n_epochs=5, batch_size=16, critic_batch_size=8
    )
    steps: dict[str, int] = {"actors": 0, "critic": 0}

    def count(name: str) -> Any:
        def hook(*args: Any) -> None:
            steps[name] += 1

        return hook

    model.critic.optimizer.register_step_post_hook(count("critic"))
    for policy in model.policies.values():
        policy.optimizer.register_step_post_hook(count("actors"))
    model.learn(32)
    assert steps == {"actors": 3 * 3 * 2, "critic": 5 * 4}


def test_clip_ranges_follow_their_schedules() -> None:
    model = small(
        HAPPO,
        alike_team(),
        clip_range=lambda progress: 0.4 * progress,
        clip_range_vf=lambda p: 2.0 * p,
    )
    model.learn(128, log_interval=100)  # nothing is dumped, so that the values stay to be read
    values = model.logger.name_to_value
    assert values["train/clip_range"] == 0.0 and values["train/clip_range_vf"] == 0.0
    values = learn_half(model)
    assert values["train/clip_range"] == 0.2 and values["train/clip_range_vf"] == 1.0


@pytest.mark.parametrize("algorithm", [HAPPO, HAA2C, MAPPO, IPPO])
def test_entropy_coefficient_follows_its_schedule(algorithm: type[HAPPO], tmp_path: Path) -> None:
    """
    With half of the training left, an update is that with half of the coefficient; also after
    loading.
    """
    scheduled = small(
        algorithm,
        alike_team(),
        seed=0,
        ent_coef=LinearSchedule(8.0, 0.0, 1.0),
        learning_rate=1e-3,
    )
    scheduled.learn(32, log_interval=100)
    assert (
        scheduled.logger.name_to_value["train/ent_coef"] == 0.0
    )  # the only update sees no progress left
    scheduled.save(tmp_path / "team")

    def updated(**changed: Any) -> HAPPO:
        model = algorithm.load(tmp_path / "team", env=alike_team(), **changed)
        model.set_random_seed(0)
        learn_half(model)
        return model

    halfway, constant, without = updated(), updated(ent_coef=4.0), updated(ent_coef=0.0)
    assert halfway.logger.name_to_value["train/ent_coef"] == 4.0
    for agent in halfway.agents:
        actions = [model.rollout_buffer.actions[agent] for model in (constant, without)]
        assert all(th.equal(halfway.rollout_buffer.actions[agent], other) for other in actions)
    assert same(snapshot(halfway.policy), snapshot(constant.policy))
    assert not same(snapshot(halfway.policy), snapshot(without.policy))


def test_target_kl_ends_an_agents_passes_and_not_the_critics() -> None:
    def count_steps(target_kl: float | None) -> tuple[int, int]:
        model = small(
            HAPPO, alike_team(1), learning_rate=0.05, n_epochs=20, target_kl=target_kl, seed=0
        )
        counts = [0, 0]

        def count(index: int) -> Any:
            def hook(*args: Any) -> None:
                counts[index] += 1

            return hook

        model.policies["agent_0"].optimizer.register_step_post_hook(count(0))
        model.critic.optimizer.register_step_post_hook(count(1))
        model.learn(32, log_interval=100)
        if target_kl is not None:
            assert model.logger.name_to_value["agent_0/approx_kl"] > 0
        return counts[0], counts[1]

    assert count_steps(None) == (20, 20)
    actor, critic = count_steps(0.01)
    assert 0 < actor < 20 and critic == 20


@pytest.mark.parametrize("max_grad_norm", [None, 1e-4])
def test_gradients_are_clipped(max_grad_norm: float | None) -> None:
    """
    With plain gradient descent at rate 1 the step is the gradient, whose norm is bounded for each
    actor and the critic.
    """
    model = small(
        HAPPO,
        alike_team(2),
        max_grad_norm=max_grad_norm,
        # New statistics change the critic's output layer
        normalize_value=False,
        n_epochs=1,
        learning_rate=1.0,
        seed=0,
        policy_kwargs=dict(optimizer_class=th.optim.SGD),
    )
    before = snapshot(model.policy)
    model.learn(32)
    after = snapshot(model.policy)
    for part in ("actors.0.", "actors.1.", "critic.networks."):
        change = (
            th.cat(
                [(after[name] - before[name]).flatten() for name in before if name.startswith(part)]
            )
            .norm()
            .item()
        )
        assert change > 1e-3 if max_grad_norm is None else change == pytest.approx(1e-4, rel=1e-2)


@pytest.mark.parametrize("algorithm", [HAPPO, HATRPO, HAA2C])
@pytest.mark.parametrize("mode", [True, "minibatch", "rollout", False])
def test_normalize_advantage(algorithm: type[HAPPO], mode: bool | str) -> None:
    """
    Where advantages are normalised, their scale and shift have no effect; where they are not, they
    do.
    """

    def train(scale: float, shift: float, batch_size: int | None) -> dict[str, th.Tensor]:
        model = small(
            algorithm,
            alike_team(2),
            normalize_advantage=mode,
            batch_size=batch_size,
            n_epochs=1,
            seed=0,
        )
        collect(model)
        model.rollout_buffer.advantages.mul_(scale).add_(shift)
        model.set_random_seed(0)
        model.train()
        return snapshot(model.policies["agent_0"])

    plain, moved = train(1.0, 0.0, 16), train(3.0, 2.0, 16)
    close = all(th.allclose(plain[name], moved[name], atol=1e-5) for name in plain)
    assert close == bool(mode)


def test_normalize_advantage_per_rollout_or_per_minibatch() -> None:
    """The two differ exactly where there are several minibatches."""
    updates = {}
    for mode, batch_size in itertools.product(["minibatch", "rollout"], [None, 8]):
        model = small(
            HAPPO, alike_team(2), normalize_advantage=mode, batch_size=batch_size, seed=0
        ).learn(32)
        updates[mode, batch_size] = snapshot(model.policies["agent_0"])
    whole = [updates[mode, None] for mode in ("minibatch", "rollout")]
    assert all(th.allclose(whole[0][name], whole[1][name], atol=1e-6) for name in whole[0])
    assert not all(
        th.allclose(updates["minibatch", 8][name], updates["rollout", 8][name], atol=1e-6)
        for name in whole[0]
    )


def test_entropy_bonus_keeps_policies_random() -> None:
    entropies = []
    for ent_coef in (0.0, 10.0):
        model = small(
            HAPPO, random_team(), ent_coef=ent_coef, learning_rate=1e-2, n_epochs=20, seed=0
        ).learn(128)
        collect(model)
        distribution = model.policies["discrete"].get_distribution(
            model.rollout_buffer.observations["discrete"][:, 0]
        )
        entropies.append(distribution.entropy().mean().item())  # type: ignore[union-attr]
    assert entropies[0] < entropies[1] and entropies[1] == pytest.approx(np.log(3), abs=1e-2)


def test_collection_knows_what_it_did() -> None:
    """
    Log-probabilities kept during the rollout (agents of one form are evaluated together) are those
    of the policies.
    """
    teams = [
        random_team(2),
        DummyVecEnv([lambda: JointEnv(HeterogeneousTeam())] * 2),
        DummyVecEnv([lambda: alike_team()] * 2),
    ]
    for team in teams:
        model = small(HAPPO, team, seed=0)
        collect(model)
        for agent, policy in model.policies.items():
            data = model.rollout_buffer.agent_data(agent, th.ones(64))
            with th.no_grad():
                log_prob, _ = policy.evaluate_actions(
                    data.observations, data.actions, data.action_masks
                )
            assert th.allclose(log_prob, data.old_log_prob, atol=1e-5), agent


def test_agents_of_the_same_form_draw_different_actions() -> None:
    model = small(MAPPO, alike_team(space=spaces.Box(-1, 1, (2,), np.float32)), seed=0)
    collect(model)
    drawn = [model.rollout_buffer.actions[agent] for agent in model.agents]
    assert not th.equal(drawn[0], drawn[1]) and not th.equal(drawn[1], drawn[2])


def test_environment_gets_actions_of_its_spaces() -> None:
    team = RandomTeam(PLAIN_SPACES)
    model = small(HAPPO, team, seed=0, learning_rate=0.1)
    seen: dict[str, list[Any]] = {agent: [] for agent in PLAIN_SPACES}
    for _ in range(3):
        model.learn(32, reset_num_timesteps=False)
        for agent, action in team.actions.items():
            assert PLAIN_SPACES[agent].contains(action), (agent, action)
            seen[agent].append(action)
    assert all(np.ndim(action) == 2 for action in seen["box"])
