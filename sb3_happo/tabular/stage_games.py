"""Base of the algorithms that solve a game of two players in every state."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_happo.tabular.situations import Legal, Situation, Transition
from sb3_happo.tabular.table import Column, Table
from sb3_happo.tabular.table_prediction import uniform
from sb3_happo.tabular.tabular_algorithm import TabularAlgorithm

#: Name of the only table
JOINT = "joint"
#: Number of joint actions at most
MAX_JOINT_ACTIONS = 100_000
# Squares of temporal differences that count as 0
_SMALLEST_SQUARE = 1e-18


class JointTableAlgorithm(TabularAlgorithm):
    """
    Base of the algorithms that learn values of joint actions. The state is that of all agents
    together: the observations of all of them, and for :meth:`predict` those of any agent if all
    have observed the same throughout the training.
    """

    #: True as long as all agents have observed the same in every state
    same_observations: bool = True
    #: True once a state was met in which an agent was absent, as in turn-based games
    some_absent: bool = False

    def _facts_to_save(self) -> dict[str, Any]:
        return {"same_observations": self.same_observations, "some_absent": self.some_absent}

    def _check_team(self) -> None:
        n_joint = math.prod(self.n_actions)
        if n_joint > MAX_JOINT_ACTIONS:
            raise ValueError(
                f"{type(self).__name__} learns a value of every joint action, and the actions "
                f"{dict(zip(self.agents, self.n_actions, strict=True))} make {n_joint} of them; at "
                f"most {MAX_JOINT_ACTIONS} are possible. TabularIQL learns each agent's alone."
            )

    def _row(self, situation: Situation) -> int:
        """Row of a state, a new one for a new state."""
        table = self.tables[JOINT]
        n_before = len(table)
        row = table.row(situation.keys)
        if row == n_before:
            self._note_state(situation)
            self._fill_row(row, situation)
        return row

    def _note_state(self, situation: Situation) -> None:
        keys = situation.keys
        if None in keys:
            self.some_absent = True
        if any(key != keys[0] for key in keys):
            self.same_observations = False

    def _fill_row(self, row: int, situation: Situation) -> None:
        """
        Hook: values of a new state beside the initial ones.

        :param row: Row in the table
        :param situation: Situation
        """

    def _complete(self, situation: Situation, given: Sequence[str]) -> Situation:
        missing = [agent for agent in self.agents if agent not in given]
        if not missing or situation.keys in self.tables[JOINT].rows or self.some_absent:
            return situation
        if not self.same_observations:
            raise ValueError(
                f"{type(self).__name__} looks up the state of all agents together; pass the "
                f"observations of {missing} too."
            )
        index = self.agents.index(given[0])
        n = len(self.agents)
        return Situation((situation.keys[index],) * n, (situation.legal[index],) * n)


class StageGameAlgorithm(JointTableAlgorithm):
    """
    Base of the algorithms that solve a game of two players in every state: after each update the
    strategies and the values of the state are those of a solution of its game.
    """

    #: Number of payoffs that are learnt for each joint action
    n_payoffs: int
    #: True if solutions depend on the standard errors of the payoffs
    uses_errors: bool = False

    def _check_team(self) -> None:
        own = type(self).__name__
        if len(self.agents) != 2:
            raise ValueError(
                f"{own} solves games of two agents, and this team has {len(self.agents)}: "
                f"{list(self.agents)}. Use TabularIQL or JAL, or give the other agents to the "
                "environment with JointEnv(env, agents=[...], other_agents=...)."
            )
        super()._check_team()

    def _make_tables(self) -> dict[str, Table]:
        first, second = self.n_actions
        columns = {
            "q": Column((self.n_payoffs, first, second), self.initial_value),
            "visits": Column((first, second)),
            # Mean squares of the temporal differences, of which standard errors are made
            "squares": Column((self.n_payoffs, first, second)),
            # Variance of the value as a share of that of a temporal difference
            "weight": Column((first, second), 1.0),
            "value": Column((self.n_payoffs,), self.initial_value),
            "strategy_0": Column((first,), 1.0 / first),
            "strategy_1": Column((second,), 1.0 / second),
        }
        return {JOINT: Table(type(self).__name__, columns, self.max_states)}

    def _fill_row(self, row: int, situation: Situation) -> None:
        table = self.tables[JOINT]
        for index, legal in enumerate(situation.legal):
            table[f"strategy_{index}"][row] = uniform(self.n_actions[index], legal)

    def _strategies(self, situation: Situation) -> list[np.ndarray]:
        table = self.tables[JOINT]
        row = table.rows.get(situation.keys)
        if row is None:
            pairs = zip(self.n_actions, situation.legal, strict=True)
            return [uniform(n, legal) for n, legal in pairs]
        return [table["strategy_0"][row].copy(), table["strategy_1"][row].copy()]

    def _update(self, transition: Transition) -> None:
        payoffs = self._payoffs(transition)
        table = self.tables[JOINT]
        row = self._row(transition.before)
        target = payoffs
        if transition.after is not None:
            # The new state may make the table grow, and its columns other arrays
            after = self._row(transition.after)
            target = payoffs + self.gamma * table["value"][after]
        first, second = transition.actions
        table["visits"][row, first, second] += 1.0
        rate = self._step_size(table["visits"][row, first, second])
        before = table["q"][row, :, first, second]
        difference = target - before
        changed = bool(np.any(rate * difference))
        if self.uses_errors:
            changed |= self._update_errors((row, first, second), rate, difference)
        if changed:
            table["q"][row, :, first, second] += rate * difference
            self._solve_row(row, transition.before.legal)

    def _update_errors(
        self, place: tuple[int, int, int], rate: float, difference: np.ndarray
    ) -> bool:
        """
        :param place: Row and actions
        :param rate: Step size
        :param difference: Temporal difference, ``(n_payoffs,)``
        :return: True if standard errors have changed
        """
        row, first, second = place
        squares = self.tables[JOINT]["squares"][row, :, first, second]
        weights = self.tables[JOINT]["weight"]
        squares += rate * (difference**2 - squares)
        squares[squares < _SMALLEST_SQUARE] = 0.0
        weights[place] = rate**2 + (1.0 - rate) ** 2 * weights[place]
        return bool(np.any(squares))

    def _payoffs(self, transition: Transition) -> np.ndarray:
        """
        Hook: rewards that the table learns.

        :param transition: Step of one environment
        :return: Rewards, ``(n_payoffs,)``
        """
        raise NotImplementedError

    def _solve(
        self, payoffs: np.ndarray, before: tuple[np.ndarray, np.ndarray], errors: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Any]:
        """
        Hook: solution of the game of a state.

        :param payoffs: Payoffs of the legal actions, ``(n_payoffs, n_legal_0, n_legal_1)``
        :param before: Strategies of the state so far, of the legal actions
        :param errors: Standard errors of the payoffs, of the same shape
        :return: Strategies of both agents, and the values, ``(n_payoffs,)``
        """
        raise NotImplementedError

    def _solve_row(self, row: int, legal: tuple[Legal, ...]) -> None:
        """Solve the game of a state, and store its strategies and values."""
        table = self.tables[JOINT]
        q = table["q"][row]
        errors = np.sqrt(table["squares"][row] * table["weight"][row])
        strategies = table["strategy_0"][row], table["strategy_1"][row]
        if legal == (None, None):
            first, second, value = self._solve(q, strategies, errors)
            strategies[0][:], strategies[1][:] = first, second
        else:
            rows, columns = (
                np.arange(n) if own is None else np.array(own)
                for n, own in zip(self.n_actions, legal, strict=True)
            )
            part, own_errors = (own[:, rows[:, None], columns] for own in (q, errors))
            before = strategies[0][rows], strategies[1][columns]
            first, second, value = self._solve(part, before, own_errors)
            strategies[0][rows], strategies[1][columns] = first, second
        table["value"][row] = value

    def state_value(self, observation: Any) -> np.ndarray:
        """
        :param observation: ``{agent: observation}``, or the observation of a ``JointEnv``
        :return: Learnt values of the state for the agents, ``(n_agents,)``; the initial value for a
            state that was never met
        """
        situations, _, _ = self._situations_of(observation, None)
        table = self.tables[JOINT]
        row = table.rows.get(situations[0].keys)
        if row is None:
            return self._values_of_agents(np.full(self.n_payoffs, self.initial_value))
        return self._values_of_agents(table["value"][row])

    def _values_of_agents(self, value: np.ndarray) -> np.ndarray:
        """
        Hook: values of both agents.

        :param value: Entry of the column "value", ``(n_payoffs,)``
        :return: New array, ``(n_agents,)``
        """
        return value.copy()
