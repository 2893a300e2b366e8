"""Attributes of environments inside wrappers: the object that uses an attribute."""

from typing import Any

# Names under which wrappers hold the environment inside
_INSIDE = ("env", "aec_env", "par_env")


def layers(env: Any) -> list[Any]:
    """
    :param env: Environment, wrapped or not, joint or not
    :return: Wrappers from the outermost one, and the environment inside them
    """
    found: list[Any] = []
    while env is not None and not any(env is layer for layer in found):
        found.append(env)
        inside = None
        for name in _INSIDE:
            inner = getattr(env, "__dict__", {}).get(name)
            if hasattr(inner, "reset") and hasattr(inner, "step"):
                inside = inner
                break
        env = inside
    return found


def owner_of(env: Any, name: str) -> Any:
    """
    :param env: Environment, wrapped or not
    :param name: Name of an attribute
    :return: Outermost layer that defines the attribute itself, and does not only pass on that of
        the environment inside; None if there is none
    """
    chain = layers(env)
    for layer in chain:
        if defines(layer, name):
            return layer
    # Attributes that a layer computes on demand
    for layer in reversed(chain):
        if hasattr(layer, name):
            return layer
    return None


def played_env(env: Any) -> Any:
    """
    :param env: Environment, wrapped or not, joint or not
    :return: Environment inside all wrappers, which defines the game
    """
    for layer in layers(env):
        inner = getattr(layer, "unwrapped", None)
        if inner is layer and not hasattr(type(layer), "state_layout"):
            return layer
    return layers(env)[-1]


def defines(layer: Any, name: str) -> bool:
    """
    :param layer: Wrapper or environment
    :param name: Name of an attribute
    :return: True if the layer defines the attribute itself
    """
    if name in getattr(layer, "__dict__", {}):
        return True
    for cls in type(layer).__mro__:
        # The properties and methods of the wrappers' base classes pass on those of the inside
        if name in vars(cls):
            passes_on = cls.__module__.startswith(("gymnasium.core", "pettingzoo.utils."))
            return not (passes_on and isinstance(vars(cls)[name], property))
    return False
