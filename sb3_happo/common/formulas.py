"""
The mathematics of the on-policy algorithms as pure functions.

Kuba et al. 2021 is "Trust Region Policy Optimisation in Multi-Agent Reinforcement Learning",
https://arxiv.org/abs/2109.11251.

Each function checks the shapes of its arguments, because PyTorch broadcasts ``(batch,)`` against
``(batch, 1)`` to ``(batch, batch)`` without an error. No function changes its arguments.
"""

from collections.abc import Sequence

import torch as th
from torch.nn import functional as F

#: Smallest and largest factor of :func:`update_factor`: their squares, and sums of these over
#: millions of rows, are far from the limits of float32
FACTOR_BOUNDS = (1e-8, 1e8)


def check_shapes(shape: Sequence[int], **tensors: th.Tensor) -> None:
    """
    :param shape: Shape that all tensors must have
    :param tensors: Tensors by the name to use in an error
    :raises ValueError: If a tensor has another shape, naming it
    """
    expected = tuple(shape)
    for name, tensor in tensors.items():
        if tensor.shape != expected:
            raise ValueError(f"{name} must have the shape {expected}, not {tuple(tensor.shape)}")


# ---------------------------------------------------------------- actors


def clipped_policy_loss(
    log_prob: th.Tensor,
    old_log_prob: th.Tensor,
    advantages: th.Tensor,
    factor: th.Tensor,
    clip_range: float,
) -> th.Tensor:
    """
    PPO's clipped objective of ``M = factor * A``, negated (Schulman et al. 2017, "Proximal Policy
    Optimization Algorithms", equation 7; Kuba et al. 2021, line 11 of Algorithm 3).

    :param log_prob: Log-probabilities of the actions under the present policy, ``(batch,)``
    :param old_log_prob: Log-probabilities of the same actions at collection, ``(batch,)``
    :param advantages: Advantages of the joint actions, ``(batch,)``
    :param factor: Product of the ratios of the agents updated before, ``(batch,)``, > 0
    :param clip_range: Largest distance of the ratio from 1 that increases the objective, > 0
    :return: Loss, a scalar
    :raises ValueError: If the shapes differ
    """
    check_shapes(
        (log_prob.numel(),),
        log_prob=log_prob,
        old_log_prob=old_log_prob,
        advantages=advantages,
        factor=factor,
    )
    objective = factor * advantages
    ratio = th.exp(log_prob - old_log_prob)
    clipped_ratio = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -th.min(ratio * objective, clipped_ratio * objective).mean()


def clipped_joint_loss(
    log_prob: th.Tensor,
    old_log_prob: th.Tensor,
    advantages: th.Tensor,
    factor: th.Tensor,
    clip_range: float,
    factor_clip_range: float,
) -> th.Tensor:
    """
    A2PO's clipped objective, negated: the factor is clipped first, then the joint ratio ``ratio *
    factor`` (Wang et al. 2023, "Order Matters: Agent-by-Agent Policy Optimization",
    https://arxiv.org/abs/2302.06205).

    :param log_prob: Log-probabilities of the actions under the present policy, ``(batch,)``
    :param old_log_prob: Log-probabilities of the same actions at collection, ``(batch,)``
    :param advantages: Advantages of the joint actions, ``(batch,)``
    :param factor: Product of the ratios of the agents updated before, ``(batch,)``, > 0
    :param clip_range: Largest distance of the joint ratio from 1 that increases the objective, > 0
    :param factor_clip_range: Largest distance of the factor from 1, > 0
    :return: Loss, a scalar
    :raises ValueError: If the shapes differ
    """
    check_shapes(
        (log_prob.numel(),),
        log_prob=log_prob,
        old_log_prob=old_log_prob,
        advantages=advantages,
        factor=factor,
    )
    before = factor.clamp(1 - factor_clip_range, 1 + factor_clip_range)
    ratio = th.exp(log_prob - old_log_prob) * before
    clipped_ratio = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -th.min(ratio * advantages, clipped_ratio * advantages).mean()


def policy_gradient_loss(
    log_prob: th.Tensor, advantages: th.Tensor, factor: th.Tensor
) -> th.Tensor:
    """
    The objective whose gradient is the policy gradient of ``M = factor * A``, negated (Zhong et
    al. 2024, "Heterogeneous-Agent Reinforcement Learning", HAA2C; with a factor of 1, Mnih et al.
    2016, "Asynchronous Methods for Deep Reinforcement Learning", section 4).

    :param log_prob: Log-probabilities of the actions under the present policy, ``(batch,)``
    :param advantages: Advantages of the joint actions, ``(batch,)``
    :param factor: Product of the ratios of the agents updated before, ``(batch,)``, > 0
    :return: Loss, a scalar
    :raises ValueError: If the shapes differ
    """
    check_shapes((log_prob.numel(),), log_prob=log_prob, advantages=advantages, factor=factor)
    return -(log_prob * factor * advantages).mean()


def surrogate(
    log_prob: th.Tensor, old_log_prob: th.Tensor, advantages: th.Tensor, factor: th.Tensor
) -> th.Tensor:
    """
    The surrogate advantage ``ratio * M`` of each row, with ``M = factor * A`` (Schulman et al.
    2015, "Trust Region Policy Optimization", equation 14; Kuba et al. 2021, Algorithm 2). The mean
    is HATRPO's objective.

    :param log_prob: Log-probabilities of the actions under the present policy, ``(batch,)``
    :param old_log_prob: Log-probabilities of the same actions at collection, ``(batch,)``
    :param advantages: Advantages of the joint actions, ``(batch,)``
    :param factor: Product of the ratios of the agents updated before, ``(batch,)``, > 0
    :return: Surrogate advantages, ``(batch,)``
    :raises ValueError: If the shapes differ
    """
    check_shapes(
        (log_prob.numel(),),
        log_prob=log_prob,
        old_log_prob=old_log_prob,
        advantages=advantages,
        factor=factor,
    )
    ratio = th.exp(log_prob - old_log_prob)
    return ratio * factor * advantages


def approx_kl(log_prob: th.Tensor, old_log_prob: th.Tensor) -> th.Tensor:
    """
    Estimate of the KL divergence of the present policy from the one at collection, ``k3`` of
    Schulman's "Approximating KL Divergence" (http://joschu.net/blog/kl-approx.html): never
    negative, unbiased, and low in variance.

    :param log_prob: Log-probabilities of the actions under the present policy, ``(batch,)``
    :param old_log_prob: Log-probabilities of the same actions at collection, ``(batch,)``
    :return: Mean of ``(ratio - 1) - log(ratio)``, a scalar >= 0
    :raises ValueError: If the shapes differ
    """
    check_shapes((log_prob.numel(),), log_prob=log_prob, old_log_prob=old_log_prob)
    log_ratio = log_prob - old_log_prob
    return ((log_ratio.exp() - 1) - log_ratio).mean()


def clip_fraction(log_prob: th.Tensor, old_log_prob: th.Tensor, clip_range: float) -> th.Tensor:
    """
    Share of the rows whose ratio lies outside of the clip range, as SB3's ``PPO`` logs it.

    :param log_prob: Log-probabilities of the actions under the present policy, ``(batch,)``
    :param old_log_prob: Log-probabilities of the same actions at collection, ``(batch,)``
    :param clip_range: Distance of the ratio from 1 up to which a row counts as unclipped, > 0
    :return: Share in [0, 1], a scalar
    :raises ValueError: If the shapes differ
    """
    check_shapes((log_prob.numel(),), log_prob=log_prob, old_log_prob=old_log_prob)
    change = (log_prob - old_log_prob).exp() - 1
    return (change.abs() > clip_range).float().mean()


def update_factor(
    factor: th.Tensor,
    log_prob: th.Tensor,
    old_log_prob: th.Tensor,
    rows: th.Tensor | None = None,
) -> th.Tensor:
    """
    The factor after one more agent: multiplied by its new ratio at the rows at which it was active
    (Kuba et al. 2021, line 12 of Algorithm 3).

    The result is finite and above 0, whatever the ratios: a factor that is NaN, infinite or 0 would
    leave the agents that follow without a gradient. A logarithm of a ratio that is NaN or plus
    infinity counts as 0, and the product is kept in ``FACTOR_BOUNDS``, far outside of what a
    useful update reaches.

    :param factor: Product of the ratios of the agents before, ``(n_rows,)``
    :param log_prob: Log-probabilities of the agent's actions after its update, ``(batch,)``
    :param old_log_prob: Log-probabilities of the same actions at collection, ``(batch,)``
    :param rows: Indices of the batch in the rollout, each at most once, ``(batch,)``; None for all
        rows in order
    :return: Product of the ratios up to and with this agent, ``(n_rows,)``, in ``FACTOR_BOUNDS``
    :raises ValueError: If the shapes differ
    """
    n_rows = factor.numel()
    check_shapes((n_rows,), factor=factor)
    batch = (n_rows if rows is None else rows.numel(),)
    check_shapes(batch, log_prob=log_prob, old_log_prob=old_log_prob)
    # Minus infinity stays: it is the ratio 0, of an action that has become impossible
    log_ratio = (log_prob - old_log_prob).nan_to_num(nan=0.0, posinf=0.0, neginf=-th.inf)
    ratio = th.exp(log_ratio)
    if rows is None:
        return (factor * ratio).clamp(*FACTOR_BOUNDS)
    check_shapes(batch, rows=rows)
    factor = factor.clone()
    factor[rows] *= ratio
    return factor.clamp(*FACTOR_BOUNDS)


def effective_sample_size(factor: th.Tensor) -> th.Tensor:
    """
    Share of the rows that would carry as much information if all weights were equal (Kish 1965,
    "Survey Sampling", divided by the number of rows).

    :param factor: Weights, ``(n_rows,)``, > 0
    :return: Share in (0, 1], a scalar
    :raises ValueError: If the factor has more than one dimension
    """
    check_shapes((factor.numel(),), factor=factor)
    return factor.sum() ** 2 / (factor**2).sum() / len(factor)


def normalize(advantages: th.Tensor) -> th.Tensor:
    """
    :param advantages: Advantages, ``(batch,)``
    :return: The same with mean 0 and standard deviation 1, as SB3's ``PPO`` normalises them; a
        single row, which has no standard deviation, is not changed
    :raises ValueError: If the advantages have more than one dimension
    """
    check_shapes((advantages.numel(),), advantages=advantages)
    if len(advantages) < 2:
        return advantages
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def counterfactual_advantages(
    taken: th.Tensor, alternatives: th.Tensor, probs: th.Tensor
) -> th.Tensor:
    """
    Advantages of an agent's actions with a counterfactual baseline: the mean over its own actions,
    while those of the others stay (Foerster et al. 2018, "Counterfactual Multi-Agent Policy
    Gradients", equation 4).

    :param taken: Values of the joint actions, ``(batch,)``
    :param alternatives: Values with each action of the agent instead, ``(batch, n_actions)``
    :param probs: Probabilities of the agent's actions, ``(batch, n_actions)``
    :return: Advantages, ``(batch,)``
    :raises ValueError: If the shapes differ
    """
    check_shapes((taken.numel(),), taken=taken)
    check_shapes((taken.numel(), alternatives.shape[-1]), alternatives=alternatives, probs=probs)
    return taken - (probs * alternatives).sum(dim=1)


# ---------------------------------------------------------------- values


def generalised_advantages(
    rewards: th.Tensor,
    values: th.Tensor,
    episode_starts: th.Tensor,
    last_values: th.Tensor,
    dones: th.Tensor,
    gamma: float,
    gae_lambda: float,
    active: th.Tensor | None = None,
    ratios: th.Tensor | None = None,
) -> tuple[th.Tensor, th.Tensor]:
    """
    Generalised advantage estimation (Schulman et al. 2016, "High-Dimensional Continuous Control
    Using Generalized Advantage Estimation", equation 16). Advantages plus values are the TD(lambda)
    returns.

    With a value for each agent, the value of a step at which the agent was inactive is replaced by
    what followed it, ``reward + gamma * next value``: the critic never learns such steps, and
    its own value there has no meaning. The temporal difference of such a step is 0.

    With ``ratios`` the traces are cut as in V-trace, ``gae_lambda * min(1, ratio)`` of the later
    step instead of ``gae_lambda`` (Wang et al. 2023, "Order Matters: Agent-by-Agent Policy
    Optimization", https://arxiv.org/abs/2302.06205): advantages at the policies of agents that
    were updated already. Ratios of 1 leave the numbers as they are.

    :param rewards: Rewards, ``(n_steps, n_envs, n_values)``
    :param values: The critic's values of the observations, ``(n_steps, n_envs, n_values)``
    :param episode_starts: 1 where an observation began an episode, ``(n_steps, n_envs)``
    :param last_values: Values of the observations after the last step, ``(n_envs, n_values)``
    :param dones: 1 where the last step ended an episode, ``(n_envs,)``
    :param gamma: Discount factor, in [0, 1]
    :param gae_lambda: Trade-off of bias against variance, in [0, 1]
    :param active: Whether an agent was alive and on turn, bool ``(n_steps, n_envs, n_values)``;
        None if every value counts
    :param ratios: Probability ratios of the joint actions of the agents updated so far, >= 0,
        ``(n_steps, n_envs)``; None for ratios of 1
    :return: Advantages, and the values that were used, both ``(n_steps, n_envs, n_values)``
    :raises ValueError: If the shapes do not fit
    """
    if rewards.dim() != 3:
        raise ValueError(
            f"rewards must have the shape (n_steps, n_envs, n_values), not {tuple(rewards.shape)}"
        )
    n_steps, n_envs, n_values = rewards.shape
    check_shapes(rewards.shape, values=values)
    check_shapes((n_steps, n_envs), episode_starts=episode_starts)
    check_shapes((n_envs, n_values), last_values=last_values)
    check_shapes((n_envs,), dones=dones)
    if active is not None:
        check_shapes(rewards.shape, active=active)
        values = values.clone()
    traces: th.Tensor | None = None
    if ratios is not None:
        check_shapes((n_steps, n_envs), ratios=ratios)
        traces = ratios.clamp(max=1.0).unsqueeze(2)  # (n_steps, n_envs) -> (n_steps, n_envs, 1)

    advantages = th.empty_like(values)
    advantage = th.zeros_like(last_values)
    next_values = last_values
    next_continues = 1.0 - dones.to(values.dtype).unsqueeze(1)  # (n_envs,) -> (n_envs, 1)
    for step in reversed(range(n_steps)):
        target = rewards[step] + gamma * next_values * next_continues
        if active is not None:
            values[step] = th.where(active[step], values[step], target)
        delta = target - values[step]
        advantage = delta + gamma * gae_lambda * next_continues * advantage
        advantages[step] = advantage
        if traces is not None:
            # The trace of this step weighs its advantage in those of earlier steps
            advantage = traces[step] * advantage
        next_values = values[step]
        next_continues = 1.0 - episode_starts[step].unsqueeze(1)  # (n_envs,) -> (n_envs, 1)
    return advantages, values


def value_losses(
    values: th.Tensor,
    returns: th.Tensor,
    old_values: th.Tensor,
    clip_range: float | None = None,
    clipped_maximum: bool = False,
    huber_delta: float | None = None,
) -> th.Tensor:
    """
    Loss of each value: the squared error, or the Huber loss, of the value, of the clipped value
    (SB3's ``PPO``), or the larger of both (Yu et al. 2022, "The Surprising Effectiveness of PPO in
    Cooperative Multi-Agent Games", appendix A).

    :param values: Values as the critic predicts them now, ``(batch, n_values)``
    :param returns: TD(lambda) returns, ``(batch, n_values)``
    :param old_values: Values at collection, ``(batch, n_values)``
    :param clip_range: Largest change of a value from its old one, > 0; None for no limit
    :param clipped_maximum: With ``clip_range``, the larger of the clipped and the unclipped loss
        instead of the clipped one
    :param huber_delta: Error at which the loss turns from quadratic to linear, > 0; None for the
        squared error
    :return: Losses, ``(batch, n_values)``
    :raises ValueError: If the shapes differ
    """
    check_shapes(values.shape, returns=returns, old_values=old_values)
    if clip_range is None:
        return _error_losses(values, returns, huber_delta)
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    losses = _error_losses(clipped, returns, huber_delta)
    if clipped_maximum:
        losses = th.maximum(_error_losses(values, returns, huber_delta), losses)
    return losses


def _error_losses(values: th.Tensor, returns: th.Tensor, huber_delta: float | None) -> th.Tensor:
    if huber_delta is None:
        return F.mse_loss(values, returns, reduction="none")
    return F.huber_loss(values, returns, reduction="none", delta=huber_delta)


def explained_variance(values: th.Tensor, returns: th.Tensor) -> th.Tensor:
    """
    Share of the variance of the returns that the values explain, as SB3 logs it.

    :param values: Values, of any shape
    :param returns: Returns, of the same shape
    :return: ``1 - Var(returns - values) / Var(returns)``, a scalar <= 1; NaN where the returns do
        not vary
    :raises ValueError: If the shapes differ
    """
    check_shapes(returns.shape, values=values)
    variance = returns.var()
    if variance > 0:
        return 1 - (returns - values).var() / variance
    return th.full_like(variance, float("nan"))
