"""Facts of a step as arrays over all environments, beside the infos of each environment."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, is_vecenv_wrapped

from sb3_happo.vec_env.single_agent import VecTeamOfOne

#: Key of the individual rewards in the infos, as a normaliser has scaled them
NORMALIZED_REWARDS = "normalized_agent_rewards"


class StepFacts(NamedTuple):
    """
    Facts of one step of all environments. ``active`` and ``waiting`` describe the observations that
    ``step_wait`` returns: after an episode has ended, those of the next episode.

    ``VmasVecEnv`` keeps ``agent_rewards`` as a tensor on the simulator's device when it is given
    tensors of actions. All other fields are NumPy arrays everywhere.

    :param agent_rewards: Individual rewards, float32 ``(n_envs, n_agents)``; NaN for an environment
        whose info has no ``"agent_rewards"``
    :param dones: End of an episode, bool ``(n_envs,)``
    :param truncated: End by a time limit alone (``"TimeLimit.truncated"``), bool ``(n_envs,)``
    :param active: Active mask, bool ``(n_envs, n_agents)``; None if all agents are active
    :param waiting: Mask of the agents that are alive though not active, bool
        ``(n_envs, n_agents)``; None if there are none
    :param normalized_agent_rewards: Individual rewards as
        :class:`~sb3_happo.vec_env.VecNormalizeTeam` has normalised them, float32
        ``(n_envs, n_agents)``; None where nothing normalises rewards
    """

    agent_rewards: Any
    dones: np.ndarray
    truncated: np.ndarray
    active: np.ndarray | None
    waiting: np.ndarray | None
    normalized_agent_rewards: np.ndarray | None = None


class StepInfos(list[dict[str, Any]]):
    """
    Infos of a step, one dict per environment, with the same facts as arrays.

    SB3's wrappers return this list, or copy it to a plain one; :func:`step_facts` handles both. A
    wrapper that changes rewards, flags or dones must return a plain list, from whose dicts the
    facts are then gathered.

    :param infos: Info of each environment
    :param facts: Facts of the step
    """

    def __init__(self, infos: Iterable[dict[str, Any]], facts: StepFacts) -> None:
        super().__init__(infos)
        self.facts = facts


def step_facts(
    infos: Sequence[dict[str, Any]], dones: np.ndarray, env: VecEnv, n_agents: int
) -> StepFacts:
    """
    Facts of the step that ``env`` has just made.

    :param infos: Infos that ``env.step`` returned; their ``facts`` are taken where there are some
    :param dones: Dones that ``env.step`` returned, ``(n_envs,)``
    :param env: Joint vectorised environment
    :param n_agents: Number of agents
    :return: Facts of the step
    """
    facts = getattr(infos, "facts", None)
    if facts is not None:
        return facts
    if is_vecenv_wrapped(env, VecTeamOfOne):
        # The info "active" of a single-agent environment does not mean the team
        return _gather_results(infos, dones, n_agents)
    return gather_facts(infos, dones, env.unwrapped.reset_infos, n_agents)


def initial_facts(env: VecEnv, n_agents: int) -> StepFacts:
    """
    Facts of the first observations, after ``env.reset``.

    :param env: Joint vectorised environment
    :param n_agents: Number of agents
    :return: Active and waiting agents; rewards are 0, ``dones`` True and ``truncated`` False
    """
    n_envs = env.num_envs
    dones = np.ones(n_envs, dtype=bool)
    no_infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
    facts = step_facts(no_infos, dones, env, n_agents)
    return facts._replace(agent_rewards=np.zeros((n_envs, n_agents), dtype=np.float32))


def gather_facts(
    infos: Sequence[Mapping[str, Any]],
    dones: np.ndarray,
    reset_infos: Sequence[Mapping[str, Any]],
    n_agents: int,
) -> StepFacts:
    """
    Gather the facts of a step from the dicts.

    :param infos: Info of each environment, as :class:`~sb3_happo.JointEnv` returns it, with
        ``"TimeLimit.truncated"`` where SB3 has it
    :param dones: End of an episode, ``(n_envs,)``
    :param reset_infos: Reset info of each environment, read where an episode has ended
    :param n_agents: Number of agents
    :return: Facts of the step
    """
    facts = _gather_results(infos, dones, n_agents)
    shape = (len(infos), n_agents)
    active: np.ndarray | None = None
    waiting: np.ndarray | None = None
    for index, done in enumerate(dones):
        info = reset_infos[index] if done else infos[index]
        if info.get("active") is None:
            continue
        if active is None:
            active = np.ones(shape, dtype=bool)
        active[index] = info["active"]
        if info.get("waiting_agents") is None:
            continue
        if waiting is None:
            waiting = np.zeros(shape, dtype=bool)
        waiting[index] = info["waiting_agents"]
    return facts._replace(active=active, waiting=waiting)


def _gather_results(
    infos: Sequence[Mapping[str, Any]], dones: np.ndarray, n_agents: int
) -> StepFacts:
    """Gather what does not depend on the next observations; ``active`` and ``waiting`` are None."""
    n_envs = len(infos)
    agent_rewards = np.full((n_envs, n_agents), np.nan, dtype=np.float32)
    normalized: np.ndarray | None = None
    truncated = np.zeros(n_envs, dtype=bool)
    for index, info in enumerate(infos):
        rewards = info.get("agent_rewards")
        if rewards is not None:
            agent_rewards[index] = rewards
        if NORMALIZED_REWARDS in info:
            if normalized is None:
                normalized = np.full_like(agent_rewards, np.nan)
            normalized[index] = info[NORMALIZED_REWARDS]
        truncated[index] = dones[index] and info.get("TimeLimit.truncated", False)
    ended = np.array(dones, dtype=bool)
    return StepFacts(agent_rewards, ended, truncated, None, None, normalized)
