"""One team as one Gymnasium environment."""

import contextlib
import inspect
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_happo.envs.adapters import (
    ConvertedAEC,
    Flags,
    GymnasiumTeam,
    Team,
    TurnBased,
    agent_ids,
    has_ended,
)
from sb3_happo.envs.mujoco import MujocoTeam
from sb3_happo.envs.other_agents import OtherPolicy, PartialTeam
from sb3_happo.envs.spaces import (
    ACTION_MASK,
    ACTIVE,
    AGENT_STATES,
    OBSERVATION,
    STATE,
    action_converter,
    flatten_mask,
    n_choices,
    observation_leaves,
)
from sb3_happo.envs.state import (
    AgentStates,
    ComputedState,
    Leaf,
    Observations,
    StateSource,
    concatenated_observations,
)
from sb3_happo.suggestions import check_names

TeamReward: TypeAlias = str | Callable[[np.ndarray], float]
State: TypeAlias = str | Callable[[Any, Observations], np.ndarray] | None

# What the default, state=None, knows of other people's state(): MPE's computes all observations a second time, a twelfth of
# its step, to put them side by side ...
_STATE_IS_OBSERVATIONS = {"mpe2._mpe_utils.simple_env.SimpleEnv.state"}
# ... and multiwalker's raises as soon as a walker has fallen
_STATE_FAILS = {"pettingzoo.sisl.multiwalker.multiwalker.raw_env.state"}


class _AgentPlan(NamedTuple):
    """
    How one agent's observation is laid out, worked out once.

    :param agent: The env's own id of the agent
    :param leaves: For each array: key in the joint observation, keys that lead to it in the agent's own, shape, dtype
    :param mask_key: Key of the action mask in the joint observation, None without masks
    :param mask_in_observation: Whether the mask comes in the observation; otherwise in the info
    :param action_space: The agent's action space
    :param blank: What stands for the agent while it is inactive
    """

    agent: Any
    leaves: list[tuple[str, tuple, tuple[int, ...], np.dtype]]
    mask_key: str | None
    mask_in_observation: bool
    action_space: spaces.Space
    blank: dict[str, np.ndarray]


class JointEnv(gym.Env):
    """
    One team as one Gymnasium environment, for PettingZoo's ``ParallelEnv`` and ``AECEnv``, Gymnasium envs with a Dict or
    Tuple action space, and single-agent Gymnasium envs (a team of one, ``"agent_0"``).

    **Spaces.** ``agents`` is the team in the env's own order. ``action_space`` is a Dict of the agents' own spaces, in that
    order. ``observation_space`` is a flat Dict: ``"<agent>"``, or ``"<agent>/<key>"`` for each part of an agent's Dict or
    Tuple observation; ``"<agent>/action_mask"`` where the env gives masks, in the observation or in the info (1 where a
    choice is legal; the heads of MultiDiscrete and of nested actions one after the other); and the critic's ``"state"``.
    float64 becomes float32.

    **Actions** are a dict ``{agent: action}``, or one row of an array of dtype
    :func:`~sb3_happo.envs.spaces.joint_action_dtype`, as ``VecEnv`` hands them out.

    **Life, death and turns.** An agent that is missing from the env's observations (dead, not yet born, not on turn) is
    inactive: its observation is zeros, its mask all ones, its action ignored. ``info["active"]``, bool ``(n_agents,)``,
    describes the observation that comes with it and is there only if somebody is inactive; ``info["waiting_agents"]``, the
    same, says who of them is alive and will be back, off turn or away, and is there only if somebody is. An agent that ends
    while others go on is inactive from then on; the reward of that step counts. With an ``AECEnv`` one agent acts per step,
    and the others' own entries are zeros, but a critic's state made of observations holds what every living agent would see.
    Each step's rewards are all that were emitted in it, for whichever agent.

    **The end.** An episode ends when nobody of the team is left. It counts as truncated, which means that its last value is
    bootstrapped, if any agent that was still there in the last step was truncated and not terminated: somebody's game was cut
    off. Otherwise, also if agents had been truncated one by one before, it counts as terminated. Agents that end in the last
    step keep their last observation, so that its value can be estimated; in an episode that was cut off, those that were
    terminated do not.

    **Rewards.** ``info["agent_rewards"]``, float ``(n_agents,)``, are the agents' own at every step, in the order of
    ``agents``. The infos of a PettingZoo env are in ``info["agent_infos"]`` where they are not empty; a Gymnasium env's info
    is passed on.

    The constructor resets the env once, unseeded, to learn of masks and of the state's shape.

    :param env: The environment
    :param team_reward: The team's reward: the ``"mean"`` over all agents (inactive ones count 0), the ``"sum"``, an agent's
        name, or a callable of the array of rewards ``(n_agents,)``
    :param state: What the critic sees. ``"env"``: the env's ``state()``. ``"observations"``: the agents' observations side by
        side (one float32 vector, Discrete ones one-hot encoded; images of one shape stacked along channels; for images and
        other things in one team, keys ``"state/<agent>"`` or ``"state/<agent>/<key>"``), zeros for inactive agents. None: the
        env's ``state()`` if it has one that works, otherwise the observations. ``"agent"``: agent-specific state (HARL's
        "FP"), key ``"agent_states"`` of shape ``(n_agents, D)``: as for None, and then the agent's own observation and its
        one-hot id. Or a callable ``state(env, observations)`` that returns an array, given ``env`` and the joint observation
        without state.
    :param agents: The agents of the team, if not all; the rest belong to the environment
    :param others: Who plays the rest: "random", a callable, anything with ``predict``, ``{agent: policy}``, or a list of
        which each episode draws one; see :class:`~sb3_happo.envs.other_agents.PartialTeam`
    :param observe_active: Whether ``info["active"]`` is an entry of the observation too, ``"active"``, int8 ``(n_agents,)``,
        from which the ``predict`` of agents with memory learns when to keep it as it is. None: in turn-based games
    :param per_agent: For Gymnasium envs with a Dict or Tuple action space: whether it holds one action per agent, or one
        agent's hybrid action. None decides: per agent if the observation space is a Dict of the same keys or a Tuple of the
        same length
    :raises TypeError: If ``env`` is nothing that can be joined, or a space is unsupported
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
        others: OtherPolicy = None,
        per_agent: bool | None = None,
        observe_active: bool | None = None,
    ) -> None:
        if isinstance(env, gym.Env) and isinstance(env.unwrapped, JointEnv):
            raise TypeError("This is a JointEnv already; use it as it is.")
        self.env = env
        self.metadata = getattr(env, "metadata", {})
        self.render_mode = getattr(env, "render_mode", None)
        self._gymnasium: GymnasiumTeam | None = None
        self._team: Team = self._as_team(env, per_agent)
        self._observes_all = isinstance(self._team, TurnBased)
        self._observes_active = self._observes_all if observe_active is None else observe_active
        if others is not None and agents is None:
            raise ValueError(
                "`others` play the agents outside the team; say with `agents` who is in it."
            )
        if agents is not None:
            self._team = PartialTeam(self._team, agents, others)

        observations, infos = self._team.reset()
        self._ids = agent_ids(self._team)
        self._known = set(self._ids)
        self.agents = _agent_names(self._ids)
        self.n_agents = len(self.agents)
        self._spaces = [
            (self._team.observation_space(agent), self._team.action_space(agent))
            for agent in self._ids
        ]
        self.action_space = spaces.Dict(
            [
                (name, action_space)
                for name, (_, action_space) in zip(self.agents, self._spaces, strict=True)
            ]
        )
        self._converters = [action_converter(action_space) for _, action_space in self._spaces]
        self._plain_actions = all(converter is None for converter in self._converters)
        self._leaves: list[Leaf] = []
        self._plans = [self._plan(index, observations, infos) for index in range(self.n_agents)]
        self._masks_in_info = [
            (index, plan.agent, name)
            for index, (name, plan) in enumerate(zip(self.agents, self._plans, strict=True))
            if plan.mask_key is not None and not plan.mask_in_observation
        ]
        self._active: np.ndarray | None = None
        self._gone: frozenset[Any] = frozenset()  # whose flags were up at the last step
        self._set_team_reward(team_reward)
        self._set_state(state, observations, infos)
        own = {leaf.key: leaf.space for leaf in self._leaves}
        masks = {
            plan.mask_key: spaces.Box(0, 1, (n_choices(plan.action_space),), np.int8)
            for plan in self._plans
            if plan.mask_key is not None
        }
        active = (
            {ACTIVE: spaces.Box(0, 1, (self.n_agents,), np.int8)} if self._observes_active else {}
        )
        self._check_keys(
            [*(leaf.key for leaf in self._leaves), *masks, *active, *self._state.spaces]
        )
        self.observation_space = spaces.Dict(
            [*own.items(), *masks.items(), *active.items(), *self._state.spaces.items()]
        )

    # ---------------------------------------------------------------- set-up

    def _as_team(self, env: Any, per_agent: bool | None) -> Team:
        if isinstance(env, gym.Env):
            self._gymnasium = GymnasiumTeam(env, per_agent)
            return self._gymnasium
        if per_agent is not None:
            raise ValueError(
                "`per_agent` is for Gymnasium envs; a PettingZoo env says itself who its agents are."
            )
        # By their methods, so that an env need not derive from PettingZoo's classes
        if hasattr(env, "agent_iter") and hasattr(env, "last"):
            return TurnBased(env)
        if ConvertedAEC.suits(env):
            return ConvertedAEC(env)
        if MujocoTeam.suits(env):
            with contextlib.suppress(
                ValueError
            ):  # agents may observe what only the env itself can tell
                return MujocoTeam(env)
        if callable(getattr(env, "observation_space", None)) and callable(
            getattr(env, "action_space", None)
        ):
            return cast(Team, env)
        raise TypeError(
            f"{type(env).__name__} cannot be joined: JointEnv takes a PettingZoo ParallelEnv or AECEnv, or a Gymnasium env. "
            "For an id use make_joint_env(id)."
        )

    def _plan(self, index: int, observations: dict[Any, Any], infos: dict[Any, dict]) -> _AgentPlan:
        agent, name = self._ids[index], self.agents[index]
        observation_space, action_space = self._spaces[index]
        prefix: tuple = ()
        mask_in_observation = (
            isinstance(observation_space, spaces.Dict) and ACTION_MASK in observation_space.spaces
        )
        masked = mask_in_observation and n_choices(action_space) > 0
        if mask_in_observation:
            assert isinstance(observation_space, spaces.Dict)
            rest = [
                (key, space)
                for key, space in observation_space.spaces.items()
                if key != ACTION_MASK
            ]
            observation_space = spaces.Dict(rest)
            if [key for key, _ in rest] == [OBSERVATION]:
                prefix, observation_space = (OBSERVATION,), rest[0][1]
        elif n_choices(action_space):
            # Agents that are absent at the reset cannot show whether they have masks; they have if the others do
            shown = [ACTION_MASK in infos.get(other, {}) for other in observations]
            masked = ACTION_MASK in infos.get(agent, {}) if agent in observations else any(shown)
        try:
            leaves = observation_leaves(observation_space)
        except TypeError as error:
            raise TypeError(f"agent {name!r} has an {error}.") from error
        named = [
            ("/".join([name, *map(str, path)]), prefix + path, space) for path, space in leaves
        ]
        self._leaves.extend(Leaf(key, index, space) for key, _, space in named)
        mask_key = f"{name}/{ACTION_MASK}" if masked else None
        layout = [
            (key, path, space.shape or (), np.dtype(space.dtype)) for key, path, space in named
        ]
        blank = {key: np.zeros(shape, dtype) for key, _, shape, dtype in layout}
        if mask_key is not None:
            blank[mask_key] = np.ones(n_choices(action_space), np.int8)
        for array in blank.values():
            array.flags.writeable = False  # they are handed out again and again
        return _AgentPlan(agent, layout, mask_key, mask_in_observation, action_space, blank)

    def _check_keys(self, keys: list[str]) -> None:
        for name in self.agents:
            if name in (STATE, AGENT_STATES) or name.startswith(STATE + "/"):
                raise ValueError(
                    f"An agent is called {name!r}, which is the key of the critic's state; rename the agent."
                )
            owners = [other for other in self.agents if name.startswith(other + "/")]
            if owners:
                raise ValueError(
                    f"Agents {owners[0]!r} and {name!r}: their observations' keys could be mixed up; rename one of them."
                )
        doubles = {key for key in keys if keys.count(key) > 1}
        if doubles:
            raise ValueError(
                f"Several entries of the joint observation would have the keys {sorted(doubles)}; "
                f"rename those keys in the agents' observations ({ACTION_MASK!r} is the action mask's)."
            )

    def _set_team_reward(self, team_reward: TeamReward) -> None:
        self._reward_index = None
        if not callable(team_reward) and team_reward not in ("mean", "sum"):
            team_reward = str(team_reward)
            if team_reward not in self.agents:
                raise ValueError(
                    f"team_reward={team_reward!r} is neither 'mean', 'sum', a callable, nor one of {list(self.agents)}."
                )
            self._reward_index = self.agents.index(team_reward)
        self.team_reward = team_reward

    def _set_state(
        self, state: State, observations: dict[Any, Any], infos: dict[Any, dict]
    ) -> None:
        if not (state is None or state in ("env", "observations", "agent") or callable(state)):
            raise ValueError(
                f"state={state!r} is neither None, 'env', 'observations', 'agent', nor a callable (env, observations)."
            )
        #: Whether the critic sees the env's own ``state()``, at least in part
        self.uses_env_state = False
        active = self._activity(observations, {}, {})
        joint = self._layout(observations, infos, active)
        if callable(state):
            self._user_state = state
            self._state: StateSource = ComputedState(
                self._call_user_state, self._call_user_state(dict(joint)), "The state callable"
            )
            return
        self._state = concatenated_observations(self._leaves)
        if state == "env" and not self._has_state():
            raise ValueError(
                "The env has no working state(); use state='observations' or a callable."
            )
        if state == "env" or (
            state != "observations"
            and self._state_function() not in _STATE_FAILS
            and self._has_state()
        ):
            from_env = ComputedState(
                self._call_env_state, self._call_env_state(joint), "The env's state()"
            )
            self.uses_env_state = state == "env" or not self._state_is_observations(
                from_env, joint, active
            )
            if self.uses_env_state:
                self._state = from_env
                self._observes_all = self._observes_all and state == "agent"
        if state == "agent":
            self._state = AgentStates(self._state, self._leaves, self.n_agents)

    def _call_user_state(self, observations: Observations) -> np.ndarray:
        return self._user_state(self.env, observations)

    def _call_env_state(self, observations: Observations) -> np.ndarray:
        return self._team.state()

    def _has_state(self) -> bool:
        try:
            state = np.asarray(self._team.state())
        except (NotImplementedError, AttributeError):
            return False
        except Exception as error:  # someone else's code; PettingZoo's own envs have failed here with several kinds
            gym.logger.warn(
                f"The env's state() fails ({error!r}); the critic sees the observations instead."
            )
            return False
        return state.dtype.kind in "biuf"

    def _state_function(self) -> str:
        function = getattr(type(getattr(self.env, "unwrapped", None)), "state", None)
        return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"

    def _state_is_observations(
        self, state: ComputedState, joint: Observations, active: np.ndarray | None
    ) -> bool:
        if self._state_function() not in _STATE_IS_OBSERVATIONS:
            return False
        joint = dict(joint)
        self._state(joint, active)
        return (
            active is None and STATE in joint and np.array_equal(joint[STATE], state.value(joint))
        )  # no wrapper in between

    # ---------------------------------------------------------------- Gymnasium's interface

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        Start an episode.

        :param seed: Seed of the env, and of the ``others``
        :param options: Passed to the env
        :return: Joint observation and info
        :raises ValueError: If an agent's spaces have changed, or an observation does not fit its space
        """
        super().reset(seed=seed)
        observations, infos = self._team.reset(seed=seed, options=options)
        for agent, name, recorded in zip(self._ids, self.agents, self._spaces, strict=True):
            for kind, old, new in zip(
                ("observation", "action"),
                recorded,
                (self._team.observation_space(agent), self._team.action_space(agent)),
                strict=True,
            ):
                if new is not old and new != old:
                    raise ValueError(
                        f"The {kind} space of agent {name!r} has changed from {old} to {new} at a reset; it must stay the "
                        "same. Pad it to the largest, for example with supersuit."
                    )
        self._gone = frozenset()
        self._active = self._activity(observations, {}, {})
        waiting = self._waiting(self._active, self._team.agents)
        return self._observe(observations, infos, self._active), self._info(
            infos, self._active, waiting, ended=False
        )

    def step(
        self, action: dict[str, Any] | np.void
    ) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """
        One step of the team.

        :param action: ``{agent: action}``, or one row of a joint action array; actions of inactive agents are ignored
        :return: Joint observation, team reward, terminated, truncated, info
        :raises ValueError: If the action is not the team's, or an observation does not fit its space
        """
        observations, rewards, terminations, truncations, infos = self._team.step(
            self._split(action)
        )
        active = waiting = None
        terminated = truncated = ended = False
        gone, self._gone = self._gone, frozenset()
        if (
            len(observations) != self.n_agents
            or any(terminations.values())
            or any(truncations.values())
        ):
            flagged = frozenset(
                a for a in self._ids if terminations.get(a, False) or truncations.get(a, False)
            )
            ended = has_ended(self._team.agents, terminations, truncations)
            if ended:
                cut_off = [
                    a
                    for a in self._ids
                    if a not in gone and truncations.get(a) and not terminations.get(a)
                ]
                truncated = bool(cut_off)
                terminated = not truncated
                # Of those whose game was cut off the value may be asked for, of others not
                present = {
                    agent: observations[agent] for agent in observations if agent not in gone
                }
                active = self._activity(present, terminations if truncated else {}, {})
                waiting = self._waiting(active, cut_off)
            else:
                self._gone = flagged
                active = self._activity(observations, terminations, truncations)
                waiting = self._waiting(
                    active, [agent for agent in self._team.agents if agent not in flagged]
                )
        self._active = active
        info = self._info(infos, active, waiting, ended)
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
        return self._observe(observations, infos, active), reward, terminated, truncated, info

    # As if this were a wrapper of the env: SB3's VecEnv.env_method and get_attr reach its methods and attributes

    def has_wrapper_attr(self, name: str) -> bool:
        """
        :param name: Of an attribute
        :return: Whether this or the env inside has it
        """
        return any(hasattr(owner, name) for owner in self._owners())

    def get_wrapper_attr(self, name: str) -> Any:
        """
        :param name: Of an attribute, of this or of the env inside
        :return: The attribute
        :raises AttributeError: If there is none
        """
        return getattr(
            next((owner for owner in self._owners() if hasattr(owner, name)), self.env), name
        )

    def set_wrapper_attr(self, name: str, value: Any, *, force: bool = True) -> bool:
        """
        :param name: Of an attribute, of this or of the env inside
        :param value: Its new value
        :param force: Whether to set it here if neither has it
        :return: Whether it was set
        """
        owner = next(
            (owner for owner in self._owners() if hasattr(owner, name)), self if force else None
        )
        if owner is not None:
            setattr(owner, name, value)
        return owner is not None

    def _owners(self) -> tuple[Any, ...]:
        """The innermost env before its wrappers, of which PettingZoo's answer for it, but keep what is set to themselves."""
        return self, getattr(self.env, "unwrapped", self.env), self.env

    def render(self) -> Any:
        """
        :return: What the env renders
        """
        return self.env.render()

    def close(self) -> None:
        """
        Close the env.
        """
        self.env.close()

    def __str__(self) -> str:
        return f"<{type(self).__name__}<{self.env}>>"

    # ---------------------------------------------------------------- each step

    def _split(self, action: dict[str, Any] | np.void) -> dict[Any, Any]:
        """The actions of the active agents, by the env's own ids."""
        if isinstance(action, dict):
            pairs = zip(self._ids, self.agents, strict=True)
            active = repeat(True) if self._active is None else self._active
            try:
                return {
                    agent: action[name]
                    for (agent, name), is_active in zip(pairs, active, strict=False)
                    if is_active
                }
            except KeyError as error:
                raise ValueError(
                    f"No action for agent {error.args[0]!r}; it is active, and the action has {list(action)}."
                ) from None
        try:
            fits = action.dtype.names == self.agents
        except AttributeError:
            fits = False
        if not fits:
            raise ValueError(
                f"A joint action is a dict {{agent: action}}, or one row of an array of joint_action_dtype(env.action_space), "
                f"for the agents {list(self.agents)}; this is {action!r}."
            )
        values: Sequence[Any] = action.item()
        if not self._plain_actions:
            converters = zip(values, self._converters, strict=True)
            values = [value if convert is None else convert(value) for value, convert in converters]
        if self._active is None:
            return dict(zip(self._ids, values, strict=True))
        return {
            agent: value
            for agent, value, is_active in zip(self._ids, values, self._active, strict=True)
            if is_active
        }

    def _activity(
        self, observations: dict[Any, Any], terminations: Flags, truncations: Flags
    ) -> np.ndarray | None:
        """Who acts next, ``(n_agents,)``; None if everybody does."""
        unknown = [agent for agent in observations if agent not in self._known]
        if unknown:
            raise ValueError(
                f"The env observes agents {unknown}, of whom it had not spoken before; "
                "list everyone who may appear in `possible_agents`."
            )
        active = np.array(
            [
                agent in observations
                and not (terminations.get(agent, False) or truncations.get(agent, False))
                for agent in self._ids
            ]
        )
        return None if active.all() else active

    def _waiting(self, active: np.ndarray | None, alive: Sequence[Any]) -> np.ndarray | None:
        """Who is alive though inactive, ``(n_agents,)``; None if nobody is."""
        if active is None:
            return None
        waiting = np.array(
            [agent in alive and not here for agent, here in zip(self._ids, active, strict=True)]
        )
        return waiting if waiting.any() else None

    def _layout(
        self, observations: dict[Any, Any], infos: dict[Any, dict], active: np.ndarray | None
    ) -> Observations:
        """The agents' own entries of the joint observation."""
        joint: Observations = {}
        for index, (agent, leaves, mask_key, mask_in_observation, action_space, blank) in enumerate(
            self._plans
        ):
            if active is not None and not active[index]:
                joint.update(blank)
                continue
            try:
                observation = observations[agent]
                for key, path, shape, dtype in leaves:
                    array = observation
                    for part in path:
                        array = array[part]
                    if type(array) is not np.ndarray:
                        array = np.asarray(array)
                    if array.shape != shape:  # NumPy would broadcast it where it is stored
                        raise ValueError(
                            f"agent {self.agents[index]!r}: an observation of shape {array.shape} (entry {key!r}), where its "
                            f"space has {shape}; correct the env's observation_space or what it returns."
                        )
                    joint[key] = array if array.dtype is dtype else array.astype(dtype)
                if mask_key is not None:
                    mask = (
                        observation[ACTION_MASK]
                        if mask_in_observation
                        else infos.get(agent, {}).get(ACTION_MASK)
                    )
                    joint[mask_key] = flatten_mask(action_space, mask)
            except (KeyError, IndexError) as error:
                raise ValueError(
                    f"agent {self.agents[index]!r}: its observation lacks {error}, which is in its observation space."
                ) from error
        return joint

    def _observe(
        self, observations: dict[Any, Any], infos: dict[Any, dict], active: np.ndarray | None
    ) -> Observations:
        joint = self._layout(observations, infos, active)
        if self._observes_all:
            everyone = self._team.observe_all()  # type: ignore[attr-defined]
            present = np.array([agent in everyone for agent in self._ids])
            seen = self._layout(everyone, {}, present)
            self._state(seen, present)
            joint.update((key, seen[key]) for key in self._state.spaces)
        else:
            self._state(joint, active)
        if self._observes_active:
            joint[ACTIVE] = (
                np.ones(self.n_agents, np.int8) if active is None else active.astype(np.int8)
            )
        return joint

    def _info(
        self,
        infos: dict[Any, dict],
        active: np.ndarray | None,
        waiting: np.ndarray | None,
        ended: bool,
    ) -> dict[str, Any]:
        info: dict[str, Any] = {} if self._gymnasium is None else dict(self._gymnasium.info)
        info.pop("active", None)  # which here means something else
        if any(infos.values()):
            shown = {
                name: infos[agent]
                for agent, name in zip(self._ids, self.agents, strict=True)
                if infos.get(agent)
            }
            for name, plan in zip(self.agents, self._plans, strict=True):
                if (
                    plan.mask_key is None
                    and ACTION_MASK in shown.get(name, ())
                    and n_choices(plan.action_space)
                ):
                    raise ValueError(
                        f"agent {name!r} has an action mask in its info now, but had none at the first reset; "
                        "give one at every reset and step (all ones where everything is legal)."
                    )
            if self._gymnasium is None and shown:
                info["agent_infos"] = shown
        for index, agent, name in () if ended else self._masks_in_info:
            if (active is None or active[index]) and infos.get(agent, {}).get(ACTION_MASK) is None:
                raise ValueError(
                    f"agent {name!r} has no action mask in its info now, but had one at the first reset; "
                    "give one at every reset and step (all ones where everything is legal)."
                )
        if active is not None:
            info["active"] = active
        if waiting is not None:
            info["waiting_agents"] = waiting
        return info


def _agent_names(ids: Sequence[Any]) -> tuple[str, ...]:
    # NumPy cannot have a field without a name
    names = tuple(str(agent) or f"agent_{index}" for index, agent in enumerate(ids))
    if len(set(names)) != len(names):
        raise ValueError(f"Agents must have different names, not {names}.")
    if not names:
        raise ValueError(
            "The env has no agents: neither `possible_agents` nor, after a reset, `agents` has an entry."
        )
    return names


# What JointEnv takes beside the environment
_ARGUMENTS = {*inspect.signature(JointEnv.__init__).parameters} - {"self", "env"}


def as_joint_env(env: Any, **kwargs: Any) -> gym.Env:
    """
    Make a joint environment of any environment.

    :param env: What :class:`JointEnv` takes; or a ``JointEnv``, wrapped or not, which is returned as it is
    :param kwargs: Arguments of :class:`JointEnv`
    :return: The joint environment
    :raises ValueError: If there are arguments for an environment that is joint already, or unknown ones
    """
    if isinstance(env, gym.Env) and isinstance(env.unwrapped, JointEnv):
        if kwargs:
            raise ValueError(f"The env is a JointEnv already; {list(kwargs)} would have no effect.")
        return env
    check_names(kwargs, _ARGUMENTS, "JointEnv")
    return JointEnv(env, **kwargs)
