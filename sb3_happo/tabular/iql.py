"""Independent Q-learning with tables."""

from collections.abc import Hashable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sb3_happo.common.hyperparameters import NOT_NEGATIVE, Setting, optional
from sb3_happo.tabular.situations import Legal, Situation, Transition
from sb3_happo.tabular.table import Column, Table
from sb3_happo.tabular.table_prediction import uniform
from sb3_happo.tabular.tabular_algorithm import TabularAlgorithm


class _Pending(NamedTuple):
    """
    Action of an agent whose result is not complete yet, for the agent may have to wait.

    :param key: Key of the state
    :param action: Number of the action
    :param reward: Discounted rewards so far
    :param discount: Discount of what follows
    """

    key: Hashable
    action: int
    reward: float
    discount: float


class TabularIQL(TabularAlgorithm):
    """
    Independent Q-learning with tables: each agent learns values of its own actions from its own
    observations and rewards, and the other agents are a part of its environment (Tan, "Multi-Agent
    Reinforcement Learning: Independent vs. Cooperative Agents", ICML 1993).

    With ``negative_learning_rate`` it is hysteretic Q-learning (Matignon et al. 2007): values fall
    more slowly than they rise, so that the exploration of the other agents deters less from a good
    joint action.

    :param policy: "TabularPolicy", which may be left out: ``TabularIQL(env)``
    :param env: Environment of any form, with any number of agents
    :param negative_learning_rate: Step size where a value falls; None for ``learning_rate``
    :param kwargs: Further arguments of
        :class:`~sb3_happo.tabular.tabular_algorithm.TabularAlgorithm`
    """

    settings: ClassVar[dict[str, Setting]] = TabularAlgorithm.settings | {
        "negative_learning_rate": optional(NOT_NEGATIVE)
    }

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        negative_learning_rate: float | None = None,
        **kwargs: Any,
    ) -> None:
        self.negative_learning_rate = negative_learning_rate
        super().__init__(policy, env, **kwargs)

    def _make_tables(self) -> dict[str, Table]:
        tables = {}
        for agent, n in zip(self.agents, self.n_actions, strict=True):
            columns = {"q": Column((n,), self.initial_value), "visits": Column((n,))}
            name = f"{type(self).__name__} of agent {agent!r}"
            tables[agent] = Table(name, columns, self.max_states)
        self._begin_episodes()
        return tables

    def _begin_episodes(self) -> None:
        self._pending: list[dict[str, _Pending]] = [{} for _ in range(self.n_envs)]

    def _strategies(self, situation: Situation) -> list[np.ndarray]:
        strategies = []
        for index, agent in enumerate(self.agents):
            n, legal = self.n_actions[index], situation.legal[index]
            table = self.tables[agent]
            row = table.rows.get(situation.keys[index])
            if row is None:
                strategies.append(uniform(n, legal))
            else:
                strategies.append(greedy(table["q"][row], legal))
        return strategies

    def _update(self, transition: Transition) -> None:
        pending = self._pending[transition.env_index]
        before = transition.before
        for index, agent in enumerate(self.agents):
            if before.keys[index] is not None:
                action = transition.actions[index]
                pending[agent] = _Pending(before.keys[index], action, 0.0, 1.0)
            own = pending.get(agent)
            if own is None:
                continue
            reward = own.reward + own.discount * float(transition.rewards[index])
            own = own._replace(reward=reward, discount=own.discount * self.gamma)
            pending[agent] = own
            self._finish(index, own, transition)
        if transition.done:
            pending.clear()

    def _finish(self, index: int, own: _Pending, transition: Transition) -> None:
        """Update the value of an action if the agent acts again or the episode is over."""
        after = transition.after
        key = None if after is None else after.keys[index]
        if key is None and not transition.done:
            return
        agent = self.agents[index]
        table = self.tables[agent]
        target = own.reward
        if key is not None:
            assert after is not None
            # The new state may make the table grow, and its columns other arrays
            row = table.row(key)
            q = table["q"][row]
            legal = after.legal[index]
            target += own.discount * float(q.max() if legal is None else q[list(legal)].max())
        row = table.row(own.key)
        table["visits"][row, own.action] += 1.0
        error = target - table["q"][row, own.action]
        rate = self._step_size(table["visits"][row, own.action])
        if error < 0.0 and self.negative_learning_rate is not None:
            rate = self.negative_learning_rate
        table["q"][row, own.action] += rate * error


def greedy(values: np.ndarray, legal: Legal) -> np.ndarray:
    """
    :param values: Values of the actions, ``(n,)``
    :param legal: Numbers of the legal actions; None for all
    :return: Equal probabilities of the best legal actions, ``(n,)``
    """
    if legal is not None:
        masked = np.full_like(values, -np.inf)
        masked[list(legal)] = values[list(legal)]
        values = masked
    best = values == values.max()
    return best / best.sum()
