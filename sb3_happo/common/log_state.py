"""Figures of a logger that were recorded and not written yet."""

from typing import Any

from stable_baselines3.common.logger import Logger

from sb3_happo.common.plain_state import NotPlainError, plain_copy


def log_state(logger: Logger | None) -> dict[str, Any]:
    """
    :param logger: Logger; None before the first training
    :return: Figures that were recorded and not written yet, plain data; images and the like are
        left out
    """
    values: dict[str, Any] = {}
    if logger is None:
        return {"values": values, "counts": {}, "excluded": {}}
    for name, value in logger.name_to_value.items():
        try:
            values[name] = plain_copy(value)
        except NotPlainError:
            continue
    counts = {name: logger.name_to_count.get(name, 0) for name in values}
    excluded = {name: logger.name_to_excluded[name] for name in values}
    return {"values": values, "counts": counts, "excluded": excluded}


def restore_log(logger: Logger, state: dict[str, Any]) -> None:
    """
    :param logger: Logger, to which the figures are added
    :param state: Result of :func:`log_state`
    """
    logger.name_to_value.update(state["values"])
    logger.name_to_count.update(state["counts"])
    for name, excluded in state["excluded"].items():
        logger.name_to_excluded[name] = tuple(excluded)
