"""Rows of stacked parameters that a step of an optimiser leaves as they are."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch as th


@contextmanager
def frozen_rows(
    optimizer: th.optim.Optimizer, params: Iterable[th.Tensor], rows: th.Tensor | slice | None
) -> Iterator[None]:
    """
    Keep rows of some parameters, and the optimiser's moments of them, through a step. A gradient of
    zero is not enough: the moments of earlier gradients would move the parameters on.

    The optimiser counts its steps once for all rows. After a pause, and at a late start, Adam
    corrects its moments by this common count.

    :param optimizer: Optimiser, which takes a step inside the context
    :param params: Parameters of the optimiser, ``(n_rows, ...)``
    :param rows: Rows to keep, a mask ``(n_rows,)`` or a slice; None for none
    """
    kept = []
    if isinstance(rows, slice) or (rows is not None and bool(rows.any())):
        for param in params:
            moments = optimizer.state[param].values() if param in optimizer.state else ()
            for tensor in (param, *moments):
                if isinstance(tensor, th.Tensor) and tensor.shape == param.shape:
                    kept.append((tensor.data, tensor.data[rows].clone()))
    yield
    for data, before in kept:
        data[rows] = before
