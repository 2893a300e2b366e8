"""
Number of PyTorch's threads.

PyTorch divides each operation among its threads, which on batches of a few thousand rows wait for
each other longer than they compute, and are slowed down much where another program needs a core.
Therefore one thread computes, except for convolutions, and large minibatches are divided among
threads instead (see :mod:`~sb3_happo.common.gradient_step`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch as th


@contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """
    Limit PyTorch's threads within; afterwards there are as many as before.

    :param n_threads: Largest number of threads, >= 1
    """
    before = th.get_num_threads()
    th.set_num_threads(min(before, n_threads))
    try:
        yield
    finally:
        th.set_num_threads(before)
