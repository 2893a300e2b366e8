"""Layout of the joint observation: the agents' arrays and action masks, each under its own key."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.spaces import (
    ACTION_MASK,
    AGENT_STATES,
    OBSERVATION,
    STATE,
    flatten_mask,
    n_choices,
    observation_leaves,
)
from sb3_happo.envs.state import Leaf, Observations


class _Array(NamedTuple):
    """
    One array of an agent's observation.

    :param key: Key in the joint observation
    :param path: Keys that lead to the array in the agent's own observation
    :param shape: Shape
    :param dtype: Type in the joint observation
    """

    key: str
    path: tuple
    shape: tuple[int, ...]
    dtype: np.dtype
    space: spaces.Space
    #: Smallest and largest value of whole numbers; None for a Box
    limits: tuple[Any, Any] | None

    def check_values(self, agent: str, array: np.ndarray) -> None:
        """
        Check that an observation counts within its space.

        :param agent: Name of the agent
        :param array: Observation, of the shape of the space
        :raises ValueError: If a value is none of the space
        """
        if self.limits is None:
            return
        low, high = self.limits
        # Written so that NaN is refused too
        allowed = (array >= low) & (array <= high)
        if array.dtype.kind == "f":
            allowed &= array == np.floor(array)
        if not allowed.all():
            raise ValueError(
                f"agent {agent!r}: the observation {array.tolist()} (entry {self.key!r}) is not in "
                f"its space {self.space}; correct the env's observation_space or what it returns."
            )


def _limits(space: spaces.Space) -> tuple[Any, Any] | None:
    """Smallest and largest value of a space of whole numbers, or None."""
    if isinstance(space, spaces.Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, spaces.MultiDiscrete):
        return space.start, space.start + space.nvec - 1
    if isinstance(space, spaces.MultiBinary):
        return 0, 1
    return None


class AgentLayout:
    """
    Layout of one agent's observation.

    :param agent: Id of the agent in the environment
    :param name: Name of the agent in the joint environment
    :param observation_space: Observation space of the agent, with or without an action mask
    :param action_space: Action space of the agent
    :param masks_in_infos: Whether the infos hold an action mask of the agent
    :raises TypeError: If the observation space is not supported
    """

    def __init__(
        self,
        agent: Any,
        name: str,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        masks_in_infos: bool,
    ) -> None:
        self.agent = agent
        self.name = name
        self.action_space = action_space
        self.n_choices = n_choices(action_space)
        #: Whether the action mask is part of the observation; otherwise it is in the info
        self.mask_in_observation = _has_mask(observation_space)
        masked = self.n_choices > 0 and (self.mask_in_observation or masks_in_infos)
        #: Key of the action mask in the joint observation; None without masks
        self.mask_key = f"{name}/{ACTION_MASK}" if masked else None
        prefix, observation_space = _without_mask(observation_space)
        try:
            leaves = observation_leaves(observation_space)
        except TypeError as error:
            raise TypeError(f"agent {name!r} has an {error}.") from error
        #: Spaces of the agent's arrays, by their keys in the joint observation
        self.spaces: list[tuple[str, spaces.Space]] = []
        self._arrays: list[_Array] = []
        for path, space in leaves:
            key = "/".join([name, *map(str, path)])
            self.spaces.append((key, space))
            self._arrays.append(
                _Array(
                    key,
                    prefix + path,
                    space.shape or (),
                    np.dtype(space.dtype),
                    space,
                    _limits(space),
                )
            )
        #: Entries while the agent is inactive: zeros, and a mask that allows everything
        self.inactive: Observations = {
            array.key: np.zeros(array.shape, array.dtype) for array in self._arrays
        }
        if self.mask_key is not None:
            self.inactive[self.mask_key] = np.ones(self.n_choices, np.int8)
        for value in self.inactive.values():
            value.flags.writeable = False  # the same arrays are returned at every step

    def fill(self, joint: Observations, observation: Any, infos: Mapping[Any, dict]) -> None:
        """
        Add the agent's entries to a joint observation.

        :param joint: Joint observation, changed in place
        :param observation: Observation of the agent
        :param infos: Infos of the environment, by agent
        :raises ValueError: If the observation does not fit the agent's spaces
        """
        try:
            for entry in self._arrays:
                key, path, shape, dtype = entry[:4]
                array = observation
                for part in path:
                    array = array[part]
                if type(array) is not np.ndarray:
                    array = np.asarray(array)
                if array.shape != shape:  # NumPy would broadcast it where it is stored
                    raise ValueError(
                        f"agent {self.name!r}: an observation of shape {array.shape} (entry "
                        f"{key!r}), where its space has {shape}; correct the env's "
                        "observation_space or what it returns."
                    )
                if entry.limits is not None:
                    entry.check_values(self.name, array)
                joint[key] = array if array.dtype is dtype else array.astype(dtype)
            if self.mask_key is not None:
                joint[self.mask_key] = self._flat_mask(self._mask(observation, infos))
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"agent {self.name!r}: its observation lacks {error}, which is in its observation "
                "space."
            ) from error

    def _flat_mask(self, mask: Any) -> np.ndarray:
        """Flat action mask; errors name the agent."""
        try:
            return flatten_mask(self.action_space, mask)
        except ValueError as error:
            raise ValueError(
                f"agent {self.name!r}: {error}; give one entry per choice, 1 where it is legal."
            ) from error

    def check_mask(self, info: Mapping[str, Any], needs_mask: bool) -> None:
        """
        Check that the info holds an action mask if and only if it did at the first reset.

        :param info: Info of the agent
        :param needs_mask: Whether the agent acts next
        :raises ValueError: If it does not
        """
        if self.mask_in_observation or not self.n_choices:
            return
        if self.mask_key is None and ACTION_MASK in info:
            raise ValueError(self._mask_error("an action mask", "none"))
        if self.mask_key is not None and needs_mask and info.get(ACTION_MASK) is None:
            raise ValueError(self._mask_error("no action mask", "one"))

    def _mask_error(self, now: str, before: str) -> str:
        return (
            f"agent {self.name!r} has {now} in its info now, but had {before} at the first reset; "
            "give one at every reset and step (all ones where everything is legal)."
        )

    def _mask(self, observation: Any, infos: Mapping[Any, dict]) -> Any:
        if self.mask_in_observation:
            return observation[ACTION_MASK]
        return infos.get(self.agent, {}).get(ACTION_MASK)


def _has_mask(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Dict) and ACTION_MASK in space.spaces


def _without_mask(space: spaces.Space) -> tuple[tuple, spaces.Space]:
    """
    :param space: Observation space of an agent
    :return: Path to the space without action mask, and that space
    """
    if not (isinstance(space, spaces.Dict) and ACTION_MASK in space.spaces):
        return (), space
    rest = [(key, part) for key, part in space.spaces.items() if key != ACTION_MASK]
    if [key for key, _ in rest] == [OBSERVATION]:
        return (OBSERVATION,), rest[0][1]
    return (), spaces.Dict(rest)


class ObservationLayout:
    """
    Layout of the agents' entries in the joint observation.

    :param ids: Ids of the agents in the environment
    :param names: Names of the agents in the joint environment
    :param team_spaces: Observation space and action space of each agent
    :param observations: Observations of a reset
    :param infos: Infos of the same reset
    :raises TypeError: If an observation space is not supported
    """

    def __init__(
        self,
        ids: Sequence[Any],
        names: Sequence[str],
        team_spaces: Sequence[tuple[spaces.Space, spaces.Space]],
        observations: Mapping[Any, Any],
        infos: Mapping[Any, dict],
    ) -> None:
        showing = [agent for agent in observations if ACTION_MASK in infos.get(agent, {})]
        self._agents: list[AgentLayout] = []
        for agent, name, (observation_space, action_space) in zip(
            ids, names, team_spaces, strict=True
        ):
            # Agents that are absent at the reset are taken to have masks if any other agent has one
            masks_in_infos = agent in showing if agent in observations else bool(showing)
            self._agents.append(
                AgentLayout(agent, name, observation_space, action_space, masks_in_infos)
            )
        #: Arrays of all agents
        self.leaves: list[Leaf] = []
        masks: list[tuple[str, spaces.Space]] = []
        for index, layout in enumerate(self._agents):
            self.leaves += [Leaf(key, index, space) for key, space in layout.spaces]
            if layout.mask_key is not None:
                masks.append((layout.mask_key, spaces.Box(0, 1, (layout.n_choices,), np.int8)))
        #: Entries of the joint observation and their spaces: arrays first, then action masks
        self.entries = [(leaf.key, leaf.space) for leaf in self.leaves] + masks
        self._masks_in_infos = bool(showing)

    def lay_out(
        self,
        observations: Mapping[Any, Any],
        infos: Mapping[Any, dict],
        active: np.ndarray | None,
    ) -> Observations:
        """
        Compute the agents' entries of a joint observation.

        :param observations: Observations by agent
        :param infos: Infos by agent
        :param active: Active mask, ``(n_agents,)``; None if all agents are active
        :return: Entries by key
        :raises ValueError: If an observation does not fit its space
        """
        joint: Observations = {}
        for index, layout in enumerate(self._agents):
            if active is None or active[index]:
                layout.fill(joint, observations[layout.agent], infos)
            else:
                joint.update(layout.inactive)
        return joint

    def check_masks(
        self, infos: Mapping[Any, dict], active: np.ndarray | None, ended: bool
    ) -> None:
        """
        Check that the infos hold the same agents' masks as at the first reset.

        :param infos: Infos by agent
        :param active: Active mask, ``(n_agents,)``; None if all agents are active
        :param ended: Whether the episode has ended, after which no mask is needed
        :raises ValueError: If an agent has a mask and had none, or has none and had one
        """
        if not self._masks_in_infos and not any(infos.values()):
            return
        for index, layout in enumerate(self._agents):
            needs_mask = not ended and (active is None or bool(active[index]))
            layout.check_mask(infos.get(layout.agent) or {}, needs_mask)


def check_keys(names: Sequence[str], keys: Sequence[str]) -> None:
    """
    Check that the keys of a joint observation are distinct and belong to one agent.

    :param names: Names of the agents
    :param keys: Keys of all entries of the joint observation
    :raises ValueError: If an agent must be renamed, or several entries have the same key
    """
    for name in names:
        if name in (STATE, AGENT_STATES) or name.startswith(STATE + "/"):
            raise ValueError(
                f"An agent is called {name!r}, which is the key of the critic's state; rename the "
                "agent."
            )
        owners = [other for other in names if name.startswith(other + "/")]
        if owners:
            raise ValueError(
                f"Agents {owners[0]!r} and {name!r}: their observations' keys could be mixed up; "
                "rename one of them."
            )
    repeated = {key for key in keys if keys.count(key) > 1}
    if repeated:
        raise ValueError(
            f"Several entries of the joint observation would have the keys {sorted(repeated)}; "
            f"rename those keys in the agents' observations ({ACTION_MASK!r} is the key of action "
            "masks)."
        )
