"""A team among other agents: the agents outside the team, and the policies that play them."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeAlias, cast

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.adapters import (
    Flags,
    Team,
    TeamStep,
    TurnBased,
    agent_ids,
    flagged_agents,
    has_ended,
)
from sb3_happo.envs.spaces import ACTION_MASK, OBSERVATION, flatten_mask, split_mask

OtherPolicy: TypeAlias = Any
"""Policy of the agents outside the team, in one of the forms of :class:`PartialTeam`."""

# Number of episodes in a row that may end before an agent of the team is on turn
_MAX_EPISODES = 1000


class PartialTeam:
    """
    Some agents of an environment as the team; given policies play the other agents, which belong to
    the environment.

    An episode ends when none of the team is left. In turn-based games the other agents play until
    an agent of the team is on turn; an episode that ends before that is started anew.

    :param env: Environment with all agents
    :param agents: Names of the agents of the team
    :param other_agents: Policy of the other agents, one of

        * ``"random"``: uniform among the legal actions;
        * a callable ``(agent, observation, action_space, action_mask) -> action``.
          ``observation`` is the environment's own. ``action_space`` is the agent's, seeded by
          ``reset(seed)``: draw from it, or from its ``np_random``, to be reproducible.
          ``action_mask`` is ``(n_choices,)`` int8, or None;
        * an object with SB3's ``predict``, such as a saved agent, whose actions are
          sampled; or a model with ``policies``, such as ``HAPPO``, of which the policy of each
          agent is taken;
        * a mapping ``{agent: policy}`` of these;
        * a list of any of these: a mixture, from which one is drawn for each episode.
    :raises ValueError: If a name is unknown, or an agent has no policy
    :raises TypeError: If a policy has none of these forms
    """

    def __init__(self, env: Team, agents: Sequence[Any], other_agents: OtherPolicy) -> None:
        everyone = agent_ids(env)
        names = {str(agent) for agent in agents}
        known = [str(agent) for agent in everyone]
        if not names or not names.issubset(known):
            raise ValueError(f"agents={list(agents)} must name some of {known}.")
        self.env = env
        self.possible_agents = [agent for agent in everyone if str(agent) in names]
        self.other_agents = other_agents
        self._team = set(self.possible_agents)
        self._others = [agent for agent in everyone if agent not in self._team]
        self._check_policies()
        self._spaces = {agent: deepcopy(env.action_space(agent)) for agent in self._others}
        self._rng = np.random.default_rng()
        self._policies: dict[Any, Any] = {}
        self._memories: dict[Any, Any] = {}
        self._last: tuple[dict[Any, Any], dict[Any, dict]] = ({}, {})
        self._done: set[Any] = set()

    def _check_policies(self) -> None:
        if self._others and self.other_agents is None:
            raise ValueError(
                f"No policy for the agents {[str(agent) for agent in self._others]} outside the "
                "team; give one, for example other_agents='random'."
            )
        for agent in self._others:
            _check_policy(self.other_agents, str(agent))

    @property
    def agents(self) -> Sequence[Any]:
        return [agent for agent in self.env.agents if agent in self._team]

    def observation_space(self, agent: Any) -> spaces.Space:
        return self.env.observation_space(agent)

    def action_space(self, agent: Any) -> spaces.Space:
        return self.env.action_space(agent)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Any, Any], dict[Any, dict]]:
        if seed is not None:
            self._rng = np.random.default_rng(seed)
            for space in self._spaces.values():
                space.seed(int(self._rng.integers(2**31)))
        for _ in range(_MAX_EPISODES):
            self._policies = _draw_policies(self.other_agents, self._others, self._rng)
            self._memories = {}
            self._done = set()
            self._last = self.env.reset(seed=seed, options=options)
            if self._play_until_on_turn():
                observations, infos = self._last
                return self._select(observations), infos
            seed = None
        raise RuntimeError(
            f"None of {self.possible_agents} was ever on turn in {_MAX_EPISODES} episodes; "
            "check `agents` and the env."
        )

    def _play_until_on_turn(self) -> bool:
        """
        Step the other agents until one of the team is on turn.

        :return: Whether one is; False if the episode has ended before
        """
        while self._team.isdisjoint(self._last[0]):
            _, _, terminations, truncations, _ = self._step({})
            if has_ended(self.env.agents, terminations, truncations):
                return False
        return True

    def step(self, actions: dict[Any, Any]) -> TeamStep:
        rewards = dict.fromkeys(self.possible_agents, 0.0)
        terminations: Flags = {}
        truncations: Flags = {}
        while True:
            step = self._step(actions)
            for agent, reward in self._select(step[1]).items():
                rewards[agent] += reward
            terminations.update(self._select(step[2]))
            truncations.update(self._select(step[3]))
            observations = self._select(step[0])
            if observations or has_ended(self.agents, terminations, truncations):
                return observations, rewards, terminations, truncations, step[4]
            actions = {}

    def _select(self, values: dict[Any, Any]) -> dict[Any, Any]:
        """The entries of the team's agents."""
        return {agent: value for agent, value in values.items() if agent in self._team}

    def _step(self, actions: dict[Any, Any]) -> TeamStep:
        """Step the environment with the team's actions, and those of the other agents' policies."""
        observations, infos = self._last
        joint = dict(actions)
        for agent in self._others:
            if agent in observations and agent not in self._done:
                joint[agent] = self._act(agent, observations[agent], infos)
        step = self.env.step(joint)
        self._last = (step[0], step[4])
        self._done = flagged_agents(step[0], step[2], step[3])
        return step

    def _act(self, agent: Any, observation: Any, infos: dict[Any, dict]) -> Any:
        """Action of an agent outside the team."""
        space = self._spaces[agent]
        policy = self._policies[agent]
        if isinstance(observation, dict) and ACTION_MASK in observation:
            own_mask = observation[ACTION_MASK]
        else:
            own_mask = infos.get(agent, {}).get(ACTION_MASK)
        mask = None if own_mask is None else flatten_mask(space, own_mask)
        if policy == "random":
            return space.sample(None if mask is None else split_mask(space, mask))
        policy = getattr(policy, "policies", {}).get(str(agent), policy)
        if not hasattr(policy, "predict"):
            return policy(str(agent), observation, space, mask)
        kwargs = {} if mask is None else {"action_masks": mask}
        if self._memories.get(agent) is not None:
            kwargs["state"] = self._memories[agent]
        action, self._memories[agent] = policy.predict(
            _without_mask(observation), deterministic=False, **kwargs
        )
        return action

    def observe_all(self) -> dict[Any, Any]:
        """
        Turn-based games only.

        :return: Current observations of all living agents of the team, on turn or not
        """
        return self._select(cast(TurnBased, self.env).observe_all())

    def state(self) -> np.ndarray:
        return self.env.state()


def _without_mask(observation: Any) -> Any:
    """Observation in the form in which an agent has learned: without its action mask."""
    if not (isinstance(observation, dict) and ACTION_MASK in observation):
        return observation
    rest = {key: value for key, value in observation.items() if key != ACTION_MASK}
    return rest[OBSERVATION] if list(rest) == [OBSERVATION] else rest


def _check_policy(policy: OtherPolicy, agent: str) -> None:
    """Refuse a policy that cannot play the agent."""
    if isinstance(policy, Mapping):
        named = {str(name): part for name, part in policy.items()}
        if agent not in named:
            raise ValueError(f"`other_agents` has no policy for agent {agent!r}.")
        _check_policy(named[agent], agent)
    elif isinstance(policy, (list, tuple)):
        if not policy:
            raise ValueError("A mixture of `other_agents` needs at least one policy.")
        for part in policy:
            _check_policy(part, agent)
    elif not (policy == "random" or callable(policy) or hasattr(policy, "predict")):
        raise TypeError(
            f"{policy!r} cannot play agent {agent!r}: `other_agents` takes 'random', a callable "
            "(agent, observation, action_space, action_mask) -> action, an object with `predict`, "
            "a mapping {agent: policy}, or a list of these."
        )


def _draw_policies(
    policy: OtherPolicy, agents: Sequence[Any], rng: np.random.Generator
) -> dict[Any, Callable[..., Any] | Any]:
    """
    Draw the policies of one episode. One draw from a mixture holds for all agents that share it.

    :param policy: Policy in any form of :class:`PartialTeam`
    :param agents: Agents that it plays
    :param rng: Random generator
    :return: Policy of each agent, neither a mapping nor a mixture
    """
    if isinstance(policy, (list, tuple)):
        return _draw_policies(policy[int(rng.integers(len(policy)))], agents, rng)
    if not isinstance(policy, Mapping):
        return dict.fromkeys(agents, policy)
    named = {str(name): part for name, part in policy.items()}
    drawn: dict[Any, Any] = {}
    for agent in agents:
        drawn |= _draw_policies(named[str(agent)], [agent], rng)
    return drawn
