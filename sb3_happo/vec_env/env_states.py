"""State of an environment's running episode, for environments that offer theirs."""

import inspect
from collections.abc import Iterator
from typing import Any

from stable_baselines3.common.monitor import Monitor

from sb3_happo.common.plain_state import NotPlainError, plain_attributes, plain_copy
from sb3_happo.envs.attributes import layers, played_env

#: Names of the two methods of environments whose episodes are kept
GET_STATE, SET_STATE = "get_state", "set_state"

# Wrappers whose state is their plain attributes
_KNOWN_WRAPPERS = (
    *("Monitor", "JointEnv", "TimeLimit", "OrderEnforcing", "PassiveEnvChecker"),
    *("OrderEnforcingWrapper", "BaseWrapper", "BaseParallelWrapper"),
)
_KNOWN_MODULES = ("stable_baselines3.", "sb3_happo.", "gymnasium.", "pettingzoo.")
# Parts of the package whose attributes are state
_OWN_MODULES = "sb3_happo.envs."
# Attributes that are no state: identities, times, and results of earlier episodes
_NOT_STATE = (
    *("_first_list", "_first_length", "metadata", "t_start"),
    *("episode_returns", "episode_lengths", "episode_times"),
)


def offers_state(owner: Any) -> bool:
    """
    :param owner: Environment or ``VecEnv``
    :return: True if its class has the methods ``get_state()`` and ``set_state(state)``
    """
    return _takes(owner, GET_STATE, 0) and _takes(owner, SET_STATE, 1)


def _takes(owner: Any, name: str, n_arguments: int) -> bool:
    """True if the method can be called with so many arguments."""
    if not callable(getattr(type(owner), name, None)):
        return False
    try:
        inspect.signature(getattr(owner, name)).bind(*range(n_arguments))
    except (TypeError, ValueError):
        return False
    return True


def keeps_episode(env: Any) -> bool:
    """
    :param env: Joint environment with its wrappers
    :return: True if :func:`episode_state` holds all of its running episode: the environment inside
        offers its state, and the wrappers around it are known
    """
    played = played_env(env)
    if not offers_state(played):
        return False
    for layer in layers(env):
        if layer is played:
            break
        cls = type(layer)
        is_known = cls.__name__ in _KNOWN_WRAPPERS and cls.__module__.startswith(_KNOWN_MODULES)
        if not is_known:
            return False
    return True


def episode_state(env: Any) -> dict[str, Any]:
    """
    :param env: Environment for which :func:`keeps_episode` is True
    :return: State of its running episode, plain data
    :raises ValueError: If ``get_state`` returns something else
    """
    played = played_env(env)
    try:
        inside = plain_copy(played.get_state())
    except NotPlainError as error:
        raise ValueError(
            f"get_state() of {type(played).__name__} returned {error}; it must return numbers, "
            "texts, arrays, generators, and lists and dicts of these, so that a checkpoint can "
            "hold it."
        ) from error
    around = {path: plain_attributes(part, _NOT_STATE) for path, part in _parts(env, played)}
    return {"inside": inside, "around": around}


def restore_episode(env: Any, state: dict[str, Any]) -> None:
    """
    :param env: Environment of the same kind, reset
    :param state: Result of :func:`episode_state`
    """
    played = played_env(env)
    for path, part in _parts(env, played):
        vars(part).update(plain_copy(state["around"].get(path, {})))
    played.set_state(plain_copy(state["inside"]))


def _parts(env: Any, played: Any) -> Iterator[tuple[str, Any]]:
    """Wrappers around an environment, and the package's own objects in them, by their paths."""
    seen = {id(played)}
    waiting = [(f"{index}", layer) for index, layer in enumerate(layers(env))]
    while waiting:
        path, part = waiting.pop(0)
        if id(part) in seen or not hasattr(part, "__dict__"):
            continue
        seen.add(id(part))
        yield path, part
        if isinstance(part, Monitor):
            continue
        for name, value in vars(part).items():
            if type(value).__module__.startswith(_OWN_MODULES):
                waiting.append((f"{path}.{name}", value))
