"""Warnings that are given once per object."""

import warnings
from weakref import WeakKeyDictionary

_GIVEN: "WeakKeyDictionary[object, set[str]]" = WeakKeyDictionary()


def warn_once(owner: object, key: str, message: str) -> None:
    """
    Give a warning, unless it was given for the same object and key before. Nothing is stored in the
    object itself, so that saved models stay as they are.

    :param owner: Object whose warning it is, such as an algorithm
    :param key: Name of the case
    :param message: Text of the warning
    """
    given = _GIVEN.setdefault(owner, set())
    if key in given:
        return
    given.add(key)
    warnings.warn(message, stacklevel=3)
