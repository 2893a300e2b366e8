"""Checks of numbers of environments, workers and threads."""

import operator
from typing import Any

#: Largest number of environments, workers or threads: larger ones are slips, such as 1e30
LARGEST = 1_000_000


def checked_count(name: str, number: Any) -> int:
    """
    :param name: Name of an argument
    :param number: Value of the argument, a NumPy integer too
    :return: Python's integer
    :raises ValueError: If it is no whole number from 1 to :data:`LARGEST`
    """
    return _checked(name, number, 1, LARGEST)


def checked_index(name: str, number: Any) -> int:
    """
    :param name: Name of an argument that counts from 0, such as a seed
    :param number: Value of the argument, a NumPy integer too
    :return: Python's integer, because Gymnasium takes no NumPy scalars as seeds
    :raises ValueError: If it is no whole number from 0 to 2**63 - 1
    """
    return _checked(name, number, 0, 2**63 - 1)


def _checked(name: str, number: Any, least: int, most: int) -> int:
    try:
        whole = operator.index(number)
    except TypeError:
        whole = least - 1
    if isinstance(number, bool) or not least <= whole <= most:
        raise ValueError(
            f"`{name}` must be a whole number from {least} to {most:,}, not {number!r}."
        )
    return whole
