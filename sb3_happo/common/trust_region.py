"""Trust-region mathematics as pure functions (Schulman et al. 2015; Kuba et al. 2021, Algorithm 2)."""

from collections.abc import Callable, Sequence

import torch as th
from sb3_contrib.common.utils import conjugate_gradient_solver


def flatten(tensors: Sequence[th.Tensor]) -> th.Tensor:
    """
    :param tensors: Of any shapes
    :return: Their numbers one after the other
    """
    return th.cat([tensor.reshape(-1) for tensor in tensors])


def flat_gradient(scalar: th.Tensor, params: Sequence[th.Tensor], graph: bool = False) -> th.Tensor:
    """
    :param scalar: What to derive
    :param params: With respect to what; a parameter without influence has gradient 0
    :param graph: Keep the graph, so that the gradient can be derived again
    :return: ``(n_params,)``
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
    The exact Hessian of a divergence as a function of vectors, by differentiating twice. At the old parameters the Hessian of
    the mean KL divergence is the Fisher information matrix.

    :param divergence: Mean divergence of the policy from itself at the old parameters, scalar
    :param params: The policy's parameters
    :param damping: Added to the Hessian's diagonal, >= 0
    :return: ``v -> (H + damping * I) v``
    """
    gradient = flat_gradient(divergence, params, graph=True)
    return lambda vector: flat_gradient(gradient @ vector, params) + damping * vector


def natural_step(
    gradient: th.Tensor, product: Callable[[th.Tensor], th.Tensor], bound: float, max_iter: int
) -> th.Tensor:
    """
    The step along the natural gradient that reaches the bound on the divergence to second order
    (lines 11 and 12 of Algorithm 2).

    :param gradient: Of the objective, ``(n_params,)``
    :param product: Hessian-vector product
    :param bound: On the mean divergence, > 0
    :param max_iter: Iterations of the conjugate gradients
    :return: ``sqrt(2 * bound / (x' H x)) * x`` with ``x = H^-1 g``, ``(n_params,)``; zeros where the gradient is zero
    """
    if not gradient.any():
        return th.zeros_like(
            gradient
        )  # the solver starts from noise, which would be scaled up to the bound
    direction = conjugate_gradient_solver(product, gradient, max_iter=max_iter)
    curvature = direction @ product(direction)
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
    Backtracking (line 13 of Algorithm 2): take the largest ``shrinking_factor ** j * step`` that is acceptable.

    :param params: Changed in place; bit for bit as they were if no step is accepted
    :param step: The full step, ``(n_params,)``
    :param accept: Called with the fraction of the step, after it was taken
    :param shrinking_factor: In (0, 1)
    :param max_iter: Steps to try
    :return: The fraction that was taken, 0 if none
    """
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
