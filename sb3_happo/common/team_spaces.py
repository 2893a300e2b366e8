"""Spaces of a team, and the entries of a joint observation that belong to each agent."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_happo.common.agent_inputs import flat_observation
from sb3_happo.common.distributions import action_leaves
from sb3_happo.envs.spaces import ACTION_MASK, ACTIVE


class TeamSpaces:
    """
    Spaces of a team and of its agents.

    An agent's own entries of the joint observation are ``"<agent>"`` or all ``"<agent>/<key>"``
    except its action mask ``"<agent>/action_mask"``.

    :param observation_space: Joint observation space of a :class:`~sb3_happo.envs.JointEnv`
    :param action_space: Joint action space, one entry per agent, in the agents' order
    :raises ValueError: If an agent has no entry in the joint observation
    """

    def __init__(self, observation_space: spaces.Dict, action_space: spaces.Dict) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self.agents = tuple(action_space.spaces)
        self._names = frozenset(self.agents)
        self.keys = agent_keys(observation_space, self.agents)
        self.mask_keys = {agent: f"{agent}/{ACTION_MASK}" for agent in self.agents}
        #: Observation space of each agent, without its mask
        self.own: dict[str, spaces.Space] = {
            agent: agent_observation_space(observation_space, self.keys[agent], agent)
            for agent in self.agents
        }
        self._n_choices: dict[str, int] = {}
        for agent in self.agents:
            leaves = action_leaves(action_space.spaces[agent])
            self._n_choices[agent] = sum(leaf.n_choices for leaf in leaves)

    def is_masked(self, agent: str) -> bool:
        """
        :param agent: Name of an agent
        :return: True if the joint observation holds action masks for it
        """
        return self.mask_keys[agent] in self.observation_space.spaces

    def check_agent(self, agent: str, where: str) -> None:
        """
        :param agent: Name to check
        :param where: Source of the name, for the error
        :raises ValueError: If the team has no such agent
        """
        if agent not in self._names:
            team = ", ".join(map(repr, self.agents))
            raise ValueError(f"Unknown agent {agent!r} in {where}; this team has {team}.")

    def agent_observation(self, observations: Mapping[str, th.Tensor], agent: str) -> PyTorchObs:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param agent: Name of an agent
        :return: Own observation of the agent, a dict where its space is one
        """
        keys = self.keys[agent]
        if keys == [agent]:
            return observations[agent]
        return {key.removeprefix(agent + "/"): observations[key] for key in keys}

    def action_masks(self, observations: Mapping[str, th.Tensor], agent: str) -> th.Tensor | None:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param agent: Name of an agent
        :return: 1 where a choice is legal, ``(batch, n_choices)``, or None for agents without masks
        """
        masks = observations.get(self.mask_keys[agent])
        # With VecFrameStack, the latest mask is the last one
        return None if masks is None else masks[..., -self._n_choices[agent] :]

    def split(self, observation: Mapping[Any, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Sort the entries of an observation by agent.

        :param observation: Joint observation, or ``{agent: observation}``
        :return: Own observations and action masks, by agent
        :raises ValueError: If an entry belongs to no agent
        """
        own: dict[str, Any] = {}
        masks: dict[str, Any] = {}
        for name, value in observation.items():
            key = str(name)
            owner = find_owner(key, self._names)
            if key == owner:
                own[key] = value
            elif owner is not None and key == self.mask_keys[owner]:
                masks[owner] = value
            elif owner is not None:
                own.setdefault(owner, {})[key.removeprefix(owner + "/")] = value
            elif key not in self.observation_space.spaces:
                # Entries of the critic are known, and not needed here
                self.check_agent(key, "the observation")
        return own, masks

    def is_joint(self, observation: Mapping[Any, Any]) -> bool:
        """
        :param observation: Joint observation, or ``{agent: observation}``
        :return: True if it has entries of the critic, as those of a ``JointEnv`` have, in which the
            agents' entries are converted already
        """
        for key in observation:
            name = str(key)
            if name in self.observation_space.spaces and find_owner(name, self._names) is None:
                return True
        return False

    def is_bare(self, observation: Any) -> bool:
        """
        :param observation: Observation given to a team of one
        :return: True if it is the only agent's own observation, not under the agent's name
        """
        if not isinstance(observation, dict):
            return True
        (agent,) = self.agents
        own_space = self.own[agent]
        own_keys = {ACTION_MASK}
        if isinstance(own_space, spaces.Dict):
            own_keys.update(own_space.spaces)
        keys = [str(key) for key in (*observation, *flat_observation(observation))]
        if any(find_owner(key, self._names) for key in keys):
            return False
        return not own_keys.isdisjoint(keys)

    def active(self, observation: Mapping[Any, Any]) -> dict[str, np.ndarray] | None:
        """
        :param observation: Joint observation, one or a batch
        :return: Active mask of each agent, ``(n_envs,)``; None where the observation has none
        """
        if ACTIVE not in observation or ACTIVE not in self.observation_space.spaces:
            return None
        n_agents = len(self.agents)
        flags = np.asarray(observation[ACTIVE], dtype=bool)
        # With VecFrameStack, the latest mask is the last one
        active = flags[..., -n_agents:].reshape(-1, n_agents)
        return dict(zip(self.agents, active.T, strict=True))


def find_owner(key: str, agents: Collection[str]) -> str | None:
    """
    :param key: Entry of a joint observation
    :param agents: Names of the agents; a set makes the search independent of their number
    :return: Agent that the entry belongs to, or None. The longest name wins, for "a/b" may be an
        agent beside "a"
    """
    name = key
    while name:
        if name in agents:
            return name
        name = name.rpartition("/")[0]
    return None


def agent_keys(observation_space: spaces.Dict, agents: tuple[str, ...]) -> dict[str, list[str]]:
    """
    :param observation_space: Joint observation space
    :param agents: Names of the agents
    :return: Own entries of each agent: ``["<agent>"]``, or all its ``"<agent>/<key>"`` except the
        action mask
    :raises ValueError: If an agent has none
    """
    keys: dict[str, list[str]] = {agent: [] for agent in agents}
    names = frozenset(agents)
    for key in observation_space.spaces:
        owner = find_owner(key, names)
        if owner is not None and key != f"{owner}/{ACTION_MASK}":
            keys[owner].append(key)
    for agent, own in keys.items():
        if not own:
            raise ValueError(
                f"The joint observation has no entry for agent {agent!r}, only "
                f"{list(observation_space.spaces)}; build the environment with `JointEnv` or "
                "`make_joint_env`."
            )
    return keys


def agent_observation_space(
    observation_space: spaces.Dict, keys: list[str], agent: str
) -> spaces.Space:
    """
    :param observation_space: Joint observation space
    :param keys: Own entries of the agent, see :func:`agent_keys`
    :param agent: Name of the agent
    :return: Space of its own observation, a Dict where it has several entries
    """
    if keys == [agent]:
        return observation_space.spaces[agent]
    parts = [(key.removeprefix(agent + "/"), observation_space.spaces[key]) for key in keys]
    return spaces.Dict(parts)
