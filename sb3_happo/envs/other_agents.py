"""A team among other agents: the agents outside the team, and the policies that play them."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, TypeAlias

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.adapters import Flags, Team, TeamStep, agent_ids, has_ended
from sb3_happo.envs.spaces import ACTION_MASK, OBSERVATION, flatten_mask, split_mask

OtherPolicy: TypeAlias = Any
"""Who plays the agents outside the team; see :class:`PartialTeam`."""


class PartialTeam:
    """
    Some agents of a team; the others are played by given policies, and belong to the environment.

    An episode ends when none of the team is left. Where turns are taken, the others play until one of the team is on turn;
    episodes that end before the team ever is are started anew.

    :param env: The whole team
    :param agents: Names of the agents to keep
    :param others: Who plays the rest, one of

        * ``"random"``: uniformly among the legal actions;
        * a callable ``(agent, observation, action_space, action_mask) -> action``. ``observation`` is the env's own,
          ``action_space`` the agent's, seeded by ``reset(seed)``: draw from it, or from its ``np_random``, to be reproducible.
          ``action_mask`` is ``(n_choices,)`` int8, or None;
        * anything with SB3's ``predict``, such as a saved agent, which is asked for stochastic actions; or a model with
          ``policies``, such as ``HAPPO``, of which each agent's own is taken;
        * a mapping ``{agent: policy}`` of these;
        * a list of any of these: a mixture, of which each episode draws one.
    """

    def __init__(self, env: Team, agents: Sequence[Any], others: OtherPolicy) -> None:
        self.env = env
        everyone = agent_ids(env)
        names = {str(agent) for agent in agents}
        self.possible_agents = [agent for agent in everyone if str(agent) in names]
        self._others = [agent for agent in everyone if str(agent) not in names]
        unknown = names - {str(agent) for agent in everyone}
        if unknown or not names:
            raise ValueError(
                f"agents={list(agents)} must name some of {[str(agent) for agent in everyone]}."
            )
        if self._others and others is None:
            raise ValueError(
                f"Say who plays {[str(agent) for agent in self._others]}, for example others='random'."
            )
        for agent in self._others:
            _check_policy(others, str(agent))
        self.others = others
        self._mine = set(self.possible_agents)
        self._spaces = {agent: deepcopy(env.action_space(agent)) for agent in self._others}
        self._rng = np.random.default_rng()
        self._policies: dict[Any, Any] = {}
        self._memories: dict[Any, Any] = {}
        self._seen: tuple[dict[Any, Any], dict[Any, dict]] = ({}, {})
        self._done: set[Any] = set()

    @property
    def agents(self) -> Sequence[Any]:
        return [agent for agent in self.env.agents if agent in self._mine]

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
        for _ in range(1000):
            self._policies = _draw(self.others, self._others, self._rng)
            self._memories = {}
            self._done = set()
            self._seen = self.env.reset(seed=seed, options=options)
            ended = False
            while not ended:
                observations, infos = self._seen
                if not self._mine.isdisjoint(observations):
                    return {
                        agent: value for agent, value in observations.items() if agent in self._mine
                    }, infos
                _, _, terminations, truncations, _ = self._step({})
                ended = has_ended(self.env.agents, terminations, truncations)
            seed = None
        raise RuntimeError(
            f"None of {self.possible_agents} was ever on turn in 1000 episodes; check `agents` and the env."
        )

    def step(self, actions: dict[Any, Any]) -> TeamStep:
        rewards = dict.fromkeys(self.possible_agents, 0.0)
        terminations: Flags = {}
        truncations: Flags = {}
        while True:
            observations, step_rewards, step_terminations, step_truncations, infos = self._step(
                actions
            )
            for agent, reward in step_rewards.items():
                if agent in self._mine:
                    rewards[agent] += reward
            terminations.update(
                (agent, flag) for agent, flag in step_terminations.items() if agent in self._mine
            )
            truncations.update(
                (agent, flag) for agent, flag in step_truncations.items() if agent in self._mine
            )
            mine = {agent: value for agent, value in observations.items() if agent in self._mine}
            if mine or has_ended(self.agents, terminations, truncations):
                return mine, rewards, terminations, truncations, infos
            actions = {}

    def _step(self, actions: dict[Any, Any]) -> TeamStep:
        observations, infos = self._seen
        acting = [
            agent for agent in self._others if agent in observations and agent not in self._done
        ]
        step = self.env.step(
            {**actions, **{agent: self._act(agent, observations[agent], infos) for agent in acting}}
        )
        self._seen = (step[0], step[4])
        self._done = {
            agent for agent in step[0] if step[2].get(agent, False) or step[3].get(agent, False)
        }
        return step

    def _act(self, agent: Any, observation: Any, infos: dict[Any, dict]) -> Any:
        space, policy, name = self._spaces[agent], self._policies[agent], str(agent)
        in_observation = isinstance(observation, dict) and ACTION_MASK in observation
        raw_mask = (
            observation[ACTION_MASK] if in_observation else infos.get(agent, {}).get(ACTION_MASK)
        )
        mask = None if raw_mask is None else flatten_mask(space, raw_mask)
        if policy == "random":
            return space.sample(None if mask is None else split_mask(space, mask))
        policy = getattr(policy, "policies", {}).get(name, policy)
        if not hasattr(policy, "predict"):
            return policy(name, observation, space, mask)
        if in_observation:
            rest = {key: value for key, value in observation.items() if key != ACTION_MASK}
            observation = rest[OBSERVATION] if list(rest) == [OBSERVATION] else rest
        kwargs = {} if mask is None else {"action_masks": mask}
        if self._memories.get(agent) is not None:
            kwargs["state"] = self._memories[agent]
        action, self._memories[agent] = policy.predict(observation, deterministic=False, **kwargs)
        return action

    def observe_all(self) -> dict[Any, Any]:
        """
        :return: What all living agents of the team would see now, whoever is on turn
        """
        return {
            agent: value for agent, value in self.env.observe_all().items() if agent in self._mine
        }  # type: ignore[attr-defined]

    def state(self) -> np.ndarray:
        return self.env.state()


def _check_policy(policy: OtherPolicy, agent: str) -> None:
    if isinstance(policy, Mapping):
        named = {str(name): part for name, part in policy.items()}
        if agent not in named:
            raise ValueError(f"`others` has no policy for agent {agent!r}.")
        _check_policy(named[agent], agent)
    elif isinstance(policy, (list, tuple)):
        if not policy:
            raise ValueError("A mixture of `others` needs at least one policy.")
        for part in policy:
            _check_policy(part, agent)
    elif not (policy == "random" or callable(policy) or hasattr(policy, "predict")):
        raise TypeError(
            f"{policy!r} cannot play agent {agent!r}: `others` takes 'random', a callable (agent, observation, action_space, "
            "action_mask) -> action, anything with `predict`, a mapping {agent: policy}, or a list of these."
        )


def _draw(
    policy: OtherPolicy, agents: Sequence[Any], rng: np.random.Generator
) -> dict[Any, Callable[..., Any] | Any]:
    """Settle which policy plays each agent for one episode; one draw of a mixture holds for all the agents it stands for."""
    if isinstance(policy, (list, tuple)):
        return _draw(policy[int(rng.integers(len(policy)))], agents, rng)
    if isinstance(policy, Mapping):
        named = {str(name): part for name, part in policy.items()}
        return {agent: _draw(named[str(agent)], [agent], rng)[agent] for agent in agents}
    return dict.fromkeys(agents, policy)
