"""What the settings of an algorithm may be."""

import numbers
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """
    What a setting must be.

    :param words: Completes "it must be ..."
    :param holds: Whether a number is that; NaN must not be
    :param whole: Whether it must be an integer
    :param optional: Whether it may be None instead
    :param scheduled: Whether it may be a schedule of such, a callable of the remaining progress, instead
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
NOT_NEGATIVE = Setting("finite and at least 0", lambda value: 0 <= value < float("inf"))


def optional(setting: Setting) -> Setting:
    """
    :param setting: What something must be
    :return: The same, or None
    """
    return setting._replace(words=f"{setting.words}, or None", optional=True)


def scheduled(setting: Setting) -> Setting:
    """
    :param setting: What something must be
    :return: The same, or a schedule of such
    """
    return setting._replace(words=f"{setting.words}, or a schedule of such", scheduled=True)


def check_settings(values: Mapping[str, Any], settings: Mapping[str, Setting]) -> None:
    """
    :param values: Settings and other things, by name; of schedules, values at the start, half-way and at the end are looked at
    :param settings: What they must be
    :raises ValueError: If one is something else, naming it
    """
    for name, setting in settings.items():
        value = values[name]
        if value is None and setting.optional:
            continue
        kind = numbers.Integral if setting.whole else numbers.Real
        if callable(value) and setting.scheduled:
            for progress in (1.0, 0.5, 0.0):
                try:
                    then = float(value(progress))
                except (TypeError, ValueError, ZeroDivisionError) as error:
                    raise ValueError(
                        f"{name} must be {setting.words}, not {value!r} ({error})"
                    ) from error
                if not (
                    setting.holds(then) or (then == 0 and progress == 0)
                ):  # it may fall to nothing
                    raise ValueError(
                        f"{name} must be {setting.words}; {value!r} is {then!r} when {progress:.0%} of the training are left"
                    )
        elif not isinstance(value, kind) or not setting.holds(value):
            raise ValueError(f"{name} must be {setting.words}, not {value!r}")
