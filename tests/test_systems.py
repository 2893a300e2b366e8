"""A2PO, COMA, FQL and PR2-Q against right answers."""

from typing import Any

import numpy as np
import pytest
import torch as th

from sb3_happo import A2PO, COMA, FQL, HAPPO, PR2Q, JointEnv
from sb3_happo.common.counterfactual_policy import CounterfactualPolicy
from sb3_happo.common.formulas import generalised_advantages
from sb3_happo.common.pair_terms import PairTerms
from sb3_happo.envs.games import Climbing, LQTeam, MatrixGame, Penalty, Qtran
from tests.algorithms import collect, random_team, same, small, snapshot

# ---------------------------------------------------------------- A2PO


def test_a2po_correction_without_update_is_gae() -> None:
    model = small(A2PO, random_team(2), seed=0)
    collect(model)
    buffer = model.rollout_buffer
    corrected = buffer.corrected_advantages(th.ones(buffer.n_rows))  # type: ignore[attr-defined]
    assert th.allclose(corrected, buffer.advantages, atol=1e-6)
    changed = buffer.corrected_advantages(th.full((buffer.n_rows,), 0.5))  # type: ignore[attr-defined]
    assert not th.allclose(changed, buffer.advantages, atol=1e-3)


def test_corrected_value_of_a_chain() -> None:
    """Two states; in the second action 0 pays 1, with probability 1/2 before and 0.3 after."""
    rewards = th.zeros(2, 2, 1)
    rewards[1, 0] = 1.0
    ratios = th.tensor([[1.0, 1.0], [0.6, 1.4]])
    starts = th.tensor([[1.0, 1.0], [0.0, 0.0]])
    zeros = th.zeros(2, 2, 1)
    arguments = (rewards, zeros, starts, zeros[0], th.ones(2), 1.0, 1.0)
    advantages, _ = generalised_advantages(*arguments, ratios=ratios)
    assert advantages[0].mean().item() == pytest.approx(0.3)


def test_a2po_of_one_agent_is_happo() -> None:
    results = []
    for algorithm in (A2PO, HAPPO):
        model = small(algorithm, JointEnv(LQTeam(costs=[0.1])), agent_order="fixed", seed=0)
        results.append(snapshot(model.learn(64).policy))
    assert same(*results)


def test_a2po_refuses_other_buffers() -> None:
    from sb3_happo.common.rollout_buffer import MultiAgentRolloutBuffer

    with pytest.raises(ValueError, match="CorrectedRolloutBuffer"):
        A2PO("MlpPolicy", JointEnv(Climbing()), rollout_buffer_class=MultiAgentRolloutBuffer)  # type: ignore[arg-type]


# ---------------------------------------------------------------- COMA

PAYOFFS = np.array([[11.0, -30.0, 0.0], [-30.0, 7.0, 6.0], [0.0, 0.0, 5.0]])
PROBS = np.array([0.5, 0.25, 0.25])


class KnownValues(CounterfactualPolicy):
    """Team whose critic of joint actions knows the payoffs."""

    def joint_values(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        table = th.as_tensor(PAYOFFS, dtype=actions.dtype)
        known = th.einsum("bi,ij,bj->b", actions[:, :3], table, actions[:, 3:])
        return known + 0.0 * super().joint_values(features, actions)


def exact_gradient() -> np.ndarray:
    """Finite differences of the team's return by the logits of both agents, ``(2, 3)``."""
    gradient = np.zeros((2, 3))
    for agent, action in np.ndindex(2, 3):
        returns = []
        for step in (1e-4, -1e-4):
            logits = np.log(np.stack([PROBS, PROBS]))
            logits[agent, action] += step
            first, second = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
            returns.append(first @ PAYOFFS @ second)
        gradient[agent, action] = (returns[0] - returns[1]) / 2e-4
    return gradient


def test_coma_follows_the_exact_gradient() -> None:
    """Each joint action is in the rollout as often as its probability says."""
    model = COMA(
        KnownValues,
        JointEnv(Climbing()),
        learning_rate=1.0,
        n_steps=16,
        normalize_advantage=False,
        normalize_value=False,
        max_grad_norm=None,
        policy_kwargs=dict(net_arch=[4], optimizer_class=th.optim.SGD),
        critic_learning_rate=1e-6,
        seed=0,
        device="cpu",
    )
    for policy in model.policies.values():
        with th.no_grad():
            policy.head.weight.zero_()
            policy.head.bias.copy_(th.as_tensor(PROBS).log())
    collect(model)
    options = th.tensor([0, 0, 1, 2])
    first, second = th.cartesian_prod(options, options).unbind(dim=1)
    for agent, own in zip(model.agents, (first, second), strict=True):
        model.rollout_buffer.actions[agent].copy_(own.view(16, 1, 1))
        log_probs = th.as_tensor(PROBS).log()[own].view(16, 1)
        model.rollout_buffer.log_probs[agent].copy_(log_probs)
    before = [policy.head.bias.detach().clone() for policy in model.policies.values()]
    model.train()
    after = [policy.head.bias.detach() for policy in model.policies.values()]
    change = (th.stack(after) - th.stack(before)).numpy()
    assert np.allclose(change, exact_gradient(), atol=1e-4), (change, exact_gradient())


def test_coma_refuses_continuous_actions() -> None:
    with pytest.raises(TypeError, match=r"agent_0.*continuous"):
        COMA("MlpPolicy", JointEnv(LQTeam()))


# ---------------------------------------------------------------- FQL


@pytest.mark.parametrize(
    ("payoffs", "answer"),
    [(Climbing().payoffs[0], 11), (Penalty(-100).payoffs[0], 10), (Qtran().payoffs[0], 8)],
)
def test_coordinate_ascent_on_exact_factors(payoffs: np.ndarray, answer: float) -> None:
    """Rank 2 represents the three games: own values are means, factors are of the residuals."""
    table = th.as_tensor(np.array(payoffs), dtype=th.float32)
    rows, columns = table.mean(dim=1), table.mean(dim=0) - table.mean()
    left, sizes, right = th.linalg.svd(table - rows[:, None] - columns)
    terms = PairTerms(
        {"a": rows[None], "b": columns[None]},
        {"a": (left * sizes)[None, :, :2], "b": th.zeros(1, 3, 2)},
        {"a": th.zeros(1, 3, 2), "b": right.T[None, :, :2]},
        {"a": [3], "b": [3]},
        th.tensor([[0.0, 1.0], [0.0, 0.0]]),
    )
    best = terms.best(n_restarts=8, n_sweeps=10)
    value = terms.joint_value({agent: own[:, None] for agent, own in best.items()})
    assert value.item() == pytest.approx(answer, abs=1e-3)


def fql(env: Any, **kwargs: Any) -> FQL:
    """Small model that learns from uniformly random actions."""
    return FQL(
        "MlpPolicy",
        env,
        learning_starts=64,
        learning_rate=3e-3,
        buffer_size=10_000,
        train_freq=1,
        batch_size=64,
        target_update_interval=160,
        exploration_final_eps=1.0,
        policy_kwargs={"net_arch": [32]},
        seed=0,
        device="cpu",
        **kwargs,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("game", [Climbing(), Penalty(-100), Qtran()], ids=lambda own: str(own))
def test_fql_solves_games(game: MatrixGame, seed: int) -> None:
    env = JointEnv(game)
    model = fql(env)
    model.set_random_seed(seed)
    model.learn(4000)
    obs, _ = env.reset()
    actions, _ = model.predict(obs, deterministic=True)
    assert env.step(actions)[1] == game.optimum


def test_fql_saves_and_names_wrong_neighbours(tmp_path: Any) -> None:
    env = JointEnv(Climbing())
    model = fql(env, neighbors=[("agent_0", "agent_1")]).learn(80)
    model.save(tmp_path / "model.zip")
    loaded = FQL.load(tmp_path / "model.zip")
    assert same(snapshot(model.policy), snapshot(loaded.policy))
    obs, _ = env.reset()
    assert model.predict(obs)[0] == loaded.predict(obs)[0]
    with pytest.raises(ValueError, match="agent_7"):
        fql(env, neighbors=[("agent_0", "agent_7")])
    with pytest.raises(ValueError, match="no pair"):
        fql(env, neighbors=[("agent_0", "agent_0")])


# ---------------------------------------------------------------- PR2-Q


def test_pr2_q_averages() -> None:
    """The only equilibrium is (1/2, 1/2), with values 1.5. There is no random exploration."""
    payoffs = {"a": [[0, 3], [1, 2]], "b": [[3, 2], [0, 1]]}
    env = MatrixGame(payoffs)
    greedy = dict(exploration_initial_eps=0.0, exploration_final_eps=0.0)
    model = PR2Q(env, learning_rate=0.5, seed=0, **greedy).learn(2000)
    obs, _ = env.reset()
    shares = model.frequencies(obs)
    for own in shares.values():
        assert np.allclose(own, 0.5, atol=0.05), shares
    joint = model.tables["joint"]["visits"][0] / 2000
    for agent in payoffs:
        assert (joint * np.array(payoffs[agent])).sum() == pytest.approx(1.5, abs=0.05)
