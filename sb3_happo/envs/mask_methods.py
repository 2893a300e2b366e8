"""
Action masks that a method of the environment returns: sb3-contrib's ``action_masks()`` and its
``ActionMasker``; for teams ``{agent: mask}``, ``action_masks(agent)`` or ``action_mask(agent)``.
"""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_happo.envs.adapters import Team, TeamStep, TurnBased, WrappedTeam, agent_ids
from sb3_happo.envs.spaces import ACTION_MASK, n_choices

#: Names of methods that return action masks: sb3-contrib's protocol, and that of its users
MASK_METHODS = ("action_masks", "action_mask")


class MaskMethod:
    """
    Method of an environment that returns action masks.

    It takes an agent and returns the agent's mask; or it takes nothing, and returns ``{agent:
    mask}``, one mask per agent in a sequence, the agents' masks one after the other in one array,
    or the mask of the only agent or of the agent on turn.

    :param name: Name of the method
    :param method: Bound method
    """

    def __init__(self, name: str, method: Callable[..., Any]) -> None:
        self.name = name
        self._method = method
        self._per_agent = _takes_agent(method)

    def masks(self, team: Team, ids: Sequence[Any], observed: Collection[Any]) -> dict[Any, Any]:
        """
        :param team: Team
        :param ids: All agents of the environment
        :param observed: Agents that act next
        :return: Masks of these agents
        :raises ValueError: If the method returns none of the forms
        """
        if self._per_agent:
            return {agent: self._method(agent) for agent in observed}
        masks = self._method()
        if isinstance(masks, Mapping):
            named = {str(agent): mask for agent, mask in masks.items()}
            if named.keys().isdisjoint(str(agent) for agent in ids):
                # The parts of a Gymnasium team's Tuple are named by numbers
                named = dict(zip(map(str, ids), masks.values(), strict=True))
            return {agent: named[str(agent)] for agent in observed if str(agent) in named}
        if len(ids) == 1 or len(observed) == 1:
            agent = next(iter(observed), ids[0])
            size = n_choices(team.action_space(agent))
            if len(ids) == 1 or np.size(masks) == size:
                return {agent: masks}
        return self._split(masks, team, ids, observed)

    def _split(
        self, masks: Any, team: Team, ids: Sequence[Any], observed: Collection[Any]
    ) -> dict[Any, Any]:
        """Masks of the observed agents, from one sequence or array for all agents."""
        sizes = [n_choices(team.action_space(agent)) for agent in ids]
        if len(masks) == len(ids) and np.ndim(masks[0]):
            parts = list(masks)
        elif np.size(masks) == sum(sizes):
            parts = np.split(np.ravel(masks), np.cumsum(sizes)[:-1])
        else:
            raise ValueError(
                f"{self.name}() returned {np.size(masks)} entries, and the actions of "
                f"{[str(agent) for agent in ids]} need {sizes}; return {{agent: mask}}."
            )
        return {agent: part for agent, part in zip(ids, parts, strict=True) if agent in observed}


class MaskedTeam(WrappedTeam):
    """
    A team whose action masks come from a method of the environment. They are put into the infos,
    where neither an info nor an observation has one already.

    :param team: Team
    :param method: Method
    """

    env: Team

    def __init__(self, team: Team, method: MaskMethod) -> None:
        super().__init__(team)
        self.method = method

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Any, Any], dict[Any, dict]]:
        observations, infos = self.env.reset(seed=seed, options=options)
        return observations, self._with_masks(observations, infos)

    def step(self, actions: dict[Any, Any]) -> TeamStep:
        observations, rewards, terminations, truncations, infos = self.env.step(actions)
        infos = self._with_masks(observations, infos)
        return observations, rewards, terminations, truncations, infos

    def observe_all(self) -> dict[Any, Any]:
        """
        Turn-based games only.

        :return: Current observations of all living agents, on turn or not
        """
        return cast(TurnBased, self.env).observe_all()

    def _with_masks(
        self, observations: Mapping[Any, Any], infos: Mapping[Any, dict]
    ) -> dict[Any, dict]:
        without = []
        for agent in observations:
            if not (has_mask(self.env.observation_space(agent)) or _in_info(infos, agent)):
                without.append(agent)
        if not without:
            return dict(infos)
        masks = self.method.masks(self.env, agent_ids(self.env), without)
        complete = dict(infos)
        for agent, mask in masks.items():
            # Copied, because the environment may write its next mask to the same array
            complete[agent] = {**(infos.get(agent) or {}), ACTION_MASK: _copied(mask)}
        return complete


def with_mask_method(team: Team, env: Any) -> Team:
    """
    :param team: Adapter of an environment
    :param env: The environment
    :return: Team with the masks of the environment's method, if it has one and an agent needs masks
    """
    method = find_mask_method(env)
    return team if method is None else MaskedTeam(team, method)


def find_mask_method(env: Any) -> MaskMethod | None:
    """
    :param env: PettingZoo or Gymnasium environment
    :return: Method that returns action masks, of a wrapper or of the environment inside; None if
        there is none
    """
    for name in MASK_METHODS:
        method = None
        if isinstance(env, gym.Env):
            if env.has_wrapper_attr(name):
                method = env.get_wrapper_attr(name)
            if name != MASK_METHODS[0] and callable(method) and _takes_agent(method):
                method = None  # a function of something else, such as Taxi's of its state
        else:
            method = getattr(env, name, None)
            if method is None:  # wrappers need not pass it on
                method = getattr(getattr(env, "unwrapped", None), name, None)
        if callable(method):
            return MaskMethod(name, method)
    return None


def has_mask(space: spaces.Space) -> bool:
    """
    :param space: Observation space of an agent
    :return: True if it holds an action mask
    """
    return isinstance(space, spaces.Dict) and ACTION_MASK in space.spaces


def check_mask_wrappers(env: gym.Env, joint: gym.Env) -> None:
    """
    Refuse a wrapper such as sb3-contrib's ``ActionMasker`` around a joint environment, from which
    its masks would not reach the agents.

    :param env: Joint environment, wrapped or not
    :param joint: Environment inside the wrappers
    :raises ValueError: If a wrapper has a method ``action_masks``
    """
    while env is not joint and isinstance(env, gym.Wrapper):
        if hasattr(type(env), MASK_METHODS[0]):
            raise ValueError(
                f"{type(env).__name__} is around the joint environment, from where its action "
                "masks do not reach the agents; wrap the environment before it is joined, "
                f"JointEnv({type(env).__name__}(env, ...)), or give a PettingZoo env a method "
                "action_masks() that returns {agent: mask}."
            )
        env = env.env


def _takes_agent(method: Callable[..., Any]) -> bool:
    """True if the method has a parameter without default."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return False
    for parameter in parameters:
        positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if positional and parameter.default is parameter.empty:
            return True
    return False


def _in_info(infos: Mapping[Any, dict], agent: Any) -> bool:
    return (infos.get(agent) or {}).get(ACTION_MASK) is not None


def _copied(mask: Any) -> Any:
    return mask.copy() if isinstance(mask, np.ndarray) else mask
