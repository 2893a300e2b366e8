"""Forms of ``net_arch``: the units of the hidden layers of actors and critics."""

import itertools
import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from sb3_happo.suggestions import did_you_mean

NetArch: TypeAlias = list[int] | dict[str, list[int]]

#: Keys of a dict: actors, and critics of states
PARTS = ("pi", "vf")
#: Most units of a layer; larger numbers are slips, such as 1e30
LARGEST_WIDTH = 1_000_000
#: Most weights between two layers: 16 GB
LARGEST_MATRIX = 2**32
_FORMS = (
    "the units of each hidden layer, net_arch=[64, 64], or those of actors and critic, "
    "net_arch=dict(pi=[64, 64], vf=[128, 128]); [] means no hidden layer"
)


def check_net_arch(net_arch: Any, where: str) -> NetArch | None:
    """
    Bring ``net_arch`` into its form.

    :param net_arch: Value given by the user. ``[dict(pi=..., vf=...)]``, the form of SB3 before
        1.8, is taken with a warning, as in SB3
    :param where: Place at which it was given, for errors
    :return: List of Python integers, dict of such lists, or None
    :raises ValueError: If it is in another form
    """
    if net_arch is None:
        return None
    if _is_old_form(net_arch):
        warnings.warn(
            f"{where}=[dict(pi=..., vf=...)] is the form of SB3 before 1.8; write "
            "net_arch=dict(pi=..., vf=...).",
            stacklevel=3,
        )
        net_arch = net_arch[0]
    if not isinstance(net_arch, Mapping):
        return _check_layers(net_arch, where, net_arch)
    layers = {}
    for part, units in net_arch.items():
        if part not in PARTS:
            hint = did_you_mean(str(part), PARTS, otherwise="There are 'pi' and 'vf'.")
            raise ValueError(f"{where} knows no {part!r}. {hint} It is {_FORMS}.")
        layers[part] = _check_layers(units, f"{where}[{part!r}]", net_arch)
    return layers


def _is_old_form(net_arch: Any) -> bool:
    if not isinstance(net_arch, (list, tuple)) or len(net_arch) != 1:
        return False
    return isinstance(net_arch[0], Mapping)


def _check_layers(units: Any, where: str, whole: Any) -> list[int]:
    """Units of the hidden layers as Python integers."""
    if isinstance(units, (list, tuple, np.ndarray)) and all(map(_is_width, units)):
        widths = [int(width) for width in units]
        _check_size(widths, where)
        return widths
    raise ValueError(f"{where} must be {_FORMS}; not {whole!r}.")


def _check_size(widths: list[int], where: str) -> None:
    """
    :param widths: Units of the hidden layers
    :param where: Place at which they were given, for errors
    :raises ValueError: If no machine has the memory for them
    """
    for width in widths:
        check_width(width, where)
    for first, second in itertools.pairwise(widths):
        if first * second > LARGEST_MATRIX:
            raise ValueError(
                f"{where}: layers of {first:,} and {second:,} units have {first * second:,} "
                f"weights between them, more than {LARGEST_MATRIX:,}; take smaller layers."
            )


def check_width(width: Any, where: str) -> None:
    """
    :param width: Units of a layer, or number of layers
    :param where: Name of the argument, for errors
    :raises ValueError: If it is no whole number from 1 to :data:`LARGEST_WIDTH`
    """
    if not _is_width(width) or width > LARGEST_WIDTH:
        raise ValueError(
            f"{where}: a layer has a whole number of units from 1 to {LARGEST_WIDTH:,}, not "
            f"{width!r}."
        )


def _is_width(width: Any) -> bool:
    if isinstance(width, bool) or not isinstance(width, (int, np.integer)):
        return False
    return bool(width >= 1)
