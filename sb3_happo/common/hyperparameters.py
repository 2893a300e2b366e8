"""Checks of an algorithm's hyperparameters, and their conversion to plain Python numbers."""

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

#: Largest whole number of a setting: larger ones are slips, and fit no memory and no lifetime
LARGEST_COUNT = 2**31 - 1
#: Largest number of timesteps; ``sys.maxsize`` is often used for "until a callback stops"
LARGEST_TIMESTEPS = 2**63 - 1

# Remaining progress at which schedules are sampled: 1, 0.95, ..., 0
_N_INTERVALS = 20


class Setting(NamedTuple):
    """
    Condition on a hyperparameter.

    :param words: Description that completes "it must be ..."
    :param holds: Test of a number; it must be false for NaN
    :param whole: Whether the number must be an integer
    :param optional: Whether None is allowed too
    :param scheduled: Whether a schedule of such numbers, a callable of the remaining progress, is
        allowed too
    """

    words: str
    holds: Callable[[Any], bool]
    whole: bool = False
    optional: bool = False
    scheduled: bool = False


COUNT = Setting("a whole number, at least 1", lambda value: value >= 1, whole=True)
BATCH_SIZE = Setting("a whole number, at least 2", lambda value: value >= 2, whole=True)
SHARE = Setting("in [0, 1]", lambda value: 0 <= value <= 1)
FRACTION = Setting("in (0, 1)", lambda value: 0 < value < 1)
POSITIVE = Setting("greater than 0", lambda value: value > 0)
NOT_NEGATIVE = Setting("finite and at least 0", lambda value: 0 <= value < math.inf)


def optional(setting: Setting) -> Setting:
    """
    :param setting: A condition
    :return: The same condition, or None
    """
    return setting._replace(words=f"{setting.words}, or None", optional=True)


def scheduled(setting: Setting) -> Setting:
    """
    :param setting: A condition
    :return: The same condition, or a schedule of such numbers
    """
    return setting._replace(words=f"{setting.words}, or a schedule of such", scheduled=True)


#: With 0 a network does not change; a negative rate would increase the loss
LEARNING_RATE = scheduled(NOT_NEGATIVE)


def check_settings(values: Mapping[str, Any], settings: Mapping[str, Setting]) -> None:
    """
    :param values: Hyperparameters by name; other entries are ignored
    :param settings: Condition on each hyperparameter; schedules are sampled at 21 points, from the
        start to the end of the training
    :raises ValueError: If a condition does not hold, naming the hyperparameter
    """
    for name, setting in settings.items():
        value = values[name]
        if value is None and setting.optional:
            continue
        if callable(value) and setting.scheduled:
            _check_schedule(name, value, setting)
        elif not _is_number(value, setting.whole) or not setting.holds(value):
            raise ValueError(f"{name} must be {setting.words}, not {value!r}")
        elif setting.whole and value > LARGEST_COUNT:
            raise ValueError(
                f"{name} must be {setting.words}; at most {LARGEST_COUNT:,}, not {value!r}"
            )


def checked_timesteps(total_timesteps: Any) -> int:
    """
    :param total_timesteps: Argument of ``learn``: a whole number, or a float such as ``1e6``
    :return: Number of timesteps
    :raises ValueError: If it is no number, negative, NaN, or beyond 64 bits
    """
    total = plain_number(total_timesteps)
    if not _is_number(total, whole=False) or not 0 <= total <= LARGEST_TIMESTEPS:
        raise ValueError(
            "total_timesteps must be a number of steps, from 0 to 2**63 - 1, not "
            f"{total_timesteps!r}"
        )
    return int(total)


def _is_number(value: Any, whole: bool) -> bool:
    # Python counts True as 1
    kind = numbers.Integral if whole else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool)


def _check_schedule(name: str, schedule: Callable[[float], Any], setting: Setting) -> None:
    for interval in range(_N_INTERVALS + 1):
        progress = 1 - interval / _N_INTERVALS
        try:
            value = float(schedule(progress))
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise ValueError(
                f"{name} must be {setting.words}, not {schedule!r} ({error})"
            ) from error
        # A schedule may rise from 0 at the very start, and fall to 0 at the very end
        at_an_end = progress in (0, 1)
        if not (setting.holds(value) or (value == 0 and at_an_end)):
            raise ValueError(
                f"{name} must be {setting.words}; {schedule!r} is {value!r} when {progress:.0%} of "
                "the training is left"
            )


def check_agent_learning_rates(agent_kwargs: Mapping[Any, Mapping[str, Any]] | None) -> None:
    """
    :param agent_kwargs: Overrides for single agents, ``policy_kwargs["agent_kwargs"]``, or None
    :raises ValueError: If an agent's own learning rate is neither a finite number >= 0, nor a
        schedule of such, nor None for the common one
    """
    for agent, overrides in (agent_kwargs or {}).items():
        name = f"policy_kwargs['agent_kwargs'][{str(agent)!r}]['learning_rate']"
        rate = overrides.get("learning_rate")
        check_settings({name: rate}, {name: optional(LEARNING_RATE)})


def plain_number(value: Any) -> Any:
    """
    :param value: Anything
    :return: The same; a Python number in place of a NumPy scalar or an array without dimensions
    """
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, np.floating):
        return float(value)
    return value


def plain_numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    """
    Python numbers in place of NumPy scalars, as ``np.random.choice``, pandas or a configuration
    return them: SB3's schedules, ``random.seed`` and some of PyTorch's functions refuse them.

    :param values: Hyperparameters by name. Dicts, lists and tuples among them are converted too,
        in copies; arrays with dimensions stay as they are
    :return: The same hyperparameters, in a new dict
    """
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    # Subclasses may hold more than their entries, and stay as they are
    if type(value) is dict:
        return {key: _plain(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)([_plain(entry) for entry in value])
    return plain_number(value)
