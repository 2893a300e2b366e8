"""What the critic sees: the env's state, the agents' observations side by side, one row per agent, or a user's function."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.spaces import AGENT_STATES, STATE, is_image

Observations = dict[str, Any]


class Leaf(NamedTuple):
    """
    One plain array of one agent's observation.

    :param key: Its key in the joint observation
    :param agent: Index of the agent
    :param space: Its space in the joint observation
    """

    key: str
    agent: int
    space: spaces.Space


class StateSource(Protocol):
    """
    Computes the critic's entries of the joint observation.

    ``spaces`` are those entries' spaces. Calling it adds the entries to the observations given: the joint observation without
    them, in which absent agents' parts are zeros; ``present``, ``(n_agents,)``, says who is not absent, None if nobody is.
    """

    spaces: dict[str, spaces.Space]

    def __call__(self, observations: Observations, present: np.ndarray | None) -> None: ...


def _flat_size(space: spaces.Space) -> int:
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    assert space.shape is not None
    return int(np.prod(space.shape))


class _OneHot:
    """Encodes a Discrete or MultiDiscrete observation as one-hot vectors, one after the other."""

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete) -> None:
        sizes = np.atleast_1d(space.n if isinstance(space, spaces.Discrete) else space.nvec.ravel())
        self.size = int(sizes.sum())
        self.offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]) - np.ravel(space.start)

    def __call__(self, value: Any) -> np.ndarray:
        encoded = np.zeros(self.size, np.float32)
        encoded[np.ravel(value) + self.offsets] = 1.0
        return encoded


class FlatObservations:
    """
    Some leaves of the joint observation as one float32 vector; Discrete and MultiDiscrete ones are one-hot encoded.

    :param leaves: The leaves, in order
    """

    def __init__(self, leaves: list[Leaf]) -> None:
        self.size = sum(_flat_size(leaf.space) for leaf in leaves)
        self._keys = [leaf.key for leaf in leaves]
        self._plain = all(
            isinstance(leaf.space, spaces.Box) and len(leaf.space.shape) == 1 for leaf in leaves
        )
        self._parts: list[tuple[str, int, int, Callable[[Any], np.ndarray]]] = [
            (
                leaf.key,
                leaf.agent,
                _flat_size(leaf.space),
                _OneHot(leaf.space)
                if isinstance(leaf.space, (spaces.Discrete, spaces.MultiDiscrete))
                else np.ravel,
            )
            for leaf in leaves
        ]

    def __call__(self, observations: Observations, present: np.ndarray | None) -> np.ndarray:
        if self._plain:
            parts = [observations[key] for key in self._keys]
        else:
            parts = [
                encode(observations[key])
                if present is None or present[agent]
                else np.zeros(size, np.float32)
                for key, agent, size, encode in self._parts
            ]
        return np.concatenate(parts, dtype=np.float32)


class VectorState:
    """
    A state of one vector.

    :param flat: Computes it
    """

    def __init__(self, flat: FlatObservations) -> None:
        self._flat = flat
        self.spaces: dict[str, spaces.Space] = {
            STATE: spaces.Box(-np.inf, np.inf, (flat.size,), np.float32)
        }

    def __call__(self, observations: Observations, present: np.ndarray | None) -> None:
        observations[STATE] = self._flat(observations, present)


class StackedImages:
    """
    Images of the same shape, stacked along their channels.

    :param leaves: The images
    """

    def __init__(self, leaves: list[Leaf]) -> None:
        self._keys = [leaf.key for leaf in leaves]
        self.channels_axis = self.channels_axis_of(leaves[0].space)
        stacked = list(leaves[0].space.shape or ())
        stacked[self.channels_axis] *= len(leaves)
        self.spaces: dict[str, spaces.Space] = {STATE: spaces.Box(0, 255, tuple(stacked), np.uint8)}

    def __call__(self, observations: Observations, present: np.ndarray | None) -> None:
        observations[STATE] = np.concatenate(
            [observations[key] for key in self._keys], axis=self.channels_axis
        )

    @staticmethod
    def channels_axis_of(space: spaces.Space) -> int:
        """
        :param space: Of an image
        :return: 0 or 2, by SB3's rule: channels are first where that axis is the smallest
        """
        assert space.shape is not None
        return 0 if int(np.argmin(space.shape)) == 0 else 2


class SeparateObservations:
    """
    Every leaf under its own key, ``"state/<key>"``: for images among vectors, or of several shapes.

    :param leaves: The leaves
    """

    def __init__(self, leaves: list[Leaf]) -> None:
        self._keys = [(leaf.key, f"{STATE}/{leaf.key}") for leaf in leaves]
        self.spaces: dict[str, spaces.Space] = {
            f"{STATE}/{leaf.key}": leaf.space for leaf in leaves
        }

    def __call__(self, observations: Observations, present: np.ndarray | None) -> None:
        for key, state_key in self._keys:
            observations[state_key] = observations[key]


def concatenated_observations(leaves: list[Leaf]) -> StateSource:
    """
    The state that consists of all agents' observations.

    :param leaves: The observations
    :return: One vector if there are no images, the images' stack if there is nothing else and they have the same shape, or
        each observation under a key of its own
    """
    images = [is_image(leaf.space) for leaf in leaves]
    if not any(images):
        return VectorState(FlatObservations(leaves))
    if all(images) and len({leaf.space.shape for leaf in leaves}) == 1:
        stack = StackedImages(leaves)
        if stack.channels_axis == stack.channels_axis_of(stack.spaces[STATE]):
            return stack  # otherwise so many channels that SB3 would take them for height or width
    return SeparateObservations(leaves)


class ComputedState:
    """
    A state that some function returns: the env's own, or a user's.

    :param function: Returns the state, given the observations; must be picklable if the env is to be
    :param example: A state, from which shape and kind are taken
    :param name: What the function is called in errors
    :raises TypeError: If the example is no numeric array
    """

    def __init__(self, function: Callable[[Observations], Any], example: Any, name: str) -> None:
        array = np.asarray(example)
        if array.dtype.kind not in "biuf":
            raise TypeError(
                f"{name} must return a numeric array, not {type(example).__name__} of {array.dtype}."
            )
        self._function = function
        self._name = name
        self._shape = array.shape
        image = array.dtype == np.uint8 and array.ndim == 3
        self._dtype = np.dtype(np.uint8 if image else np.float32)
        low, high = (0, 255) if image else (-np.inf, np.inf)
        self.spaces: dict[str, spaces.Space] = {
            STATE: spaces.Box(low, high, array.shape, self._dtype.type)
        }

    def value(self, observations: Observations) -> np.ndarray:
        try:
            state = np.asarray(self._function(observations))
        except Exception as error:
            raise RuntimeError(
                f"{self._name} failed; state='observations' makes the state from the observations instead."
            ) from error
        if state.shape != self._shape:
            raise ValueError(
                f"{self._name} returned shape {state.shape}, where it had {self._shape} at the first reset; "
                "it must not change. state='observations' makes the state from the observations instead."
            )
        return state.astype(
            self._dtype
        )  # a copy: a view of the env's insides would change at its next step

    def __call__(self, observations: Observations, present: np.ndarray | None) -> None:
        observations[STATE] = self.value(observations)


class AgentStates:
    """
    One row per agent: the state, the agent's own observation (padded with zeros to the longest), its one-hot id.

    :param base: The state that all rows share
    :param leaves: The observations
    :param n_agents: Number of agents
    :raises ValueError: If there are images
    """

    def __init__(self, base: StateSource, leaves: list[Leaf], n_agents: int) -> None:
        if any(
            is_image(space) for space in [*base.spaces.values(), *(leaf.space for leaf in leaves)]
        ):
            raise ValueError(
                "state='agent' needs observations and a state without images; use state='observations' or a callable."
            )
        self._base = base
        self._own = [
            FlatObservations([leaf for leaf in leaves if leaf.agent == agent])
            for agent in range(n_agents)
        ]
        self._start = _flat_size(base.spaces[STATE])
        longest = max(own.size for own in self._own)
        self._rows = np.zeros((n_agents, self._start + longest + n_agents), np.float32)
        self._rows[:, -n_agents:] = np.eye(n_agents, dtype=np.float32)
        self.spaces: dict[str, spaces.Space] = {
            AGENT_STATES: spaces.Box(-np.inf, np.inf, self._rows.shape, np.float32)
        }

    def __call__(self, observations: Observations, present: np.ndarray | None) -> None:
        rows = self._rows.copy()
        self._base(observations, present)
        rows[:, : self._start] = observations.pop(STATE).ravel()
        for row, own in zip(rows, self._own, strict=True):
            row[self._start : self._start + own.size] = own(observations, present)
        observations[AGENT_STATES] = rows
