"""PR2-Q: probabilistic recursive reasoning with tables."""

from typing import Any, ClassVar

import numpy as np

from sb3_happo.common.hyperparameters import POSITIVE, Setting
from sb3_happo.tabular.situations import Legal, Situation, Transition
from sb3_happo.tabular.stage_games import JOINT, JointTableAlgorithm
from sb3_happo.tabular.table import Column, Table
from sb3_happo.tabular.table_prediction import uniform


class PR2Q(JointTableAlgorithm):
    """
    PR2-Q of Wen et al., "Probabilistic Recursive Reasoning for Multi-Agent Reinforcement Learning",
    ICLR 2019, https://arxiv.org/abs/1901.09207, for any number of agents.

    Each agent learns values of joint actions, and asks for each of its actions how the others react
    to it: ``Q_i(s, a_i) = sum over a_-i of rho(a_-i | s, a_i) Q_i(s, a_i, a_-i)``, where ``rho`` is
    the frequency with which the others' actions came with its own. It plays a softmax of these
    values, and the value of the next state is their mean under it.

    :param policy: "TabularPolicy", which may be left out: ``PR2Q(env)``
    :param env: Environment of any form
    :param temperature: Temperature of the softmax, in units of reward, > 0. A low one needs random
        exploration: reactions to an action that is not played any more are never observed again
    :param kwargs: Further arguments of
        :class:`~sb3_happo.tabular.tabular_algorithm.TabularAlgorithm`
    :raises ValueError: If there are too many joint actions
    """

    settings: ClassVar[dict[str, Setting]] = JointTableAlgorithm.settings | {
        "temperature": POSITIVE
    }

    def __init__(
        self, policy: Any, env: Any = None, temperature: float = 1.0, **kwargs: Any
    ) -> None:
        self.temperature = temperature
        super().__init__(policy, env, **kwargs)

    def _make_tables(self) -> dict[str, Table]:
        shape = self.n_actions
        columns = {
            "q": Column((len(shape), *shape), self.initial_value),
            "visits": Column(shape),
        }
        return {JOINT: Table(type(self).__name__, columns, self.max_states)}

    def _own_values(self, row: int) -> list[np.ndarray]:
        """Values of each agent's actions in a state, given the others' reactions to them."""
        table = self.tables[JOINT]
        values = []
        for index, n in enumerate(self.n_actions):
            # (n_actions_0, ...) -> (n_actions of the agent, joint actions of the others)
            counts = np.moveaxis(table["visits"][row], index, 0).reshape(n, -1)
            q = np.moveaxis(table["q"][row, index], index, 0).reshape(n, -1)
            totals = counts.sum(axis=1, keepdims=True)
            # Actions that were never tried have the mean of their initial values
            weights = np.where(totals > 0.0, counts / np.maximum(totals, 1.0), 1.0 / q.shape[1])
            values.append((weights * q).sum(axis=1))
        return values

    def _strategies(self, situation: Situation) -> list[np.ndarray]:
        row = self.tables[JOINT].rows.get(situation.keys)
        if row is None:
            pairs = zip(self.n_actions, situation.legal, strict=True)
            return [uniform(n, legal) for n, legal in pairs]
        known = zip(self._own_values(row), situation.legal, strict=True)
        return [softmax(values, self.temperature, legal) for values, legal in known]

    def _update(self, transition: Transition) -> None:
        table = self.tables[JOINT]
        row = self._row(transition.before)
        target = np.array(transition.rewards, np.float64)
        if transition.after is not None:
            # The new state may make the table grow, and its columns other arrays
            after = self._row(transition.after)
            strategies = self._strategies(transition.after)
            pairs = zip(strategies, self._own_values(after), strict=True)
            target += self.gamma * np.array([float(own @ values) for own, values in pairs])
        place = (row, *transition.actions)
        table["visits"][place] += 1.0
        rate = self._step_size(table["visits"][place])
        joint: tuple[Any, ...] = (row, slice(None), *transition.actions)
        table["q"][joint] += rate * (target - table["q"][joint])

    def frequencies(self, observation: Any) -> dict[str, np.ndarray]:
        """
        Averages of the actions that were played in a state.

        :param observation: ``{agent: observation}``, or the observation of a ``JointEnv``
        :return: Share of each action, ``{agent: (n_actions,)}``; equal ones in a new state
        """
        situations, own, _ = self._situations_of(observation, None)
        row = self.tables[JOINT].rows.get(situations[0].keys)
        shares = {}
        for agent in own:
            index = self.agents.index(agent)
            others = tuple(axis for axis in range(len(self.agents)) if axis != index)
            if row is None:
                shares[agent] = uniform(self.n_actions[index], None)
            else:
                counts = self.tables[JOINT]["visits"][row].sum(axis=others)
                shares[agent] = counts / counts.sum()
        return shares


def softmax(values: np.ndarray, temperature: float, legal: Legal) -> np.ndarray:
    """
    :param values: Values of the actions, ``(n,)``
    :param temperature: Temperature, > 0
    :param legal: Numbers of the legal actions; None for all
    :return: Probabilities, 0 for illegal actions, ``(n,)``
    """
    scores = values / temperature
    if legal is not None:
        masked = np.full_like(scores, -np.inf)
        masked[list(legal)] = scores[list(legal)]
        scores = masked
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()
