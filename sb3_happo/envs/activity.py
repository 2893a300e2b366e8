"""Activity of a team: the agents that act next, those that wait, and the end of an episode."""

from collections.abc import Collection, Sequence, Set
from typing import Any, NamedTuple

import numpy as np

from sb3_happo.envs.adapters import Flags, Team, flagged_agents, has_ended


class Activity(NamedTuple):
    """
    State of a team's agents after a reset or step.

    :param active: Active mask of the observations, ``(n_agents,)``; None if all agents are active
    :param waiting: Mask of the agents that are inactive and alive, ``(n_agents,)``; None if there
        are none
    :param terminated: Whether the episode has terminated
    :param truncated: Whether the episode was truncated
    """

    active: np.ndarray | None = None
    waiting: np.ndarray | None = None
    terminated: bool = False
    truncated: bool = False


class ActivityTracker:
    """
    Computes the :class:`Activity` of a team after each reset and step.

    :param team: Team
    :param ids: All agents of the team
    """

    def __init__(self, team: Team, ids: Sequence[Any]) -> None:
        self._team = team
        self._ids = ids
        self._known = set(ids)
        # Agents that were terminated or truncated in the last step
        self._flagged: frozenset[Any] = frozenset()
        # Agents that the environment has listed in this episode, and those that it has dropped
        self._listed: frozenset[Any] = frozenset()
        self._dropped: frozenset[Any] = frozenset()

    def reset(self, observations: Collection[Any]) -> Activity:
        """
        Start an episode.

        :param observations: Agents that are observed
        :return: Activity
        :raises ValueError: If an agent is unknown
        """
        self._flagged = frozenset()
        self._listed = frozenset(self._team.agents)
        self._dropped = frozenset()
        active = self._active(observations, frozenset())
        return Activity(active, self._waiting(active, self._listed))

    def step(
        self, observations: Collection[Any], terminations: Flags, truncations: Flags
    ) -> Activity:
        """
        Follow a step of the team.

        :param observations: Agents that are observed
        :param terminations: Terminations of the step
        :param truncations: Truncations of the step
        :return: Activity. The episode has ended if the environment lists no agent, or if all that
            it lists are flagged
        :raises ValueError: If an agent is unknown
        """
        flagged_before = self._flagged
        self._flagged = frozenset()
        agents = self._team.agents
        complete = len(observations) == len(self._ids) and len(agents) >= len(self._listed)
        if complete and not any(terminations.values()) and not any(truncations.values()):
            return Activity()
        # An agent that the environment drops from its list has ended, flagged or not, and observed
        # or not
        self._listed = self._listed.union(agents)
        self._dropped = self._listed.difference(agents)
        if has_ended(agents, terminations, truncations):
            present = set(observations) - flagged_before
            return self._end(present, flagged_before, terminations, truncations)
        flagged = flagged_agents(self._ids, terminations, truncations)
        self._flagged = self._dropped.union(flagged)
        active = self._active(observations, self._flagged)
        alive = set(agents) - self._flagged
        return Activity(active, self._waiting(active, alive))

    def _end(
        self,
        present: Set[Any],
        flagged_before: Set[Any],
        terminations: Flags,
        truncations: Flags,
    ) -> Activity:
        """
        Activity in the terminal observation. It is used for the values of truncated agents,
        so that in a truncated episode the terminated agents count as inactive.

        :param present: Agents that are observed and were not flagged before
        :param flagged_before: Agents that were flagged in the step before
        :param terminations: Terminations of the last step
        :param truncations: Truncations of the last step
        :return: Activity
        """
        terminated = {agent for agent in self._ids if terminations.get(agent, False)}
        cut_off = {agent for agent in self._ids if truncations.get(agent, False)}
        cut_off -= terminated.union(flagged_before)
        truncated = bool(cut_off)
        active = self._active(present, terminated if truncated else frozenset())
        return Activity(active, self._waiting(active, cut_off), not truncated, truncated)

    def _active(self, observations: Collection[Any], ended: Set[Any]) -> np.ndarray | None:
        """
        Mask of the observed agents that have not ended, ``(n_agents,)``; None if all.

        :param observations: Observed agents
        :param ended: Agents that have ended
        :return: Mask
        """
        if not self._known.issuperset(observations):
            unknown = [agent for agent in observations if agent not in self._known]
            raise ValueError(
                f"The env observes agents {unknown}, which it did not list before; list every "
                "agent that may appear in `possible_agents`."
            )
        active = self._mask(set(observations) - ended)
        return None if active.all() else active

    def _waiting(self, active: np.ndarray | None, alive: Set[Any]) -> np.ndarray | None:
        """Mask of the inactive agents that are alive, ``(n_agents,)``; None if there are none."""
        if active is None:
            return None
        waiting = ~active & self._mask(alive)
        return waiting if waiting.any() else None

    def _mask(self, agents: Set[Any]) -> np.ndarray:
        """Mask of the agents that are in a set, ``(n_agents,)``."""
        return np.fromiter(map(agents.__contains__, self._ids), bool, len(self._ids))
