"""
Trust-region mathematics as pure functions.

Schulman et al. 2015 is "Trust Region Policy Optimization", https://arxiv.org/abs/1502.05477; Kuba
et al. 2021 "Trust Region Policy Optimisation in Multi-Agent Reinforcement Learning",
https://arxiv.org/abs/2109.11251.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch as th


class TrustRegionStep(NamedTuple):
    """
    Result of a trust-region step.

    :param objective: Objective at the parameters that were kept
    :param kl: Mean KL divergence of the policy from the one at collection
    :param fraction: Fraction of the natural step that was taken, 0 if none
    :param finite: False if the natural step, or the objective or divergence of a shortened one,
        was NaN or infinite
    """

    objective: float
    kl: float
    fraction: float
    finite: bool


def flatten(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """
    :param tensors: Tensors of any shapes
    :return: Their elements one after the other, ``(n_elements,)``
    """
    return th.cat([tensor.reshape(-1) for tensor in tensors])


def flat_gradient(scalar: th.Tensor, params: Sequence[th.Tensor], graph: bool = False) -> th.Tensor:
    """
    :param scalar: Function value to differentiate
    :param params: Parameters to differentiate by; one without influence has gradient 0
    :param graph: Whether to keep the graph, so that the gradient can be differentiated again
    :return: Gradient, ``(n_params,)``
    """
    grads = th.autograd.grad(
        scalar,
        params,
        create_graph=graph,
        retain_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return flatten(grads)


def hessian_vector_product(
    divergence: th.Tensor, params: Sequence[th.Tensor], damping: float = 0.0
) -> Callable[[th.Tensor], th.Tensor]:
    """
    The product of the exact Hessian of a divergence with a vector, by differentiating twice. At the
    old parameters the Hessian of the mean KL divergence is the Fisher information matrix
    (Schulman et al. 2015, appendix C).

    :param divergence: Mean divergence of the policy from itself at the old parameters, a scalar
    :param params: Parameters of the policy
    :param damping: Number added to the Hessian's diagonal, >= 0
    :return: Function ``v -> (H + damping * I) v`` of vectors ``(n_params,)``
    """
    gradient = flat_gradient(divergence, params, graph=True)
    return lambda vector: flat_gradient(gradient @ vector, params) + damping * vector


def conjugate_gradient(
    product: Callable[[th.Tensor], th.Tensor],
    target: th.Tensor,
    max_iter: int,
    tolerance: float = 1e-6,
) -> th.Tensor:
    """
    Solve ``A x = b`` for a symmetric positive definite matrix by conjugate gradients (Hestenes and
    Stiefel 1952, "Methods of Conjugate Gradients for Solving Linear Systems"), starting from 0. The
    same arguments give the same result: no random numbers are drawn.

    :param product: Function ``v -> A v`` of vectors ``(n,)``
    :param target: Right-hand side ``b``, ``(n,)``
    :param max_iter: Largest number of iterations, >= 1; n of them solve the equation but for
        rounding
    :param tolerance: Norm of the residual ``b - A x`` at which the iterations end, as a share of
        the norm of ``b``, >= 0
    :return: Solution ``x``, ``(n,)``: 0 if ``b`` is 0; the solution so far where the curvature
        along the search direction is not positive; NaN if products or ``b`` are NaN
    """
    solution = th.zeros_like(target)
    residual = target.clone()
    direction = target.clone()
    squared = residual @ residual
    enough = tolerance**2 * squared
    for _ in range(max_iter):
        if squared <= enough:
            break
        change = product(direction)
        curvature = direction @ change
        if curvature <= 0:
            break
        length = squared / curvature
        solution = solution + length * direction
        residual = residual - length * change
        previous, squared = squared, residual @ residual
        direction = residual + (squared / previous) * direction
    return solution


def natural_step(
    gradient: th.Tensor, product: Callable[[th.Tensor], th.Tensor], bound: float, max_iter: int
) -> th.Tensor:
    """
    The step along the natural gradient that reaches the bound on the divergence to second order
    (Kuba et al. 2021, lines 11 and 12 of Algorithm 2).

    :param gradient: Gradient of the objective, ``(n_params,)``
    :param product: Hessian-vector product
    :param bound: Bound on the mean divergence, > 0
    :param max_iter: Iterations of the conjugate gradients
    :return: ``sqrt(2 * bound / (x' H x)) * x`` with ``x = H^-1 g``, ``(n_params,)``; zeros if the
        gradient is zero, or so small that its square is; NaN if the gradient is NaN or infinite,
        or the curvature ``x' H x`` is NaN, infinite or negative
    """
    if not gradient.any():
        return th.zeros_like(gradient)
    direction = conjugate_gradient(product, gradient, max_iter)
    curvature = direction @ product(direction)
    if not bool(curvature.isfinite()) or curvature < 0:
        return th.full_like(gradient, th.nan)
    # The lower bound keeps a gradient of rounding errors from being scaled up to a whole step
    return th.sqrt(2 * bound / curvature.clamp(min=1e-12)) * direction


@th.no_grad()
def line_search(
    params: Sequence[th.Tensor],
    step: th.Tensor,
    accept: Callable[[float], bool],
    shrinking_factor: float,
    max_iter: int,
) -> float:
    """
    Backtracking line search (Kuba et al. 2021, line 13 of Algorithm 2): take the largest
    ``shrinking_factor ** j * step`` that is acceptable. A step that is NaN or infinite is refused
    at once.

    :param params: Parameters, changed in place; the same bits as before if no step is accepted
    :param step: Full step, ``(n_params,)``
    :param accept: Decision on a step, called with its fraction of the full one after it was taken
    :param shrinking_factor: Factor by which a refused step is shortened, in (0, 1)
    :param max_iter: Largest number of steps that are tried
    :return: Fraction of the full step that was taken, 0 if none
    """
    if not bool(step.isfinite().all()):
        return 0.0
    before = [param.clone() for param in params]
    steps = step.split([param.numel() for param in params])
    for exponent in range(max_iter):
        fraction = shrinking_factor**exponent
        for param, old, change in zip(params, before, steps, strict=True):
            param.copy_(old + fraction * change.view_as(old))
        if accept(fraction):
            return fraction
    for param, old in zip(params, before, strict=True):
        param.copy_(old)
    return 0.0
