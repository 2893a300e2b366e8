"""Comparison of an exported file with the policy that it was made from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_happo.common.actor_network import ActorNetwork
from sb3_happo.common.export.network import copy_for_cpu
from sb3_happo.common.export.normalization import Normalization
from sb3_happo.common.export.signature import STATE_NAMES, Signature, TensorInfo
from sb3_happo.common.leaf_heads import BitsHead, ChoiceHead, LeafHead
from sb3_happo.common.recurrent import single_steps
from sb3_happo.envs.encodings import encode_observation

#: Number of observations with which a file is checked
N_OBSERVATIONS = 1000
#: Sizes of the first batches; the rest is one batch
_BATCHES = (1, 2, 7)

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]


class ExportError(ValueError):
    """A policy that cannot be exported, or a file that does not act as its policy."""


class CheckResult(NamedTuple):
    """
    Result of a check.

    :param n_observations: Number of observations
    :param tolerance: Largest difference that was allowed, relative to the size of the numbers
    :param largest_difference: Largest difference of a number, relative to its size
    :param n_ties: Number of discrete choices that differ, each between options whose values are
        equal up to the tolerance
    """

    n_observations: int
    tolerance: float
    largest_difference: float
    n_ties: int


class Reference:
    """
    Decisions of the policy itself, by ``predict``.

    :param policy: Policy of one agent
    :param signature: Inputs and outputs of the exported file
    :param normalization: Normalisation of the observation; None for none
    """

    def __init__(
        self, policy: ActorNetwork, signature: Signature, normalization: Normalization | None
    ) -> None:
        self.policy = copy_for_cpu(policy)
        self.signature = signature
        self.normalization = normalization

    def __call__(self, inputs: Arrays) -> Arrays:
        """
        :param inputs: Inputs by name
        :return: Outputs by name
        """
        # A method of the subclass that imports this module
        predict: Any = self.policy.predict_encoded
        action, states = predict(
            self._observation(inputs),
            self._states(inputs),
            deterministic=True,
            action_masks=inputs.get("action_mask"),
        )
        outputs = {}
        for info in self.signature.select("action"):
            part = action
            for name in info.path:
                part = part[name]
            outputs[info.name] = np.asarray(part)
        for info, state in zip(self.signature.select("next_state"), states or (), strict=True):
            outputs[info.name] = state
        return outputs

    def scores(self, inputs: Arrays) -> np.ndarray:
        """
        :param inputs: Inputs by name
        :return: Outputs of the actor's last layer, ``(batch, n_params)``
        """
        obs, _ = self.policy.obs_to_tensor(self._observation(inputs))
        states = self._states(inputs)
        sequences = None
        if states is not None:
            stacked = th.as_tensor(np.stack(states)).permute(2, 0, 1, 3)
            sequences = single_steps(stacked)
        with th.no_grad():
            return self.policy.parameters_of_actions(obs, sequences)[0].numpy()

    def _observation(self, inputs: Arrays) -> Any:
        space = self.policy.observation_space
        parts = {}
        for info in self.signature.select("observation"):
            parts["/".join(info.path)] = inputs[info.name]
        own: Any = parts if isinstance(space, spaces.Dict) else parts[""]
        encoded = encode_observation(space, own)
        return encoded if self.normalization is None else self.normalization(encoded)

    def _states(self, inputs: Arrays) -> tuple[np.ndarray, ...] | None:
        return tuple(inputs[name] for name in STATE_NAMES if name in inputs) or None


def check_export(
    run: Run, reference: Reference, inputs: Arrays, tolerance: float, name: str
) -> CheckResult:
    """
    Compare an exported file with its policy, in batches of several sizes.

    A number may differ by ``tolerance`` times its size, or times the largest bound of its space,
    or times 1, whichever is greatest. A discrete choice must be equal, unless the values of both
    options are equal up to ``tolerance`` times their size (or times 1): float32 decides such a tie
    by the order of its sums. Truncated integers of a Box may differ where the number before the
    truncation is as near to a whole one.

    :param run: Function that runs the exported file
    :param reference: Decisions of the policy
    :param inputs: Inputs by name, a batch each
    :param tolerance: Largest difference, > 0
    :param name: Name of the file, for errors
    :return: Result
    :raises ExportError: If the file acts in another way
    """
    signature = reference.signature
    expected = reference(inputs)
    found = _in_batches(run, signature, inputs)
    n_rows = len(expected[signature.select("action")[0].name])
    largest, n_ties = 0.0, 0
    scores = reference.scores(inputs)
    starts = np.cumsum([0, *(part.n_params for part in reference.policy.action_head.parts)])
    parts = list(reference.policy.action_head.parts)
    for index, info in enumerate(signature.outputs):
        own, other = expected[info.name], found[info.name]
        _check_finite(info, own)
        if info.dtype == "float32":
            difference = _relative_difference(info, own, other)
            largest = max(largest, float(difference.max(initial=0.0)))
            wrong = difference > tolerance
        elif isinstance(info.space, spaces.Box):
            wrong = (other < np.trunc(own - tolerance)) | (other > np.trunc(own + tolerance))
        else:
            columns = slice(starts[index], starts[index + 1])
            mask = _own_mask(parts, index, inputs.get("action_mask"))
            gaps = _gaps(parts[index], scores[:, columns], mask, info, own, other)
            wrong = gaps > tolerance
            n_ties += int(((gaps > 0) & ~wrong).sum())
        _refuse(info, wrong, own, other, tolerance, name)
    return CheckResult(n_rows, tolerance, largest, n_ties)


def _in_batches(run: Run, signature: Signature, inputs: Arrays) -> Arrays:
    """Outputs of an exported file for all rows."""
    axes = {info.name: info.batch_axis for info in (*signature.inputs, *signature.outputs)}
    ends = np.cumsum(_BATCHES)
    pieces = {}
    for key, array in inputs.items():
        pieces[key] = np.split(array, ends, axis=axes[key])
    outputs = []
    for index in range(len(ends) + 1):
        outputs.append(run({key: np.ascontiguousarray(own[index]) for key, own in pieces.items()}))
    joined = {}
    for key in outputs[0]:
        joined[key] = np.concatenate([own[key] for own in outputs], axis=axes[key])
    return joined


def _check_finite(info: TensorInfo, own: np.ndarray) -> None:
    if not np.isfinite(own).all():
        raise ExportError(
            f"The policy itself returns NaN or infinite numbers ({info.name!r}): its weights are "
            "not finite, or a Box of its actions has no bounds to scale to (pass "
            "policy_kwargs=dict(rescale_actions=False) to the training)."
        )


def _relative_difference(info: TensorInfo, own: np.ndarray, other: np.ndarray) -> np.ndarray:
    size = np.maximum(np.abs(own), 1.0)
    if isinstance(info.space, spaces.Box):
        low, high = np.abs(info.space.low), np.abs(info.space.high)
        bound = np.maximum(low, high).astype(np.float64)
        size = np.maximum(size, np.where(np.isfinite(bound), bound, 1.0))
    return np.abs(own.astype(np.float64) - other) / size


def _own_mask(
    parts: list[LeafHead], index: int, action_mask: np.ndarray | None
) -> np.ndarray | None:
    """Columns of the action masks that belong to one part."""
    if action_mask is None or not parts[index].n_choices:
        return None
    start = sum(part.n_choices for part in parts[:index])
    return action_mask[:, start : start + parts[index].n_choices]


def _gaps(
    part: LeafHead,
    scores: np.ndarray,
    mask: np.ndarray | None,
    info: TensorInfo,
    own: np.ndarray,
    other: np.ndarray,
) -> np.ndarray:
    """
    :param part: Part of the policy's head
    :param scores: Outputs of the actor that belong to it, ``(batch, n_params)``
    :param mask: Action masks that belong to it
    :param info: Output that holds the action
    :param own: Actions of the policy, ``(batch, ...)``
    :param other: Actions of the exported file
    :return: Difference between the values of the two options of each choice, relative to their
        size; 0 where the actions are equal, ``(batch, n_factors)``
    """
    start: Any = 0
    if isinstance(info.space, (spaces.Discrete, spaces.MultiDiscrete)):
        start = info.space.start
    first = (own - start).reshape(len(own), -1).astype(np.int64)
    second = (other - start).reshape(len(own), -1).astype(np.int64)
    if isinstance(part, BitsHead):
        return np.where(first != second, np.abs(scores), 0.0)
    assert isinstance(part, ChoiceHead)
    legal = None if mask is None else th.as_tensor(mask)
    values = part.values(th.as_tensor(scores), legal).double().numpy()
    columns = np.split(values, np.cumsum(part.factors)[:-1], axis=1)
    gaps = []
    for index, options in enumerate(columns):
        gaps.append(_gap(options, first[:, index], second[:, index]))
    return np.stack(gaps, axis=1)


def _gap(values: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Relative difference of the values of two options, infinite if an option does not exist."""
    n_options = values.shape[1]
    exists = (second >= 0) & (second < n_options)
    rows = np.arange(len(values))
    one, two = values[rows, first], values[rows, second.clip(0, n_options - 1)]
    gap = np.abs(one - two) / np.maximum(np.abs(one), 1.0)
    # Equal values at different options are a tie as well
    gap = np.maximum(gap, np.finfo(np.float64).tiny)
    return np.where(exists, np.where(first == second, 0.0, gap), np.inf)


def _refuse(
    info: TensorInfo,
    wrong: np.ndarray,
    own: np.ndarray,
    other: np.ndarray,
    tolerance: float,
    name: str,
) -> None:
    """
    :param info: Output that was compared
    :param wrong: Mask of the numbers that differ
    :param own: Output of the policy
    :param other: Output of the exported file
    :param tolerance: Largest difference
    :param name: Name of the file
    :raises ExportError: If a number differs
    """
    if not wrong.any() and own.shape == other.shape:
        return
    rows = np.moveaxis(wrong, info.batch_axis, 0).reshape(wrong.shape[info.batch_axis], -1)
    n_wrong = int(rows.any(axis=1).sum())
    difference = np.abs(own.astype(np.float64) - other).max()
    raise ExportError(
        f"{name} was not written: its output {info.name!r} differs from `predict` for {n_wrong} of "
        f"{len(rows)} observations, by up to {difference:.3g} (tolerance {tolerance:g}). A policy "
        "whose class overrides `step`, `forward` or `predict`, or that reads more than its own "
        "observation, cannot be exported. Where only rounding differs (networks with large "
        "weights or observations), pass a larger `tolerance`, or train with `VecNormalize`."
    )
