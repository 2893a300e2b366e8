"""PyTorch's threads are chosen for the work, and given back."""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from sb3_happo import HAPPO
from sb3_happo.common.gradient_step import accumulate_gradients, shards
from sb3_happo.common.threads import torch_threads


class Batch(NamedTuple):
    """A minibatch of a regression."""

    inputs: th.Tensor
    targets: th.Tensor


def test_numbers_do_not_depend_on_the_threads() -> None:
    """A large minibatch, divided among threads or not: the same weights to the last bit."""

    def trained(n_threads: int) -> th.Tensor:
        th.set_num_threads(n_threads)
        model = HAPPO("CartPole-v1", n_steps=4096, batch_size=4096, n_epochs=2, seed=0)
        model.learn(4096)
        return th.cat([param.detach().flatten() for param in model.policy.parameters()])

    before = th.get_num_threads()
    try:
        assert th.equal(trained(1), trained(3))
    finally:
        th.set_num_threads(before)


def test_initial_weights_do_not_depend_on_the_threads() -> None:
    def initial(n_threads: int) -> th.Tensor:
        th.set_num_threads(n_threads)
        model = HAPPO("CartPole-v1", seed=0, policy_kwargs=dict(net_arch=[512, 512]))
        return th.cat([param.detach().flatten() for param in model.policy.parameters()])

    before = th.get_num_threads()
    try:
        assert th.equal(initial(1), initial(4))
    finally:
        th.set_num_threads(before)


def test_a_divided_minibatch_has_the_gradient_of_the_whole() -> None:
    """To rounding, for parameters that take part, and none for one that does not."""
    batch = Batch(*th.randn(2, 5000, 4).unbind())
    layer, idle = nn.Linear(4, 4), nn.Linear(1, 1)
    params = [*layer.parameters(), *idle.parameters()]

    def loss_of(_: str, shard: Batch) -> tuple[th.Tensor, th.Tensor]:
        loss = (layer(shard.inputs) - shard.targets).abs().sum() / 5000
        return loss, th.stack([loss, 2 * loss])

    parts = [("batch", shard) for shard in shards(batch)]
    assert [len(shard.inputs) for _, shard in parts] == [2500, 2500]
    figures = accumulate_gradients(loss_of, parts, params)
    found = [None if param.grad is None else param.grad.clone() for param in params]
    loss, _ = loss_of("batch", batch)
    whole = th.autograd.grad(loss, params, allow_unused=True)
    assert found[2:] == [None, None] == list(whole[2:])
    for mine, exact in zip(found[:2], whole[:2], strict=True):
        assert mine is not None
        th.testing.assert_close(mine, exact, rtol=1e-4, atol=1e-6)
    th.testing.assert_close(figures, th.stack([loss, 2 * loss]).detach())


def test_parameters_that_do_not_learn_are_left_alone() -> None:
    """In the actors and in the critic, as with pretrained features."""
    model = HAPPO("CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, seed=0)
    networks = [*model.policies.values(), model.critic.networks[0]]
    frozen = [network.body[0].weight.requires_grad_(False) for network in networks]
    before = [weight.clone() for weight in frozen]
    heads = [network.head.weight.detach().clone() for network in networks]
    model.learn(32)
    assert all(th.equal(weight, old) for weight, old in zip(frozen, before, strict=True))
    assert not any(
        th.equal(network.head.weight, old) for network, old in zip(networks, heads, strict=True)
    )


@pytest.mark.usefixtures("two_threads")
def test_threads_are_never_more_than_before_and_are_given_back() -> None:
    """Also after an error."""
    with torch_threads(64):
        assert th.get_num_threads() == 2
    with contextlib.suppress(RuntimeError), torch_threads(1):
        assert th.get_num_threads() == 1
        raise RuntimeError
    assert th.get_num_threads() == 2


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads during a test."""
    before = th.get_num_threads()
    th.set_num_threads(2)
    yield
    th.set_num_threads(before)


class _Threads(BaseCallback):
    """What a callback sees while the environments are stepped."""

    def _on_step(self) -> bool:
        self.seen = th.get_num_threads()
        return True


@pytest.mark.usefixtures("two_threads")
def test_training_gives_its_threads_back() -> None:
    """Rollouts take one."""
    callback = _Threads()
    HAPPO("CartPole-v1", n_steps=8, batch_size=8, n_epochs=1).learn(8, callback)
    assert callback.seen == 1
    assert th.get_num_threads() == 2
