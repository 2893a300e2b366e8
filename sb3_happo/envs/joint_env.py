"""One team as one Gymnasium environment."""

import contextlib
import inspect
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_happo.envs.activity import Activity, ActivityTracker
from sb3_happo.envs.adapters import (
    ConvertedAEC,
    GymnasiumTeam,
    GymWrappedTeam,
    ParallelTeam,
    Team,
    TurnBased,
    agent_ids,
    is_gymnasium,
    takes_turns,
)
from sb3_happo.envs.attributes import owner_of, played_env
from sb3_happo.envs.joint_actions import JointActionSplitter
from sb3_happo.envs.mask_methods import MaskedTeam, with_mask_method
from sb3_happo.envs.mujoco import MujocoTeam
from sb3_happo.envs.observation_layout import ObservationLayout, check_keys
from sb3_happo.envs.other_agents import OtherPolicy, PartialTeam
from sb3_happo.envs.rows_of_agents import refuse_rows_of_agents
from sb3_happo.envs.spaces import ACTION_MASK, ACTIVE
from sb3_happo.envs.state import Observations, StateLayout
from sb3_happo.envs.state_choice import State, choose_state
from sb3_happo.envs.step_checks import reward_error
from sb3_happo.envs.team_results import TeamResults, infos_by_name
from sb3_happo.suggestions import check_names

TeamReward: TypeAlias = str | Callable[[np.ndarray], float]


class JointEnv(gym.Env):
    """
    One team as one Gymnasium environment, for PettingZoo's ``ParallelEnv`` and ``AECEnv``,
    Gymnasium envs with a Dict or Tuple action space, and single-agent Gymnasium envs (a team of
    one, ``"agent_0"``).

    **Spaces.** ``agents`` is the team in the env's own order. ``action_space`` is a Dict of the
    agents' own spaces, in that order. ``observation_space`` is a flat Dict: ``"<agent>"``, or
    ``"<agent>/<key>"`` for each part of an agent's Dict or Tuple observation;
    ``"<agent>/action_mask"`` if the env gives masks, in the observation, in the info or by a method
    (see :mod:`sb3_happo.envs.mask_methods`; 1 where a choice is legal, the heads of MultiDiscrete
    and of nested actions one after the other); and the critic's ``"state"``. float64 becomes
    float32, and observations that SB3's features extractors do not take are converted: see
    :mod:`sb3_happo.envs.encodings`.

    **Actions** are a dict ``{agent: action}``, or one row of an array of dtype
    :func:`~sb3_happo.envs.spaces.joint_action_dtype`, as a ``VecEnv`` passes them.

    **Inactive agents.** An agent that is missing from the env's observations (dead, not yet
    present, not on turn) is inactive: its observation is zeros, its mask all ones, its action
    ignored. ``info["active"]``, bool ``(n_agents,)``, is the active mask of the observation that
    comes with it, and is present only if an agent is inactive. ``info["waiting_agents"]``, of the
    same form, is the mask of the inactive agents that are alive and will act again, and is present
    only if there are any. An agent that ends while others continue is inactive from then on; the
    reward of that step counts. With an ``AECEnv`` one agent acts per step, and the other agents'
    entries are zeros, but a critic's state made of observations holds the observations of all
    living agents. The rewards of a step are all that were emitted in it, for any agent.

    **End of an episode.** An episode ends when none of the team is left. It is truncated, which
    means that its last value is bootstrapped, if any agent present in the last step was
    truncated and not terminated. Otherwise it is terminated, also if agents had been truncated in
    earlier steps. Agents that end in the last step keep their last observation, so that its value
    can be estimated; in a truncated episode this does not hold for agents that were terminated.

    **Rewards.** ``info["agent_rewards"]``, float ``(n_agents,)``, are the agents' own rewards of
    every step, in the order of ``agents``. The infos of a PettingZoo env are in
    ``info["agent_infos"]`` if they are not empty; the info of a Gymnasium env is passed on. Success
    of the team (``info["is_success"]``) and the agents' results at the end of an episode are at the
    top of the info, see :class:`~sb3_happo.envs.team_results.TeamResults`.

    The constructor resets the env once, without seed, to find masks and the shape of the state.

    :param env: Environment
    :param team_reward: Reward of the team: the ``"mean"`` over all agents (inactive ones count 0),
        the ``"sum"``, an agent's name, or a callable of the array of rewards ``(n_agents,)``
    :param state: State for the critic. ``"env"``: the env's ``state()``. ``"observations"``: the
        agents' observations concatenated (one float32 vector, Discrete ones one-hot encoded; images
        of one shape stacked along channels; for images beside other observations, keys
        ``"state/<agent>"`` or ``"state/<agent>/<key>"``), zeros for inactive agents. None: the
        env's ``state()`` if it has one that works, otherwise the observations. ``"agent"``:
        agent-specific state (HARL's "FP"), key ``"agent_states"`` of shape ``(n_agents, D)``: as
        for None, and then the agent's own observation and its one-hot id. Or a callable
        ``state(env, observations)`` that returns an array, given ``env`` and the joint observation
        without state
    :param agents: Names of the agents of the team; all by default. The other agents belong to the
        environment
    :param other_agents: Policy of the agents outside the team: ``"random"``, a callable, an object
        with ``predict``, ``{agent: policy}``, or a list from which one is drawn for each episode;
        see :class:`~sb3_happo.envs.other_agents.PartialTeam`
    :param per_agent: For Gymnasium envs with a Dict or Tuple action space: whether it holds one
        action per agent, or the hybrid action of one agent. None: one per agent if the observation
        space is a Dict of the same keys or a Tuple of the same length
    :param observe_active: Whether ``info["active"]`` is also an entry of the observation,
        ``"active"``, int8 ``(n_agents,)``: with it the ``predict`` of recurrent agents keeps
        the hidden states of inactive agents. None: in turn-based games
    :param others: Deprecated name of ``other_agents``
    :param ignore_masks: Training without the env's action masks, for masks that the algorithms
        cannot use, such as those over combinations of the parts of an action. The env must then
        take illegal actions
    :raises TypeError: If ``env`` cannot be joined, or a space is not supported
    :raises ValueError: If names collide or an argument does not fit the env
    """

    action_space: spaces.Dict
    observation_space: spaces.Dict

    def __init__(
        self,
        env: Any,
        team_reward: TeamReward = "mean",
        state: State = None,
        agents: Sequence[Any] | None = None,
        other_agents: OtherPolicy = None,
        per_agent: bool | None = None,
        observe_active: bool | None = None,
        others: OtherPolicy = None,
        ignore_masks: bool = False,
    ) -> None:
        if isinstance(env, gym.Env) and isinstance(env.unwrapped, JointEnv):
            raise TypeError("This is a JointEnv already; use it without joining it again.")
        other_agents = _resolve_alias(other_agents, others)
        self.env = env
        self.metadata = getattr(env, "metadata", {})
        self.render_mode = getattr(env, "render_mode", None)
        self._team = _as_team(env, per_agent)
        self._gymnasium = self._team if isinstance(self._team, GymnasiumTeam) else None
        in_turns = isinstance(self._team, TurnBased)
        self._observes_active = in_turns if observe_active is None else observe_active
        self._team = with_mask_method(self._team, env)
        self._mask_method = None
        if isinstance(self._team, MaskedTeam):
            self._mask_method = self._team.method.name
        self._team = _select_agents(self._team, agents, other_agents)

        observations, infos = reset_with_agents(self._team)
        self._ids = agent_ids(self._team)
        #: Names of the agents, in the env's own order
        self.agents = _agent_names(self._ids)
        #: Number of agents
        self.n_agents = len(self.agents)
        self._spaces = [self._agent_spaces(agent) for agent in self._ids]
        own_spaces = [action_space for _, action_space in self._spaces]
        self.action_space = spaces.Dict(list(zip(self.agents, own_spaces, strict=True)))
        self._splitter = JointActionSplitter(self._ids, self.action_space)
        self._activity = ActivityTracker(self._team, self._ids)
        self._layout = ObservationLayout(
            self._ids, self.agents, self._spaces, observations, infos, ignore_masks
        )
        self.team_reward = team_reward
        self._results = TeamResults()
        self._active: np.ndarray | None = None
        active = self._activity.reset(observations).active
        joint = self._layout.lay_out(observations, infos, active)
        self._state, self.uses_env_state = choose_state(
            state, env, self._team, self._layout.leaves, self.n_agents, joint, active
        )
        # In turn-based games only the agent on turn is observed, and states made of observations
        # need those of all agents
        self._observes_all = in_turns and (state == "agent" or not self.uses_env_state)
        entries = self._layout.entries
        if self._observes_active:
            entries = [*entries, (ACTIVE, spaces.Box(0, 1, (self.n_agents,), np.int8))]
        entries = [*entries, *self._state.spaces.items()]
        check_keys(self.agents, [key for key, _ in entries])
        self.observation_space = spaces.Dict(entries)

    @property
    def mask_sources(self) -> dict[str, str]:
        """
        :return: Place where each agent's action mask comes from, ``{agent: place}``, for the agents
            with masks
        """
        return self._layout.mask_sources(self._mask_method)

    @property
    def state_layout(self) -> StateLayout:
        """
        :return: Origin of the numbers in the critic's state
        """
        return StateLayout(self._state.owners, self._observes_all)

    def _agent_spaces(self, agent: Any) -> tuple[spaces.Space, spaces.Space]:
        return self._team.observation_space(agent), self._team.action_space(agent)

    @property
    def team_reward(self) -> TeamReward:
        """
        :return: Reward of the team, as for the constructor; it may be set
        """
        return self._team_reward

    @team_reward.setter
    def team_reward(self, team_reward: TeamReward) -> None:
        self._reward_index = None
        if not callable(team_reward) and team_reward not in ("mean", "sum"):
            team_reward = str(team_reward)
            if team_reward not in self.agents:
                raise ValueError(
                    f"team_reward={team_reward!r} is neither 'mean', 'sum', a callable, nor one of "
                    f"{list(self.agents)}."
                )
            self._reward_index = self.agents.index(team_reward)
        self._team_reward = team_reward

    # ---------------------------------------------------------------- Gymnasium's interface

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Start an episode.

        :param seed: Seed of the env and of the other agents
        :param options: Options for the env
        :return: Joint observation and info
        :raises ValueError: If an agent's spaces have changed, or an observation does not fit its
            space
        """
        # Gymnasium and most environments take Python's integers only, and no NumPy scalars
        seed = None if seed is None else operator.index(seed)
        super().reset(seed=seed)
        observations, infos = reset_with_agents(self._team, seed, options)
        self._check_spaces()
        activity = self._activity.reset(observations)
        self._active = activity.active
        self._results.restart()
        return self._observe(observations, infos), self._info(infos, activity)

    def _check_spaces(self) -> None:
        """Refuse spaces that have changed at a reset."""
        for agent, name, known in zip(self._ids, self.agents, self._spaces, strict=True):
            kinds = ("observation", "action")
            for kind, old, new in zip(kinds, known, self._agent_spaces(agent), strict=True):
                if new is not old and new != old:
                    raise ValueError(
                        f"The {kind} space of agent {name!r} has changed from {old} to {new} at a "
                        "reset; it must stay the same. Pad it to the largest, for example with "
                        "supersuit."
                    )

    def step(
        self, action: dict[str, Any] | np.void
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """
        Make one step of the team.

        :param action: ``{agent: action}``, or one row of a joint action array; actions of inactive
            agents are ignored
        :return: Joint observation, team reward, terminated, truncated, info
        :raises ValueError: If the action is not the team's, or an observation does not fit its
            space
        """
        actions = self._splitter.split(action, self._active)
        observations, rewards, terminations, truncations, infos = self._team.step(actions)
        activity = self._activity.step(observations, terminations, truncations)
        self._active = activity.active
        info = self._info(infos, activity)
        agent_rewards = self._rewards(rewards)
        info["agent_rewards"] = np.array(agent_rewards)
        if self._team_reward == "mean":
            reward = sum(agent_rewards) / self.n_agents
        elif self._team_reward == "sum":
            reward = sum(agent_rewards)
        elif self._reward_index is not None:
            reward = agent_rewards[self._reward_index]
        else:
            reward = float(self._team_reward(info["agent_rewards"]))  # type: ignore[operator]
        observation = self._observe(observations, infos)
        return observation, reward, activity.terminated, activity.truncated, info

    def _rewards(self, rewards: Mapping[Any, Any]) -> list[float]:
        """Rewards as numbers, in the agents' order."""
        try:
            return [float(rewards.get(agent, 0.0)) for agent in self._ids]
        except (TypeError, ValueError):
            for agent, name in zip(self._ids, self.agents, strict=True):
                reward = rewards.get(agent, 0.0)
                if np.ndim(reward) or not isinstance(reward, (int, float, np.number, np.bool_)):
                    raise reward_error(name, reward) from None
            raise

    def _observe(self, observations: dict[Any, Any], infos: dict[Any, dict]) -> Observations:
        """Joint observation, with the state and the active mask."""
        joint = self._layout.lay_out(observations, infos, self._active)
        if self._observes_all:
            everyone = cast(TurnBased, self._team).observe_all()
            present = np.array([agent in everyone for agent in self._ids])
            observed = self._layout.lay_out(everyone, {}, present)
            self._state(observed, present)
            for key in self._state.spaces:
                joint[key] = observed[key]
        else:
            self._state(joint, self._active)
        if self._observes_active:
            joint[ACTIVE] = np.ones(self.n_agents, np.int8)
            if self._active is not None:
                joint[ACTIVE] = self._active.astype(np.int8)
        return joint

    def _info(self, infos: dict[Any, dict], activity: Activity) -> dict[str, Any]:
        self._layout.check_masks(
            infos, activity.active, ended=activity.terminated or activity.truncated
        )
        info: dict[str, Any] = {}
        if self._gymnasium is not None:
            info = dict(self._gymnasium.info)
            info.pop("active", None)  # key of the active mask here
            self._results.add(infos_by_name(info, self.agents))
        elif any(infos.values()):
            pairs = zip(self._ids, self.agents, strict=True)
            agent_infos = {name: infos[agent] for agent, name in pairs if infos.get(agent)}
            if agent_infos:
                info["agent_infos"] = agent_infos
                self._results.add(agent_infos)
        self._results.write(info, ended=activity.terminated or activity.truncated)
        if activity.active is not None:
            info["active"] = activity.active
        if activity.waiting is not None:
            info["waiting_agents"] = activity.waiting
        return info

    # SB3's VecEnv.env_method and VecEnv.get_attr find methods and attributes through the following
    # methods of Gymnasium's wrappers

    def has_wrapper_attr(self, name: str) -> bool:
        """
        :param name: Name of an attribute
        :return: Whether this env or the env inside has it
        """
        return self._owner(name) is not None

    def get_wrapper_attr(self, name: str) -> Any:
        """
        :param name: Name of an attribute of this env or of the env inside
        :return: Attribute
        :raises AttributeError: If there is none
        """
        owner = self._owner(name)
        return getattr(played_env(self.env) if owner is None else owner, name)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """
        :param name: Name of an attribute of this env or of the env inside
        :param value: New value
        :param force: Whether to set it on the innermost env if none has it
        :return: Whether it was set
        """
        owner = self._owner(name)
        if owner is None:
            if not force:
                return False
            owner = played_env(self.env)
        setattr(owner, name, value)
        return True

    def _owner(self, name: str) -> Any:
        """
        Object that uses an attribute; None if none has it. Names of the joint interface are this
        env's, and all others those of the env inside, which may have some in common with it.
        """
        if name in JOINT_NAMES:
            return self
        owner = owner_of(self.env, name)
        return self if owner is None and hasattr(self, name) else owner

    def render(self) -> Any:
        """
        :return: Rendered frame, or another value of the env; None if it cannot render
        """
        render = getattr(self.env, "render", None)
        return None if render is None else render()

    def close(self) -> None:
        """Close the env, if it has a method for it."""
        close = getattr(self.env, "close", None)
        if close is not None:
            close()

    def __str__(self) -> str:
        return f"<{type(self).__name__}<{self.env}>>"


def _resolve_alias(other_agents: OtherPolicy, others: OtherPolicy) -> OtherPolicy:
    """Value of ``other_agents``, which may be given by its deprecated name."""
    if others is None:
        return other_agents
    if other_agents is not None:
        raise ValueError("`others` is the deprecated name of `other_agents`; give only the latter.")
    warnings.warn("`others` is deprecated; use `other_agents`.", DeprecationWarning, stacklevel=3)
    return others


def _as_team(env: Any, per_agent: bool | None) -> Team:
    """Adapter of an environment."""
    refuse_rows_of_agents(env)
    if is_gymnasium(env):
        return GymnasiumTeam(env, per_agent)
    if per_agent is not None:
        raise ValueError(
            "`per_agent` is for Gymnasium envs; a PettingZoo env has a list of its agents."
        )
    # Environments are recognised by their methods, and need not derive from PettingZoo's classes
    if takes_turns(env):
        return TurnBased(env)
    if ConvertedAEC.supports(env):
        return ConvertedAEC(env)
    if MujocoTeam.supports(env):
        # ValueError: the agents observe more than the joint observation holds
        with contextlib.suppress(ValueError):
            return MujocoTeam(env)
    methods = [getattr(env, name, None) for name in ("observation_space", "action_space")]
    if not all(callable(method) for method in methods):
        raise TypeError(
            f"{type(env).__name__} cannot be joined: JointEnv takes a PettingZoo ParallelEnv or "
            "AECEnv, or a Gymnasium env. For an id use make_joint_env(id)."
        )
    return GymWrappedTeam(env) if isinstance(env, gym.Wrapper) else ParallelTeam(env)


def _select_agents(team: Team, agents: Sequence[Any] | None, other_agents: OtherPolicy) -> Team:
    """Team of the named agents; the whole team by default."""
    if agents is not None:
        return PartialTeam(team, agents, other_agents)
    if other_agents is not None:
        raise ValueError(
            "`other_agents` play the agents outside the team; name the team with `agents`."
        )
    return team


# Number of resets in a row after which an env without agents is refused
_MAX_EMPTY_RESETS = 100


def reset_with_agents(
    team: Team, seed: int | None = None, options: dict[str, Any] | None = None
) -> tuple[dict[Any, Any], dict[Any, dict]]:
    """
    Reset a team until there are agents. An episode without any is over at its start.

    :param team: Team
    :param seed: Seed of the first reset
    :param options: Options of every reset
    :return: Observations and infos
    :raises ValueError: If there is nobody in many episodes in a row
    """
    for _ in range(_MAX_EMPTY_RESETS):
        observations, infos = team.reset(seed=seed, options=options)
        if len(observations) or len(team.agents):
            return observations, infos
        seed = None
    raise ValueError(
        f"The env had no agents after each of {_MAX_EMPTY_RESETS} resets: `agents` is empty, and "
        "nobody is observed. Fill `agents` in reset, for example with self.possible_agents[:], and "
        "return an observation for each."
    )


def _agent_names(ids: Sequence[Any]) -> tuple[str, ...]:
    """Names of the agents, which must be distinct and not empty, as fields of arrays are."""
    names = tuple(str(agent) or f"agent_{index}" for index, agent in enumerate(ids))
    if len(set(names)) != len(names):
        raise ValueError(f"Agents must have different names, not {names}.")
    if not names:
        raise ValueError(
            "The env has no agents: neither `possible_agents` nor, after a reset, `agents` has an "
            "entry."
        )
    return names


def joint_observation(
    env: JointEnv,
    observations: Mapping[Any, Any],
    action_masks: Mapping[Any, Any] | None = None,
) -> tuple[Observations, np.ndarray | None]:
    """
    Joint observation, without the critic's state, of observations that were made elsewhere.

    :param env: Joint environment of the team
    :param observations: ``{agent: observation}``, as the team's own environment returns it; agents
        without an entry are inactive
    :param action_masks: ``{agent: mask}`` of agents whose masks are not in their observations
    :return: Joint observation; and the active mask, ``(n_agents,)``, None if all agents are active
    :raises ValueError: If an agent is unknown, or an observation does not fit its space
    """
    own = _by_name(env, "observations", observations)
    masks = _by_name(env, "action masks", action_masks or {})
    ids = dict(zip(env.agents, env._ids, strict=True))
    by_id = {ids[name]: observation for name, observation in own.items()}
    infos = {ids[name]: {ACTION_MASK: mask} for name, mask in masks.items()}
    present = np.array([name in own for name in env.agents])
    active = None if present.all() else present
    joint = env._layout.lay_out(by_id, infos, active)
    if ACTIVE in env.observation_space.spaces:
        joint[ACTIVE] = present.astype(np.int8)
    return joint, active


def _by_name(env: JointEnv, kind: str, values: Mapping[Any, Any]) -> dict[str, Any]:
    """Values by the agents' names in the joint environment; refuses unknown agents."""
    by_name = {str(agent): value for agent, value in values.items()}
    unknown = [name for name in by_name if name not in env.agents]
    if unknown:
        raise ValueError(f"There are {kind} of {unknown}; the agents are {list(env.agents)}.")
    return by_name


# Attributes and methods that a caller from outside means of the joint environment
JOINT_NAMES = frozenset(
    (
        *("action_space", "observation_space", "agents", "n_agents", "team_reward"),
        *("mask_sources", "state_layout", "uses_env_state", "env", "unwrapped"),
        *("reset", "step", "render", "close"),
        *("has_wrapper_attr", "get_wrapper_attr", "set_wrapper_attr"),
    )
)

# Arguments of JointEnv beside the environment
_ARGUMENTS = {*inspect.signature(JointEnv.__init__).parameters} - {"self", "env"}


def as_joint_env(env: Any, **kwargs: Any) -> gym.Env:
    """
    Make a joint environment of any environment.

    :param env: Environment that :class:`JointEnv` takes; or a ``JointEnv``, wrapped or not, which
        is returned unchanged
    :param kwargs: Keyword arguments of :class:`JointEnv`
    :return: Joint environment
    :raises ValueError: If there are arguments for an environment that is joint already, or unknown
        ones
    """
    if isinstance(env, gym.Env) and isinstance(env.unwrapped, JointEnv):
        if kwargs:
            raise ValueError(f"The env is a JointEnv already; {list(kwargs)} would have no effect.")
        return env
    check_names(kwargs, _ARGUMENTS, "JointEnv")
    return JointEnv(env, **kwargs)
