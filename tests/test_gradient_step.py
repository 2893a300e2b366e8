"""One gradient step: shards, threads, refused steps, and gradients that are not finite."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_happo import HAPPO, IPPO, MAPPO
from sb3_happo.common.gradient_step import (
    ROWS_PER_SHARD,
    GradientStep,
    accumulate_gradients,
    gradient_step,
    shards,
)
from tests.algorithms import LstmHAPPO, alike_team, collect, learn_half, same, small, snapshot


class Rows(NamedTuple):
    """Inputs ``(n, 3)`` and targets ``(n,)`` of a regression."""

    inputs: th.Tensor
    targets: th.Tensor


class Regression:
    """
    A small network with an optimiser that has a state.

    :param seed: Seed for the weights
    """

    def __init__(self, seed: int = 0) -> None:
        th.manual_seed(seed)
        self.network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.optimizer = th.optim.Adam(self.network.parameters(), lr=1e-2)

    def errors(self, rows: Rows) -> th.Tensor:
        """Squared errors, ``(n,)``."""
        return (self.network(rows.inputs).squeeze(1) - rows.targets) ** 2

    def step(self, rows: Rows, scale: float = 1.0, **kwargs: Any) -> GradientStep:
        """
        One step.

        :param rows: Minibatch
        :param scale: Factor of the loss
        :param kwargs: Further arguments of `gradient_step`
        """

        def loss_of(name: str, shard: Rows) -> tuple[th.Tensor, th.Tensor]:
            loss = self.errors(shard).sum() / len(rows.targets)
            return scale * loss, th.stack([loss, loss.detach() * 0 + len(shard.targets)])

        settings: dict[str, Any] = {"max_grad_norm": float("inf"), "owner": "agent 'walker'"}
        return gradient_step(loss_of, {"walker": rows}, self.optimizer, **settings | kwargs)

    def moments(self) -> dict[str, th.Tensor]:
        """Copy of the optimiser's state."""
        found = {}
        for index, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                found[f"{index}/{name}"] = value.clone()
        return found


def rows_of(n: int, seed: int = 1) -> Rows:
    th.manual_seed(seed)
    return Rows(th.randn(n, 3), th.randn(n))


# ---------------------------------------------------------------- shards and threads


@pytest.mark.parametrize(
    ("n_rows", "n_shards"),
    [
        (1, 1),
        (ROWS_PER_SHARD, 1),
        (2 * ROWS_PER_SHARD - 1, 1),
        (2 * ROWS_PER_SHARD, 2),
        (3 * ROWS_PER_SHARD + 7, 3),
    ],
)
def test_shards_hold_every_row_once_and_in_order(n_rows: int, n_shards: int) -> None:
    rows = rows_of(n_rows)
    parts = shards(rows)
    assert len(parts) == n_shards
    assert th.equal(th.cat([part.inputs for part in parts]), rows.inputs)
    assert th.equal(th.cat([part.targets for part in parts]), rows.targets)


def test_shards_give_the_gradient_of_the_whole_batch() -> None:
    rows = rows_of(3 * ROWS_PER_SHARD + 7)
    model = Regression()
    params = list(model.network.parameters())
    expected = th.autograd.grad(model.errors(rows).mean(), params)
    step = model.step(rows)
    for param, gradient in zip(params, expected, strict=True):
        assert param.grad is not None
        assert th.allclose(param.grad, gradient, rtol=0, atol=1e-6)
    assert step.figures[1] == len(rows.targets), "figures of all shards are added up"


def test_threads_do_not_change_the_numbers() -> None:
    rows = rows_of(4 * ROWS_PER_SHARD)
    alone, threaded = Regression(), Regression()
    with ThreadPoolExecutor(3) as executor:
        for _ in range(5):
            first = alone.step(rows, max_grad_norm=0.1)
            second = threaded.step(rows, max_grad_norm=0.1, executor=executor)
            assert th.equal(first.figures, second.figures)
    assert same(snapshot(alone.network), snapshot(threaded.network))
    assert same(alone.moments(), threaded.moments())


def test_a_step_is_that_of_the_optimiser() -> None:
    """With one batch and no clipping: `backward` and `optimizer.step`."""
    rows = rows_of(50)
    ours, theirs = Regression(), Regression()
    before = snapshot(ours.network)
    for _ in range(3):
        step = ours.step(rows)
        assert step.accepted and step.finite
        theirs.optimizer.zero_grad()
        theirs.errors(rows).mean().backward()
        theirs.optimizer.step()
    assert not same(before, snapshot(ours.network))
    for mine, other in zip(ours.network.parameters(), theirs.network.parameters(), strict=True):
        assert th.allclose(mine, other, atol=1e-6)


def test_the_norm_of_the_gradient_is_clipped() -> None:
    model = Regression()
    model.step(rows_of(50), scale=100.0, max_grad_norm=0.25)
    gradients = [param.grad for param in model.network.parameters()]
    total = sum(float((grad**2).sum()) for grad in gradients if grad is not None)
    assert total**0.5 == pytest.approx(0.25, rel=1e-4)


def test_frozen_and_unused_parameters_are_left_alone() -> None:
    used, unused, frozen = (nn.Parameter(th.ones(2)) for _ in range(3))
    frozen.requires_grad_(False)
    params = [used, unused, frozen]
    for param in params[:2]:
        param.grad = th.full((2,), 5.0)

    def loss_of(name: str, shard: Rows) -> tuple[th.Tensor, th.Tensor]:
        return 3.0 * (used * frozen).sum(), th.zeros(1)

    accumulate_gradients(loss_of, [("a", rows_of(1)), ("b", rows_of(1))], params)
    grads = [param.grad for param in params]
    assert grads[0] is not None
    assert grads[0].tolist() == [6.0, 6.0], "the old content is lost"
    assert grads[1:] == [None, None]


# ---------------------------------------------------------------- steps that are not taken


def test_a_refused_step_changes_nothing() -> None:
    rows = rows_of(20)
    model = Regression()
    model.step(rows)
    weights, moments = snapshot(model.network), model.moments()
    seen: list[th.Tensor] = []

    def refuse(figures: th.Tensor) -> bool:
        seen.append(figures)
        return False

    step = model.step(rows, accept=refuse)
    assert not step.accepted
    assert len(seen) == 1 and th.equal(seen[0], step.figures)
    assert same(weights, snapshot(model.network)) and same(moments, model.moments())
    assert model.step(rows, accept=lambda figures: True).accepted
    assert not same(weights, snapshot(model.network))


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("max_grad_norm", [0.5, float("inf")])
def test_a_gradient_that_is_not_finite_is_left_out(scale: float, max_grad_norm: float) -> None:
    rows = rows_of(20)
    model = Regression()
    model.step(rows, max_grad_norm=max_grad_norm)
    weights, moments = snapshot(model.network), model.moments()

    def three_steps() -> list[GradientStep]:
        return [model.step(rows, scale, max_grad_norm=max_grad_norm) for _ in range(3)]

    with pytest.warns(UserWarning, match=r"agent 'walker': a gradient was NaN or inf") as caught:
        steps = three_steps()
    assert not any(step.finite for step in steps)
    assert len(caught) == 1, "one warning per optimiser"
    assert same(weights, snapshot(model.network)) and same(moments, model.moments())
    step = model.step(rows, max_grad_norm=max_grad_norm)
    assert step.finite
    assert not same(weights, snapshot(model.network)), "training goes on"
    assert all(value.isfinite().all() for value in model.network.state_dict().values())


def test_one_bad_row_in_one_shard_is_enough() -> None:
    rows = rows_of(3 * ROWS_PER_SHARD)
    rows.inputs[ROWS_PER_SHARD + 5] = float("nan")
    model = Regression()
    weights = snapshot(model.network)
    with pytest.warns(UserWarning, match="left out"), ThreadPoolExecutor(2) as executor:
        assert not model.step(rows, executor=executor).finite
    assert same(weights, snapshot(model.network))


def test_every_optimiser_is_warned_about() -> None:
    for owner in ("agent 'walker'", "the critic"):
        with pytest.warns(UserWarning, match=owner):
            Regression().step(rows_of(5), float("nan"), owner=owner)


# ---------------------------------------------------------------- whole trainings


@pytest.mark.parametrize("algorithm", [HAPPO, LstmHAPPO, MAPPO, IPPO])
def test_weights_stay_finite_where_ratios_overflow(algorithm: type[HAPPO]) -> None:
    """With 30 continuous dimensions and so large steps, densities leave the range of floats."""
    team = alike_team(2, spaces.Box(-1, 1, (30,), np.float32))
    settings: dict[str, Any] = dict(learning_rate=10.0, n_epochs=10, batch_size=8, seed=0)
    model = small(algorithm, team, **settings)
    with pytest.warns(UserWarning, match="a gradient was NaN or infinite") as caught:
        model.learn(64)
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())
    for policy in model.policies.values():
        for state in policy.optimizer.state_dict()["state"].values():
            assert all(value.isfinite().all() for value in state.values())
    left_out = [str(one.message) for one in caught if "left out" in str(one.message)]
    assert len(left_out) == len(set(left_out)), "one warning for each network"
    model.learn(32, reset_num_timesteps=False)
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())


def test_an_agent_whose_gradient_is_nan_stays_and_the_others_learn() -> None:
    """The ratio of `agent_2` is NaN at one row: its weights stay, bit for bit, for one update."""
    model = small(HAPPO, alike_team(), seed=0, agent_order="fixed", learning_rate=1e-2)
    collect(model)
    before = {agent: snapshot(policy) for agent, policy in model.policies.items()}
    model.rollout_buffer.log_probs["agent_2"][3] = float("nan")
    with pytest.warns(UserWarning, match="agent 'agent_2': a gradient was NaN"):
        model.train()
    assert same(before["agent_2"], snapshot(model.policies["agent_2"]))
    for agent in ("agent_0", "agent_1"):
        assert not same(before[agent], snapshot(model.policies[agent]))
    learn_half(model)
    assert not same(before["agent_2"], snapshot(model.policies["agent_2"])), "it learns again"
    assert all(value.isfinite().all() for value in model.policy.state_dict().values())
