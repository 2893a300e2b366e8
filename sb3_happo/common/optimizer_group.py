"""Optimisers that take one step together."""

from collections.abc import Sequence
from typing import Any

import torch as th


class OptimizerGroup:
    """
    Optimisers of several networks that one loss trains, as one for
    :func:`~sb3_happo.common.gradient_step.descend`: the gradient is clipped as a whole.

    :param optimizers: Optimisers
    """

    def __init__(self, optimizers: Sequence[th.optim.Optimizer]) -> None:
        self._optimizers = list(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """
        :return: Groups of parameters of all optimisers
        """
        groups: list[dict[str, Any]] = []
        for optimizer in self._optimizers:
            groups += optimizer.param_groups
        return groups

    def step(self) -> None:
        """One step of every optimiser."""
        for optimizer in self._optimizers:
            optimizer.step()
