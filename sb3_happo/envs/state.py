"""States for the critic: concatenated observations, the environment's state, one row per agent."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.spaces import AGENT_STATES, STATE, is_image

Observations = dict[str, Any]


class Leaf(NamedTuple):
    """
    One array of one agent's observation.

    :param key: Key in the joint observation
    :param agent: Index of the agent
    :param space: Space in the joint observation, neither Dict nor Tuple
    """

    key: str
    agent: int
    space: spaces.Space


class StateLayout(NamedTuple):
    """
    Origin of the numbers in the critic's entries of the joint observation. The numbers of an agent
    that the state does not show are zeros.

    :param owners: For entries made of the agents' observations, the index of the agent that each
        number comes from, int64 of the entry's shape; -1 for numbers that come from no agent
    :param shows_waiting: True if the state shows the agents that wait for their turn, too
    """

    owners: dict[str, np.ndarray]
    shows_waiting: bool


class StateSource(Protocol):
    """
    Object that computes the critic's entries of the joint observation.

    A call adds the entries to ``observations``, a joint observation without them, in which the
    entries of absent agents are zeros. ``present``, bool ``(n_agents,)``, is the mask of the agents
    that are not absent; None if all are present.
    """

    #: Spaces of the entries
    spaces: dict[str, spaces.Space]
    #: For entries made of the agents' observations, the index of the agent that each number comes
    #: from, int64 of the entry's shape; -1 for numbers that come from no agent
    owners: dict[str, np.ndarray]

    def __call__(self, observations: Observations, present: np.ndarray | None) -> None: ...


def _flat_size(space: spaces.Space) -> int:
    """Number of floats that encode an observation; Discrete and MultiDiscrete ones are one-hot."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    assert space.shape is not None
    return int(np.prod(space.shape))


class _OneHot:
    """
    Encoder of Discrete or MultiDiscrete observations as concatenated one-hot vectors.

    :param key: Key in the joint observation, for errors
    :param space: Space
    """

    def __init__(self, key: str, space: spaces.Discrete | spaces.MultiDiscrete) -> None:
        self.key = key
        self.space = space
        sizes = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)
        self.size = int(sizes.sum())
        self.low = np.ravel(space.start)
        self.high = self.low + sizes
        self.offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]) - np.ravel(space.start)

    def __call__(self, value: Any) -> np.ndarray:
        values = np.ravel(value)
        if (values < self.low).any() or (values >= self.high).any():
            raise ValueError(
                f"agent {self.key.partition('/')[0]!r}: the observation {value!r} (entry "
                f"{self.key!r}) is not in {self.space}; correct the env's observation_space or "
                "what it returns."
            )
        encoded = np.zeros(self.size, np.float32)
        encoded[values + self.offsets] = 1.0
        return encoded


def _encoder(key: str, space: spaces.Space) -> Callable[[Any], np.ndarray]:
    """Function that turns an observation into a vector."""
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return _OneHot(key, space)
    return np.ravel


class FlatObservations:
    """
    Arrays of the joint observation, concatenated to one float32 vector. Discrete and MultiDiscrete
    observations are one-hot encoded.

    :param leaves: Arrays, in the order of concatenation
    """

    def __init__(self, leaves: list[Leaf]) -> None:
        sizes = [_flat_size(leaf.space) for leaf in leaves]
        self.size = sum(sizes)
        #: Index of the agent that each number comes from, ``(size,)``
        self.owners = np.repeat(np.array([leaf.agent for leaf in leaves], np.int64), sizes)
        self._keys = [leaf.key for leaf in leaves]
        self._are_vectors = all(
            isinstance(leaf.space, spaces.Box) and len(leaf.space.shape) == 1 for leaf in leaves
        )
        self._parts = [
            (leaf.key, leaf.agent, _flat_size(leaf.space), _encoder(leaf.key, leaf.space))
            for leaf in leaves
        ]

    def __call__(self, observations: Observations, present: np.ndarray | None) -> np.ndarray:
        if self._are_vectors:
            parts = [observations[key] for key in self._keys]
            return np.concatenate(parts, dtype=np.float32)
        parts = []
        for key, agent, size, encode in self._parts:
            if present is None or present[agent]:
                parts.append(encode(observations[key]))
            else:
                parts.append(np.zeros(size, np.float32))
        return np.concatenate(parts, dtype=np.float32)


class VectorState:
    """
    State made of one vector.

    :param flat: Function that computes the vector
    """

    def __init__(self, flat: FlatObservations) -> None:
        self._flat = flat
        self.spaces: dict[str, spaces.Space] = {
            STATE: spaces.Box(-np.inf, np.inf, (flat.size,), np.float32)
        }
        self.owners = {STATE: flat.owners}

    def __call__(self, observations: Observations, present: np.ndarray | None) -> None:
        observations[STATE] = self._flat(observations, present)


class StackedImages:
    """
    State made of images of the same shape, stacked along their channels.

    :param leaves: Images
    """

    def __init__(self, leaves: list[Leaf]) -> None:
        self._keys = [leaf.key for leaf in leaves]
        self.channels_axis = self.channels_axis_of(leaves[0].space)
        stacked = list(leaves[0].space.shape or ())
        stacked[self.channels_axis] *= len(leaves)
        self.spaces: dict[str, spaces.Space] = {STATE: spaces.Box(0, 255, tuple(stacked), np.uint8)}
        agents = np.array([leaf.agent for leaf in leaves], np.int64)
        channels = np.repeat(agents, stacked[self.channels_axis] // len(leaves))
        along_channels = [1, 1, 1]
        along_channels[self.channels_axis] = -1
        owners = np.broadcast_to(channels.reshape(along_channels), tuple(stacked))
        self.owners = {STATE: owners}

    def __call__(self, observations: Observations, present: np.ndarray | None) -> None:
        observations[STATE] = np.concatenate(
            [observations[key] for key in self._keys], axis=self.channels_axis
        )

    @staticmethod
    def channels_axis_of(space: spaces.Space) -> int:
        """
        :param space: Space of an image
        :return: Axis of the channels, 0 or 2. By SB3's rule channels are first if that axis is the
            smallest
        """
        assert space.shape is not None
        return 0 if int(np.argmin(space.shape)) == 0 else 2


class SeparateObservations:
    """
    State made of separate entries, ``"state/<key>"`` for each array: for images beside vectors, and
    for images of several shapes.

    :param leaves: Arrays
    """

    def __init__(self, leaves: list[Leaf]) -> None:
        self._keys = [(leaf.key, f"{STATE}/{leaf.key}") for leaf in leaves]
        self.spaces: dict[str, spaces.Space] = {
            f"{STATE}/{leaf.key}": leaf.space for leaf in leaves
        }
        self.owners: dict[str, np.ndarray] = {}
        for leaf in leaves:
            self.owners[f"{STATE}/{leaf.key}"] = np.full(leaf.space.shape or (), leaf.agent)

    def __call__(self, observations: Observations, present: np.ndarray | None) -> None:
        for key, state_key in self._keys:
            observations[state_key] = observations[key]


def concatenated_observations(leaves: list[Leaf]) -> StateSource:
    """
    State that consists of all agents' observations.

    :param leaves: Arrays of the observations
    :return: One vector if there are no images; a stack of images if there are only images, of one
        shape; otherwise one entry per array
    """
    images = [is_image(leaf.space) for leaf in leaves]
    if not any(images):
        return VectorState(FlatObservations(leaves))
    if all(images) and len({leaf.space.shape for leaf in leaves}) == 1:
        stack = StackedImages(leaves)
        # With very many channels SB3 would take another axis for the channels
        if stack.channels_axis == stack.channels_axis_of(stack.spaces[STATE]):
            return stack
    return SeparateObservations(leaves)


def state_array(state: Any, name: str) -> np.ndarray:
    """
    State as one array.

    :param state: Array, number, tensor, or a dict, tuple or list of these, of any nesting
    :param name: Name of the function that returned it, for errors
    :return: The array itself; one vector of all numbers for a dict and for parts of several shapes,
        of which images (three dimensions, uint8) are divided by 255; a vector for a number
    :raises TypeError: If there is something else than numbers
    """
    if isinstance(state, Mapping):
        return _joined(list(state.values()), name)
    try:
        array = np.asarray(state)
    except ValueError:  # parts of several shapes
        return _joined(list(state), name)
    if array.dtype == object and isinstance(state, (tuple, list)):
        return _joined(list(state), name)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"{name} must return a numeric array, not {type(state).__name__} of {array.dtype}."
        )
    return array if array.ndim else array.reshape(1)


def _joined(parts: list[Any], name: str) -> np.ndarray:
    """Vector of all parts of a nested state."""
    vectors = [np.zeros(0, np.float32)]
    for part in parts:
        array = state_array(part, name)
        if array.dtype == np.uint8 and array.ndim == 3:
            array = array / np.float32(255)
        vectors.append(array.astype(np.float32).ravel())
    return np.concatenate(vectors)


class ComputedState:
    """
    State that a function returns: the environment's ``state()``, or a user's function.

    :param function: Function of the joint observation that returns the state; picklable if the
        environment is to be
    :param example: State, from which shape and type are taken
    :param name: Name of the function in errors
    :raises TypeError: If the example is not made of numbers
    :raises ValueError: If it is empty
    """

    def __init__(self, function: Callable[[Observations], Any], example: Any, name: str) -> None:
        array = state_array(example, name)
        if not array.size:
            raise ValueError(
                f"{name} returned nothing, an array of shape {np.shape(example)}; it must have at "
                "least one entry. state='observations' makes the state from the observations."
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
        self.owners: dict[str, np.ndarray] = {}

    def value(self, observations: Observations) -> np.ndarray:
        """
        Call the function and check what it returns.

        :param observations: Joint observation without state
        :return: State
        :raises RuntimeError: If the function fails
        :raises ValueError: If the state has another shape than the example
        """
        try:
            state = state_array(self._function(observations), self._name)
        except Exception as error:
            raise RuntimeError(
                f"{self._name} failed; state='observations' makes the state from the observations "
                "instead."
            ) from error
        if state.shape != self._shape:
            raise ValueError(
                f"{self._name} returned shape {state.shape}, where it had {self._shape} at the "
                "first reset; it must not change. state='observations' makes the state from the "
                "observations instead."
            )
        # A copy: the environment may change its own array in the next step
        return state.astype(self._dtype)

    def __call__(self, observations: Observations, present: np.ndarray | None) -> None:
        observations[STATE] = self.value(observations)


class AgentStates:
    """
    Agent-specific state: one row per agent, of the shared state, the agent's own observation
    (padded with zeros to the longest) and the agent's one-hot id.

    :param base: Shared state
    :param leaves: Arrays of the observations
    :param n_agents: Number of agents
    :raises ValueError: If there are images
    """

    def __init__(self, base: StateSource, leaves: list[Leaf], n_agents: int) -> None:
        parts = [*base.spaces.values(), *(leaf.space for leaf in leaves)]
        if any(is_image(space) for space in parts):
            raise ValueError(
                "state='agent' needs observations and a state without images; use "
                "state='observations' or a callable."
            )
        self._base = base
        own_leaves: list[list[Leaf]] = [[] for _ in range(n_agents)]
        for leaf in leaves:
            own_leaves[leaf.agent].append(leaf)
        self._own = [FlatObservations(own) for own in own_leaves]
        self._start = _flat_size(base.spaces[STATE])
        longest = max(own.size for own in self._own)
        self._rows = np.zeros((n_agents, self._start + longest + n_agents), np.float32)
        self._rows[:, -n_agents:] = np.eye(n_agents, dtype=np.float32)
        self.spaces: dict[str, spaces.Space] = {
            AGENT_STATES: spaces.Box(-np.inf, np.inf, self._rows.shape, np.float32)
        }
        owners = np.full(self._rows.shape, -1)
        if STATE in base.owners:
            owners[:, : self._start] = base.owners[STATE].ravel()
        for agent, own in enumerate(self._own):
            owners[agent, self._start : self._start + own.size] = agent
        self.owners = {AGENT_STATES: owners}

    def __call__(self, observations: Observations, present: np.ndarray | None) -> None:
        rows = self._rows.copy()
        self._base(observations, present)
        rows[:, : self._start] = observations.pop(STATE).ravel()
        for row, own in zip(rows, self._own, strict=True):
            row[self._start : self._start + own.size] = own(observations, present)
        observations[AGENT_STATES] = rows
