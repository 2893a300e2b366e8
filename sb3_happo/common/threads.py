"""How many of PyTorch's threads the work is worth: on small batches they wait for each other longer than they work."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch as th
from torch import nn

# Floating-point operations of one gradient step that are worth a thread, some 10 ms of one core
_WORTH_A_THREAD = 5e8


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """
    PyTorch on at most so many threads; as many as before afterwards.

    :param n_threads: > 0
    """
    before = th.get_num_threads()
    th.set_num_threads(min(before, n_threads))
    try:
        yield
    finally:
        th.set_num_threads(before)


def fitting_threads(networks: Sequence[nn.Module], n_rows: int) -> int:
    """
    :param networks: What is trained, one after the other
    :param n_rows: Rows of a minibatch
    :return: The number of threads that a gradient step of the largest one is worth, at least 1
    """
    if any(isinstance(module, nn.Conv2d) for network in networks for module in network.modules()):
        return th.get_num_threads()  # a convolution uses each of its parameters many times over
    # Forward two operations for each parameter and row, backward four
    n_operations = max(6 * n_rows * sum(param.numel() for param in network.parameters()) for network in networks)
    return max(1, int(n_operations / _WORTH_A_THREAD))
