"""State of objects as plain data: numbers, texts, arrays, tensors, generators, and containers."""

import copy
import inspect
import random
from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd

_MAX_DEPTH = 50
_ATOMS = (type(None), bool, int, float, complex, str, bytes, np.generic)
_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)


class NotPlainError(TypeError):
    """Value that is no plain data, such as a network or an open file."""


def plain_copy(value: Any, depth: int = 0) -> Any:
    """
    :param value: Value
    :param depth: Number of containers around it
    :return: Copy of it, which later changes of the value do not reach; tensors stay on their device
    :raises NotPlainError: If the value, or a part of it, is no plain data
    """
    cls = type(value)
    if cls in _ATOMS or isinstance(value, np.generic):
        return value
    if depth > _MAX_DEPTH:
        raise NotPlainError(f"more than {_MAX_DEPTH} containers within each other")
    if isinstance(value, th.Tensor):
        return _tensor_copy(value)
    if cls is np.ndarray and not value.dtype.hasobject:
        return value.copy()
    if cls in _GENERATORS or cls is RunningMeanStd:
        return copy.deepcopy(value)
    if cls is deque:
        return deque(_items(value, depth), value.maxlen)
    if cls in (list, tuple, set, frozenset):
        return cls(_items(value, depth))
    if cls in (dict, OrderedDict):
        keys, parts = _items(value.keys(), depth), _items(value.values(), depth)
        return cls(zip(keys, parts, strict=True))
    raise NotPlainError(f"an object of the class {cls.__name__}")


def _tensor_copy(value: th.Tensor) -> th.Tensor:
    if value.requires_grad or isinstance(value, th.nn.Parameter):
        # A copy in its place would leave its optimiser with the old one
        raise NotPlainError("a tensor that requires a gradient")
    return value.clone()


def _items(values: Iterable[Any], depth: int) -> list[Any]:
    return [plain_copy(value, depth + 1) for value in values]


def plain_attributes(owner: Any, exclude: Iterable[str] = ()) -> dict[str, Any]:
    """
    :param owner: Object
    :param exclude: Names of attributes to leave out
    :return: Copies of the attributes that are plain data, by name. Others, such as networks,
        environments and open files, are left out
    """
    excluded = frozenset(exclude)
    kept = {}
    for name, value in vars(owner).items():
        if name in excluded:
            continue
        try:
            kept[name] = plain_copy(value)
        except NotPlainError:
            continue
    return kept


def constructor_names(cls: type) -> frozenset[str]:
    """
    :param cls: Class
    :return: Names of the parameters of its constructor and of those of its base classes
    """
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" in vars(base) and base is not object:
            names.update(inspect.signature(vars(base)["__init__"]).parameters)
    return frozenset(names)


class ChangingState:
    """
    Attributes of an object that change, as opposed to its settings. Settings are the attributes
    with the name of a parameter of the constructor, as long as they do not change.

    :param owner: Object, with its settings as they are now
    :param exclude: Names of attributes that are never part of the state
    """

    def __init__(self, owner: Any, exclude: Iterable[str] = ()) -> None:
        self._owner = owner
        self._exclude = frozenset(exclude)
        self._settings: dict[str, Any] = {}
        names = constructor_names(type(owner))
        for name, value in plain_attributes(owner, self._exclude).items():
            if name in names:
                self._settings[name] = value

    def get(self) -> dict[str, Any]:
        """
        :return: Copies of the attributes that belong to the state, by name
        """
        state = plain_attributes(self._owner, self._exclude)
        for name, before in self._settings.items():
            if name in state and same(state[name], before):
                del state[name]
        return state

    def set(self, state: Mapping[str, Any]) -> None:
        """
        :param state: Result of :meth:`get` of an object of the same class
        """
        for name, value in state.items():
            if name not in self._exclude:
                vars(self._owner)[name] = plain_copy(value)


def same(first: Any, second: Any) -> bool:
    """
    :param first: Plain data
    :param second: Plain data
    :return: True if they are equal in type and value; NaN equals NaN
    """
    if type(first) is not type(second):
        return False
    if isinstance(first, th.Tensor):
        return first.dtype == second.dtype and th.equal(first, second)
    if isinstance(first, np.ndarray):
        return first.dtype == second.dtype and first.tobytes() == second.tobytes()
    if isinstance(first, dict):
        return same(list(first), list(second)) and same([*first.values()], [*second.values()])
    if isinstance(first, (list, tuple, deque)):
        return _same_items(first, second)
    if isinstance(first, RunningMeanStd):
        return same(vars(first), vars(second))
    if isinstance(first, _GENERATORS):
        return True  # a generator is state, and is compared nowhere
    return bool(first == second or (first != first and second != second))


def _same_items(first: Collection[Any], second: Collection[Any]) -> bool:
    if len(first) != len(second):
        return False
    return all(same(one, other) for one, other in zip(first, second, strict=True))
