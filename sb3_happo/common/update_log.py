"""Log of an update of the on-policy algorithms."""

from collections.abc import Sequence
from typing import Any

import torch as th

from sb3_happo.common.factor import log_factor

#: Figures of a gradient step of an actor, in the order of ``HAPPO._actor_terms``
ACTOR_FIGURES = ("policy_loss", "entropy", "approx_kl", "clip_fraction")


def log_actors(model: Any, agents: Sequence[str], figures: Sequence[th.Tensor]) -> None:
    """
    Record the mean figures of an update of agents.

    :param model: Algorithm of HAPPO's family
    :param agents: Agents that were updated together
    :param figures: Figures of each gradient step, ``(4,)``; none if the agents were absent
    """
    if not figures:
        return
    means = th.stack(list(figures)).mean(dim=0).tolist()
    for agent in agents:
        model._log_agent(agent, dict(zip(ACTOR_FIGURES, means, strict=True)))


def log_update(model: Any, factor: th.Tensor) -> None:
    """
    Record the factor and the present values of the schedules.

    :param model: Algorithm of HAPPO's family
    :param factor: Factor after the update of all agents, ``(n_rows,)``
    """
    logger, progress = model.logger, model._current_progress_remaining
    log_factor(model, logger, factor, len(model.agents))
    logger.record("train/learning_rate", model.lr_schedule(progress))
    logger.record("train/clip_range", model._clip_range())
    if callable(model.ent_coef):
        logger.record("train/ent_coef", model._ent_coef(progress))
    clip_range_vf = model.value_loss.clip_range
    if clip_range_vf is not None:
        logger.record("train/clip_range_vf", clip_range_vf)
    logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
