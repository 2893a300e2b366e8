"""One gradient step of a network: sharding, threads, clipping, and the check for NaN."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, TypeAlias

import torch as th
from torch import nn

from sb3_happo.common.minibatches import divide_sequences, select_rows
from sb3_happo.common.warn_once import warn_once

#: Rows per shard, so many that Python's part of the work is small beside PyTorch's
ROWS_PER_SHARD = 2000

LossFn: TypeAlias = Callable[[str, Any], tuple[th.Tensor, th.Tensor]]


class GradientStep(NamedTuple):
    """
    Result of :func:`gradient_step`.

    :param figures: Sum of the figures that the loss function returned, ``(n_figures,)``
    :param accepted: False if ``accept`` refused the step
    :param finite: False if the gradient was NaN or infinite, and therefore left out
    """

    figures: th.Tensor
    accepted: bool
    finite: bool


def shards(batch: Any) -> list[Any]:
    """
    Cut a large minibatch into shards. The cuts depend on the number of rows alone, so that the
    results do not depend on the number of cores. On a GPU there is one shard. Sequences stay whole.

    :param batch: NamedTuple as for :func:`~sb3_happo.common.minibatches.select_rows`
    :return: Views of its rows; copies, where there are sequences
    """
    n_rows = len(batch[1])
    n_shards = n_rows // ROWS_PER_SHARD if batch[1].device.type == "cpu" else 1
    if n_shards < 2:
        return [batch]
    sequences = getattr(batch, "sequences", None)
    if sequences is not None:
        # The sequences are sorted by length: dealing them out in turn gives shards of similar size
        return list(divide_sequences(batch, th.arange(len(sequences.states)) % n_shards))
    bounds = [n_rows * index // n_shards for index in range(n_shards + 1)]
    return [select_rows(batch, slice(start, end)) for start, end in itertools.pairwise(bounds)]


def accumulate_gradients(
    loss_of: LossFn,
    parts: Sequence[tuple[str, Any]],
    params: Sequence[nn.Parameter],
    executor: Executor | None = None,
) -> th.Tensor:
    """
    Gradient of a sum of losses, written to the parameters' ``grad``, whose old content is lost.

    :param loss_of: Function of a name and a shard that returns the shard's contribution to the
        loss, a scalar, and figures to add up, ``(n_figures,)``
    :param parts: Names and shards, at least one
    :param params: Parameters; frozen ones are left alone
    :param executor: Threads that work side by side (PyTorch releases Python's lock while it
        computes); None for one shard after the other. Gradients are added in the order of
        ``parts`` in both cases, so the result is the same
    :return: Sum of the figures, ``(n_figures,)``
    """
    learning = [param for param in params if param.requires_grad]

    def work(part: tuple[str, Any]) -> tuple[tuple[th.Tensor | None, ...], th.Tensor]:
        loss, figures = loss_of(*part)
        return th.autograd.grad(loss, learning, allow_unused=True), figures.detach()

    results: Iterator[Any] = map(work, parts)
    if executor is not None and len(parts) > 1:
        results = executor.map(work, parts)
    gradients, figures = zip(*results, strict=True)
    for param, *shares in zip(learning, *gradients, strict=True):
        given = [share for share in shares if share is not None]
        param.grad = _in_layout_of(param, sum(given[1:], given[0])) if given else None
    return th.stack(figures).sum(dim=0)


def _in_layout_of(param: th.Tensor, gradient: th.Tensor) -> th.Tensor:
    """
    :param param: Parameter
    :param gradient: Gradient of the parameter
    :return: The gradient in the memory layout of the parameter. PyTorch's fused optimisers read
        both number by number, and would pair the wrong ones without a word
    """
    if gradient.stride() == param.stride():
        return gradient
    return th.empty_like(param).copy_(gradient)


def gradient_step(
    loss_of: LossFn,
    batches: Mapping[str, Any],
    optimizer: th.optim.Optimizer,
    max_grad_norm: float,
    owner: str,
    executor: Executor | None = None,
    accept: Callable[[th.Tensor], bool] | None = None,
) -> GradientStep:
    """
    One step of an optimiser along the gradient of a loss over minibatches.

    Both families of algorithms update all their networks through this function. It is the one
    place where gradients of several processes would be summed.

    A gradient that is NaN or infinite (a probability ratio may overflow) is left out: parameters
    and the optimiser's state stay as they are, and one warning per optimiser names the owner.

    :param loss_of: Function of a name and a shard of its minibatch that returns the shard's
        contribution to the loss, a scalar, and figures to add up, ``(n_figures,)``
    :param batches: Minibatches by name: of the agents that share the optimiser, or of a critic
    :param optimizer: Optimiser of the parameters
    :param max_grad_norm: Largest Euclidean norm of the gradient, > 0; infinity for no clipping
    :param owner: Name of the network for the warning, such as ``"agent 'walker'"``
    :param executor: Threads for the shards of large minibatches on a CPU
    :param accept: Predicate of the figures; where it is False the step is not taken
    :return: Figures, and whether the step was taken
    """
    params = [param for group in optimizer.param_groups for param in group["params"]]
    parts = [(name, shard) for name, batch in batches.items() for shard in shards(batch)]
    figures = accumulate_gradients(loss_of, parts, params, executor)
    if accept is not None and not accept(figures):
        return GradientStep(figures, accepted=False, finite=True)
    norm = nn.utils.clip_grad_norm_(params, max_grad_norm)
    finite = _step_if_finite(norm, optimizer, owner)
    return GradientStep(figures, accepted=True, finite=finite)


def descend(
    loss: th.Tensor,
    optimizer: th.optim.Optimizer,
    max_grad_norm: float,
    owner: str,
    frozen: AbstractContextManager[None] | None = None,
) -> bool:
    """
    :func:`gradient_step` for a loss that is computed already, as those of the off-policy
    algorithms are: their minibatches are small, and the loss of an agent reads the actions of
    others. Only the optimiser's parameters get a gradient, not the critic that an actor ascends.

    :param loss: Loss, a scalar
    :param optimizer: Optimiser of the parameters
    :param max_grad_norm: Largest Euclidean norm of the gradient, > 0; infinity for no clipping
    :param owner: Name of the network for the warning, such as ``"agent 'walker'"``
    :param frozen: Context of the optimiser's step, such as
        :func:`~sb3_happo.common.frozen_rows.frozen_rows`; None for none
    :return: False if the gradient was NaN or infinite, and therefore left out
    """
    params = []
    for group in optimizer.param_groups:
        params += [param for param in group["params"] if param.requires_grad]
    gradients = th.autograd.grad(loss, params, allow_unused=True)
    for param, gradient in zip(params, gradients, strict=True):
        param.grad = None if gradient is None else _in_layout_of(param, gradient)
    norm = nn.utils.get_total_norm([own for own in gradients if own is not None])
    if max_grad_norm < float("inf"):
        nn.utils.clip_grads_with_norm_(params, max_grad_norm, norm)
    with frozen or nullcontext():
        return _step_if_finite(norm, optimizer, owner)


def _step_if_finite(norm: th.Tensor, optimizer: th.optim.Optimizer, owner: str) -> bool:
    """Take the step, unless the norm of the gradient is NaN or infinite; then warn once."""
    if not bool(norm.isfinite()):
        warn_once(
            optimizer,
            "gradient",
            f"{owner}: a gradient was NaN or infinite and was left out. Lower `learning_rate`, "
            "`n_epochs` or `clip_range`, set `target_kl`, or normalise observations and rewards "
            "(VecNormalize). Further cases are left out without a warning.",
        )
        return False
    optimizer.step()
    return True
