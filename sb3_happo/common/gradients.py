"""Gradients of large minibatches, piece by piece on several cores."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from typing import Any

import torch as th
from torch import nn

from sb3_happo.common.buffers import divide_sequences, select_rows

# So many that Python's part of the work is small beside PyTorch's
_ROWS_PER_PIECE = 2000


def pieces(batch: Any) -> list[Any]:
    """
    Cut a large minibatch into pieces for :func:`add_up`. Where depends on its size alone, so that numbers do not depend on the
    machine's cores. A GPU takes everything at once. Sequences stay whole.

    :param batch: A NamedTuple as for :func:`~sb3_happo.common.buffers.select_rows`
    :return: Views of its rows; copies, where there are sequences
    """
    n_rows = len(batch[1])
    n_pieces = n_rows // _ROWS_PER_PIECE if batch[1].device.type == "cpu" else 1
    if n_pieces < 2:
        return [batch]
    sequences = getattr(batch, "sequences", None)
    if sequences is not None:  # longest first, and so dealt out evenly
        return list(divide_sequences(batch, th.arange(len(sequences.states)) % n_pieces))
    bounds = [n_rows * index // n_pieces for index in range(n_pieces + 1)]
    return [select_rows(batch, slice(start, end)) for start, end in itertools.pairwise(bounds)]


def add_up(
    contribution: Callable[[Any], tuple[th.Tensor, th.Tensor]],
    parts: Sequence[Any],
    params: Iterable[nn.Parameter],
    executor: Executor | None = None,
) -> th.Tensor:
    """
    The gradient of a sum of losses, into the parameters' ``grad``, which lose what they held.

    :param contribution: From a part to its share of the loss, a scalar, and further figures to add up
    :param parts: What the loss is the sum over, at least one
    :param params: Parameters; those that do not learn are left alone
    :param executor: Threads that work side by side; PyTorch lets go of Python's lock where it computes. None for one part
        after the other. The sum is taken in the parts' order, so that the numbers are the same
    :return: Sum of the further figures
    """

    learning = [param for param in params if param.requires_grad]

    def work(part: Any) -> tuple[tuple[th.Tensor | None, ...], th.Tensor]:
        loss, figures = contribution(part)
        return th.autograd.grad(loss, learning, allow_unused=True), figures.detach()

    results = list(
        map(work, parts) if executor is None or len(parts) == 1 else executor.map(work, parts)
    )
    for param, *gradients in zip(learning, *(gradients for gradients, _ in results), strict=True):
        given = [gradient for gradient in gradients if gradient is not None]
        param.grad = sum(given[1:], given[0]) if given else None
    return th.stack([figures for _, figures in results]).sum(dim=0)
