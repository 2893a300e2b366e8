"""
Classes that files may name. A file names a class as "module:qualname"; the name is looked up in a
list, and no module is ever imported because a file names it.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common import noise, torch_layers, type_aliases, utils
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn
from torch.nn.modules import activation
from torch.optim.optimizer import Optimizer

#: Kinds of classes of this package that a file may name
_PACKAGE_KINDS = (nn.Module, BaseBuffer, Optimizer, noise.ActionNoise)
#: Classes whose instances are their attributes, and nothing else
_STATE_CLASSES = (
    utils.FloatSchedule,
    utils.LinearSchedule,
    utils.ConstantSchedule,
    noise.NormalActionNoise,
    noise.OrnsteinUhlenbeckActionNoise,
    noise.VectorizedActionNoise,
    RunningMeanStd,
)
_BUILTINS = (bool, int, float, complex, str, bytes, list, tuple, dict, set, type(None))

#: Classes and functions that users and the package's own modules have added, by name
_ADDED: dict[str, Any] = {}


def allow_in_files(*objects: Any) -> Any:
    """
    Allow saved models to name classes and functions of your own, such as a features extractor or a
    schedule, so that they load without ``custom_objects``. Instances of these classes may be saved
    too, by their attributes. Usable as a decorator.

    :param objects: Classes and functions, defined or imported by the program that loads the file
    :return: The first of them
    :raises TypeError: If something else is given
    """
    for value in objects:
        if not inspect.isclass(value) and not inspect.isfunction(value):
            raise TypeError(
                f"allow_in_files takes classes and functions, not {value!r}, which is "
                f"{type(value).__name__}."
            )
        _ADDED[object_name(value)] = value
    return objects[0] if objects else None


def object_name(value: Any) -> str:
    """
    :param value: Class or function
    :return: Name in files, "module:qualname"
    """
    return f"{value.__module__}:{value.__qualname__}"


def is_known(value: Any) -> bool:
    """
    :param value: Class or function
    :return: True if a file that names it loads without ``custom_objects``
    """
    return find_object(object_name(value)) is value


def find_object(name: str, custom_objects: Mapping[str, Any] | None = None) -> Any:
    """
    :param name: Name in a file, "module:qualname"
    :param custom_objects: The user's own classes and functions, by this name or by the last part
    :return: Class or function; None if the list does not hold the name
    """
    module, _, qualname = name.partition(":")
    for key in (name, qualname, qualname.rpartition(".")[2]):
        if custom_objects and key in custom_objects:
            return custom_objects[key]
    if name in _ADDED:
        return _ADDED[name]
    if name in _library_classes():
        return _library_classes()[name]
    if module.partition(".")[0] == "sb3_happo":
        return _package_class(module, qualname)
    return None


def has_plain_state(cls: type) -> bool:
    """
    :param cls: Class
    :return: True if its instances are saved by their attributes
    """
    return cls in _STATE_CLASSES or _ADDED.get(object_name(cls)) is cls


def is_importable(value: Any) -> bool:
    """
    :param value: Class or function
    :return: True if it is found by its module and name, as those inside functions are not
    """
    found: Any = sys.modules.get(value.__module__)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def _package_class(module: str, qualname: str) -> type | None:
    """Class of this package, whose modules are imported already."""
    value = getattr(sys.modules.get(module), qualname, None)
    if not inspect.isclass(value) or value.__module__ != module:
        return None
    return value if issubclass(value, _PACKAGE_KINDS) or _is_named_tuple(value) else None


def _is_named_tuple(cls: type) -> bool:
    return issubclass(cls, tuple) and hasattr(cls, "_fields")


@cache
def _library_classes() -> dict[str, type]:
    """Classes of PyTorch, Stable-Baselines3 and NumPy, by name."""
    found = list(_of_libraries())
    return {object_name(cls): cls for cls in found} | {
        # Public names, in which classes of PyTorch may be written by hand
        f"torch.nn:{cls.__name__}": cls
        for cls in found
        if issubclass(cls, nn.Module) and cls.__module__.startswith("torch.")
    }


def _of_libraries() -> Iterator[type]:
    yield from _BUILTINS
    yield from _STATE_CLASSES
    yield from (nn.Identity, RMSpropTFLike)
    yield from _classes_in(activation, lambda cls: issubclass(cls, nn.Module))
    yield from _classes_in(th.optim, lambda cls: issubclass(cls, Optimizer))
    yield from _classes_in(torch_layers, lambda cls: issubclass(cls, nn.Module))
    yield from _classes_in(type_aliases, _is_named_tuple)
    yield type_aliases.TrainFrequencyUnit
    yield from _classes_in(np, lambda cls: issubclass(cls, np.generic))


def _classes_in(module: Any, takes: Callable[[type], bool]) -> Iterator[type]:
    top = module.__name__.partition(".")[0]
    for value in vars(module).values():
        if inspect.isclass(value) and value.__module__.partition(".")[0] == top and takes(value):
            yield value
