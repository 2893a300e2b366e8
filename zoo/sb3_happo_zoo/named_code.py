"""
Classes that settings name, such as wrappers and callbacks. Settings may come from elsewhere, so
that only modules of known packages, and those of ``--gym-packages``, are imported because of them.
"""

import importlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import gymnasium as gym
from pettingzoo.utils.wrappers import BaseParallelWrapper, BaseWrapper
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnvWrapper

#: Packages whose classes settings may name
PACKAGES = frozenset(
    (
        *("gymnasium", "pettingzoo", "supersuit", "shimmy", "sb3_happo", "sb3_happo_zoo"),
        *("stable_baselines3", "sb3_contrib", "rl_zoo3"),
    )
)
_BASES = (
    *(gym.Wrapper, BaseWrapper, BaseParallelWrapper, VecEnvWrapper, BaseCallback, BasePolicy),
)
_KEYS = ("wrappers", "env_wrapper", "vec_env_wrapper", "callback", "policy")
#: Modules that the user has named on the command line
_TRUSTED: set[str] = set()


def trust_modules(modules: Iterable[str]) -> None:
    """
    Let settings name classes and functions of further modules.

    :param modules: Modules of ``--gym-packages``
    """
    _TRUSTED.update(module.partition(".")[0] for module in modules)


def check_named_code(hyperparams: Mapping[str, Any]) -> None:
    """
    :param hyperparams: Entry
    :raises ValueError: If it names a module of a package that is not known, or something in a known
        one that is neither a wrapper nor a callback nor a policy
    """
    for key in _KEYS:
        for name in _dotted_names(hyperparams.get(key)):
            _check_name(key, name)


def _dotted_names(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if "." in value:
            yield value
    elif isinstance(value, Mapping):
        yield from map(str, value)
    elif isinstance(value, (list, tuple)):
        for own in value:
            yield from _dotted_names(own)


def _check_name(key: str, name: str) -> None:
    package = name.partition(".")[0]
    if package in _TRUSTED:
        return
    module, _, last = name.rpartition(".")
    if package not in PACKAGES:
        raise ValueError(
            f"{key}: settings may not import {module}, for they may come from elsewhere. If you "
            f"trust it, pass --gym-packages {package}."
        )
    try:
        value = getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError):
        return  # named with the nearest one where it is used
    is_supersuit = package == "supersuit" and inspect.isfunction(value)
    is_class = inspect.isclass(value) and issubclass(value, _BASES)
    if not is_supersuit and not is_class:
        raise ValueError(f"{key}: {name} is neither a wrapper nor a callback nor a policy.")
