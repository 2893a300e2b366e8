"""States of callbacks, which have no state dicts of their own in Stable-Baselines3."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.common.plain_state import ChangingState

# Attributes that every training sets anew
_NOT_STATE = ("model", "parent", "locals", "globals")
_WITHOUT_STATE = (CallbackList, ConvertCallback, ProgressBarCallback)


def all_callbacks(root: BaseCallback | None) -> dict[str, BaseCallback]:
    """
    :param root: Callback, with others inside it, such as a ``CallbackList`` or an ``EvalCallback``
    :return: All of them, by their class and their number among those of the class, such as
        "EvalCallback.0"
    """
    named: dict[str, BaseCallback] = {}
    counts: Counter[str] = Counter()
    for callback in _walk(root, set()):
        name = type(callback).__name__
        named[f"{name}.{counts[name]}"] = callback
        counts[name] += 1
    return named


def _walk(callback: Any, seen: set[int]) -> Iterator[BaseCallback]:
    if not isinstance(callback, BaseCallback) or id(callback) in seen:
        return
    seen.add(id(callback))
    yield callback
    for name, value in vars(callback).items():
        if name in _NOT_STATE:
            continue
        for item in value if isinstance(value, (list, tuple)) else [value]:
            yield from _walk(item, seen)


def evaluation_envs(root: BaseCallback | None, training_env: VecEnv | None) -> list[VecEnv]:
    """
    :param root: Callback, with others inside it
    :param training_env: Training environment
    :return: Environments of the callbacks' evaluations (``eval_env``), without the training
        environment
    """
    found: list[VecEnv] = []
    inside = None if training_env is None else training_env.unwrapped
    for callback in all_callbacks(root).values():
        env = getattr(callback, "eval_env", None)
        if isinstance(env, VecEnv) and env.unwrapped is not inside:
            found.append(env)
    return found


class CallbackStates:
    """
    States of a training's callbacks: their plain attributes, except settings that have not changed
    since this object was made. A callback with the methods ``state_dict()`` and
    ``load_state_dict(state)`` says itself what its state is.

    :param root: Callback, with others inside it
    """

    def __init__(self, root: BaseCallback | None) -> None:
        self._callbacks = all_callbacks(root)
        self._states: dict[str, ChangingState] = {}
        for name, callback in self._callbacks.items():
            if not hasattr(callback, "state_dict"):
                self._states[name] = ChangingState(callback, _NOT_STATE)

    def get(self) -> dict[str, Any]:
        """
        :return: State of each callback, by its name, see :func:`all_callbacks`
        """
        states = {}
        for name, callback in self._callbacks.items():
            own: Any = callback
            states[name] = self._states[name].get() if name in self._states else own.state_dict()
        return states

    def set(self, states: Mapping[str, Any]) -> None:
        """
        Restore the states. Callbacks without one begin anew, with a warning.

        :param states: Result of :meth:`get` for the same callbacks
        """
        missing = []
        for name, callback in self._callbacks.items():
            own: Any = callback
            if name not in states:
                if not isinstance(callback, _WITHOUT_STATE):
                    missing.append(type(callback).__name__)
            elif name in self._states:
                self._states[name].set(states[name])
            else:
                own.load_state_dict(states[name])
        if missing:
            warnings.warn(
                f"The checkpoint has no state of {missing}, which begin anew; it holds those of "
                f"{sorted(states)}. Pass the same callbacks.",
                stacklevel=2,
            )
