"""Inputs and outputs of an exported policy: names, shapes, types and spaces."""

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from gymnasium import spaces

from sb3_happo.common.actor_network import ActorNetwork
from sb3_happo.envs.encodings import is_constant, own_space
from sb3_happo.envs.spaces import subspaces

Role: TypeAlias = Literal["observation", "action_mask", "state", "action", "next_state"]

#: Names of the parts of a recurrent state, in the order of ``predict``
STATE_NAMES = ("hidden_state", "cell_state")
#: Integers that both PyTorch and ONNX Runtime take
_INTEGERS = ("uint8", "int8", "int16", "int32", "int64")


class TensorInfo(NamedTuple):
    """
    One input or output of an exported policy.

    :param name: Name in the exported file
    :param role: Meaning
    :param path: Keys that lead to it in a Dict observation or a nested action; empty where the
        whole observation or action is one array
    :param space: Space in the environment's own form; None for masks and states
    :param shape: Shape of a single one, without the batch
    :param dtype: Name of the type
    :param batch_axis: Axis of the batch in the exported file
    """

    name: str
    role: Role
    path: tuple[str, ...]
    space: spaces.Space | None
    shape: tuple[int, ...]
    dtype: str
    batch_axis: int = 0

    def batch_shape(self, n: int) -> tuple[int, ...]:
        """
        :param n: Number of rows
        :return: Shape of a batch
        """
        return (*self.shape[: self.batch_axis], n, *self.shape[self.batch_axis :])


class Signature(NamedTuple):
    """
    Inputs and outputs of an exported policy, in the order of the exported file.

    :param inputs: Observation, one tensor for each part; action mask; recurrent states
    :param outputs: Action, one tensor for each part; next recurrent states
    """

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]

    def select(self, role: Role) -> list[TensorInfo]:
        """
        :param role: Meaning of the tensors to select
        :return: Inputs or outputs of this meaning
        """
        return [info for info in (*self.inputs, *self.outputs) if info.role == role]


def observation_parts(space: spaces.Space) -> list[tuple[str, spaces.Space]]:
    """
    :param space: Observation space of a policy
    :return: Key and space of each part; the key of an observation that is one array is ""
    """
    if isinstance(space, spaces.Dict):
        return list(space.spaces.items())
    return [("", space)]


def action_parts(
    space: spaces.Space, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], spaces.Space]]:
    """
    :param space: Action space of a policy
    :param path: Keys that lead to ``space``
    :return: Keys and space of each plain part, in the order of the columns of raw actions
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        for name, _, part in subspaces(space):
            yield from action_parts(part, (*path, name))
    else:
        yield path, space


def signature_of(policy: ActorNetwork) -> Signature:
    """
    :param policy: Policy of one agent
    :return: Inputs and outputs of the exported policy
    """
    inputs = []
    for key, space in observation_parts(policy.observation_space):
        inputs.append(_observation_info(key, space))
    if policy.masked and policy.masks.n_choices:
        n_choices = policy.masks.n_choices
        inputs.append(TensorInfo("action_mask", "action_mask", (), None, (n_choices,), "int8"))
    outputs = []
    for path, space in action_parts(policy.action_space):
        shape = space.shape or ()
        name = "/".join(("action", *path))
        outputs.append(TensorInfo(name, "action", path, space, shape, _action_dtype(space)))
    if policy.memory is not None:
        n_parts, n_layers, hidden_size = policy.memory.state_shape
        shape = (n_layers, hidden_size)
        for name in STATE_NAMES[:n_parts]:
            inputs.append(TensorInfo(name, "state", (), None, shape, "float32", 1))
            outputs.append(TensorInfo(f"next_{name}", "next_state", (), None, shape, "float32", 1))
    return Signature(tuple(inputs), tuple(outputs))


def _observation_info(key: str, space: spaces.Space) -> TensorInfo:
    """Input for one part of the observation, in the environment's own form."""
    name = f"observation/{key}" if key else "observation"
    path = (key,) if key else ()
    if is_constant(space):
        # Nothing to observe: a zero, which the network has as an input
        return TensorInfo(name, "observation", path, space, space.shape or (), "float32")
    own = own_space(space)
    return TensorInfo(name, "observation", path, own, own.shape or (), _observation_dtype(own))


def _observation_dtype(space: spaces.Space) -> str:
    if isinstance(space, spaces.MultiBinary):
        return "int8"
    if not isinstance(space, spaces.Box):
        return "int64"
    if space.dtype.kind == "f":
        return "float32"
    return space.dtype.name if space.dtype.name in _INTEGERS else "int64"


def _action_dtype(space: spaces.Space) -> str:
    if isinstance(space, spaces.MultiBinary):
        return "int8"
    is_real = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)
    return "float32" if is_real else "int64"
