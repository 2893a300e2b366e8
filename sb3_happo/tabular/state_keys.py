"""Keys of tables: observations as hashable values."""

import numbers
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.encodings import is_constant

#: Function from an agent's observation to a key, or "exact": the numbers as they are
StateKey: TypeAlias = str | Callable[[Any], Hashable] | None
EXACT = "exact"
#: Types of which keys consist, so that they can be saved
_PLAIN_KEYS = (str, bool, int, float, type(None))


def _constant_key(value: Any) -> Hashable:
    return 0


def _whole_key(value: Any) -> Hashable:
    """Key of an array of whole numbers: the number, or a tuple of them."""
    numbers_of_value = np.asarray(value).ravel().astype(np.int64).tolist()
    return numbers_of_value[0] if len(numbers_of_value) == 1 else tuple(numbers_of_value)


def _exact_key(value: Any) -> Hashable:
    """Key of an array of any numbers."""
    exact = np.asarray(value).ravel().tolist()
    return exact[0] if len(exact) == 1 else tuple(exact)


class AgentKey:
    """
    Key of an agent's observations.

    Discrete, MultiDiscrete, MultiBinary and whole-number Box observations are keys as they are, and
    so are Dict and Tuple observations of them. Box observations whose bounds are equal are
    constants.

    :param agent: Name of the agent, for errors
    :param space: Observation space of the agent in the joint observation, without mask
    :param state_key: Function from the observation to a hashable value made of strings, numbers,
        None and tuples; "exact" for the numbers of the observation as they are, whatever its space;
        None for the default above
    :param owner: Name of the algorithm, for errors
    :raises ValueError: If the space is continuous and there is no ``state_key``
    """

    def __init__(self, agent: str, space: spaces.Space, state_key: StateKey, owner: str) -> None:
        if isinstance(state_key, str) and state_key != EXACT:
            raise ValueError(f"state_key must be a function, 'exact' or None, not {state_key!r}")
        self._agent = agent
        self._space = space
        self._function = state_key if callable(state_key) else None
        self._parts: dict[str, Callable[[Any], Hashable]] = {}
        if self._function is None:
            own = space.spaces if isinstance(space, spaces.Dict) else {"": space}
            for name, part in own.items():
                self._parts[name] = self._key_function(name, part, state_key == EXACT, owner)
        self._only: Callable[[Any], Hashable] | None = None
        if len(self._parts) == 1:
            (self._only,) = self._parts.values()

    def _key_function(
        self, name: str, space: spaces.Space, exact: bool, owner: str
    ) -> Callable[[Any], Hashable]:
        """Function for one entry of the observation."""
        if is_constant(space):
            return _constant_key
        if isinstance(space, spaces.Box) and np.array_equal(space.low, space.high):
            return _constant_key
        if exact:
            return _exact_key
        if not isinstance(space, spaces.Box) or space.dtype.kind in "biu":
            return _whole_key
        part = f", entry {name!r}" if name else ""
        raise ValueError(
            f"{owner} learns a table, and the observations of agent {self._agent!r}{part} are "
            f"continuous: Box{space.shape} of {space.dtype}. Pass state_key=, a function from an "
            "agent's observation to a hashable key, such as lambda obs: tuple(np.round(obs, "
            "1).tolist()); state_key='exact' if the observations take few values; or learn with "
            "networks, such as HAPPO."
        )

    def __call__(self, observation: Any) -> Hashable:
        """
        :param observation: Observation in the form of the joint environment: an array or a number,
            or a dict of them
        :return: Key
        :raises ValueError: If ``state_key`` returned something that cannot be a key
        """
        if self._function is None:
            if self._only is not None and not isinstance(observation, Mapping):
                return self._only(observation)
            return tuple([make(observation[name]) for name, make in self._parts.items()])
        key = self._function(observation)
        return plain_key(key, self._agent)


def plain_key(key: Any, agent: str) -> Hashable:
    """
    :param key: Result of ``state_key``
    :param agent: Name of the agent, for errors
    :return: The same value of plain types
    :raises ValueError: If it is no string, number or None, nor a tuple of such values
    """
    if isinstance(key, np.generic):
        key = key.item()
    if isinstance(key, _PLAIN_KEYS):
        return key
    if isinstance(key, numbers.Integral):
        return int(key)
    if isinstance(key, (tuple, list)):
        return tuple([plain_key(part, agent) for part in key])
    raise ValueError(
        f"state_key returned {key!r} for agent {agent!r}; return a string, a number, or a tuple of "
        "such, so that the table can be saved."
    )


def key_to_json(key: Any) -> Any:
    """
    :param key: Key made of strings, numbers, None and tuples
    :return: The same with lists in place of tuples
    """
    return [key_to_json(part) for part in key] if isinstance(key, tuple) else key


def key_from_json(data: Any) -> Any:
    """
    :param data: Result of :func:`key_to_json`
    :return: Key
    """
    return tuple([key_from_json(part) for part in data]) if isinstance(data, list) else data
