"""The factor of the sequential update: the product of the ratios of the agents updated before."""

from collections.abc import Mapping, Sequence

import torch as th
from stable_baselines3.common.logger import Logger

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.distributions import unvalidated
from sb3_happo.common.finite import outputs_error
from sb3_happo.common.formulas import FACTOR_BOUNDS, effective_sample_size, update_factor
from sb3_happo.common.type_aliases import ActorBatch
from sb3_happo.common.warn_once import warn_once

#: Effective rows below which a mean is mostly noise: its standard error is a third of the deviation
FEW_ROWS = 10
#: Effective share of the rows below which a rollout is mostly wasted, however long it is
SMALL_SHARE = 0.05
#: Effective share of the rows from which on a short rollout is not to blame on the factor
LARGE_SHARE = 0.2
#: Mean factor below which the objective of an agent is next to nothing
SMALL_FACTOR = 1e-3


def multiply_ratios(
    owner: object,
    policies: Mapping[str, AgentPolicy],
    data: Mapping[str, ActorBatch],
    factor: th.Tensor,
) -> th.Tensor:
    """
    Multiply the factor by the new ratios of agents at the steps at which they were active. Warn
    once for each agent if a ratio is infinite, or if the factor reaches its bounds.

    :param owner: Algorithm, which warns
    :param policies: Policies of the agents after their update
    :param data: Samples of these agents, with the log-probabilities at collection
    :param factor: Factor of the agents before them, ``(n_rows,)``
    :return: Factor of the agents up to and with them, ``(n_rows,)``
    :raises NotFiniteError: If a log-probability is NaN, naming the agent
    """
    for agent, batch in data.items():
        if not len(batch.advantages):
            # Never active in this rollout; PyTorch's distributions refuse an empty batch
            continue
        policy = policies[agent]
        # Without dropout, whose noise is no change of the policy
        policy.set_training_mode(False)
        with th.no_grad(), unvalidated():
            log_prob, _ = policy.evaluate_batch(batch)
        policy.set_training_mode(True)
        if bool(log_prob.isnan().any()):
            # Not a ratio that overflows: the network itself has no outputs there
            raise outputs_error([f"agent {agent!r}"])
        before, factor = factor, update_factor(factor, log_prob, batch.old_log_prob, batch.rows)
        overflowed = ~log_prob.isfinite().all() | (_at_bounds(factor) & ~_at_bounds(before)).any()
        if bool(overflowed):
            _warn_of_overflow(owner, agent)
    return factor


def _at_bounds(factor: th.Tensor) -> th.Tensor:
    low, high = FACTOR_BOUNDS
    return (factor <= low) | (factor >= high)


def _warn_of_overflow(owner: object, agent: str) -> None:
    low, high = FACTOR_BOUNDS
    warn_once(
        owner,
        f"overflow of {agent}",
        f"The factor of agent {agent!r} overflowed: at some steps its new policy gives the stored "
        "action a probability that is not a number, or so many times larger or smaller than "
        f"before that the product of the agents' ratios leaves [{low:g}, {high:g}]. The factor is "
        "kept within these bounds. Lower `learning_rate`, `n_epochs` or `target_kl`, or keep the "
        "policies stochastic by an entropy bonus (`ent_coef`). Further cases are not reported.",
    )


def log_factor(owner: object, logger: Logger, factor: th.Tensor, n_agents: int) -> None:
    """
    Record mean, deviation and effective sample size of the factor. Warn once if the effective
    sample size collapses, because the last agents of the order then learn from a few rows only.

    :param owner: Algorithm, which warns
    :param logger: Logger of the algorithm
    :param factor: Factor after the last agent, ``(n_rows,)``
    :param n_agents: Number of agents; with one, nobody reads the factor, and there is no warning
    """
    share = effective_sample_size(factor).item()
    logger.record("train/factor_mean", factor.mean().item())
    logger.record("train/factor_std", factor.std().item())
    logger.record("train/factor_ess", share)
    if n_agents < 2 or not is_collapsed(share, len(factor)):
        return
    warn_once(
        owner,
        "collapse",
        f"The weights of the sequential update have collapsed: `train/factor_ess` is {share:.3f}, "
        f"so that the {len(factor)} rows of the rollout count as {share * len(factor):.1f} for the "
        "agents updated last. Collect more rows per update (`n_steps`, `n_envs`), or take smaller "
        "steps: lower or set `target_kl`, lower `learning_rate`, `n_epochs` or `clip_range` (of "
        "these, HATRPO's actors use `target_kl` only). Further cases are not reported.",
    )


def is_collapsed(share: float, n_rows: int) -> bool:
    """
    :param share: Effective sample size as a share of the rows, in (0, 1]
    :param n_rows: Rows of the rollout
    :return: True below 5 % of the rows, or below 10 effective rows where these are less than a
        fifth of the rollout
    """
    few = share * n_rows < FEW_ROWS and share < LARGE_SHARE
    return share < SMALL_SHARE or few


def leaves_little(factor: th.Tensor) -> bool:
    """
    :param factor: Factor before the update of an agent, ``(n_rows,)``
    :return: True if the agent would learn next to nothing: the factor is nearly 0 on average, or a
        few rows have almost all of it
    """
    if bool(factor.mean() < SMALL_FACTOR):
        return True
    return is_collapsed(effective_sample_size(factor).item(), len(factor))


def warn_of_idle_agents(owner: object, agents: Sequence[str]) -> None:
    """
    Warn once of agents that have learned next to nothing in an update.

    :param owner: Algorithm, which warns
    :param agents: Agents before whose update :func:`leaves_little` was True; may be empty
    """
    if not agents:
        return
    listed = ", ".join(map(repr, agents[:10]))
    if len(agents) > 10:
        listed += f" and {len(agents) - 10} more"
    warn_once(
        owner,
        "idle agents",
        f"Agents that have learned next to nothing in this update, because the product of the "
        f"ratios of the agents updated before them is nearly 0 on (almost) all rows: {listed}. "
        "Take smaller steps (`learning_rate`, `n_epochs`, `clip_range`, `target_kl`) or keep the "
        "random `agent_order`, so that others come last next time. Further cases are not reported.",
    )
