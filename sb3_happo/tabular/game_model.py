"""Dynamics of a game as arrays, for exact solutions."""

import math
from collections import Counter
from collections.abc import Hashable, Mapping
from contextlib import suppress
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.common.team_spaces import TeamSpaces, find_owner
from sb3_happo.tabular.situations import Situation, SituationReader, active_of
from sb3_happo.tabular.state_keys import StateKey
from sb3_happo.tabular.tabular_algorithm import TabularAlgorithm
from sb3_happo.vec_env.actions import sample_actions
from sb3_happo.vec_env.step_facts import initial_facts, step_facts

#: Attributes of an environment that knows its dynamics
_KNOWN = ("states", "outcomes", "observe", "initial_states", "possible_agents")


class GameModel:
    """
    Dynamics of a game: for each state and joint action the rewards and the next states. Joint
    actions are numbered, the action of the last agent changing fastest.

    :meth:`of` makes one of an environment.

    :param agents: Names of the agents
    :param n_actions: Number of actions of each agent
    :param observations: Observation of each state, in a form that ``predict`` takes
    :param start: Probabilities of the states at the start, ``(n_states,)``
    :param rewards: Expected rewards, ``(n_states, n_joint, n_agents)``
    :param next_states: Numbers of the next states, -1 for the end of the game, ``(n_states,
        n_joint, n_next)``
    :param probabilities: Probabilities of the next states, of the same shape
    :param legal: Masks of the legal actions of each agent, ``(n_states, n_actions)`` each; None for
        all
    """

    def __init__(
        self,
        agents: tuple[str, ...],
        n_actions: tuple[int, ...],
        observations: list[dict[str, Any]],
        start: np.ndarray,
        rewards: np.ndarray,
        next_states: np.ndarray,
        probabilities: np.ndarray,
        legal: list[np.ndarray] | None = None,
    ) -> None:
        self.agents = agents
        self.n_actions = n_actions
        self.observations = observations
        self.start = start
        self.rewards = rewards
        self.next_states = next_states
        self.probabilities = probabilities
        self.legal = legal

    @property
    def n_states(self) -> int:
        """
        :return: Number of states
        """
        return len(self.observations)

    # ---------------------------------------------------------------- making one

    @classmethod
    def of(
        cls, env: Any, n_samples: int = 20_000, state_key: StateKey = None, seed: int = 0
    ) -> "GameModel":
        """
        Make a model of an environment.

        An environment that knows its dynamics, as :class:`~sb3_happo.envs.games.GridGame` and
        :class:`~sb3_happo.envs.games.Soccer` do, gives an exact model: it has ``states``,
        ``outcomes(state, actions)``, ``initial_states()`` and ``observe(state)``. Any other one is
        played at random, and frequencies stand for the probabilities. That is exact for a game
        without chance. Time limits are left out of the model.

        :param env: Environment of any form that the algorithms take. It is reset and stepped, if it
            does not know its dynamics
        :param n_samples: Steps at random
        :param state_key: Argument of the algorithm
        :param seed: Seed of these steps
        :return: Model
        :raises ValueError: If a joint action of a state was never played in these steps
        """
        known = known_dynamics(env)
        if known is not None:
            return cls._of_known(known)
        return _Samples(env, state_key, seed).play(n_samples).model()

    @classmethod
    def _of_known(cls, env: Any) -> "GameModel":
        agents = tuple(env.possible_agents)
        n_actions = tuple([int(env.action_space(agent).n) for agent in agents])
        index = {state: number for number, state in enumerate(env.states)}
        shape = (len(index), math.prod(n_actions))
        builder = _Builder(shape, len(agents))
        for state, row in index.items():
            for joint, actions in enumerate(np.ndindex(*n_actions)):
                for probability, after, rewards in env.outcomes(state, actions):
                    number = -1 if after is None else index[after]
                    builder.add(row, joint, probability, number, np.array(rewards))
        start = np.zeros(len(index))
        for probability, state in env.initial_states():
            start[index[state]] += probability
        observations = [dict(env.observe(state)) for state in env.states]
        return cls(agents, n_actions, observations, start, *builder.arrays())

    # ---------------------------------------------------------------- values

    def joint_probabilities(
        self, policies: list[np.ndarray], without: int | None = None
    ) -> np.ndarray:
        """
        :param policies: Probabilities of each agent's actions, ``(n_states, n_actions)`` each
        :param without: Index of an agent that counts as 1
        :return: Products of the probabilities, ``(n_states, n_joint)``
        """
        product = np.ones((self.n_states, 1))
        for index, policy in enumerate(policies):
            own = np.ones_like(policy) if index == without else policy
            product = (product[:, :, None] * own[:, None, :]).reshape(self.n_states, -1)
        return product

    def action_values(self, values: np.ndarray, agent: int, gamma: float) -> np.ndarray:
        """
        :param values: Values of the states, ``(n_states,)``
        :param agent: Index of an agent
        :param gamma: Discount factor
        :return: Reward of the agent and discounted value of what follows, ``(n_states, n_joint)``
        """
        # The end of the game, number -1, has the value 0
        following = np.append(values, 0.0)[self.next_states]
        return self.rewards[:, :, agent] + gamma * (self.probabilities * following).sum(axis=2)

    def own_actions(self, joint: np.ndarray, agent: int) -> np.ndarray:
        """
        :param joint: Numbers of joint actions, ``(n_states, n_joint)``
        :param agent: Index of an agent
        :return: Sums over the others' actions, ``(n_states, n_actions)``
        """
        others = tuple([axis + 1 for axis in range(len(self.agents)) if axis != agent])
        return joint.reshape(self.n_states, *self.n_actions).sum(axis=others)


class _Builder:
    """
    Arrays of a model.

    :param shape: Number of states and of joint actions
    :param n_agents: Number of agents
    """

    def __init__(self, shape: tuple[int, int], n_agents: int) -> None:
        self._shape = shape
        self._rewards = np.zeros((*shape, n_agents))
        self._next: dict[tuple[int, int], Counter[int]] = {}

    def add(
        self, row: int, joint: int, probability: float, after: int, rewards: np.ndarray
    ) -> None:
        self._rewards[row, joint] += probability * rewards
        following: dict[int, Any] = self._next.setdefault((row, joint), Counter())
        following[after] += probability

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rewards, next states and probabilities, as :class:`GameModel` takes them."""
        n_next = max(map(len, self._next.values()), default=1)
        next_states = np.full((*self._shape, n_next), -1)
        probabilities = np.zeros((*self._shape, n_next))
        for (row, joint), following in self._next.items():
            n = len(following)
            next_states[row, joint, :n] = list(following)
            probabilities[row, joint, :n] = list(following.values())
        return self._rewards, next_states, probabilities


class _Samples:
    """
    Steps of random play.

    :param env: Environment of any form
    :param state_key: Argument of the algorithm
    :param seed: Seed
    """

    def __init__(self, env: Any, state_key: StateKey, seed: int) -> None:
        self._env = TabularAlgorithm._wrap_env(env)
        joint_spaces: Any = self._env.observation_space, self._env.action_space
        team = TeamSpaces(*joint_spaces)
        self._reader = SituationReader(team, state_key, "GameModel")
        self._env.seed(seed)
        self._env.action_space.seed(seed)
        self._rows: dict[Situation, int] = {}
        self._situations: list[Situation] = []
        self._observations: list[dict[str, Any]] = []
        self._starts: Counter[int] = Counter()
        self._counts: Counter[tuple[int, int, int]] = Counter()
        self._rewards: dict[tuple[int, int], np.ndarray] = {}
        self._numbers = []
        for actions in self._reader.actions:
            self._numbers.append(
                {_hashable(value): number for number, value in enumerate(actions.values)}
            )

    def _row(self, obs: Mapping[str, Any], index: int | None, active: Any) -> int:
        situation = self._reader.of_row(obs, index, active)
        row = self._rows.setdefault(situation, len(self._rows))
        if row == len(self._observations):
            own = {}
            for key, value in obs.items():
                owner = find_owner(key, self._reader.agents)
                # Zeros stand for the observations of absent agents
                if owner is None or situation.keys[self._reader.agents.index(owner)] is not None:
                    own[key] = np.array(value if index is None else value[index])
            self._observations.append(own)
            self._situations.append(situation)
        return row

    def play(self, n_samples: int) -> "_Samples":
        """Play at random, for this number of steps."""
        env, n_agents = self._env, len(self._reader.agents)
        obs: Any = env.reset()
        active = initial_facts(env, n_agents).active
        rows = self._all_rows(obs, active)
        self._starts.update(rows)
        for _ in range(-(-n_samples // env.num_envs)):
            actions = sample_actions(env.action_space, obs, env.num_envs)  # type: ignore[arg-type]
            obs, _, dones, infos = env.step(actions)  # type: ignore[arg-type]
            facts = step_facts(infos, dones, env, n_agents)
            following = self._all_rows(obs, facts.active)
            for index, row in enumerate(rows):
                after = following[index]
                if facts.dones[index]:
                    self._starts[after] += 1
                    after = -1
                    if facts.truncated[index]:
                        last = infos[index]["terminal_observation"]
                        after = self._row(last, None, active_of(infos[index]))
                self._count(row, actions[index], after, facts.agent_rewards[index])
            rows = following
        return self

    def _all_rows(self, obs: Mapping[str, Any], active: np.ndarray | None) -> list[int]:
        rows = []
        for index in range(self._env.num_envs):
            rows.append(self._row(obs, index, None if active is None else active[index]))
        return rows

    def _count(self, row: int, actions: Mapping[str, Any], after: int, rewards: np.ndarray) -> None:
        numbers = []
        situation = self._situations[row]
        for index, agent in enumerate(self._reader.agents):
            absent = situation.keys[index] is None
            number = self._numbers[index][_hashable(actions[agent])]
            numbers.append(0 if absent else number)
        sizes = [actions.n for actions in self._reader.actions]
        joint = int(np.ravel_multi_index(numbers, sizes))
        self._counts[row, joint, after] += 1
        total = self._rewards.setdefault((row, joint), np.zeros(len(sizes)))
        total += rewards

    def model(self) -> GameModel:
        """Model of the frequencies."""
        reader = self._reader
        sizes = tuple([actions.n for actions in reader.actions])
        legal = []
        for index, n in enumerate(sizes):
            mask = np.ones((len(self._rows), n), bool)
            for situation, row in self._rows.items():
                own = situation.legal[index]
                if own is not None:
                    mask[row] = np.isin(np.arange(n), own)
            legal.append(mask)
        visits: Counter[tuple[int, int]] = Counter()
        for (row, joint, _), count in self._counts.items():
            visits[row, joint] += count
        self._check_all_played(visits, legal, sizes)
        builder = _Builder((len(self._rows), math.prod(sizes)), len(sizes))
        for (row, joint, after), count in self._counts.items():
            total = visits[row, joint]
            rewards = self._rewards[row, joint] / total
            builder.add(row, joint, count / total, after, rewards)
        start = np.zeros(len(self._rows))
        for row, count in self._starts.items():
            start[row] = count
        return GameModel(
            reader.agents,
            sizes,
            self._observations,
            start / start.sum(),
            *builder.arrays(),
            legal,
        )

    def _check_all_played(
        self,
        visits: Mapping[tuple[int, int], int],
        legal: list[np.ndarray],
        sizes: tuple[int, ...],
    ) -> None:
        for situation, row in self._rows.items():
            for joint, actions in enumerate(np.ndindex(*sizes)):
                possible = all(mask[row, own] for mask, own in zip(legal, actions, strict=True))
                if possible and not visits.get((row, joint)):
                    raise ValueError(
                        f"The actions {actions} were never played in the state "
                        f"{situation.keys!r}, one of {len(self._rows)}; raise n_samples."
                    )


def _hashable(value: Any) -> Hashable:
    array = np.asarray(value)
    return array.item() if array.ndim == 0 else tuple(array.ravel().tolist())


def known_dynamics(env: Any) -> Any:
    """
    :param env: Environment of any form
    :return: Environment inside it that knows its dynamics, see :meth:`GameModel.of`; None if there
        is none
    """
    seen: list[Any] = [env]
    if isinstance(env, VecEnv):
        with suppress(AttributeError, NotImplementedError):
            seen = [env.unwrapped.envs[0]]  # type: ignore[attr-defined]
    while seen:
        inner = seen.pop()
        if all(hasattr(inner, name) for name in _KNOWN) and not isinstance(inner, gym.Env):
            return getattr(inner, "unwrapped", inner)
        following = getattr(inner, "env", None)
        if following is not None and following is not inner:
            seen.append(following)
    return None
