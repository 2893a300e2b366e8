"""Check that no parameter of a model is NaN or infinite."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch as th


def check_finite_parameters(
    parameters: Mapping[str, Any], agents: Sequence[str], owner: str
) -> None:
    """
    :param parameters: State dicts by name, as ``model.get_parameters()`` returns them, or a single
        one
    :param agents: Names of the agents, in the order of a team's ``actors``
    :param owner: Description of the model, the beginning of the error
    :raises ValueError: If a number in them is NaN or infinite
    """
    for name, tensor in _tensors_of(parameters, ""):
        if not tensor.is_floating_point() and not tensor.is_complex():
            continue
        if _is_finite(tensor):
            continue
        first = tensor[~th.isfinite(tensor)][0].item()
        raise ValueError(
            f"{owner}: {_words(name, agents)} is not finite, it holds {first}. Such a model is "
            "neither saved nor loaded; go on from an earlier file, with a smaller learning rate or "
            "normalised observations (VecNormalize, input_layer_norm)."
        )


def _is_finite(tensor: th.Tensor) -> bool:
    tensor = tensor.detach()
    # A sum is finite if all numbers are, up to an overflow, and takes a tenth of the time. NumPy
    # does without threads, which wait for each other on a busy machine
    is_numpy = tensor.device.type == "cpu" and tensor.dtype in (th.float32, th.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.sum(tensor.numpy()) if is_numpy else tensor.sum().item()
    return bool(np.isfinite(total)) or bool(th.isfinite(tensor).all())


def _tensors_of(value: Any, name: str) -> Iterator[tuple[str, th.Tensor]]:
    if isinstance(value, th.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, own in value.items():
            yield from _tensors_of(own, f"{name}.{key}" if name else str(key))


def _words(name: str, agents: Sequence[str]) -> str:
    """Description of a parameter, with the name of its agent."""
    parts = name.split(".")
    if "actors" in parts[:-1]:
        index = parts[parts.index("actors") + 1]
        if index.isdigit() and int(index) < len(agents):
            return f"agent {agents[int(index)]!r}: {name!r}"
    return f"the critic's {name!r}" if "critic" in parts else repr(name)
