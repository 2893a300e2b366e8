"""Joint-action learners."""

from typing import Any

import numpy as np

from sb3_happo.tabular.iql import greedy
from sb3_happo.tabular.situations import Legal, Situation, Transition
from sb3_happo.tabular.stage_games import JOINT, JointTableAlgorithm
from sb3_happo.tabular.table import Column, Table
from sb3_happo.tabular.table_prediction import uniform


class JAL(JointTableAlgorithm):
    """
    Joint-action learners of Claus and Boutilier, "The Dynamics of Reinforcement Learning in
    Cooperative Multiagent Systems", AAAI 1998, for any number of agents.

    Each agent learns the values of joint actions for itself, counts how often the others have taken
    each of their actions in a state, and plays the best response to these frequencies. The value of
    the next state is that of this response.

    The parameters are those of :class:`~sb3_happo.tabular.tabular_algorithm.TabularAlgorithm`.

    :raises ValueError: If there are too many joint actions
    """

    def _make_tables(self) -> dict[str, Table]:
        shape = self.n_actions
        columns = {
            "q": Column((len(shape), *shape), self.initial_value),
            "visits": Column(shape),
        }
        for index, n in enumerate(shape):
            columns[f"count_{index}"] = Column((n,))
        return {JOINT: Table(type(self).__name__, columns, self.max_states)}

    def _frequencies(self, row: int, legal: tuple[Legal, ...]) -> list[np.ndarray]:
        """Frequencies of the actions of all agents in a state."""
        frequencies = []
        for index, own in enumerate(legal):
            counts = self.tables[JOINT][f"count_{index}"][row]
            total = counts.sum()
            if total > 0.0:
                frequencies.append(counts / total)
            else:
                frequencies.append(uniform(len(counts), own))
        return frequencies

    def _expected(self, row: int, legal: tuple[Legal, ...]) -> list[np.ndarray]:
        """Values of each agent's actions against the frequencies of the others."""
        frequencies = self._frequencies(row, legal)
        expected = []
        for index in range(len(self.agents)):
            values = self.tables[JOINT]["q"][row, index]
            # From the last axis on, so that the others keep their numbers
            for other in reversed(range(len(self.agents))):
                if other != index:
                    values = np.tensordot(values, frequencies[other], axes=(other, 0))
            expected.append(values)
        return expected

    def _strategies(self, situation: Situation) -> list[np.ndarray]:
        row = self.tables[JOINT].rows.get(situation.keys)
        if row is None:
            pairs = zip(self.n_actions, situation.legal, strict=True)
            return [uniform(n, legal) for n, legal in pairs]
        pairs_of_known = zip(self._expected(row, situation.legal), situation.legal, strict=True)
        return [greedy(values, legal) for values, legal in pairs_of_known]

    def _update(self, transition: Transition) -> None:
        table = self.tables[JOINT]
        row = self._row(transition.before)
        target = np.array(transition.rewards, np.float64)
        if transition.after is not None:
            after = transition.after
            expected = self._expected(self._row(after), after.legal)
            for index, (values, legal) in enumerate(zip(expected, after.legal, strict=True)):
                best = values.max() if legal is None else values[list(legal)].max()
                target[index] += self.gamma * float(best)
        place = (row, *transition.actions)
        table["visits"][place] += 1.0
        rate = self._step_size(table["visits"][place])
        joint: tuple[Any, ...] = (row, slice(None), *transition.actions)
        table["q"][joint] += rate * (target - table["q"][joint])
        for index, action in enumerate(transition.actions):
            table[f"count_{index}"][row, action] += 1.0
