"""What a tabular algorithm knows of a step: keys of the states, legal actions, rewards."""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from gymnasium import spaces

from sb3_happo.common.agent_inputs import split_mask
from sb3_happo.common.team_spaces import TeamSpaces
from sb3_happo.envs.encodings import encode_observation
from sb3_happo.envs.spaces import ACTION_MASK, ACTIVE
from sb3_happo.tabular.action_sets import ActionSet
from sb3_happo.tabular.state_keys import AgentKey, StateKey

#: Numbers of the legal actions; None for all
Legal: TypeAlias = tuple[int, ...] | None
#: The only action of an agent that is not there
ABSENT: Legal = (0,)


class Situation(NamedTuple):
    """
    Situation in which the agents of one environment act.

    :param keys: Key of each agent's observation and mask; None for an agent that is not there
    :param legal: Legal actions of each agent
    """

    keys: tuple[Hashable, ...]
    legal: tuple[Legal, ...]


class Transition(NamedTuple):
    """
    Step of one environment.

    :param before: Situation before the step
    :param actions: Numbers of the actions
    :param rewards: Own rewards of the agents, ``(n_agents,)``
    :param after: Situation after it, at a time limit the last one of the episode; None at the end
        of the game
    :param done: End of the episode
    :param env_index: Index of the environment
    """

    before: Situation
    actions: tuple[int, ...]
    rewards: np.ndarray
    after: Situation | None
    done: bool
    env_index: int


class SituationReader:
    """
    Situations of observations.

    :param team: Spaces of the team
    :param state_key: Argument of the algorithm
    :param owner: Name of the algorithm, for errors
    :raises ValueError: If a space is continuous
    """

    def __init__(self, team: TeamSpaces, state_key: StateKey, owner: str) -> None:
        self.team = team
        self.agents = team.agents
        self.actions: list[ActionSet] = []
        self._keys: list[AgentKey] = []
        for agent in self.agents:
            self.actions.append(ActionSet(agent, team.action_space.spaces[agent], owner))
            self._keys.append(AgentKey(agent, team.own[agent], state_key, owner))
        self._masked = [team.is_masked(agent) for agent in self.agents]

    # ---------------------------------------------------------------- joint observations

    def of_row(
        self, obs: Mapping[str, Any], row: int | None, active: np.ndarray | None
    ) -> Situation:
        """
        :param obs: Joint observation, a batch or one
        :param row: Index in the batch; None for a single observation
        :param active: Active mask, ``(n_agents,)``; None for all agents
        :return: Situation
        """
        keys: list[Hashable] = []
        legal: list[Legal] = []
        for index, agent in enumerate(self.agents):
            if active is not None and not active[index]:
                keys.append(None)
                legal.append(ABSENT)
                continue
            own_keys = self.team.keys[agent]
            if own_keys == [agent]:
                own: Any = obs[agent] if row is None else obs[agent][row]
            else:
                own = {}
                for name in own_keys:
                    value = obs[name] if row is None else obs[name][row]
                    own[name.removeprefix(agent + "/")] = value
            mask = None
            if self._masked[index]:
                given = obs[self.team.mask_keys[agent]]
                mask = given if row is None else given[row]
            key, choices = self._key(index, own, mask)
            keys.append(key)
            legal.append(choices)
        return Situation(tuple(keys), tuple(legal))

    def _key(self, index: int, own: Any, mask: Any) -> tuple[Hashable, Legal]:
        """Key and legal actions of one agent."""
        key = self._keys[index](own)
        if mask is None:
            return key, None
        legal = self.actions[index].legal(mask)
        return (key, legal), legal

    # ---------------------------------------------------------------- predict

    def of_agents(
        self, observation: Mapping[str, Any], action_masks: Mapping[str, Any] | None
    ) -> tuple[list[Situation], dict[str, Any], bool]:
        """
        Situations of the observations given to ``predict``.

        :param observation: ``{agent: observation}`` in the environment's form, or a joint
            observation, one or a batch
        :param action_masks: ``{agent: mask}``, where masks do not come within the observations
        :return: Situations, in which agents without observation are absent; own observations of the
            agents; and whether they were a batch
        :raises ValueError: If an agent is unknown, a mask is missing, or batches differ
        """
        team = self.team
        own, masks = team.split(observation)
        joint = team.is_joint(observation)
        for name, mask in (action_masks or {}).items():
            team.check_agent(str(name), "`action_masks`")
            masks[str(name)] = mask
        for agent, value in own.items():
            if not joint:
                own[agent] = self._encoded(agent, value, masks)
        sizes = {agent: self._batch_size(agent, value) for agent, value in own.items()}
        size = _common_size(sizes)
        active = team.active(observation)
        situations = []
        for row in range(size or 1):
            flags = None if active is None else {name: own[row] for name, own in active.items()}
            situations.append(self._of_given(own, masks, flags, None if size is None else row))
        return situations, own, size is not None

    def _encoded(self, agent: str, observation: Any, masks: dict[str, Any]) -> Any:
        """Own observation in the form of the joint observation; its mask goes into ``masks``."""
        space = self.team.own[agent]
        try:
            own, mask = split_mask(observation, space)
            encoded = encode_observation(space, own)
        except ValueError as error:
            raise ValueError(f"agent {agent!r}: {error}") from error
        if mask is not None:
            masks[agent] = mask
        return encoded

    def _batch_size(self, agent: str, own: Any) -> int | None:
        """Number of observations in a batch; None for a single one."""
        space = self.team.own[agent]
        if isinstance(space, spaces.Dict):
            name, space = next(iter(space.spaces.items()))
            own = own[name]
        shape, own_shape = np.shape(own), space.shape or ()
        if shape == own_shape:
            return None
        if shape[1:] == own_shape:
            return shape[0]
        raise ValueError(
            f"agent {agent!r}: the observation has shape {shape}, and its space is {space}."
        )

    def _of_given(
        self,
        own: Mapping[str, Any],
        masks: Mapping[str, Any],
        active: Mapping[str, Any] | None,
        row: int | None,
    ) -> Situation:
        """Situation of one row; agents without observation are absent."""
        keys: list[Hashable] = []
        legal: list[Legal] = []
        for index, agent in enumerate(self.agents):
            absent = agent not in own or (active is not None and not active[agent])
            if absent:
                keys.append(None)
                legal.append(ABSENT)
                continue
            value, mask = own[agent], masks.get(agent)
            self._check_mask(index, mask)
            if row is not None:
                mask = None if mask is None else mask[row]
                is_dict = isinstance(value, Mapping)
                value = {name: part[row] for name, part in value.items()} if is_dict else value[row]
            key, choices = self._key(index, value, mask)
            keys.append(key)
            legal.append(choices)
        return Situation(tuple(keys), tuple(legal))

    def _check_mask(self, index: int, mask: Any) -> None:
        agent = self.agents[index]
        if self._masked[index] and mask is None:
            raise ValueError(
                f"agent {agent!r} was trained with action masks; pass action_masks=, or an "
                f"observation with the key {ACTION_MASK!r}."
            )
        if not self._masked[index] and mask is not None:
            raise ValueError(
                f"agent {agent!r} was trained without action masks and would ignore them; train it "
                "in an environment that gives masks."
            )


def _common_size(sizes: Mapping[str, int | None]) -> int | None:
    """Size of the batch of all agents; None for single observations."""
    if len(set(sizes.values())) != 1:
        raise ValueError(
            "The agents' observations are of different batches: "
            f"{sizes or 'there is none'}; give one observation, or a batch of one size, to all."
        )
    return next(iter(sizes.values()))


def active_of(info: Mapping[str, Any]) -> np.ndarray | None:
    """
    :param info: Info of a step
    :return: Active mask of the observation that came with it, ``(n_agents,)``; None for all agents
    """
    return info.get(ACTIVE)
