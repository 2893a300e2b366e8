"""Limit to the networks that are built because a file describes them."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch as th
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

#: Numbers of a parameter, and bytes of all, that may be built whatever the file holds
_SMALL = 2**20
_SMALL_TOTAL = 2**28


@contextmanager
def building_limit(tensors: Mapping[str, th.Tensor], n_agents: int) -> Iterator[None]:
    """
    Refuse networks that are much larger than the file that describes them: a claim of 10^9 units is
    an error, before memory is filled.

    :param tensors: Tensors of the file
    :param n_agents: Number of agents. Those that share a network have one in the file, and one each
        while the team is built
    """
    largest, total = _SMALL, 0
    for tensor in tensors.values():
        largest = max(largest, tensor.numel())
        total += tensor.numel() * tensor.element_size()
    limit = max(_SMALL_TOTAL, 4 * (n_agents + 1) * total)
    thread = threading.get_ident()
    built = 0

    def check(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal built
        if parameter is None or threading.get_ident() != thread:
            return
        built += parameter.numel() * parameter.element_size()
        if parameter.numel() > largest or built > limit:
            raise ValueError(
                f"its settings ask for a {type(module).__name__} with {name!r} of the shape "
                f"{tuple(parameter.shape)}, which is larger than what it holds"
            )

    handle = register_module_parameter_registration_hook(check)
    try:
        yield
    finally:
        handle.remove()
