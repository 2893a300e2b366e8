"""
Weights of the last good update of the off-policy algorithms, which update after every few steps:
copies are made into memory that is allocated once.
"""

from typing import Any

import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.save_util import recursive_getattr
from torch import nn

from sb3_happo.common.last_good import LastGood, check_weights, optimizers_of, statistics_of


class TrainedParts:
    """
    Tensors and optimisers that the training of a model changes, found once.

    :param model: Off-policy model
    """

    def __init__(self, model: Any) -> None:
        self.parameters: list[th.Tensor] = [own.detach() for own in model.policy.parameters()]
        self._buffers: list[tuple[nn.Module, str]] = []
        for module in model.policy.modules():
            for name in module._buffers:
                self._buffers.append((module, name))
        self.optimizers = optimizers_of(model)
        state_dicts, tensors = model._get_torch_save_params()
        # Such as temperatures, which are no part of the policy
        self.parameters += [recursive_getattr(model, name).detach() for name in tensors]
        for name in state_dicts:
            part = None if name.startswith("policy") else recursive_getattr(model, name)
            if isinstance(part, th.optim.Optimizer):
                self.optimizers.append(part)

    def tensors(self) -> list[th.Tensor]:
        """
        :return: All tensors, those of the optimisers' states as they are now
        """
        found = list(self.parameters)
        for module, name in self._buffers:
            buffer = module._buffers[name]
            if buffer is not None:
                found.append(buffer)
        for optimizer in self.optimizers:
            for values in optimizer.state.values():
                found += [own for own in values.values() if isinstance(own, th.Tensor)]
        return found


class UpdateSnapshot:
    """
    Copy of a model's weights, optimisers and normalisation statistics, which is made anew at each
    call of :meth:`take`.

    :param parts: Parts of the model
    """

    def __init__(self, parts: TrainedParts) -> None:
        self._parts = parts
        self.n_updates = -1
        self._copies: list[th.Tensor] = []
        self._with_state: list[list[Any]] = []
        self._statistics: list[tuple[RunningMeanStd, dict[str, Any]]] = []

    @th.no_grad()
    def take(self, model: Any) -> None:
        """
        Copy the present state.

        :param model: Model
        """
        self.n_updates = model._n_updates
        tensors = self._parts.tensors()
        if len(tensors) == len(self._copies):
            th._foreach_copy_(self._copies, tensors)
        else:
            # The first step of an optimiser makes its state
            self._copies = [own.detach().clone() for own in tensors]
        self._with_state = [list(own.state) for own in self._parts.optimizers]
        self.take_statistics(model)

    def take_statistics(self, model: Any) -> None:
        """
        Copy the statistics of the ``VecNormalize``, which every step changes.

        :param model: Model
        """
        self._statistics = []
        for statistic in _running_statistics(model):
            values = dict(vars(statistic))
            for name, value in values.items():
                if hasattr(value, "copy"):
                    values[name] = value.copy()
            self._statistics.append((statistic, values))

    @th.no_grad()
    def restore(self, model: Any) -> None:
        """
        Write the copy back.

        :param model: The same model
        """
        model._n_updates = self.n_updates
        for optimizer, known in zip(self._parts.optimizers, self._with_state, strict=True):
            # States that the first step of a parameter has made since
            before = {parameter: optimizer.state[parameter] for parameter in known}
            optimizer.state.clear()
            optimizer.state.update(before)
        tensors = self._parts.tensors()
        th._foreach_copy_(tensors, self._copies)
        for statistic, values in self._statistics:
            vars(statistic).update(values)

    def is_finite(self) -> bool:
        """
        :return: False if weights may be NaN or infinite
        """
        weights = self._copies[: len(self._parts.parameters)]
        norms = th._foreach_norm([own for own in weights if own.is_floating_point()])
        return bool(th.stack(norms).isfinite().all())


def _running_statistics(model: Any) -> list[RunningMeanStd]:
    """Statistics of the ``VecNormalize`` of a model's environment."""
    found: list[RunningMeanStd] = []
    for value in statistics_of(model.get_vec_normalize_env()).values():
        found += value.values() if isinstance(value, dict) else [value]
    return found


class LastGoodUpdate(LastGood):
    """
    The last good weights of an off-policy training. They are copied at the beginning of a
    collection of experience if there was an update before it. Two copies are kept: the present
    weights, and those before the last update.
    """

    def __init__(self) -> None:
        super().__init__()
        self._parts: TrainedParts | None = None
        self._collecting = False

    @property
    def in_rollout(self) -> bool:
        """
        :return: True from the beginning of a collection of experience to its end
        """
        return self._collecting

    def begin_rollout(self, model: Any) -> None:
        """
        Copy the weights, unless there was no update since the last copy.

        :param model: Model
        :raises NotFiniteError: If weights are NaN or infinite
        """
        self._collecting = True
        if self._parts is None:
            self._parts = TrainedParts(model)
        present: Any = self._tried
        if present is not None and present.n_updates == model._n_updates:
            present.take_statistics(model)
            return
        copy: Any = self._confirmed
        if copy is None:
            copy = UpdateSnapshot(self._parts)
        copy.take(model)
        if not copy.is_finite():
            # The older of both copies is lost, and the newer one is good
            self._confirmed = present
            check_weights(model)
        self._confirmed, self._tried = present, copy

    def end_rollout(self, model: Any) -> None:
        """
        Note the end of a collection of experience, after which an update may begin.

        :param model: Model
        """
        self._collecting = False
