"""PyTorch's threads are chosen for the work, and given back."""

import contextlib
from collections.abc import Iterator

import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from sb3_happo import HAPPO
from sb3_happo.common.threads import fitting_threads, torch_threads


def test_threads_grow_with_the_work() -> None:
    """Small networks on small batches get one; convolutions keep all."""
    small, large = nn.Linear(20, 64), nn.Sequential(nn.Linear(512, 2048), nn.Linear(2048, 2048))
    assert fitting_threads([small], 1000) == 1
    assert fitting_threads([small, large], 4000) > 8
    assert fitting_threads([small, nn.Conv2d(3, 8, 3)], 10) == th.get_num_threads()


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
