"""Adapters: turn-based, converted and Gymnasium environments behind one parallel interface."""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from pettingzoo.utils import wrappers
from pettingzoo.utils.conversions import aec_to_parallel_wrapper

from sb3_happo.envs.spaces import ACTION_MASK, subspaces
from sb3_happo.envs.step_checks import (
    ALL_AGENTS,
    SEE_CHECKER,
    agent_flags,
    check_gymnasium,
    check_names_of_agents,
    check_reset,
    check_step,
    reward_error,
    without_none,
)

#: For each agent, whether it was terminated (or truncated) in a step
Flags: TypeAlias = dict[Any, bool]
#: Observations, rewards, terminations, truncations and infos of one step
TeamStep: TypeAlias = tuple[dict[Any, Any], dict[Any, float], Flags, Flags, dict[Any, dict]]


class Team(Protocol):
    """
    The part of PettingZoo's parallel interface that :class:`~sb3_happo.envs.JointEnv` needs.

    An agent that is missing from the observations does not act in the next step.
    """

    @property
    def possible_agents(self) -> Sequence[Any]: ...

    @property
    def agents(self) -> Sequence[Any]: ...

    def observation_space(self, agent: Any) -> spaces.Space: ...

    def action_space(self, agent: Any) -> spaces.Space: ...

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Any, Any], dict[Any, dict]]: ...

    def step(self, actions: dict[Any, Any]) -> TeamStep: ...

    def state(self) -> np.ndarray: ...


def agent_ids(env: Any) -> list[Any]:
    """
    :param env: PettingZoo environment that has been reset
    :return: All agents, in the environment's own order
    """
    return list(getattr(env, "possible_agents", None) or env.agents)


def is_gymnasium(env: Any) -> bool:
    """
    :param env: Any environment
    :return: True for an environment of Gymnasium's interface. Some teams derive from
        ``gymnasium.Env`` and have the methods of PettingZoo's interface, which count
    """
    return isinstance(env, gym.Env) and not callable(getattr(env, "action_space", None))


def takes_turns(env: Any) -> bool:
    """
    :param env: Any environment
    :return: True for an environment of the interface of PettingZoo's ``AECEnv``
    """
    iterates = hasattr(env, "agent_iter") or hasattr(env, "observe")
    return iterates and hasattr(env, "last")


def is_flagged(agent: Any, terminations: Flags, truncations: Flags) -> bool:
    """
    :param agent: Agent
    :param terminations: Terminations of a step
    :param truncations: Truncations of the same step
    :return: Whether the agent was terminated or truncated in that step
    """
    return terminations.get(agent, False) or truncations.get(agent, False)


def flagged_agents(agents: Iterable[Any], terminations: Flags, truncations: Flags) -> set[Any]:
    """
    :param agents: Agents
    :param terminations: Terminations of a step
    :param truncations: Truncations of the same step
    :return: Those of the agents that were terminated or truncated in that step
    """
    flagged = {agent for agent, flag in terminations.items() if flag}
    flagged.update(agent for agent, flag in truncations.items() if flag)
    return flagged.intersection(agents)


def has_ended(agents: Sequence[Any], terminations: Flags, truncations: Flags) -> bool:
    """
    :param agents: Agents that the environment lists after a step
    :param terminations: Terminations of that step
    :param truncations: Truncations of that step
    :return: Whether none of the agents is left
    """
    return all(is_flagged(agent, terminations, truncations) for agent in agents)


def unwrap(env: Any, wrapper_types: tuple[type, ...]) -> Any:
    """
    Remove the outermost wrappers of some types.

    :param env: Environment
    :param wrapper_types: Classes of the wrappers to remove; subclasses are kept
    :return: Environment inside these wrappers
    """
    while type(env) in wrapper_types:
        env = env.env
    return env


class WrappedTeam:
    """
    Base class of adapters with the agents, the spaces and the state of a PettingZoo environment.

    :param env: PettingZoo environment
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        self._known: frozenset[Any] = frozenset()
        # The list object of the first reset, and its length then
        self._first_list: Any = None
        self._first_length = 0

    @property
    def possible_agents(self) -> Sequence[Any]:
        return agent_ids(self.env)

    @property
    def agents(self) -> Sequence[Any]:
        return self.env.agents

    def observation_space(self, agent: Any) -> spaces.Space:
        return self.env.observation_space(agent)

    def action_space(self, agent: Any) -> spaces.Space:
        return self.env.action_space(agent)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Any, Any], dict[Any, dict]]:
        returned = check_reset(self._reset_env(seed, options))
        return returned[0], without_none(returned[1])

    def state(self) -> np.ndarray:
        return self.env.state()

    def _reset_env(self, seed: int | None, options: dict[str, Any] | None) -> Any:
        """
        Reset the environment, and check that its list of agents is complete.

        :raises TypeError: If ``reset`` does not take ``seed`` and ``options``
        :raises ValueError: If agents have been removed from ``possible_agents``
        """
        try:
            returned = call_reset(self.env, seed, options)
        except Exception:  # that of an environment whose list of agents is empty may be any
            self._check_list()
            raise
        self._check_list()
        return returned

    def _check_list(self) -> None:
        """Refuse a list of agents from which agents have been removed."""
        listed = getattr(self.env, "possible_agents", None)
        if self._first_list is None:
            self._first_list = listed
            self._first_length = len(listed or ())
            self._known = frozenset(agent_ids(self.env))
        elif listed is self._first_list and len(listed) < self._first_length:
            # Only the same list: another may be shorter on purpose
            lost = sorted(str(agent) for agent in self._known.difference(listed))
            raise ValueError(
                f"The env has removed the agents {lost} from `possible_agents`, so that they never "
                "return: `agents` and `possible_agents` are one list. Copy it in reset: "
                "self.agents = self.possible_agents[:]."
            )

    def _flags(
        self, terminations: Flags, truncations: Flags, actions: Iterable[Any]
    ) -> tuple[Flags, Flags]:
        """Flags of a step by agent; see :func:`~sb3_happo.envs.step_checks.agent_flags`."""
        known = self._known
        if terminations.keys() <= known and truncations.keys() <= known:
            return terminations, truncations
        alive = {*actions, *self.agents}
        return agent_flags(terminations, truncations, known, alive)


def call_reset(env: Any, seed: int | None, options: dict[str, Any] | None) -> Any:
    """
    Reset an environment.

    :param env: Environment
    :param seed: Seed, or None
    :param options: Options, or None
    :return: Value that ``reset`` returns
    :raises TypeError: If ``reset`` does not take ``seed`` and ``options``
    """
    try:
        return env.reset(seed=seed, options=options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error) or "reset()" not in str(error):
            raise
        raise TypeError(
            f"{error}. Give reset the arguments seed=None and options=None, as PettingZoo and "
            f"Gymnasium do. {SEE_CHECKER}"
        ) from error


class ParallelTeam(WrappedTeam):
    """
    An environment of the interface of PettingZoo's ``ParallelEnv``, whose answers are checked.

    A flag ``"__all__"``, as RLlib's environments give it, ends the episode for all agents.

    :param env: Environment, derived from PettingZoo's class or not
    """

    def step(self, actions: dict[Any, Any]) -> TeamStep:
        step = check_step(self.env.step(actions))
        observations, rewards, terminations, truncations, infos = step
        # Unknown agents that are observed get an error of their own
        if observations.keys() <= self._known:
            if not rewards.keys() <= self._known:
                check_names_of_agents("rewards", rewards, self._known)
            terminations, truncations = self._flags(terminations, truncations, actions)
        return observations, rewards, terminations, truncations, without_none(infos)


class GymWrappedTeam(ParallelTeam):
    """
    A team that derives from ``gymnasium.Env`` too, inside wrappers of Gymnasium, as
    ``gymnasium.make`` returns it. Gymnasium's wrappers do not pass on attributes.

    :param env: Gymnasium wrapper of such a team
    """

    @property
    def possible_agents(self) -> Sequence[Any]:
        return agent_ids(self.env.unwrapped)

    @property
    def agents(self) -> Sequence[Any]:
        return self.env.unwrapped.agents

    def state(self) -> np.ndarray:
        return self.env.unwrapped.state()

    def _reset_env(self, seed: int | None, options: dict[str, Any] | None) -> Any:
        returned = call_reset(self.env, seed, options)
        self._known = frozenset(self.possible_agents)
        return returned


# Attributes of an ``AECEnv`` that has been reset
_TURN_ATTRIBUTES = ("agent_selection", "rewards", "terminations", "truncations", "infos")


def _step_dead_agents(env: Any, wrapped: Any) -> None:
    """
    Make the steps of agents that have ended, until an agent that is alive is on turn.

    :param env: ``AECEnv`` whose attributes are read
    :param wrapped: The same environment, or wrappers around it, to be stepped
    """
    while env.agents and is_flagged(env.agent_selection, env.terminations, env.truncations):
        wrapped.step(None)


class TurnBased(WrappedTeam):
    """
    A PettingZoo ``AECEnv`` as a team of which one agent acts per step.

    Only the agent on turn is observed. The rewards of a step are all that the environment emitted
    for it, so that their sum over an episode is PettingZoo's. The steps of dead agents, which
    PettingZoo asks of its users, are made here.

    :param env: ``AECEnv``, wrapped or not
    """

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Any, Any], dict[Any, dict]]:
        self._reset_env(seed, options)
        missing = [name for name in _TURN_ATTRIBUTES if not hasattr(self.env, name)]
        if missing:
            raise TypeError(
                f"The AECEnv has no {missing} after reset, where PettingZoo's has "
                f"{_TURN_ATTRIBUTES}. `dones` are those of before PettingZoo 1.22, now split into "
                f"terminations and truncations. {SEE_CHECKER}"
            )
        _step_dead_agents(self.env, self.env)
        return self._observe(), without_none(self.env.infos)

    def step(self, actions: dict[Any, Any]) -> TeamStep:
        env = self.env
        env.step(actions[env.agent_selection])
        rewards = dict(env.rewards)
        flags = self._flags(dict(env.terminations), dict(env.truncations), actions)
        terminations, truncations = flags
        # At the end of an episode dead agents are left in place: their steps would remove them,
        # and the terminal observation could not be read any more
        if not has_ended(env.agents, terminations, truncations):
            _step_dead_agents(env, env)
        return self._observe(), rewards, terminations, truncations, without_none(env.infos)

    def _observe(self) -> dict[Any, Any]:
        """Observation of the agent on turn; empty if there is none."""
        agent = self.env.agent_selection
        return {agent: self.env.observe(agent)} if agent in self.env.agents else {}

    def observe_all(self) -> dict[Any, Any]:
        """
        :return: Current observations of all living agents, on turn or not
        """
        return {agent: self.env.observe(agent) for agent in self.env.agents}


# PettingZoo's wrappers of AEC environments that change nothing but step(): all other answers are
# those of the environment inside
_STEP_WRAPPERS = (
    wrappers.OrderEnforcingWrapper,
    wrappers.AssertOutOfBoundsWrapper,
    wrappers.ClipOutOfBoundsWrapper,
)


class ConvertedAEC(WrappedTeam):
    """
    A ``parallel_env`` that PettingZoo converted from an ``AECEnv`` (MPE, SISL, butterfly), with
    less work per step.

    PettingZoo's conversion observes every agent twice and makes every call through all wrappers; on
    MPE this takes as long as the environment itself. Here unused observations are left out, and the
    environment is called directly. The results of a step are the same. Actions are
    checked or clipped by the environment's wrappers as before.

    :param env: Environment for which :meth:`supports` holds
    """

    def __init__(self, env: aec_to_parallel_wrapper) -> None:
        super().__init__(env)
        self._game = unwrap(env.aec_env, _STEP_WRAPPERS)
        # OrderEnforcingWrapper is left out: this class resets before it steps, and stops stepping
        # when there are no agents
        self._stepper = unwrap(env.aec_env, _STEP_WRAPPERS[:1])

    @staticmethod
    def supports(env: Any) -> bool:
        """
        :param env: Any environment
        :return: Whether ``env`` is PettingZoo's own conversion of an ``AECEnv``
        """
        return type(env) is aec_to_parallel_wrapper

    def step(self, actions: dict[Any, Any]) -> TeamStep:
        game = self._game
        rewards: dict[Any, float] = {}
        for agent in game.agents:
            if agent != game.agent_selection:
                raise RuntimeError(
                    f"Agent {game.agent_selection!r} is on turn instead of {agent!r}: the env does "
                    "not give every agent one turn per step, and cannot be played in parallel; "
                    "pass the AEC env itself instead."
                )
            self._stepper.step(actions[agent])
            for other in game.agents:
                rewards[other] = rewards.get(other, 0) + game.rewards[other]
        terminations = dict(game.terminations)
        truncations = dict(game.truncations)
        infos = dict(game.infos)
        observations = {agent: game.observe(agent) for agent in game.agents}
        _step_dead_agents(game, self._stepper)
        self.env.agents = game.agents
        return observations, rewards, terminations, truncations, infos


class GymnasiumTeam:
    """
    A Gymnasium environment as a team: one agent per part of its Dict or Tuple action space, or a
    team of one.

    Observations are split by key or index where the observation space has the same keys as the
    action space; otherwise every agent gets the environment's observation. Rewards and flags may be
    one for all, or one per agent.

    :param env: Gymnasium environment
    :param per_agent: Whether the action space holds one action per agent. None: it does if the
        observation space is a Dict of the same keys, or a Tuple of the same length
    :raises ValueError: If ``per_agent`` is True and the action space is no Dict or Tuple
    """

    def __init__(self, env: gym.Env, per_agent: bool | None = None) -> None:
        self.env = env
        #: Info of the last reset or step
        self.info: dict[str, Any] = {}
        self.possible_agents: list[Any] = ["agent_0"]
        self._keys: dict[Any, Any] | None = None
        self._split_observations = False
        # Placeholder actions of agents that have ended before the others; the same in every copy of
        # the environment
        self._idle_actions: dict[Any, Any] = {}
        keys = _agent_keys(env, per_agent)
        if keys is not None:
            self.possible_agents = [_agent_name(key) for key in keys]
            self._keys = dict(zip(self.possible_agents, keys, strict=True))
            self._split_observations = _have_same_keys(env.observation_space, env.action_space)
            for agent in self.possible_agents:
                self._idle_actions[agent] = _idle_action(self.action_space(agent))
        self.agents = self.possible_agents

    def observation_space(self, agent: Any) -> spaces.Space:
        space = self.env.observation_space
        if self._keys is None or not self._split_observations:
            return space
        return space[self._keys[agent]]  # type: ignore[index]

    def action_space(self, agent: Any) -> spaces.Space:
        space = self.env.action_space
        return space if self._keys is None else space[self._keys[agent]]  # type: ignore[index]

    def _per_agent(self, values: Any) -> dict[Any, Any]:
        """
        :param values: One value for all agents, or a sequence or mapping with one per agent
        :return: One value per agent
        """
        if self._keys is None:
            return {"agent_0": values}
        if isinstance(values, Mapping):
            return self._from_mapping(values)
        if np.ndim(values):
            return dict(zip(self.possible_agents, values, strict=True))
        return dict.fromkeys(self.possible_agents, values)

    def _from_mapping(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """
        :param values: Rewards or flags by key of the action space; one under ``"__all__"``, as
            RLlib's environments give it, holds for every agent without one of its own
        :return: Values by agent
        :raises ValueError: If there is another name
        """
        assert self._keys is not None
        keys = list(self._keys.values())
        unknown = [name for name in values if name not in keys and name != ALL_AGENTS]
        if unknown or (len(values) < len(keys) and ALL_AGENTS not in values):
            raise ValueError(
                f"step returns a reward or flag for each of {list(values)}, where the action space "
                f"has {keys}. Give one for each of these, or one for all of them."
            )
        everyone = values.get(ALL_AGENTS, False)
        return {agent: values.get(key) or everyone for agent, key in self._keys.items()}

    def _observations(self, observation: Any) -> dict[Any, Any]:
        if self._keys is None or not self._split_observations:
            return dict.fromkeys(self.possible_agents, observation)
        return {agent: observation[key] for agent, key in self._keys.items()}

    def _infos(self, info: dict[str, Any]) -> dict[Any, dict]:
        """Keep the info; return the agents' action masks, if it has them."""
        self.info = info
        masks = info.get(ACTION_MASK) if isinstance(info, dict) else None
        if masks is None:
            return {}
        if self._keys is None:
            return {"agent_0": {ACTION_MASK: masks}}
        keys = self._keys.values() if isinstance(masks, Mapping) else range(len(self._keys))
        pairs = zip(self.possible_agents, keys, strict=True)
        return {agent: {ACTION_MASK: masks[key]} for agent, key in pairs}

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Any, Any], dict[Any, dict]]:
        returned = call_reset(self.env, seed, options)
        observation, info = check_gymnasium("reset", returned, 2)
        return self._observations(observation), self._infos(info)

    def step(self, actions: dict[Any, Any]) -> TeamStep:
        if self._keys is None:
            step = check_gymnasium("step", self.env.step(actions["agent_0"]), 5)
            observation, reward, terminated, truncated, info = step
            return (
                {"agent_0": observation},
                {"agent_0": _number(reward)},
                {"agent_0": bool(terminated)},
                {"agent_0": bool(truncated)},
                self._infos(info),
            )
        joint: Any = [actions.get(agent, idle) for agent, idle in self._idle_actions.items()]
        if isinstance(self.env.action_space, spaces.Dict):
            joint = dict(zip(self._keys.values(), joint, strict=True))
        else:
            joint = tuple(joint)
        step = check_gymnasium("step", self.env.step(joint), 5)
        observation, rewards, terminated, truncated, info = step
        return (
            self._observations(observation),
            self._per_agent(rewards),
            self._per_agent(terminated),
            self._per_agent(truncated),
            self._infos(info),
        )

    def state(self) -> np.ndarray:
        state = getattr(self.env.unwrapped, "state", None)
        # In Gymnasium's classic control, `state` is an attribute with the physical state
        if not callable(state):
            raise NotImplementedError
        return state()


def _number(reward: Any) -> float:
    """Reward of a team of one."""
    try:
        return float(reward)
    except (TypeError, ValueError) as error:
        raise reward_error("agent_0", reward) from error


def _agent_keys(env: gym.Env, per_agent: bool | None) -> list[Any] | None:
    """Keys or indices of the agents' parts of the action space; None for a team of one."""
    action_space = env.action_space
    if not isinstance(action_space, (spaces.Dict, spaces.Tuple)):
        if per_agent:
            raise ValueError(
                "per_agent=True needs an env with a Dict or Tuple action space, "
                f"not {action_space}."
            )
        return None
    if per_agent is None:
        per_agent = _have_same_keys(env.observation_space, action_space)
    return [key for _, key, _ in subspaces(action_space)] if per_agent else None


def _have_same_keys(first: spaces.Space, second: spaces.Space) -> bool:
    """Whether both are Dicts of the same keys, or Tuples of the same length."""
    if isinstance(first, spaces.Dict) and isinstance(second, spaces.Dict):
        return set(first.spaces) == set(second.spaces)
    if isinstance(first, spaces.Tuple) and isinstance(second, spaces.Tuple):
        return len(first.spaces) == len(second.spaces)
    return False


def _agent_name(key: Any) -> Any:
    return f"agent_{key}" if isinstance(key, int) else key


def _idle_action(space: spaces.Space) -> Any:
    space = deepcopy(space)
    space.seed(0)
    return space.sample()
