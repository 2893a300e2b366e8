"""Results of an episode for the team, from the infos of its agents."""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

SUCCESS = "is_success"
# Entries of an info that have a meaning of their own
_RESERVED = frozenset(
    (
        *("active", "waiting_agents", "agent_rewards", "agent_infos", "episode"),
        *("TimeLimit.truncated", "terminal_observation", "final_observation", "final_info"),
    )
)


class TeamResults:
    """
    What the agents' infos say of an episode, at the top of the joint environment's info, where
    SB3's ``Monitor(info_keywords=...)``, ``VecMonitor`` and ``EvalCallback`` read it.

    * ``info["is_success"]``: True if all agents that have reported an ``"is_success"`` in the
      episode did so with True the last time. It is there from the first report on.
    * At the end of an episode, for each entry of the agents' last infos that is a number, a flag or
      a text: ``info["<agent>/<key>"]``, and ``info["<key>"]``, the mean over the agents that have
      reported it (the value itself where it is equal for all).
    """

    def __init__(self) -> None:
        self._last: dict[str, Mapping[str, Any]] = {}
        self._successes: dict[str, bool] = {}

    def restart(self) -> None:
        """Begin an episode."""
        self._last.clear()
        self._successes.clear()

    def add(self, agent_infos: Mapping[str, Mapping[str, Any]]) -> None:
        """
        Add the infos of a step.

        :param agent_infos: Infos that are not empty, by agent
        """
        self._last.update(agent_infos)
        for agent, info in agent_infos.items():
            if info.get(SUCCESS) is not None:
                self._successes[agent] = bool(info[SUCCESS])

    def write(self, info: dict[str, Any], ended: bool) -> None:
        """
        Add the team's results to its info. Entries that are there are kept.

        :param info: Info of the joint environment, changed in place
        :param ended: True at the end of an episode
        """
        if self._successes:
            info.setdefault(SUCCESS, all(self._successes.values()))
        if ended:
            for key, value in self._summary().items():
                info.setdefault(key, value)

    def _summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = {}
        reported: dict[str, list[Any]] = {}
        for agent, info in self._last.items():
            for key, value in info.items():
                if key not in _RESERVED and _is_plain(value):
                    summary[f"{agent}/{key}"] = value
                    reported.setdefault(key, []).append(value)
        for key, values in reported.items():
            if all(value == values[0] for value in values):
                summary[key] = values[0]
            elif all(map(_is_number, values)):
                summary[key] = float(np.mean(values))
        return summary


def _is_number(value: Any) -> bool:
    return isinstance(value, (numbers.Real, np.bool_, np.number))


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) or _is_number(value)


def infos_by_name(info: Mapping[str, Any], names: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """
    :param info: Info of a Gymnasium environment
    :param names: Names of the agents
    :return: Infos of single agents in it: the entries that are dicts under an agent's name
    """
    return {name: info[name] for name in names if isinstance(info.get(name), Mapping)}
