"""Values beyond the last step of a rollout: absent agents, and episodes cut off by a time limit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch as th

from sb3_happo.vec_env.step_facts import StepFacts

#: SB3's key of the last observation of an episode in the infos
LAST_OBSERVATION = "terminal_observation"
#: Function of values ``(n, n_values)`` and an active mask ``(n, n_agents)`` that returns the value
#: of agents that have left, ``(n, 1)`` or ``(n, n_values)``
ValueAfterLeaving: TypeAlias = Callable[[th.Tensor, th.Tensor], th.Tensor]


class Presence(NamedTuple):
    """
    State of the agents in a batch of observations.

    :param active: Mask of the agents that are alive and on turn, ``(n, n_agents)``; None for all
    :param waiting: Mask of the agents that are alive and not on turn, ``(n, n_agents)``; None for
        none
    """

    active: np.ndarray | None
    waiting: np.ndarray | None

    @classmethod
    def from_infos(cls, infos: Sequence[Mapping[str, Any]], n_agents: int) -> "Presence":
        """
        :param infos: Infos with the masks of their observations
        :param n_agents: Number of agents
        :return: State of the agents in these observations
        """
        active = _stack_masks("active", infos, np.ones(n_agents, dtype=bool))
        waiting = _stack_masks("waiting_agents", infos, np.zeros(n_agents, dtype=bool))
        return cls(active, waiting)


def mean_of_active_agents(values: th.Tensor, active: th.Tensor) -> th.Tensor:
    """
    Value of agents that have left a team with a common reward, whose episode continues without
    them: the mean of the active agents' values.

    :param values: Values of an observation, ``(n, n_agents)``
    :param active: Active mask of the observation, ``(n, n_agents)``
    :return: ``(n, 1)``
    """
    count = active.sum(dim=1, keepdim=True).clamp(min=1)
    return (values * active).sum(dim=1, keepdim=True) / count


def zero_after_leaving(values: th.Tensor, active: th.Tensor) -> th.Tensor:
    """
    Value of agents with rewards of their own that have left: 0.

    :param values: Values of an observation, ``(n, n_agents)``
    :param active: Active mask of the observation, ``(n, n_agents)``, unused
    :return: Zeros, ``(n, n_agents)``
    """
    return th.zeros_like(values)


def values_of_all_agents(
    values: th.Tensor,
    last_own_values: th.Tensor,
    presence: Presence,
    after_leaving: ValueAfterLeaving,
) -> th.Tensor:
    """
    Values of an observation for active and inactive agents. A critic with a value per agent learns
    only the steps at which an agent was active; its output for others has no meaning.

    :param values: Outputs of the critic, ``(n, n_agents)``
    :param last_own_values: Values of each agent's last active step in the episode, which hold for
        agents that wait for their turn, ``(n, n_agents)``
    :param presence: State of the agents in the observation
    :param after_leaving: Value of agents that have left permanently
    :return: ``(n, n_agents)``
    """
    if presence.active is None:
        return values
    active = th.as_tensor(presence.active, device=values.device)
    others = after_leaving(values, active)
    if presence.waiting is not None:
        waiting = th.as_tensor(presence.waiting, device=values.device)
        others = last_own_values.where(waiting, others)
    return values.where(active, others)


class LastObservations(NamedTuple):
    """
    Last observations of episodes that a time limit cut off.

    :param envs: Indices of the environments
    :param observations: Joint observation, each entry ``(n, ...)``: tensors where the environment
        returned tensors, else arrays
    :param presence: State of the agents in the observations
    """

    envs: list[int]
    observations: dict[str, Any]
    presence: Presence


def last_observations(
    truncated: np.ndarray,
    infos: Sequence[Mapping[str, Any]],
    keys: Sequence[str],
    n_agents: int,
) -> LastObservations:
    """
    :param truncated: True where a time limit cut an episode off, ``(n_envs,)``
    :param infos: Infos of the step
    :param keys: Entries of the joint observation
    :param n_agents: Number of agents
    :return: Last observations of these episodes, without those that the infos do not hold
    """
    envs = np.flatnonzero(truncated).tolist()
    envs = [env for env in envs if infos[env].get(LAST_OBSERVATION) is not None]
    if not envs:
        return LastObservations([], {}, Presence(None, None))
    observations = [infos[env][LAST_OBSERVATION] for env in envs]
    first = next(iter(observations[0].values()))
    join: Any = th.stack if isinstance(first, th.Tensor) else np.stack
    stacked = {key: join([obs[key] for obs in observations]) for key in keys}
    presence = Presence.from_infos([infos[env] for env in envs], n_agents)
    return LastObservations(envs, stacked, presence)


def cut_off(
    facts: StepFacts, infos: Sequence[Mapping[str, Any]], obs: Mapping[str, Any]
) -> tuple[StepFacts, list[dict[str, Any]]]:
    """
    Cut off the running episodes after a step, as a time limit does.

    :param facts: Facts of the step
    :param infos: Infos of the step
    :param obs: Joint observation that the step returned, each entry ``(n_envs, ...)``
    :return: Facts and infos with the end of all episodes
    """
    running = ~facts.dones
    ended = [dict(info) for info in infos]
    for index in np.flatnonzero(running).tolist():
        ended[index][LAST_OBSERVATION] = {key: values[index] for key, values in obs.items()}
    truncated = facts.truncated | running
    return facts._replace(dones=np.ones_like(facts.dones), truncated=truncated), ended


def _stack_masks(
    name: str, infos: Sequence[Mapping[str, Any]], default: np.ndarray
) -> np.ndarray | None:
    """Masks ``(n, n_agents)`` under a key of the infos; None if no info has one."""
    masks = [info.get(name) for info in infos]
    if all(mask is None for mask in masks):
        return None
    return np.stack([default if mask is None else mask for mask in masks])
