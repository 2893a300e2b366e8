"""Layout of the joint observation: the agents' arrays and action masks, each under its own key."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.encodings import encode_array, encoded_space, is_constant
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
    :param shape: Shape there
    :param dtype: Type in the joint observation
    :param space: Space in the joint observation, where values must be checked or converted beyond
        their type; None for the others
    """

    key: str
    path: tuple
    shape: tuple[int, ...]
    dtype: np.dtype
    space: spaces.Space | None

    def fits(self, value: Any) -> bool:
        """
        :param value: Observation of the agent
        :return: Whether it is this array, in the form of the joint observation
        """
        if type(value) is not np.ndarray:
            return False
        return value.shape == self.shape and value.dtype is self.dtype


class AgentLayout:
    """
    Layout of one agent's observation.

    :param agent: Id of the agent in the environment
    :param name: Name of the agent in the joint environment
    :param observation_space: Observation space of the agent, with or without an action mask
    :param action_space: Action space of the agent
    :param masks_in_infos: Whether the infos hold an action mask of the agent
    :param ignore_masks: Whether to leave out action masks
    :raises TypeError: If the observation space is not supported
    """

    def __init__(
        self,
        agent: Any,
        name: str,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        masks_in_infos: bool,
        ignore_masks: bool = False,
    ) -> None:
        self.agent = agent
        self.name = name
        self.action_space = action_space
        self.n_choices = n_choices(action_space)
        #: Whether the action mask is part of the observation; otherwise it is in the info
        self.mask_in_observation = _has_mask(observation_space)
        self.ignore_masks = ignore_masks
        maskable = self.n_choices > 0 and not ignore_masks
        masked = maskable and (self.mask_in_observation or masks_in_infos)
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
        # Keys of entries that stand for nothing
        self._constants: list[str] = []
        #: Entries while the agent is inactive: zeros, and a mask that allows everything
        self.inactive: Observations = {}
        # An agent that observes nothing gets a constant
        for path, own in leaves or [((), observation_space)]:
            key = "/".join([name, *map(str, path)])
            self._add(key, prefix + path, own)
        if self.mask_key is not None:
            self.inactive[self.mask_key] = np.ones(self.n_choices, np.int8)
        for value in self.inactive.values():
            value.flags.writeable = False  # the same arrays are returned at every step

    def _add(self, key: str, path: tuple, own: spaces.Space) -> None:
        """Add an entry; see :class:`_Array`."""
        space = encoded_space(own)
        dtype = np.dtype(space.dtype)
        self.spaces.append((key, space))
        self.inactive[key] = np.zeros(space.shape or (), dtype)
        if is_constant(space):
            self._constants.append(key)
            return
        floats = isinstance(own, spaces.Box) and dtype.kind == "f" and own.shape != ()
        self._arrays.append(_Array(key, path, own.shape or (), dtype, None if floats else space))

    def direct_entry(self) -> tuple[Any, _Array | None]:
        """
        :return: Id of the agent, and its array if its observation is one array without a mask
        """
        if len(self._arrays) != 1 or self._constants or self.mask_key is not None:
            return self.agent, None
        (array,) = self._arrays
        # Arrays of a Box with dimensions are stored as they are; others may need a conversion
        is_box = array.space is None or isinstance(array.space, spaces.Box)
        return self.agent, array if is_box and array.shape and not array.path else None

    def fill(self, joint: Observations, observation: Any, infos: Mapping[Any, dict]) -> None:
        """
        Add the agent's entries to a joint observation.

        :param joint: Joint observation, changed in place
        :param observation: Observation of the agent
        :param infos: Infos of the environment, by agent
        :raises ValueError: If the observation does not fit the agent's spaces
        """
        for array in self._arrays:
            joint[array.key] = self._value(array, observation)
        for key in self._constants:
            joint[key] = self.inactive[key]
        if self.mask_key is not None:
            try:
                mask = self._mask(observation, infos)
                joint[self.mask_key] = flatten_mask(self.action_space, mask)
            except (KeyError, IndexError, TypeError) as error:
                raise self._missing(error) from error
            except ValueError as error:
                raise ValueError(
                    f"agent {self.name!r}: {error}. JointEnv(env, ignore_masks=True) goes on "
                    "without masks, if the env takes illegal actions."
                ) from error

    def _value(self, entry: _Array, observation: Any) -> np.ndarray:
        """Entry of the joint observation."""
        array = observation
        try:
            for part in entry.path:
                array = array[part]
        except (KeyError, IndexError, TypeError) as error:
            raise self._missing(error) from error
        if type(array) is not np.ndarray:
            array = np.asarray(array)
        if array.shape != entry.shape:  # NumPy would broadcast it where it is stored
            raise ValueError(
                f"agent {self.name!r}: an observation of shape {array.shape} (entry "
                f"{entry.key!r}), where its space has {entry.shape}; correct the env's "
                "observation_space or what it returns."
            )
        # A Box's own integers need no check
        is_box = entry.space is None or isinstance(entry.space, spaces.Box)
        if is_box and array.dtype is entry.dtype and entry.shape:
            return array
        if entry.space is None:
            return array.astype(entry.dtype)
        try:
            return encode_array(entry.space, array)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"agent {self.name!r}: in its observation (entry {entry.key!r}) {error}"
            ) from error

    def _missing(self, error: Exception) -> ValueError:
        return ValueError(
            f"agent {self.name!r}: its observation lacks {error}, which is in its observation "
            "space."
        )

    def check_mask(self, info: Mapping[str, Any], needs_mask: bool) -> None:
        """
        Check that the info holds an action mask if and only if it did at the first reset.

        :param info: Info of the agent
        :param needs_mask: Whether the agent acts next
        :raises ValueError: If it does not
        """
        if self.mask_in_observation or not self.n_choices or self.ignore_masks:
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
    :param ignore_masks: Whether to leave out action masks
    :raises TypeError: If an observation space is not supported
    """

    def __init__(
        self,
        ids: Sequence[Any],
        names: Sequence[str],
        team_spaces: Sequence[tuple[spaces.Space, spaces.Space]],
        observations: Mapping[Any, Any],
        infos: Mapping[Any, dict],
        ignore_masks: bool = False,
    ) -> None:
        showing = [agent for agent in observations if ACTION_MASK in infos.get(agent, {})]
        self._agents: list[AgentLayout] = []
        for agent, name, (observation_space, action_space) in zip(
            ids, names, team_spaces, strict=True
        ):
            # Agents that are absent at the reset are taken to have masks if any other agent has one
            masks_in_infos = agent in showing if agent in observations else bool(showing)
            self._agents.append(
                AgentLayout(
                    agent, name, observation_space, action_space, masks_in_infos, ignore_masks
                )
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
        self._direct = [layout.direct_entry() for layout in self._agents]

    def mask_sources(self, method: str | None) -> dict[str, str]:
        """
        :param method: Name of the environment's method that returns masks; None if it has none
        :return: Place where each agent's action mask comes from, ``{agent: place}``, for the agents
            with masks
        """
        elsewhere = "info" if method is None else f"info or {method}()"
        sources: dict[str, str] = {}
        for layout in self._agents:
            if layout.mask_key is not None:
                sources[layout.name] = "observation" if layout.mask_in_observation else elsewhere
        return sources

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
        flags = itertools.repeat(True) if active is None else active.tolist()
        # In large teams most of the time is the look-up of Python objects in memory: an array that
        # fits is taken over without a look at the agent's layout
        for index, ((agent, array), is_active) in enumerate(zip(self._direct, flags, strict=False)):
            if not is_active:
                joint.update(self._agents[index].inactive)
                continue
            observation = observations[agent]
            if array is not None and array.fits(observation):
                joint[array.key] = observation
            else:
                self._agents[index].fill(joint, observation, infos)
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
    known = set(names)
    for name in names:
        if name in (STATE, AGENT_STATES) or name.startswith(STATE + "/"):
            raise ValueError(
                f"An agent is called {name!r}, which is the key of the critic's state; rename the "
                "agent."
            )
        owners = _prefixes(name) & known
        if owners:
            raise ValueError(
                f"Agents {min(owners, key=len)!r} and {name!r}: their observations' keys could be "
                "mixed up; rename one of them."
            )
    repeated = [key for key, count in Counter(keys).items() if count > 1]
    if repeated:
        raise ValueError(
            f"Several entries of the joint observation would have the keys {sorted(repeated)}; "
            f"rename those keys in the agents' observations ({ACTION_MASK!r} is the key of action "
            "masks)."
        )


def _prefixes(name: str) -> set[str]:
    """Names whose entries the entries of this one could be mixed up with: "a" of "a/b"."""
    parts = name.split("/")
    return {"/".join(parts[:n]) for n in range(1, len(parts))}
