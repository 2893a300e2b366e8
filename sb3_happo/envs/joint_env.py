"""One team as one Gymnasium environment."""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_happo.envs.activity import Activity, ActivityTracker
from sb3_happo.envs.adapters import ConvertedAEC, GymnasiumTeam, Team, TurnBased, agent_ids
from sb3_happo.envs.joint_actions import JointActionSplitter
from sb3_happo.envs.mujoco import MujocoTeam
from sb3_happo.envs.observation_layout import ObservationLayout, check_keys
from sb3_happo.envs.other_agents import OtherPolicy, PartialTeam
from sb3_happo.envs.spaces import ACTIVE
from sb3_happo.envs.state import Observations
from sb3_happo.envs.state_choice import State, choose_state
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
    ``"<agent>/action_mask"`` if the env gives masks, in the observation or in the info (1 where a
    choice is legal; the heads of MultiDiscrete and of nested actions one after the other); and the
    critic's ``"state"``. float64 becomes float32.

    **Actions** are a dict ``{agent: action}``, or one row of an array of dtype
    :func:`~sb3_happo.envs.spaces.joint_action_dtype`, as a ``VecEnv`` passes them.

    **Inactive agents.** An agent that is missing from the env's observations (dead, not yet there,
    not on turn) is inactive: its observation is zeros, its mask all ones, its action ignored.
    ``info["active"]``, bool ``(n_agents,)``, is the active mask of the observation that comes with
    it, and is there only if an agent is inactive. ``info["waiting_agents"]``, of the same form, is
    the mask of the inactive agents that are alive and will act again, and is there only if there
    are any. An agent that ends while others continue is inactive from then on; the reward of that
    step counts. With an ``AECEnv`` one agent acts per step, and the other agents' entries are
    zeros, but a critic's state made of observations holds the observations of all living agents.
    The rewards of a step are all that were emitted in it, for any agent.

    **End of an episode.** An episode ends when none of the team is left. It is truncated, which
    means that its last value is bootstrapped, if any agent that was there in the last step was
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
        ``"active"``, int8 ``(n_agents,)``: from it the ``predict`` of agents with memory learns
        when to keep the memory as it is. None: in turn-based games
    :param others: Deprecated name of ``other_agents``
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
    ) -> None:
        if isinstance(env, gym.Env) and isinstance(env.unwrapped, JointEnv):
            raise TypeError("This is a JointEnv already; use it as it is.")
        other_agents = _resolve_alias(other_agents, others)
        self.env = env
        self.metadata = getattr(env, "metadata", {})
        self.render_mode = getattr(env, "render_mode", None)
        self._team = _as_team(env, per_agent)
        self._gymnasium = self._team if isinstance(self._team, GymnasiumTeam) else None
        takes_turns = isinstance(self._team, TurnBased)
        self._observes_active = takes_turns if observe_active is None else observe_active
        self._team = _select_agents(self._team, agents, other_agents)

        observations, infos = self._team.reset()
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
        self._layout = ObservationLayout(self._ids, self.agents, self._spaces, observations, infos)
        self._set_team_reward(team_reward)
        self._results = TeamResults()
        self._active: np.ndarray | None = None
        active = self._activity.reset(observations).active
        joint = self._layout.lay_out(observations, infos, active)
        self._state, self.uses_env_state = choose_state(
            state, env, self._team, self._layout.leaves, self.n_agents, joint, active
        )
        # In turn-based games only the agent on turn is observed, and states made of observations
        # need those of all agents
        self._observes_all = takes_turns and (state == "agent" or not self.uses_env_state)
        entries = self._layout.entries
        if self._observes_active:
            entries = [*entries, (ACTIVE, spaces.Box(0, 1, (self.n_agents,), np.int8))]
        entries = [*entries, *self._state.spaces.items()]
        check_keys(self.agents, [key for key, _ in entries])
        self.observation_space = spaces.Dict(entries)

    def _agent_spaces(self, agent: Any) -> tuple[spaces.Space, spaces.Space]:
        return self._team.observation_space(agent), self._team.action_space(agent)

    def _set_team_reward(self, team_reward: TeamReward) -> None:
        self._reward_index = None
        if not callable(team_reward) and team_reward not in ("mean", "sum"):
            team_reward = str(team_reward)
            if team_reward not in self.agents:
                raise ValueError(
                    f"team_reward={team_reward!r} is neither 'mean', 'sum', a callable, nor one of "
                    f"{list(self.agents)}."
                )
            self._reward_index = self.agents.index(team_reward)
        self.team_reward = team_reward

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
        super().reset(seed=seed)
        observations, infos = self._team.reset(seed=seed, options=options)
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
        agent_rewards = [float(rewards.get(agent, 0.0)) for agent in self._ids]
        info["agent_rewards"] = np.array(agent_rewards)
        if self.team_reward == "mean":
            reward = sum(agent_rewards) / self.n_agents
        elif self.team_reward == "sum":
            reward = sum(agent_rewards)
        elif self._reward_index is not None:
            reward = agent_rewards[self._reward_index]
        else:
            reward = float(self.team_reward(info["agent_rewards"]))  # type: ignore[operator]
        observation = self._observe(observations, infos)
        return observation, reward, activity.terminated, activity.truncated, info

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
        return getattr(self.env if owner is None else owner, name)

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """
        :param name: Name of an attribute of this env or of the env inside
        :param value: New value
        :param force: Whether to set it on this env if none has it
        :return: Whether it was set
        """
        owner = self._owner(name)
        if owner is None:
            if not force:
                return False
            owner = self
        setattr(owner, name, value)
        return True

    def _owner(self, name: str) -> Any:
        """
        The first of this env, the innermost env and its wrappers that has an attribute; None if
        none has. PettingZoo's wrappers return attributes of the env inside, but keep those that are
        set on them, so that the innermost env comes before them.
        """
        for owner in (self, getattr(self.env, "unwrapped", self.env), self.env):
            if hasattr(owner, name):
                return owner
        return None

    def render(self) -> Any:
        """
        :return: Rendered frame, or what else the env returns
        """
        return self.env.render()

    def close(self) -> None:
        """Close the env."""
        self.env.close()

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
    if isinstance(env, gym.Env):
        return GymnasiumTeam(env, per_agent)
    if per_agent is not None:
        raise ValueError(
            "`per_agent` is for Gymnasium envs; a PettingZoo env has a list of its agents."
        )
    # Environments are recognised by their methods, and need not derive from PettingZoo's classes
    if hasattr(env, "agent_iter") and hasattr(env, "last"):
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
    return cast(Team, env)


def _select_agents(team: Team, agents: Sequence[Any] | None, other_agents: OtherPolicy) -> Team:
    """Team of the named agents; the whole team by default."""
    if agents is not None:
        return PartialTeam(team, agents, other_agents)
    if other_agents is not None:
        raise ValueError(
            "`other_agents` play the agents outside the team; name the team with `agents`."
        )
    return team


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


# Arguments of JointEnv beside the environment
_ARGUMENTS = {*inspect.signature(JointEnv.__init__).parameters} - {"self", "env"}


def as_joint_env(env: Any, **kwargs: Any) -> gym.Env:
    """
    Make a joint environment of any environment.

    :param env: Environment that :class:`JointEnv` takes; or a ``JointEnv``, wrapped or not, which
        is returned as it is
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
