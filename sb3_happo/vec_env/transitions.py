"""Count of the resets and steps of a training environment, whoever makes them."""

import functools
import itertools
import secrets
import types
from typing import Any

from stable_baselines3.common.vec_env import VecEnv

# Number of the last reset or step of an object, an attribute of the object
_LAST = "_sb3_happo_last_transition"
# Names that change an environment when they are called, directly or by VecEnv.env_method
_MOVES = ("reset", "reset_at", "step", "step_async", "step_wait")
# Numbers are unique in the process. They begin anywhere, so that the number in a saved model does
# not meet an equal one of another process.
_numbers = itertools.count(secrets.randbits(48))


class TransitionWatch:
    """
    Number of the last reset or step of an environment. The calls are noticed at each place where
    somebody may make them: the ``VecEnv`` inside all wrappers, and the environments inside it if
    they are in this process.

    :param env: Vectorised environment
    """

    def __init__(self, env: VecEnv) -> None:
        self.env = env
        owners: list[Any] = [env.unwrapped]
        for single in getattr(env.unwrapped, "envs", ()):
            owners += [getattr(single, "unwrapped", single), _innermost(single)]
        self._owners = [vars(owner) for owner in owners if _number_calls(owner)]

    @property
    def last(self) -> int:
        """
        :return: Number of the last reset or step, which no other one has
        """
        return max(owner[_LAST] for owner in self._owners)


def _number_calls(owner: Any) -> bool:
    """
    Number the calls of an object that move it on, unless they are numbered already.

    :param owner: ``VecEnv`` or environment
    :return: True if they are numbered now
    """
    try:
        if _LAST not in vars(owner):
            setattr(owner, _LAST, next(_numbers))
            for name in (*_MOVES, "env_method"):
                if callable(getattr(type(owner), name, None)):
                    setattr(owner, name, types.MethodType(_numbered(owner, name), owner))
    except (AttributeError, TypeError):  # an object that takes no new attributes
        return _LAST in getattr(owner, "__dict__", {})
    return True


def _innermost(env: Any) -> Any:
    """
    :param env: Environment
    :return: Environment inside all wrappers, and inside a ``JointEnv``
    """
    inner = getattr(env, "unwrapped", env)
    # A JointEnv is no wrapper of Gymnasium: the environment that it joins is its `env`
    if hasattr(inner, "state_layout"):
        inner = getattr(inner, "env", inner)
    return getattr(inner, "unwrapped", None) or inner


def _numbered(owner: Any, name: str) -> Any:
    """
    :param owner: Object
    :param name: Name of a method
    :return: Function of the object and the method's arguments that numbers the call and makes it
    """
    # As a method of the object, it is copied with the object and then calls the copy's method
    instance_method = vars(owner).get(name)

    @functools.wraps(getattr(type(owner), name))
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if name != "env_method" or [*args, kwargs.get("method_name")][0] in _MOVES:
            setattr(self, _LAST, next(_numbers))
        if instance_method is not None:
            return instance_method(*args, **kwargs)
        return getattr(type(self), name)(self, *args, **kwargs)

    return call
