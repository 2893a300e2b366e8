"""Everything that can be joined, behind PettingZoo's parallel interface: turns, Gymnasium envs, and a team among others."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Protocol, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from pettingzoo.utils import wrappers
from pettingzoo.utils.conversions import aec_to_parallel_wrapper

from sb3_happo.envs.spaces import ACTION_MASK

Flags: TypeAlias = dict[Any, bool]
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
    :param env: A PettingZoo env that has been reset
    :return: All its agents, in its own order
    """
    return list(getattr(env, "possible_agents", None) or env.agents)


def is_flagged(agent: Any, terminations: Flags, truncations: Flags) -> bool:
    """
    :param agent: Agent
    :param terminations: Terminations of a step
    :param truncations: Truncations of the same step
    :return: Whether the agent was terminated or truncated in that step
    """
    return terminations.get(agent, False) or truncations.get(agent, False)


def has_ended(agents: Sequence[Any], terminations: Flags, truncations: Flags) -> bool:
    """
    :param agents: The env's agents after a step
    :param terminations: That step's flags
    :param truncations: That step's flags
    :return: Whether nobody is left
    """
    return all(is_flagged(agent, terminations, truncations) for agent in agents)


class WrappedTeam:
    """
    A team with the agents, the spaces and the state of a PettingZoo env, for those that are played in another way.

    :param env: The env
    """

    def __init__(self, env: Any) -> None:
        self.env = env

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
        return self.env.reset(seed=seed, options=options)

    def state(self) -> np.ndarray:
        return self.env.state()


class TurnBased(WrappedTeam):
    """
    A PettingZoo ``AECEnv`` as a team of which one agent acts per step.

    Only the agent on turn is observed. A step's rewards are all that the env emitted for it, so that their sum over an
    episode is PettingZoo's; the steps of dead agents are made in here.

    :param env: The env, wrapped or not
    """

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Any, Any], dict[Any, dict]]:
        self.env.reset(seed=seed, options=options)
        self._bury()
        return self._turn(), self.env.infos

    def step(self, actions: dict[Any, Any]) -> TeamStep:
        env = self.env
        env.step(actions[env.agent_selection])
        rewards = dict(env.rewards)
        terminations, truncations = dict(env.terminations), dict(env.truncations)
        # At the end of the episode the dead stay, so that the terminal observation can still be asked for
        if not has_ended(env.agents, terminations, truncations):
            self._bury()
        return self._turn(), rewards, terminations, truncations, env.infos

    def _turn(self) -> dict[Any, Any]:
        agent = self.env.agent_selection
        return {agent: self.env.observe(agent)} if agent in self.env.agents else {}

    def _bury(self) -> None:
        env = self.env
        while env.agents and (
            env.terminations[env.agent_selection] or env.truncations[env.agent_selection]
        ):
            env.step(None)

    def observe_all(self) -> dict[Any, Any]:
        """
        :return: What all living agents would see now, whoever is on turn
        """
        return {agent: self.env.observe(agent) for agent in self.env.agents}


# PettingZoo's wrappers of AEC envs that change nothing but step(): what lies below them answers the same
_STEP_WRAPPERS = (
    wrappers.OrderEnforcingWrapper,
    wrappers.AssertOutOfBoundsWrapper,
    wrappers.ClipOutOfBoundsWrapper,
)


class ConvertedAEC(WrappedTeam):
    """
    A ``parallel_env`` that is an AEC env underneath, as those of MPE, SISL and butterfly, with less to do per step.

    PettingZoo's conversion observes every agent twice, and asks for everything through all wrappers: on MPE it takes as long
    as the env itself. Here the observations that nobody looks at are left out, and the env is asked directly; what comes of a
    step is the same. Actions are checked or clipped by the env's wrappers as ever.

    :param env: For which :meth:`suits` holds
    """

    def __init__(self, env: aec_to_parallel_wrapper) -> None:
        super().__init__(env)
        self._game = below(env.aec_env, _STEP_WRAPPERS)
        # Whoever steps in here has reset, and steps only while there are agents: there is no order to enforce
        self._steps = below(env.aec_env, _STEP_WRAPPERS[:1])

    @staticmethod
    def suits(env: Any) -> bool:
        """
        :param env: Any environment
        :return: Whether it is PettingZoo's own conversion of an AEC env
        """
        return type(env) is aec_to_parallel_wrapper

    def step(self, actions: dict[Any, Any]) -> TeamStep:
        game = self._game
        rewards: dict[Any, float] = {}
        for agent in game.agents:
            if agent != game.agent_selection:
                raise RuntimeError(
                    f"Agent {game.agent_selection!r} is on turn instead of {agent!r}: the env does not go round once per "
                    "step, and cannot be played in parallel; hand in the AEC env itself instead."
                )
            self._steps.step(actions[agent])
            for other in game.agents:
                rewards[other] = rewards.get(other, 0) + game.rewards[other]
        terminations, truncations, infos = (
            dict(game.terminations),
            dict(game.truncations),
            dict(game.infos),
        )
        observations = {agent: game.observe(agent) for agent in game.agents}
        while game.agents and (
            game.terminations[game.agent_selection] or game.truncations[game.agent_selection]
        ):
            self._steps.step(None)
        self.env.agents = game.agents
        return observations, rewards, terminations, truncations, infos


def below(env: Any, kinds: tuple[type, ...]) -> Any:
    """
    :param env: Any env
    :param kinds: Classes of wrappers, themselves and no subclasses
    :return: What lies below the outermost wrappers of these kinds
    """
    while type(env) in kinds:
        env = env.env
    return env


class GymnasiumTeam:
    """
    A Gymnasium env as a team: one agent per part of its Dict or Tuple action space, or a team of one.

    Observations are split by key or index where the observation space matches the action space; otherwise every agent
    sees the env's observation. Rewards and flags may be one for all, or one per agent.

    :param env: The env
    :param per_agent: Whether the action space holds one action per agent. None decides: it does if the observation space is a
        Dict of the same keys, or a Tuple of the same length
    """

    def __init__(self, env: gym.Env, per_agent: bool | None = None) -> None:
        self.env = env
        self.info: dict[str, Any] = {}
        action_space, observation_space = env.action_space, env.observation_space
        self._keys: list[Any] | None = None
        self._split_observations = False
        if isinstance(action_space, (spaces.Dict, spaces.Tuple)):
            keys = (
                list(action_space.spaces)
                if isinstance(action_space, spaces.Dict)
                else list(range(len(action_space.spaces)))
            )
            if type(observation_space) is type(action_space):
                assert isinstance(observation_space, (spaces.Dict, spaces.Tuple))
                inner = observation_space.spaces
                self._split_observations = len(inner) == len(keys) and (
                    isinstance(inner, tuple) or set(inner) == set(keys)
                )
            if self._split_observations if per_agent is None else per_agent:
                self._keys = keys
        if per_agent and self._keys is None:
            raise ValueError(
                f"per_agent=True needs an env with a Dict or Tuple action space, not {action_space}."
            )
        if self._keys is None:
            self._split_observations = False
            self.possible_agents: list[str] = ["agent_0"]
        else:
            self.possible_agents = [
                f"agent_{key}" if isinstance(key, int) else key for key in self._keys
            ]
            # What stands in for the action of an agent that has ended before the others, the same in every copy of the env
            self._idle = {
                agent: _idle_action(self.action_space(agent)) for agent in self.possible_agents
            }
        self.agents = self.possible_agents

    def _key(self, agent: str) -> Any:
        assert self._keys is not None
        return self._keys[self.possible_agents.index(agent)]

    def observation_space(self, agent: str) -> spaces.Space:
        space = self.env.observation_space
        return space[self._key(agent)] if self._split_observations else space  # type: ignore[index]

    def action_space(self, agent: str) -> spaces.Space:
        space = self.env.action_space
        return space if self._keys is None else space[self._key(agent)]  # type: ignore[index]

    def _per_agent(self, values: Any) -> dict[str, Any]:
        """Hand out something that is the same for all, or a sequence or dict with one entry per agent."""
        if self._keys is None:
            return {"agent_0": values}
        if isinstance(values, Mapping):
            return {
                agent: values[key]
                for agent, key in zip(self.possible_agents, self._keys, strict=True)
            }
        if np.ndim(values):
            return dict(zip(self.possible_agents, values, strict=True))
        return dict.fromkeys(self.possible_agents, values)

    def _observations(self, observation: Any) -> dict[str, Any]:
        if not self._split_observations:
            return dict.fromkeys(self.possible_agents, observation)
        assert self._keys is not None
        return {
            agent: observation[key]
            for agent, key in zip(self.possible_agents, self._keys, strict=True)
        }

    def _infos(self, info: dict[str, Any]) -> dict[str, dict]:
        self.info = info
        masks = info.get(ACTION_MASK) if isinstance(info, dict) else None
        if masks is None:
            return {}
        if self._keys is None:
            return {"agent_0": {ACTION_MASK: masks}}
        pairs = zip(self.possible_agents, self._keys, strict=True)
        by_key = isinstance(masks, Mapping)
        return {
            agent: {ACTION_MASK: masks[key if by_key else i]}
            for i, (agent, key) in enumerate(pairs)
        }

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict]]:
        observation, info = self.env.reset(seed=seed, options=options)
        return self._observations(observation), self._infos(info)

    def step(self, actions: dict[str, Any]) -> TeamStep:
        if self._keys is None:
            observation, reward, terminated, truncated, info = self.env.step(actions["agent_0"])
            flags = {"agent_0": bool(terminated)}, {"agent_0": bool(truncated)}
            return {"agent_0": observation}, {"agent_0": float(reward)}, *flags, self._infos(info)
        joint = [actions.get(agent, self._idle[agent]) for agent in self.possible_agents]
        by_key = isinstance(self.env.action_space, spaces.Dict)
        observation, rewards, terminated, truncated, info = self.env.step(
            dict(zip(self._keys, joint, strict=True)) if by_key else tuple(joint)
        )
        return (
            self._observations(observation),
            self._per_agent(rewards),
            self._per_agent(terminated),
            self._per_agent(truncated),
            self._infos(info),
        )

    def state(self) -> np.ndarray:
        state = getattr(self.env.unwrapped, "state", None)
        # Classic control envs keep their physical state in an attribute of that name, which is none of the critic's business
        if not callable(state):
            raise NotImplementedError
        return state()


def _idle_action(space: spaces.Space) -> Any:
    space = deepcopy(space)
    space.seed(0)
    return space.sample()
