"""
What PyTorch gets of the machine. Its own threads, which share each operation, wait for each other longer than they work on
batches of a few thousand rows, and bring everything to a crawl where another program wants a core; so there is one, except for
convolutions, and large minibatches are divided instead (see :mod:`~sb3_happo.common.gradients`).
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th


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


def keep_freed_memory() -> None:
    """
    Let the C library keep the memory that tensors give back, up to 256 MB for each thread that made some, instead of returning
    it to the system, which has to clear it page by page when the next gradient step asks for the same again.

    It holds from now on, for the whole process. Only glibc is told; elsewhere nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(
            -3, 1 << 25
        )  # M_MMAP_THRESHOLD: larger blocks come from the system, and go back to it
        mallopt(-1, 1 << 28)  # M_TRIM_THRESHOLD
