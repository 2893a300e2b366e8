"""Minimax-Q."""

from contextlib import suppress
from typing import Any

import numpy as np

from sb3_happo.tabular.matrix_games import solve_zero_sum, support_of
from sb3_happo.tabular.situations import Transition
from sb3_happo.tabular.stage_games import StageGameAlgorithm

# Share of the rewards by which their sum may differ from 0, for rewards arrive in float32
_TOLERANCE = 1e-5
# Results of known dynamics that are checked before training
_MAX_CHECKED = 2_000


class MinimaxQ(StageGameAlgorithm):
    """
    Minimax-Q of Littman, "Markov games as a framework for multi-agent reinforcement learning", ICML
    1994, for zero-sum games of two agents.

    The table holds the first agent's values of every joint action; those of the second agent are
    their negatives. Each update moves them towards the reward and the discounted value of the next
    state's game, which is solved exactly.

    The rewards of every step are checked. Those of games whose payoffs or dynamics are known, such
    as the games of :mod:`sb3_happo.envs.games`, are checked before training.

    :param policy: "TabularPolicy", which may be left out: ``MinimaxQ(env)``
    :param env: Environment of any form, with two agents whose rewards add up to 0
    :param kwargs: Further arguments of
        :class:`~sb3_happo.tabular.tabular_algorithm.TabularAlgorithm`
    :raises ValueError: If the team has not two agents, or the game is not zero-sum
    """

    n_payoffs = 1

    def __init__(self, policy: Any, env: Any = None, **kwargs: Any) -> None:
        super().__init__(policy, env, **kwargs)
        if self.env is not None:
            self._check_known_rewards()

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        super().set_env(env, force_reset)
        self._check_known_rewards()

    def _check_known_rewards(self) -> None:
        """Check the rewards of a game whose payoffs or dynamics are known."""
        payoffs = self._env_attribute("payoffs")
        if isinstance(payoffs, np.ndarray) and payoffs.shape == (2, *self.n_actions):
            for number, joint in enumerate(np.ndindex(*self.n_actions)):
                self._check_zero_sum(payoffs.reshape(2, -1)[:, number], f"the actions {joint}")
        outcomes, states = self._env_attribute("outcomes"), self._env_attribute("states")
        if not callable(outcomes) or not isinstance(states, tuple):
            return
        n_checked = 0
        for state in states:
            for joint in np.ndindex(*self.n_actions):
                for outcome in outcomes(state, joint):
                    where = f"the state {state!r} with the actions {joint}"
                    self._check_zero_sum(np.array(outcome.rewards), where)
            n_checked += int(np.prod(self.n_actions))
            if n_checked > _MAX_CHECKED:
                return

    def _env_attribute(self, name: str) -> Any:
        """Attribute of the first environment; None if it has none."""
        with suppress(AttributeError, NotImplementedError):
            assert self.env is not None
            return self.env.get_attr(name, 0)[0]
        return None

    def _check_zero_sum(self, rewards: np.ndarray, where: str) -> None:
        """
        :param rewards: Rewards of both agents, ``(2,)``
        :param where: State and actions, for the error
        :raises ValueError: If they do not add up to 0
        """
        first, second = (float(reward) for reward in rewards)
        if abs(first + second) > _TOLERANCE * max(1.0, abs(first), abs(second)):
            names = self.agents
            raise ValueError(
                f"MinimaxQ learns zero-sum games, and in {where} the rewards are {names[0]!r}: "
                f"{first:g} and {names[1]!r}: {second:g}, whose sum is {first + second:g}. NashQ "
                "learns games of general sum."
            )

    def _payoffs(self, transition: Transition) -> np.ndarray:
        where = (
            f"the state {transition.before.keys!r} with the actions {transition.actions} "
            f"(after {self.num_timesteps} timesteps)"
        )
        self._check_zero_sum(transition.rewards, where)
        return np.array([0.5 * (float(transition.rewards[0]) - float(transition.rewards[1]))])

    def _solve(
        self, payoffs: np.ndarray, before: tuple[np.ndarray, np.ndarray], errors: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Any]:
        supports = support_of(before[0]), support_of(before[1])
        solution = solve_zero_sum(payoffs[0], supports)
        return solution.row, solution.column, solution.value

    def _values_of_agents(self, value: np.ndarray) -> np.ndarray:
        return np.array([value[0], -value[0]])
