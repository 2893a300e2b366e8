"""States of all pseudo-random generators that a training draws from."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces


def random_states(*action_spaces: spaces.Space | None) -> dict[str, Any]:
    """
    :param action_spaces: Spaces that are sampled from; None where there is none
    :return: States of the global generators of Python, NumPy and PyTorch, those of accelerators in
        use included, and of the generators of the spaces
    """
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=False),
        "torch": th.get_rng_state(),
        "spaces": [_space_states(space) for space in action_spaces],
    }
    if th.cuda.is_available() and th.cuda.is_initialized():
        states["cuda"] = th.cuda.get_rng_state_all()
    if th.backends.mps.is_available():
        states["mps"] = th.mps.get_rng_state()
    return states


def restore_random_states(states: dict[str, Any], *action_spaces: spaces.Space | None) -> None:
    """
    :param states: Result of :func:`random_states`
    :param action_spaces: Spaces in the same order
    """
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"].cpu())
    if "cuda" in states and th.cuda.is_available():
        # A machine with fewer accelerators restores the states of those it has
        for device, state in zip(range(th.cuda.device_count()), states["cuda"], strict=False):
            th.cuda.set_rng_state(state.cpu(), device)
    if "mps" in states and th.backends.mps.is_available():
        th.mps.set_rng_state(states["mps"].cpu())
    for space, own in zip(action_spaces, states["spaces"], strict=False):
        for part, state in zip(_parts(space), own, strict=False):
            if state is None:
                part._np_random = None
            else:
                part.np_random.bit_generator.state = state


def _space_states(space: spaces.Space | None) -> list[dict[str, Any] | None]:
    """State of the generator of each part of a space; None for one that was not used yet."""
    states: list[dict[str, Any] | None] = []
    for part in _parts(space):
        generator = part._np_random
        states.append(None if generator is None else generator.bit_generator.state)
    return states


def _parts(space: spaces.Space | None) -> Iterator[Any]:
    if space is None:
        return
    yield space
    inside: Any = getattr(space, "spaces", ())
    for part in inside.values() if hasattr(inside, "values") else inside:
        yield from _parts(part)
