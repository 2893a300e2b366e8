"""HATRPO keeps its bound, agrees with explicit Hessians, and is TRPO for a team of one."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.env_util import make_vec_env
from torch.func import functional_call

from sb3_happo import HATRPO, JointEnv
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.distributions import kl_divergence
from sb3_happo.common.trust_region import (
    conjugate_gradient,
    flat_gradient,
    flatten,
    hessian_vector_product,
    line_search,
    natural_step,
)
from sb3_happo.common.type_aliases import ActorBatch
from tests.algorithms import PLAIN_SPACES, alike_team, collect, random_team, same, small, snapshot
from tests.envs import HeterogeneousTeam, MaskedGame, RandomTeam

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
HYBRID = spaces.Tuple(
    [spaces.Discrete(2), spaces.Box(-1, 1, (2,), np.float32), spaces.MultiBinary(2)]
)
SPACES = {**PLAIN_SPACES, "hybrid": HYBRID}


def make_policy(space: spaces.Space, **kwargs: Any) -> AgentPolicy:
    th.manual_seed(0)
    return AgentPolicy(
        VECTOR,
        space,
        lambda _: 1e-3,
        net_arch=[4],
        activation_fn=th.nn.Tanh,
        output_gain=1.0,
        **kwargs,
    )


def perturbed(policy: AgentPolicy, size: float = 0.3) -> AgentPolicy:
    other = copy.deepcopy(policy)
    with th.no_grad():
        for param in other.parameters():
            param.add_(size * th.randn_like(param))
    return other


# ---------------------------------------------------------------- divergences


@pytest.mark.parametrize("name", SPACES)
def test_divergence_of_whole_actions(name: str) -> None:
    """Against the sample mean of the ratio of the probabilities, for every kind of action."""
    policy = make_policy(SPACES[name])
    other = perturbed(policy)
    obs = th.tensor([[0.5, -1.0, 0.2]])
    with th.no_grad():
        exact = kl_divergence(policy.get_distribution(obs), other.get_distribution(obs))
        assert exact.shape == (1,) and exact.item() > 0.02
        many = obs.expand(100_000, -1)
        actions, log_prob = policy(many)
        estimate = (log_prob - other.evaluate_actions(many, actions)[0]).mean().item()
        assert exact.item() == pytest.approx(estimate, rel=0.05)
        assert (
            kl_divergence(
                policy.get_distribution(obs), copy.deepcopy(policy).get_distribution(obs)
            ).item()
            == 0.0
        )


@pytest.mark.parametrize("space", [spaces.Discrete(3), spaces.MultiDiscrete([2, 3])])
def test_divergence_under_masks(space: spaces.Space) -> None:
    """The divergence is that of the distributions over the legal actions."""
    policy = make_policy(space, masked=True)
    other = perturbed(policy)
    obs = th.tensor([[0.5, -1.0, 0.2]])
    mask = th.tensor([[1, 0, 1]] if isinstance(space, spaces.Discrete) else [[1, 0, 1, 0, 1]])
    with th.no_grad():
        divergence = kl_divergence(
            policy.get_distribution(obs, mask), other.get_distribution(obs, mask)
        ).item()
        old, new = (
            which.head(which.body(obs))[0, -3:][[0, 2]].log_softmax(0) for which in (policy, other)
        )
    assert divergence == pytest.approx((old.exp() * (old - new)).sum().item(), abs=1e-5)


# ---------------------------------------------------------------- Fisher-vector products


@pytest.mark.parametrize("name", SPACES)
def test_fisher_vector_product_is_the_explicit_hessians(name: str) -> None:
    policy = make_policy(SPACES[name])
    obs = th.randn(32, 3)
    names, params = zip(*((n, p) for n, p in policy.named_parameters()), strict=True)
    sizes = [param.numel() for param in params]
    with th.no_grad():
        old = copy.deepcopy(policy.get_distribution(obs))

    class Divergence(th.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = policy

        def forward(self) -> th.Tensor:
            return kl_divergence(old, policy.get_distribution(obs)).mean()

    divergence = Divergence()

    def at(flat: th.Tensor) -> th.Tensor:
        parts = [part.view_as(param) for part, param in zip(flat.split(sizes), params, strict=True)]
        return functional_call(
            divergence, {f"policy.{n}": part for n, part in zip(names, parts, strict=True)}
        )

    hessian = th.autograd.functional.hessian(at, flatten(params).detach())
    assert isinstance(hessian, th.Tensor) and hessian.abs().max() > 0.01
    damping = 0.1
    product = hessian_vector_product(divergence(), params, damping)
    for _ in range(5):
        vector = th.randn(sum(sizes))
        expected = hessian @ vector + damping * vector
        assert th.allclose(product(vector), expected, atol=1e-4)


def test_flat_gradient_of_unused_parameters_is_zero() -> None:
    used, unused = th.ones(2, requires_grad=True), th.ones(3, requires_grad=True)
    assert flat_gradient((3 * used).sum(), [used, unused]).tolist() == [3, 3, 0, 0, 0]


def test_natural_step_reaches_the_bound_of_a_quadratic() -> None:
    th.manual_seed(0)
    root = th.randn(6, 6)
    hessian, gradient = root @ root.T + th.eye(6), th.randn(6)
    step = natural_step(gradient, lambda v: hessian @ v, bound=0.02, max_iter=20)
    assert (0.5 * step @ hessian @ step).item() == pytest.approx(0.02, rel=1e-4)
    exact = th.linalg.solve(hessian, gradient)
    assert th.cosine_similarity(step, exact, dim=0).item() == pytest.approx(1.0, abs=1e-5)
    # Of all steps that reach the bound it gains most
    for _ in range(20):
        other = step + 0.3 * step.norm() * th.randn(6)
        other = other * (0.02 / (0.5 * other @ hessian @ other)).sqrt()
        assert gradient @ other < gradient @ step


@pytest.mark.parametrize("damping", [0.0, 0.1, 10.0])
@pytest.mark.parametrize("n", [1, 2, 6, 12])
def test_conjugate_gradients_solve(n: int, damping: float) -> None:
    th.manual_seed(n)
    root = th.randn(n, n, dtype=th.float64)
    matrix = root @ root.T + (0.5 + damping) * th.eye(n, dtype=th.float64)
    target = th.randn(n, dtype=th.float64)
    exact = th.linalg.solve(matrix, target)
    for scale in (1.0, 1e-6, 1e6):
        solution = conjugate_gradient(lambda v: matrix @ v, scale * target, 4 * n, 1e-12)
        assert th.allclose(solution / scale, exact, atol=1e-6)
    single = matrix.float()
    solution = conjugate_gradient(lambda v: single @ v, target.float(), 4 * n)
    assert th.allclose(solution.double(), exact, atol=1e-4)


def test_conjugate_gradients_draw_no_random_numbers_and_start_from_0() -> None:
    root, target = th.randn(5, 5), th.randn(5)
    matrix, copied = root @ root.T + th.eye(5), target.clone()
    before = th.get_rng_state()
    first, second = (conjugate_gradient(lambda v: matrix @ v, target, 3) for _ in range(2))
    assert first.equal(second) and target.equal(copied)
    assert th.get_rng_state().equal(before)
    # The first iteration goes along b
    one = conjugate_gradient(lambda v: matrix @ v, target, 1)
    assert th.allclose(one, target * (target @ target) / (target @ matrix @ target))
    assert conjugate_gradient(lambda v: matrix @ v, th.zeros(5), 10).tolist() == [0.0] * 5


def test_conjugate_gradients_end_where_the_residual_is_small() -> None:
    products: list[th.Tensor] = []

    def product(vector: th.Tensor) -> th.Tensor:
        products.append(vector)
        return 4 * vector

    assert conjugate_gradient(product, th.ones(3), 10).tolist() == [0.25] * 3
    assert len(products) == 1
    # Where the curvature is not positive, there is no further solution
    assert conjugate_gradient(lambda v: -v, th.ones(3), 10).tolist() == [0.0] * 3


def test_natural_step_without_gradient_is_none() -> None:
    root = th.randn(6, 6)
    for gradient in (th.zeros(6), th.full((6,), 1e-30)):
        step = natural_step(gradient, lambda v: root @ root.T @ v, 0.01, 10)
        assert step.tolist() == [0.0] * 6


# ---------------------------------------------------------------- line search


def test_line_search_takes_the_first_acceptable_step() -> None:
    params = [th.zeros(2, requires_grad=True), th.ones(1, requires_grad=True)]
    step = th.tensor([1.0, 2.0, -1.0])
    tried: list[float] = []

    def accept(fraction: float) -> bool:
        tried.append(fraction)
        assert th.allclose(flatten(params), th.tensor([0.0, 0.0, 1.0]) + fraction * step), (
            "the step is taken before it is judged"
        )
        return fraction < 0.6

    assert line_search(params, step, accept, 0.8, 10) == pytest.approx(0.8**3)
    assert tried == pytest.approx([1.0, 0.8, 0.64, 0.512])
    assert params[1].item() == pytest.approx(1 - 0.512)


def test_failed_line_search_restores_bit_for_bit() -> None:
    th.manual_seed(0)
    params = [th.randn(5, requires_grad=True), th.randn(2, 3, requires_grad=True)]
    before = [param.detach().clone() for param in params]
    assert line_search(params, 0.1 * th.randn(11), lambda fraction: False, 0.8, 7) == 0.0
    assert all(th.equal(old, new) for old, new in zip(before, params, strict=True))


# ---------------------------------------------------------------- the algorithm


class MeasuredHATRPO(HATRPO):
    """HATRPO that measures each agent's last update, from its policies alone."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.records = Records()

    def _update_actors(self, data: dict[str, ActorBatch]) -> None:
        before = {agent: copy.deepcopy(self.policies[agent]) for agent in data}
        super()._update_actors(data)
        for agent, rows in data.items():
            self.records.measure(agent, before[agent], self.policies[agent], rows)


class Records:
    """Measurements of each agent's last update."""

    def __init__(self) -> None:
        self.divergence: dict[str, float] = {}
        self.gain: dict[str, float] = {}
        self.expected: dict[str, float] = {}
        self.step: dict[str, th.Tensor] = {}

    def measure(
        self, agent: str, before: AgentPolicy, after: AgentPolicy, rows: ActorBatch
    ) -> None:
        params = list(before.parameters())
        advantages = (rows.advantages - rows.advantages.mean()) / (rows.advantages.std() + 1e-8)
        old, new = (
            which.evaluate_actions(rows.observations, rows.actions, rows.action_masks)[0]
            for which in (before, after)
        )
        objective = (rows.factor * advantages * (old - rows.old_log_prob).exp()).mean()
        reached = (rows.factor * advantages * (new - rows.old_log_prob).exp()).mean()
        self.step[agent] = flatten(list(after.parameters())).detach() - flatten(params).detach()
        self.gain[agent] = (reached - objective).item()
        self.expected[agent] = (flat_gradient(objective, params) @ self.step[agent]).item()
        with th.no_grad():
            self.divergence[agent] = self.mean_divergence(before, after, rows)

    @staticmethod
    def mean_divergence(before: AgentPolicy, after: AgentPolicy, rows: ActorBatch) -> float:
        """Written out for each kind of action, from the networks' outputs."""
        assert isinstance(rows.observations, th.Tensor)
        old, new = (which.head(which.body(rows.observations)) for which in (before, after))
        space = before.action_space
        if isinstance(space, spaces.Box):
            assert before.log_std is not None and after.log_std is not None
            s, t = before.log_std, after.log_std
            divergence = t - s + ((2 * s).exp() + (old - new) ** 2) / (2 * (2 * t).exp()) - 0.5
        elif isinstance(space, spaces.MultiBinary):
            p, q = old.sigmoid(), new.sigmoid()
            divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        else:
            assert isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
            heads = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.tolist()
            pairs = zip(old.split(heads, 1), new.split(heads, 1), strict=True)
            divergence = th.cat(
                [p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1)) for p, q in pairs], dim=1
            )
        return divergence.sum(dim=1).mean().item()


@pytest.mark.parametrize("target_kl", [0.003, 0.03])
def test_every_step_keeps_the_bound_and_gains(target_kl: float) -> None:
    """Divergence, gain and acceptance of every agent's step are measured, and are those logged."""
    model = small(
        MeasuredHATRPO, random_team(2), n_steps=64, target_kl=target_kl, seed=0, gamma=0.5
    )
    records = model.records
    steps = 0
    for _ in range(4):
        model.learn(128, log_interval=100, reset_num_timesteps=False)
        logged = model.logger.name_to_value
        for agent in model.agents:
            assert records.divergence[agent] <= 1.05 * target_kl, agent
            assert logged[f"{agent}/kl"] == pytest.approx(records.divergence[agent], abs=1e-5)
            fraction = logged[f"{agent}/step_fraction"]
            if fraction:
                steps += 1
                assert (
                    records.gain[agent] >= model.accept_ratio * records.expected[agent] - 1e-6 > 0
                )
                assert records.divergence[agent] > 0.1 * target_kl, "the bound should be used"
            else:
                assert not records.step[agent].any()
    assert steps >= 12, "most of 16 steps should be accepted"


def test_agents_with_masks_absences_and_images_keep_the_bound() -> None:
    for team in (MaskedGame, HeterogeneousTeam):
        model = small(HATRPO, team(), n_steps=64, target_kl=0.01, seed=0).learn(
            128, log_interval=100
        )
        logged = model.logger.name_to_value
        for agent in model.agents:
            assert 0 <= logged[f"{agent}/kl"] <= 0.01 and np.isfinite(
                logged[f"{agent}/policy_objective"]
            )


def test_without_an_acceptable_step_the_parameters_stay_bit_for_bit() -> None:
    model = small(HATRPO, random_team(), seed=0)
    model.accept_ratio = 1e6  # the constructor would refuse it
    before = snapshot(model.policy.actors)
    critic = snapshot(model.critic)
    model.learn(64, log_interval=100)
    assert same(before, snapshot(model.policy.actors))
    assert not same(critic, snapshot(model.critic)), "the critic learns all the same"
    for agent in model.agents:
        assert model.logger.name_to_value[f"{agent}/step_fraction"] == 0.0
        assert model.logger.name_to_value[f"{agent}/kl"] == 0.0
    assert model.logger.name_to_value["train/factor_std"] == 0.0


def test_acceptance_threshold_shortens_steps() -> None:
    """A step below the wanted share of the expected improvement is shortened."""
    fractions = {}
    for accept_ratio in (0.0, 0.9):
        model = small(
            MeasuredHATRPO,
            alike_team(1),
            accept_ratio=accept_ratio,
            target_kl=1.0,
            line_search_max_iter=40,
            seed=0,
        )
        records = model.records
        model.learn(32, log_interval=100)
        fractions[accept_ratio] = model.logger.name_to_value["agent_0/step_fraction"]
        assert records.gain["agent_0"] >= accept_ratio * records.expected["agent_0"] - 1e-6
    assert 0 < fractions[0.9] < fractions[0.0]


def test_worthless_rollouts_change_nothing() -> None:
    """Without advantages there is no direction, and without a choice no effect."""
    model = small(HATRPO, random_team(), seed=0)
    collect(model)
    model.rollout_buffer.advantages.zero_()
    before = snapshot(model.policy.actors)
    model.train()
    assert same(before, snapshot(model.policy.actors))
    model = small(
        HATRPO, JointEnv(RandomTeam({"arm": spaces.Discrete(1), "leg": spaces.Discrete(2)})), seed=0
    )
    before = snapshot(model.policies["arm"])
    model.learn(64)
    assert same(before, snapshot(model.policies["arm"]))


def test_shared_parameters_are_stepped_together() -> None:
    """Objective and bound are of both agents' samples; two updates follow one another."""
    model = small(
        MeasuredHATRPO,
        alike_team(2),
        target_kl=0.01,
        seed=0,
        policy_kwargs=dict(share_parameters=True),
    )
    records = model.records
    model.learn(32)
    assert all(divergence <= 0.0105 for divergence in records.divergence.values())
    first, second = (model.policies[agent].head.weight for agent in model.agents)
    assert first is second


# ---------------------------------------------------------------- a team of one


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_first_step_of_a_team_of_one_is_trpos(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRPO's solver starts from random noise; with one that starts from 0 the steps are equal."""

    def solve(product: Any, target: th.Tensor, max_iter: int) -> th.Tensor:
        return conjugate_gradient(product, target, max_iter)

    monkeypatch.setattr("sb3_contrib.trpo.trpo.conjugate_gradient_solver", solve)
    settings: dict[str, Any] = dict(
        n_steps=256, gamma=0.98, seed=3, cg_damping=0.1, cg_max_steps=15, device="cpu"
    )
    net: dict[str, Any] = dict(net_arch=[32, 32], activation_fn=th.nn.Tanh)
    trpo = TRPO("MlpPolicy", make_vec_env(env_id, 2), batch_size=512, policy_kwargs=net, **settings)
    theirs = [
        *trpo.policy.mlp_extractor.policy_net.parameters(),
        *trpo.policy.action_net.parameters(),
    ]
    if env_id == "Pendulum-v1":
        theirs.append(trpo.policy.log_std)
    before = flatten(theirs).detach().clone()
    trpo.learn(512)
    net["rescale_actions"] = False
    settings.update(batch_size=None, normalize_value=False, accept_ratio=0.0)
    hatrpo = HATRPO(make_vec_env(env_id, 2), policy_kwargs=net, **settings)
    policy = hatrpo.policies["agent_0"]
    mine = [
        *policy.body.parameters(),
        *policy.head.parameters(),
        *([] if policy.log_std is None else [policy.log_std]),
    ]
    assert th.equal(before, flatten(mine)), "same seed, same initial weights"
    hatrpo.learn(512)
    changes = [flatten(params).detach() - before for params in (theirs, mine)]
    assert all(change.norm() > 1e-3 for change in changes)
    # One action dimension: the mean over dimensions is their sum, and the lengths agree as well
    difference = (changes[1] - changes[0]).norm() / changes[0].norm()
    assert difference.item() < 1e-3


def test_line_search_settings_reach_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(
        HATRPO,
        JointEnv(RandomTeam({"arm": spaces.Discrete(3)})),
        line_search_shrinking_factor=0.3,
        line_search_max_iter=2,
        seed=0,
    )
    model.accept_ratio = 1e6
    policy = model.policies["arm"]
    visited: list[th.Tensor] = []

    def get_distribution(*args: Any, **kwargs: Any) -> Distribution:
        visited.append(flatten(list(policy.parameters())).detach().clone())
        return AgentPolicy.get_distribution(policy, *args, **kwargs)

    monkeypatch.setattr(policy, "get_distribution", get_distribution)
    model.learn(32)
    moved = [params - visited[0] for params in visited if not th.equal(params, visited[0])]
    assert [float(move.norm() / moved[0].norm()) for move in moved] == pytest.approx(
        [1.0, 0.3], rel=1e-3
    )
