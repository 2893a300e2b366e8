"""A team as one agent: one plain Gymnasium environment, for any single-agent algorithm."""

import inspect
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_happo.envs.central_actions import ContinuousActions, DiscreteActions, central_actions
from sb3_happo.envs.joint_env import JointEnv, as_joint_env, joint_observation
from sb3_happo.envs.make import make_joint_env
from sb3_happo.envs.spaces import (
    ACTION_MASK,
    ACTIVE,
    AGENT_STATES,
    STATE,
    is_flag,
    is_image,
)
from sb3_happo.envs.state import FlatObservations, Leaf, Observations, StackedImages

#: Key of the numbers beside images in the observation of the one agent
VECTOR = "vector"


class CentralObservations:
    """
    Observations of all agents side by side, as one observation.

    Without images it is one float32 vector: the agents' observations in the order of
    ``env.agents``, Discrete ones one-hot; then the active mask, if it is observed. Images of one
    shape and nothing else are stacked along their channels. Images beside other observations are
    entries of a Dict, with the rest under ``"vector"``. The observations of inactive agents are
    zeros.

    :param team: Joint environment
    """

    def __init__(self, team: JointEnv) -> None:
        leaves = _leaves(team)
        images = [leaf for leaf in leaves if is_image(leaf.space)]
        others = [leaf for leaf in leaves if not is_image(leaf.space)]
        self._flat = FlatObservations(others)
        self._images = [leaf.key for leaf in images]
        self._vector_key = _free_key(VECTOR, self._images)
        self._stack: StackedImages | None = None
        self.space: spaces.Space
        if not images:
            self.space = _vector_space(others)
        elif not others and _can_be_stacked(images):
            self._stack = StackedImages(images)
            self.space = self._stack.spaces[STATE]
        else:
            entries = {leaf.key: leaf.space for leaf in images}
            if others:
                entries[self._vector_key] = _vector_space(others)
            self.space = spaces.Dict(entries)

    def __call__(self, joint: Observations, active: np.ndarray | None) -> Any:
        """
        :param joint: Joint observation
        :param active: Active mask, ``(n_agents,)``; None if all agents are active
        :return: Observation of the one agent
        """
        if self._stack is not None:
            stacked = dict(joint)
            self._stack(stacked, active)
            return stacked[STATE]
        if active is not None:
            active = np.append(active, True)  # for what comes from no agent, at index -1
        if not self._images:
            return self._flat(joint, active)
        observation = {key: joint[key] for key in self._images}
        if self._flat.size:
            observation[self._vector_key] = self._flat(joint, active)
        return observation


def _leaves(team: JointEnv) -> list[Leaf]:
    """Entries of the joint observation that the one agent observes."""
    entries = team.observation_space.spaces
    leaves = []
    for key, space in entries.items():
        in_state = key in (STATE, AGENT_STATES) or key.startswith(f"{STATE}/")
        if not in_state and not is_flag(key):
            leaves.append(Leaf(key, _owner(team, key), space))
    layout = team.state_layout
    has_images = any(is_image(leaf.space) for leaf in leaves)
    if layout.shows_waiting and STATE in layout.owners and not has_images:
        # In turn-based games only the agent on turn is observed; the state shows all agents
        leaves = [Leaf(STATE, -1, entries[STATE])]
    if ACTIVE in entries:
        leaves.append(Leaf(ACTIVE, -1, entries[ACTIVE]))
    return leaves


def _can_be_stacked(images: list[Leaf]) -> bool:
    """Whether images have one shape, and SB3 finds the channels of the stack where they are."""
    if len({leaf.space.shape for leaf in images}) > 1:
        return False
    stack = StackedImages(images)
    return stack.channels_axis == stack.channels_axis_of(stack.spaces[STATE])


def _owner(team: JointEnv, key: str) -> int:
    """Index of the agent to whose observation an entry belongs."""
    for index, agent in enumerate(team.agents):
        if key == agent or key.startswith(f"{agent}/"):
            return index
    raise ValueError(f"The entry {key!r} of the joint observation belongs to no agent.")


def _free_key(key: str, taken: Sequence[str]) -> str:
    while key in taken:
        key += "_"
    return key


def _vector_space(leaves: list[Leaf]) -> spaces.Box:
    """Box of the concatenated observations, with their bounds and the zeros of inactive agents."""
    low, high = [], []
    for leaf in leaves:
        size = FlatObservations([leaf]).size
        bounds = (np.zeros(size), np.ones(size))
        if isinstance(leaf.space, spaces.Box):
            bounds = (leaf.space.low.ravel(), leaf.space.high.ravel())
        low.append(np.minimum(bounds[0], 0.0))
        high.append(np.maximum(bounds[1], 0.0))
    return spaces.Box(
        np.concatenate(low).astype(np.float32), np.concatenate(high).astype(np.float32)
    )


class SingleAgentEnv(gym.Env):
    """
    A team as one agent, a plain Gymnasium environment; see :func:`as_single_agent`, which makes it.

    ``observation_space`` holds the observations of all agents, see :class:`CentralObservations`,
    and ``action_space`` the actions of all agents. The reward is the team's. Actions of inactive
    agents are ignored. Infos, ends of episodes, frames and attributes are those of the joint
    environment.

    :param team: Joint environment, wrapped or not
    :param actions: Actions of the team as one agent
    """

    def __init__(self, team: gym.Env, actions: ContinuousActions | DiscreteActions) -> None:
        joint = team.unwrapped
        assert isinstance(joint, JointEnv)
        #: Joint environment of the team, as it was given
        self.team = team
        #: The same without wrappers
        self.joint = joint
        self.actions = actions
        #: Names of the agents, in the order of their observations and actions
        self.agents = joint.agents
        self.metadata = joint.metadata
        self.render_mode = joint.render_mode
        self.observe = CentralObservations(joint)
        self.observation_space = self.observe.space
        self.action_space = actions.space
        self._joint: Observations = {}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """
        Start an episode.

        :param seed: Seed of the environment
        :param options: Options for the environment
        :return: Observation and info
        """
        super().reset(seed=seed)
        self._joint, info = self.team.reset(seed=seed, options=options)
        return self.observe(self._joint, info.get("active")), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """
        Make one step of the team.

        :param action: Action of all agents
        :return: Observation, team reward, terminated, truncated, info
        :raises ValueError: If the action is not in the action space
        """
        step = self.team.step(self.actions.split(action))
        self._joint, reward, terminated, truncated, info = step
        observation = self.observe(self._joint, info.get("active"))
        return observation, float(reward), terminated, truncated, info

    def render(self) -> Any:
        """
        :return: Rendered frame, or another value of the environment
        """
        return self.team.render()

    def close(self) -> None:
        """Close the environment."""
        self.team.close()

    def has_wrapper_attr(self, name: str) -> bool:
        """
        :param name: Name of an attribute
        :return: Whether this environment or the team has it
        """
        return hasattr(self, name) or self.team.has_wrapper_attr(name)

    def get_wrapper_attr(self, name: str) -> Any:
        """
        :param name: Name of an attribute of this environment or of the team
        :return: Attribute
        :raises AttributeError: If there is none
        """
        return getattr(self, name) if hasattr(self, name) else self.team.get_wrapper_attr(name)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """
        :param name: Name of an attribute of this environment or of the team
        :param value: New value
        :param force: Whether to set it if there is none
        :return: Whether it was set
        """
        if hasattr(self, name):
            setattr(self, name, value)
            return True
        return self.team.set_wrapper_attr(name, value, force=force)

    def __str__(self) -> str:
        return f"<{type(self).__name__}<{self.team}>>"


class DiscreteSingleAgentEnv(SingleAgentEnv):
    """:class:`SingleAgentEnv` with discrete actions, and with sb3-contrib's ``action_masks()``."""

    actions: DiscreteActions

    def action_masks(self) -> np.ndarray:
        """
        Combined masks of the agents, as ``MaskablePPO`` takes them; see
        :meth:`~sb3_happo.envs.central_actions.DiscreteActions.mask`.

        :return: True where a choice is legal, ``(n_actions,)`` or ``(sum of the factors' sizes,)``;
            everything for agents without masks and for inactive ones
        """
        return self.masks_of(self._joint)

    def masks_of(self, joint: Observations) -> np.ndarray:
        """
        :param joint: Joint observation
        :return: Combined masks, as :meth:`action_masks` returns them
        """
        masks = {}
        for agent in self.agents:
            mask = joint.get(f"{agent}/{ACTION_MASK}")
            if mask is not None:
                masks[agent] = mask
        return self.actions.mask(masks)


def as_single_agent(
    env: Any,
    actions: str = "product",
    max_actions: int = 4096,
    env_kwargs: dict[str, Any] | None = None,
    **joint_kwargs: Any,
) -> SingleAgentEnv:
    """
    Make one plain Gymnasium environment of a team, for the algorithms of SB3 and sb3-contrib: one
    agent observes and does everything, which is the fully central paradigm of multi-agent learning.

    The observations of all agents are side by side in one Box (images beside other observations in
    a Dict). Continuous actions are side by side in one Box. Discrete ones are one choice among all
    combinations (``actions="product"``), which can represent any correlation of the agents'
    choices, or a MultiDiscrete with one factor for each choice (``actions="factored"``), which is
    small but chooses independently. Action masks are combined and available by
    ``env.action_masks()``, the protocol of ``MaskablePPO``. The reward is the team's; the actions
    of inactive agents are ignored, and their observations are zeros.

    A model trained on it acts for the team by :class:`CentralTeam`::

        env = make_vec_env(lambda: as_single_agent("games/climbing"), n_envs=8)
        model = PPO("MlpPolicy", env).learn(10_000)

    :param env: Environment that :class:`~sb3_happo.JointEnv` takes, a joint environment (wrapped or
        not), or an id of :func:`~sb3_happo.make_joint_env`
    :param actions: Form of discrete actions, "product" or "factored"; without effect on continuous
        ones
    :param max_actions: Largest number of joint actions of the product
    :param env_kwargs: Keyword arguments of the environment, if ``env`` is an id
    :param joint_kwargs: Keyword arguments of :class:`~sb3_happo.JointEnv`, for example
        ``team_reward="sum"``
    :return: Environment of one agent
    :raises TypeError: If some agents' actions are continuous and others' discrete, or ``env`` is
        vectorised
    :raises ValueError: If there are more than ``max_actions`` joint actions, or an argument is
        unknown
    """
    if hasattr(env, "num_envs"):
        raise TypeError(
            f"as_single_agent takes one environment, not a vectorised one ({type(env).__name__}). "
            "Make several by make_vec_env(lambda: as_single_agent(...), n_envs)."
        )
    is_joint = isinstance(env, gym.Env) and isinstance(env.unwrapped, JointEnv)
    if not is_joint:  # the observations are shown anyway; in turn-based games those of all agents
        joint_kwargs.setdefault("state", "observations")
    if isinstance(env, str):
        team = make_joint_env(env, joint_kwargs=joint_kwargs, **(env_kwargs or {}))
    elif env_kwargs:
        raise ValueError(
            f"env_kwargs={env_kwargs} are for an id; this {type(env).__name__} is made already."
        )
    else:
        team = as_joint_env(env, **joint_kwargs)
    joint = team.unwrapped
    assert isinstance(joint, JointEnv)
    own = central_actions(joint.action_space, actions, max_actions)
    if isinstance(own, DiscreteActions):
        return DiscreteSingleAgentEnv(team, own)
    return SingleAgentEnv(team, own)


def _look_alike(trained: spaces.Space, own: spaces.Space) -> bool:
    """
    Whether observations of one space can be given to a model of the other. SB3 puts the channels of
    images first, and normalisation changes bounds.
    """
    if isinstance(trained, spaces.Dict) and isinstance(own, spaces.Dict):
        same_keys = trained.spaces.keys() == own.spaces.keys()
        return same_keys and all(_look_alike(trained[key], own[key]) for key in own.spaces)
    if not isinstance(trained, spaces.Box) or not isinstance(own, spaces.Box):
        return trained == own
    if is_image(own) and trained.shape == (own.shape[2], *own.shape[:2]):
        return True
    return trained.shape == own.shape


class CentralTeam:
    """
    A single-agent model as a team: observations of all agents in, ``{agent: action}`` out.

    :param model: Model of SB3 or sb3-contrib (anything with their ``predict``), trained on an
        environment of :func:`as_single_agent`
    :param env: Such an environment of the same team, made by the same arguments
    :param vec_normalize: ``VecNormalize`` whose statistics normalise the observations of the
        agents; by default that of the model's own environment, if it has one
    :raises TypeError: If ``env`` is another kind of environment
    :raises ValueError: If the spaces of the model are not those of ``env``, or agents act in turns
    """

    def __init__(self, model: Any, env: SingleAgentEnv, vec_normalize: Any = None) -> None:
        if not isinstance(env, SingleAgentEnv):
            raise TypeError(
                f"env must be made by as_single_agent, not {type(env).__name__}; without a wrapper."
            )
        for name, is_same in (("observation_space", _look_alike), ("action_space", operator.eq)):
            own = getattr(model, name, None)
            if own is not None and not is_same(own, getattr(env, name)):
                raise ValueError(
                    f"The model's {name} is {own}, the environment's {getattr(env, name)}; make "
                    "the environment of the same team by the same arguments."
                )
        if env.joint.state_layout.shows_waiting:
            raise ValueError(
                "The agents of this environment act in turns, and the observation of one does not "
                "show those of all. Call model.predict with observations of the environment of "
                "as_single_agent, and its actions.split(action) for {agent: action}."
            )
        if vec_normalize is None and hasattr(model, "get_vec_normalize_env"):
            vec_normalize = model.get_vec_normalize_env()
        self.model = model
        self.env = env
        self._vec_normalize = vec_normalize
        self._takes_masks = "action_masks" in inspect.signature(model.predict).parameters

    @property
    def agents(self) -> tuple[str, ...]:
        """
        :return: Names of the agents
        """
        return self.env.agents

    def predict(
        self,
        observations: Mapping[Any, Any],
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: Mapping[Any, Any] | None = None,
    ) -> tuple[dict[Any, Any], Any]:
        """
        Choose the actions of all agents.

        :param observations: ``{agent: observation}`` as the team's own environment returns it, in
            which absent agents are inactive; normalised here if the model was trained behind
            ``VecNormalize``
        :param state: Hidden states of a recurrent model, from the last call
        :param episode_start: True if an episode begins, ``(1,)``, for recurrent models
        :param deterministic: Whether to choose the most likely action
        :param action_masks: ``{agent: mask}``, for environments whose masks are not in the
            observations; used by models that take masks
        :return: ``{agent: action}`` of the agents that were observed, and the next hidden states
        :raises ValueError: If the observations are not those of the team, or a mask is missing
        """
        joint, active = joint_observation(self.env.joint, observations, action_masks)
        own: Any = self.env.observe(joint, active)
        if self._vec_normalize is not None:
            own = self._vec_normalize.normalize_obs(own)
        masks = {}
        if self._takes_masks and isinstance(self.env, DiscreteSingleAgentEnv):
            self._check_masks(observations, action_masks or {})
            masks = {"action_masks": self.env.masks_of(joint)}
        action, state = self.model.predict(own, state, episode_start, deterministic, **masks)
        chosen = self.env.actions.split(action)
        return {agent: chosen[str(agent)] for agent in observations}, state

    def _check_masks(
        self, observations: Mapping[Any, Any], action_masks: Mapping[Any, Any]
    ) -> None:
        """Refuse observations without the masks that the environment gives beside them."""
        given = [str(agent) for agent in action_masks]
        sources = self.env.joint.mask_sources
        for agent in observations:
            source = sources.get(str(agent), "observation")
            if source != "observation" and str(agent) not in given:
                raise ValueError(
                    f"The action mask of agent {str(agent)!r} is missing; it is not in the "
                    f"observation but in the {source}: pass action_masks={{agent: mask, ...}}."
                )
