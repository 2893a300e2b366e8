"""The formulas, each derived once more by hand: with loops over NumPy arrays, or in closed form."""

import math

import numpy as np
import pytest
import torch as th

from sb3_happo.common.formulas import (
    approx_kl,
    check_shapes,
    clip_fraction,
    clipped_policy_loss,
    effective_sample_size,
    explained_variance,
    generalised_advantages,
    normalize,
    policy_gradient_loss,
    surrogate,
    update_factor,
    value_losses,
)

N_ROWS = 50


def tensor(*values: float) -> th.Tensor:
    return th.tensor(values, dtype=th.float64)


@pytest.fixture
def rows() -> dict[str, th.Tensor]:
    """Random rows, with ratios far enough from 1 to be clipped on both sides."""
    generator = th.Generator().manual_seed(0)

    def normal() -> th.Tensor:
        return th.randn(N_ROWS, generator=generator, dtype=th.float64)

    old_log_prob = normal() - 2.0
    return {
        "log_prob": old_log_prob + 0.4 * normal(),
        "old_log_prob": old_log_prob,
        "advantages": normal(),
        "factor": normal().exp(),
    }


# ---------------------------------------------------------------- shapes


def test_a_tensor_of_the_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"factor must have the shape \(3,\), not \(3, 1\)"):
        check_shapes((3,), log_prob=th.zeros(3), factor=th.zeros(3, 1))


@pytest.mark.parametrize("name", ["log_prob", "old_log_prob", "advantages", "factor"])
def test_the_losses_of_the_actors_refuse_columns(rows: dict[str, th.Tensor], name: str) -> None:
    wrong = rows | {name: rows[name].unsqueeze(1)}
    message = rf"{name} must have the shape \(50,\), not \(50, 1\)"
    with pytest.raises(ValueError, match=message):
        clipped_policy_loss(**wrong, clip_range=0.2)
    with pytest.raises(ValueError, match=message):
        surrogate(**wrong)
    if name != "old_log_prob":
        del wrong["old_log_prob"]
        with pytest.raises(ValueError, match=message):
            policy_gradient_loss(**wrong)


@pytest.mark.parametrize("name", ["log_prob", "old_log_prob"])
def test_the_figures_of_the_actors_refuse_columns(rows: dict[str, th.Tensor], name: str) -> None:
    both = {key: rows[key] for key in ("log_prob", "old_log_prob")}
    wrong = both | {name: rows[name].unsqueeze(1)}
    message = rf"{name} must have the shape \(50,\)"
    with pytest.raises(ValueError, match=message):
        approx_kl(**wrong)
    with pytest.raises(ValueError, match=message):
        clip_fraction(**wrong, clip_range=0.2)
    with pytest.raises(ValueError, match=message):
        update_factor(rows["factor"], **wrong)


def test_the_factor_must_have_a_ratio_for_every_row() -> None:
    three, two = th.ones(3), th.ones(2)
    with pytest.raises(ValueError, match=r"log_prob must have the shape \(3,\), not \(2,\)"):
        update_factor(three, two, two)
    with pytest.raises(ValueError, match=r"log_prob must have the shape \(2,\), not \(3,\)"):
        update_factor(three, three, three, rows=th.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"rows must have the shape \(2,\), not \(1, 2\)"):
        update_factor(three, two, two, rows=th.tensor([[0, 2]]))
    with pytest.raises(ValueError, match="factor must have"):
        update_factor(three.unsqueeze(1), three, three)


def test_one_dimension_is_asked_for_where_a_mean_would_hide_more() -> None:
    with pytest.raises(ValueError, match="factor must have the shape"):
        effective_sample_size(th.ones(3, 1))
    with pytest.raises(ValueError, match="advantages must have the shape"):
        normalize(th.ones(3, 1))


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("rewards", th.zeros(4, 2)),
        ("values", th.zeros(4, 2, 1)),
        ("episode_starts", th.zeros(4, 2, 1)),
        ("last_values", th.zeros(2)),
        ("dones", th.zeros(2, 1)),
        ("active", th.ones(4, 2, dtype=th.bool)),
    ],
)
def test_advantages_name_the_argument_of_the_wrong_shape(name: str, wrong: th.Tensor) -> None:
    arguments = {
        "rewards": th.zeros(4, 2, 3),
        "values": th.zeros(4, 2, 3),
        "episode_starts": th.zeros(4, 2),
        "last_values": th.zeros(2, 3),
        "dones": th.zeros(2),
        "active": th.ones(4, 2, 3, dtype=th.bool),
    }
    generalised_advantages(**arguments, gamma=0.9, gae_lambda=0.9)
    with pytest.raises(ValueError, match=f"{name} must have the shape"):
        generalised_advantages(**(arguments | {name: wrong}), gamma=0.9, gae_lambda=0.9)


@pytest.mark.parametrize("name", ["returns", "old_values"])
def test_losses_of_values_name_the_argument_of_the_wrong_shape(name: str) -> None:
    arguments = {"returns": th.zeros(5, 2), "old_values": th.zeros(5, 2)}
    arguments[name] = th.zeros(5)
    with pytest.raises(ValueError, match=rf"{name} must have the shape \(5, 2\), not \(5,\)"):
        value_losses(th.zeros(5, 2), arguments["returns"], arguments["old_values"])


def test_the_explained_variance_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"values must have the shape \(5,\), not \(5, 1\)"):
        explained_variance(th.zeros(5, 1), th.zeros(5))


# ---------------------------------------------------------------- actors


def test_the_clipped_loss_row_by_row(rows: dict[str, th.Tensor]) -> None:
    n_clipped, total = 0, 0.0
    for new, old, advantage, factor in zip(*(rows[key].tolist() for key in rows), strict=True):
        ratio = math.exp(new) / math.exp(old)
        clipped = min(max(ratio, 0.8), 1.2)
        n_clipped += ratio != clipped
        total += factor * min(ratio * advantage, clipped * advantage)
    assert 5 < n_clipped < N_ROWS - 5
    loss = clipped_policy_loss(**rows, clip_range=0.2)
    assert loss.item() == pytest.approx(-total / N_ROWS, rel=1e-12)


@pytest.mark.parametrize(
    ("ratio", "advantage", "objective", "slope"),
    [
        (1.1, 2.0, 2.2, 2.2),  # inside: the gradient of ratio * A by log_prob is ratio * A
        (1.5, 2.0, 2.4, 0.0),  # further up does not pay
        (0.5, 2.0, 1.0, 1.0),  # the way back does
        (0.5, -2.0, -1.6, 0.0),
        (1.5, -2.0, -3.0, -3.0),
    ],
)
def test_where_the_clipped_loss_has_a_slope(
    ratio: float, advantage: float, objective: float, slope: float
) -> None:
    log_prob = tensor(math.log(ratio)).requires_grad_()
    factor = 3.0
    loss = clipped_policy_loss(log_prob, tensor(0.0), tensor(advantage), tensor(factor), 0.2)
    loss.backward()
    assert loss.item() == pytest.approx(-factor * objective)
    assert log_prob.grad is not None
    assert log_prob.grad.item() == pytest.approx(-factor * slope)


def test_the_policy_gradient_loss_in_closed_form() -> None:
    log_prob = tensor(-1.0, -2.0).requires_grad_()
    loss = policy_gradient_loss(log_prob, tensor(3.0, -1.0), tensor(2.0, 0.5))
    loss.backward()
    assert loss.item() == pytest.approx(-(-1.0 * 2 * 3 + -2.0 * 0.5 * -1) / 2)
    assert log_prob.grad is not None
    assert log_prob.grad.tolist() == pytest.approx([-3.0, 0.25])


def test_the_gradients_of_all_objectives_agree_at_the_policy_of_the_rollout(
    rows: dict[str, th.Tensor],
) -> None:
    old, others = rows["old_log_prob"], (rows["advantages"], rows["factor"])

    def gradient(loss: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
        return th.autograd.grad(loss, log_prob)[0]

    log_prob = old.clone().requires_grad_()
    expected = gradient(policy_gradient_loss(log_prob, *others), log_prob)
    clipped = gradient(clipped_policy_loss(log_prob, old, *others, 0.2), log_prob)
    unclipped = gradient(-surrogate(log_prob, old, *others).mean(), log_prob)
    th.testing.assert_close(clipped, expected)
    th.testing.assert_close(unclipped, expected)


def test_the_surrogate_row_by_row(rows: dict[str, th.Tensor]) -> None:
    gains = surrogate(**rows)
    columns = (rows[key].tolist() for key in rows)
    for gain, new, old, advantage, factor in zip(gains.tolist(), *columns, strict=True):
        assert gain == pytest.approx(math.exp(new) / math.exp(old) * factor * advantage)


def test_the_approximate_divergence_is_that_of_two_categorical_distributions() -> None:
    old, new = np.array([0.5, 0.3, 0.2]), np.array([0.4, 0.4, 0.2])
    divergence = float((old * np.log(old / new)).sum())
    # Actions as often as the old policy takes them: 5, 3 and 2 of ten
    actions = np.repeat([0, 1, 2], [5, 3, 2])
    log_prob, old_log_prob = (th.from_numpy(np.log(p[actions])) for p in (new, old))
    assert approx_kl(log_prob, old_log_prob).item() == pytest.approx(divergence)
    assert approx_kl(old_log_prob, old_log_prob).item() == 0.0


def test_the_approximate_divergence_is_never_negative(rows: dict[str, th.Tensor]) -> None:
    for new, old in zip(rows["log_prob"], rows["old_log_prob"], strict=True):
        assert approx_kl(new.reshape(1), old.reshape(1)) >= 0


def test_the_clip_fraction_counts_ratios() -> None:
    log_prob = tensor(*np.log([0.7, 0.81, 1.0, 1.19, 1.3]))
    assert clip_fraction(log_prob, th.zeros(5), 0.2).item() == pytest.approx(2 / 5)
    assert clip_fraction(log_prob, th.zeros(5), 0.5).item() == 0.0


def test_the_factor_is_the_product_of_the_ratios_of_active_agents() -> None:
    factor = tensor(1.0, 2.0, 3.0, 4.0)
    before = factor.clone()
    ratios = tensor(0.5, 3.0)
    # The rows of an agent with memory do not stand in the order of the rollout
    after = update_factor(factor, ratios.log(), th.zeros(2), rows=th.tensor([3, 1]))
    assert after.tolist() == pytest.approx([1.0, 6.0, 3.0, 2.0])
    everywhere = update_factor(after, th.full((4,), math.log(2.0)), th.zeros(4))
    assert everywhere.tolist() == pytest.approx([2.0, 12.0, 6.0, 4.0])
    assert th.equal(factor, before)


def test_an_agent_that_was_never_active_leaves_the_factor_as_it_is() -> None:
    factor = tensor(1.0, 2.0)
    none = th.zeros(0)
    assert th.equal(update_factor(factor, none, none, rows=none.long()), factor)


def test_the_effective_sample_size_in_closed_form() -> None:
    assert effective_sample_size(th.full((7,), 3.0)).item() == pytest.approx(1.0)
    # One row carries all weight: one of four counts
    assert effective_sample_size(tensor(0.0, 5.0, 0.0, 0.0)).item() == pytest.approx(1 / 4)
    assert effective_sample_size(tensor(1.0, 3.0)).item() == pytest.approx(16 / 10 / 2)


def test_normalised_advantages_have_mean_0_and_standard_deviation_1(
    rows: dict[str, th.Tensor],
) -> None:
    values = rows["advantages"].numpy()
    expected = (values - values.mean()) / (values.std(ddof=1) + 1e-8)
    np.testing.assert_allclose(normalize(rows["advantages"]).numpy(), expected, rtol=1e-12)


def test_a_single_advantage_stays_as_it_is_and_equal_ones_become_0() -> None:
    assert normalize(tensor(4.0)).tolist() == [4.0]
    assert normalize(tensor(4.0, 4.0)).tolist() == [0.0, 0.0]


# ---------------------------------------------------------------- values


def rollout(n_values: int) -> dict[str, th.Tensor]:
    """Six steps of two environments; an episode ends within the first and at the end of one."""
    generator = th.Generator().manual_seed(1)
    episode_starts = th.zeros(6, 2, dtype=th.float64)
    episode_starts[0] = 1.0
    episode_starts[3, 0] = 1.0
    shape = (6, 2, n_values)
    return {
        "rewards": th.randn(shape, generator=generator, dtype=th.float64),
        "values": th.randn(shape, generator=generator, dtype=th.float64),
        "episode_starts": episode_starts,
        "last_values": th.randn(shape[1:], generator=generator, dtype=th.float64),
        "dones": tensor(0.0, 1.0),
    }


def advantages_by_sums(
    data: dict[str, th.Tensor], values: np.ndarray, gamma: float, gae_lambda: float
) -> np.ndarray:
    """Equation 16 of the paper: discounted sums of temporal differences, up to an episode's end."""
    rewards, starts, last_values, dones = (
        data[key].numpy() for key in ("rewards", "episode_starts", "last_values", "dones")
    )
    n_steps, n_envs, _ = rewards.shape
    advantages = np.zeros_like(rewards)
    for env in range(n_envs):
        for first in range(n_steps):
            for step in range(first, n_steps):
                at_end = step == n_steps - 1
                over = dones[env] if at_end else starts[step + 1, env]
                following = last_values[env] if at_end else values[step + 1, env]
                delta = rewards[step, env] + gamma * (1 - over) * following - values[step, env]
                advantages[first, env] += (gamma * gae_lambda) ** (step - first) * delta
                if over:
                    break
    return advantages


@pytest.mark.parametrize("n_values", [1, 3])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.9, 0.8), (1.0, 1.0), (0.9, 0.0)])
def test_advantages_are_sums_of_temporal_differences(
    n_values: int, gamma: float, gae_lambda: float
) -> None:
    data = rollout(n_values)
    expected = advantages_by_sums(data, data["values"].numpy(), gamma, gae_lambda)
    advantages, values = generalised_advantages(**data, gamma=gamma, gae_lambda=gae_lambda)
    np.testing.assert_allclose(advantages.numpy(), expected, rtol=1e-10)
    assert th.equal(values, data["values"])


def test_with_lambda_1_returns_are_discounted_sums_of_rewards() -> None:
    data = rollout(1)
    advantages, values = generalised_advantages(**data, gamma=0.9, gae_lambda=1.0)
    returns = (advantages + values).squeeze(2)
    rewards = data["rewards"].squeeze(2)
    first_episode = rewards[0, 0] + 0.9 * rewards[1, 0] + 0.81 * rewards[2, 0]
    assert returns[0, 0].item() == pytest.approx(first_episode.item())
    assert returns[5, 1].item() == pytest.approx(rewards[5, 1].item())
    goes_on = rewards[5, 0] + 0.9 * data["last_values"][0, 0]
    assert returns[5, 0].item() == pytest.approx(goes_on.item())


def test_the_value_of_an_inactive_step_is_what_followed() -> None:
    data = rollout(2)
    active = th.ones(6, 2, 2, dtype=th.bool)
    active[1, 0, 1] = active[2, 0, 1] = active[5, 1, 0] = False
    before = data["values"].clone()
    advantages, values = generalised_advantages(**data, gamma=0.9, gae_lambda=0.8, active=active)

    expected = before.numpy().copy()
    rewards = data["rewards"].numpy()
    expected[5, 1, 0] = rewards[5, 1, 0]  # the episode ends with this step
    expected[2, 0, 1] = rewards[2, 0, 1]  # likewise
    expected[1, 0, 1] = rewards[1, 0, 1] + 0.9 * expected[2, 0, 1]
    np.testing.assert_allclose(values.numpy(), expected)
    np.testing.assert_allclose(
        advantages.numpy(), advantages_by_sums(data, expected, 0.9, 0.8), rtol=1e-10, atol=1e-12
    )
    assert advantages[2, 0, 1] == 0.0  # nothing after it, and no difference of its own
    assert th.equal(data["values"], before)


def test_the_value_loss_is_the_squared_error() -> None:
    values, returns = tensor(1.0, 2.0).reshape(2, 1), tensor(3.0, 1.5).reshape(2, 1)
    assert value_losses(values, returns, th.zeros(2, 1)).flatten().tolist() == [4.0, 0.25]


def test_a_clipped_value_moves_no_further_than_the_range() -> None:
    old, values = tensor(0.0, 0.0, 0.0).reshape(3, 1), tensor(0.1, 1.0, -1.0).reshape(3, 1)
    returns = tensor(1.0, 1.0, 1.0).reshape(3, 1)
    losses = value_losses(values, returns, old, clip_range=0.2)
    assert losses.flatten().tolist() == pytest.approx([0.9**2, 0.8**2, 1.2**2])
    largest = value_losses(values, returns, old, clip_range=0.2, clipped_maximum=True)
    assert largest.flatten().tolist() == pytest.approx([0.9**2, 0.8**2, 2.0**2])


def test_the_huber_loss_turns_linear() -> None:
    values, returns = tensor(0.5, 3.0, -3.0).reshape(3, 1), th.zeros(3, 1, dtype=th.float64)
    losses = value_losses(values, returns, returns, huber_delta=2.0)
    assert losses.flatten().tolist() == pytest.approx([0.125, 2 * (3 - 1), 2 * (3 - 1)])


def test_the_explained_variance_in_closed_form() -> None:
    returns = tensor(1.0, 2.0, 3.0, 4.0)
    assert explained_variance(returns, returns).item() == 1.0
    assert explained_variance(returns + 5.0, returns).item() == pytest.approx(1.0)
    assert explained_variance(th.zeros(4, dtype=th.float64), returns).item() == pytest.approx(0.0)
    assert explained_variance(-returns, returns).item() == pytest.approx(1 - 4.0)
    assert math.isnan(explained_variance(returns, th.ones(4, dtype=th.float64)).item())
