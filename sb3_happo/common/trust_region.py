"""
Trust-region mathematics as pure functions.

Schulman et al. 2015 is "Trust Region Policy Optimization", https://arxiv.org/abs/1502.05477; Kuba
et al. 2021 "Trust Region Policy Optimisation in Multi-Agent Reinforcement Learning",
https://arxiv.org/abs/2109.11251.
"""

from collections.abc import Callable, Sequence

import torch as th
from sb3_contrib.common.utils import conjugate_gradient_solver


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
    :return: ``sqrt(2 * bound / (x' H x)) * x`` with ``x = H^-1 g``, ``(n_params,)``; zeros where
        the gradient is zero
    """
    if not gradient.any():
        # The solver starts from random noise, which would be scaled up to the bound
        return th.zeros_like(gradient)
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
    Backtracking line search (Kuba et al. 2021, line 13 of Algorithm 2): take the largest
    ``shrinking_factor ** j * step`` that is acceptable.

    :param params: Parameters, changed in place; the same bits as before if no step is accepted
    :param step: The full step, ``(n_params,)``
    :param accept: Decision on a step, called with its fraction of the full one after it was taken
    :param shrinking_factor: Factor by which a refused step is shortened, in (0, 1)
    :param max_iter: Largest number of steps that are tried
    :return: Fraction of the full step that was taken, 0 if none
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
