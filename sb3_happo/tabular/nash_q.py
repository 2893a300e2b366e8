"""Nash Q-learning."""

from typing import Any

import numpy as np

from sb3_happo.suggestions import did_you_mean
from sb3_happo.tabular.matrix_games import (
    MAX_SUPPORT_PAIRS,
    SELECTIONS,
    Selection,
    n_support_pairs,
    support_of,
)
from sb3_happo.tabular.situations import Transition
from sb3_happo.tabular.stage_games import StageGameAlgorithm


class NashQ(StageGameAlgorithm):
    """
    Nash Q-learning of Hu and Wellman, "Nash Q-Learning for General-Sum Stochastic Games", JMLR 4
    (2003), for two agents.

    The table holds both agents' values of every joint action. Each update moves them towards the
    own reward and the discounted value, for the agent, of a Nash equilibrium of the next state's
    game. All agents use one and the same equilibrium, which ``selection`` chooses.

    :param policy: "TabularPolicy", which may be left out: ``NashQ(env)``
    :param env: Environment of any form, with two agents
    :param selection: Choice among equilibria. "stable": that of the supports chosen before, as long
        as no agent gains significantly by leaving it, otherwise the one with the largest sum of
        values, see :func:`~sb3_happo.tabular.matrix_games.select_stable`. "first", "second": by
        the order of :func:`~sb3_happo.tabular.equilibria`. "largest_sum". Or a function of the
        payoffs of both agents, the supports chosen before and the standard errors of the payoffs
    :param kwargs: Further arguments of
        :class:`~sb3_happo.tabular.tabular_algorithm.TabularAlgorithm`
    :raises ValueError: If the team has not two agents, or too many actions for the enumeration
    """

    arguments = ("selection",)
    n_payoffs = 2

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        selection: str | Selection = "stable",
        **kwargs: Any,
    ) -> None:
        if not callable(selection) and selection not in SELECTIONS:
            hint = did_you_mean(str(selection), SELECTIONS)
            raise ValueError(
                f"selection={selection!r} is no rule; there are {list(SELECTIONS)}. {hint}".rstrip()
            )
        self.selection = selection
        self._select = selection if callable(selection) else SELECTIONS[selection]
        self.uses_errors = callable(selection) or selection == "stable"
        super().__init__(policy, env, **kwargs)

    def _check_team(self) -> None:
        super()._check_team()
        n_pairs = n_support_pairs(*self.n_actions)
        if n_pairs > MAX_SUPPORT_PAIRS:
            raise ValueError(
                f"NashQ enumerates pairs of supports, and the actions "
                f"{dict(zip(self.agents, self.n_actions, strict=True))} make {n_pairs} of them; at "
                f"most {MAX_SUPPORT_PAIRS} are possible (8 actions each). MinimaxQ takes more "
                "actions where the game is zero-sum, TabularIQL in any game."
            )

    def _payoffs(self, transition: Transition) -> np.ndarray:
        return np.asarray(transition.rewards, np.float64)

    def _solve(
        self, payoffs: np.ndarray, before: tuple[np.ndarray, np.ndarray], errors: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, Any]:
        supports = support_of(before[0]), support_of(before[1])
        equilibrium = self._select(payoffs[0], payoffs[1], supports, errors)
        return equilibrium.row, equilibrium.column, equilibrium.values
