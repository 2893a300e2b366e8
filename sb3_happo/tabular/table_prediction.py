"""Strategies of tables: decisions, and probabilities of actions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_happo.common.team_spaces import TeamSpaces
from sb3_happo.envs.spaces import as_sampled, joint_action_dtype
from sb3_happo.tabular.situations import Situation, SituationReader
from sb3_happo.tabular.table_files import SavedTables


class TablePrediction(SavedTables):
    """
    Part of :class:`~sb3_happo.tabular.tabular_algorithm.TabularAlgorithm` that decides.
    """

    observation_space: spaces.Dict
    action_space: spaces.Dict
    reader: SituationReader
    prediction_rng: np.random.Generator
    _team: TeamSpaces

    @property
    def agents(self) -> tuple[str, ...]:
        """
        :return: Names of the agents, in the environment's order
        """
        return self._team.agents

    @property
    def n_actions(self) -> tuple[int, ...]:
        """
        :return: Number of actions of each agent
        """
        return tuple([actions.n for actions in self.reader.actions])

    # ---------------------------------------------------------------- hooks

    def _strategies(self, situation: Situation) -> list[np.ndarray]:
        """
        Hook: strategies of the agents.

        :param situation: Situation, known or not
        :return: Probabilities of each agent's actions, ``(n_actions,)``
        """
        raise NotImplementedError

    def _complete(self, situation: Situation, given: Sequence[str]) -> Situation:
        """
        Hook: situation of observations of some agents only.

        :param situation: Situation, with absent agents in the place of the others
        :param given: Agents with an observation
        :return: Situation to look up
        """
        return situation

    # ---------------------------------------------------------------- prediction

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: np.ndarray | None = None,
        deterministic: bool = False,
        action_masks: dict[str, np.ndarray] | None = None,
    ) -> tuple[Any, Any]:
        """
        Actions of the agents whose observations are given. In a state that was never met, all legal
        actions have equal probabilities.

        :param observation: ``{agent: observation}`` in the environment's own form, or the
            observation of a ``JointEnv`` or of a vectorised one
        :param state: Not used; returned as it is
        :param episode_start: Not used
        :param deterministic: Most likely actions, of equal ones the first, instead of samples. An
            equilibrium in mixed strategies needs samples
        :param action_masks: ``{agent: mask}``, where masks do not come within the observations
        :return: ``{agent: action}``, or for a batch a structured array with one field per agent;
            and ``state``
        :raises ValueError: If an agent is unknown, or an observation that is needed is missing
        """
        situations, own, batched = self._situations_of(observation, action_masks)
        indices = [self.agents.index(agent) for agent in own]
        numbers = np.empty((len(situations), len(indices)), np.int64)
        for row, situation in enumerate(situations):
            strategies = self._strategies(situation)
            for column, index in enumerate(indices):
                strategy = strategies[index]
                choice = (
                    int(strategy.argmax()) if deterministic else draw(strategy, self.prediction_rng)
                )
                numbers[row, column] = choice
        if batched:
            spaces_of_given = {agent: self.action_space.spaces[agent] for agent in own}
            joint = np.empty(len(situations), joint_action_dtype(spaces.Dict(spaces_of_given)))
            for column, (agent, index) in enumerate(zip(own, indices, strict=True)):
                joint[agent] = self.reader.actions[index].values[numbers[:, column]]
            return joint, state
        names = {str(name): name for name in observation}
        actions = {}
        for column, (agent, index) in enumerate(zip(own, indices, strict=True)):
            action_set = self.reader.actions[index]
            value = as_sampled(action_set.space, action_set.values[numbers[0, column]])
            actions[names.get(agent, agent)] = value
        return actions, state

    def action_probabilities(
        self, observation: Any, action_masks: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """
        :param observation: ``{agent: observation}``, or the observation of a ``JointEnv``
        :param action_masks: ``{agent: mask}``, where masks do not come within the observations
        :return: Probabilities of the actions that :meth:`predict` samples, ``{agent:
            (n_actions,)}``, MultiDiscrete actions counted row by row
        :raises ValueError: If it is a batch, or as for :meth:`predict`
        """
        situations, own, batched = self._situations_of(observation, action_masks)
        if batched:
            raise ValueError("action_probabilities takes one observation, not a batch of them.")
        strategies = self._strategies(situations[0])
        return {agent: strategies[self.agents.index(agent)] for agent in own}

    def _situations_of(
        self, observation: Any, action_masks: dict[str, np.ndarray] | None
    ) -> tuple[list[Situation], dict[str, Any], bool]:
        """Situations to look up, own observations by agent, and whether they were a batch."""
        if len(self.agents) == 1 and self._team.is_bare(observation):
            observation = {self.agents[0]: observation}
        if not isinstance(observation, dict):
            raise ValueError(
                f"The observation is {observation!r}; pass a dict {{agent: observation}} of the "
                f"agents {list(self.agents)}."
            )
        situations, own, batched = self.reader.of_agents(observation, action_masks)
        given = list(own)
        completed = [self._complete(situation, given) for situation in situations]
        return completed, own, batched


def draw(probabilities: np.ndarray, rng: np.random.Generator) -> int:
    """
    :param probabilities: Probabilities, ``(n,)``
    :param rng: Generator
    :return: Index drawn with these probabilities
    """
    point = rng.random()
    index = int(np.searchsorted(np.cumsum(probabilities), point, side="right"))
    # Rounding may leave the sum below 1
    return min(index, int(np.flatnonzero(probabilities)[-1]))


def uniform(n: int, legal: tuple[int, ...] | None) -> np.ndarray:
    """
    :param n: Number of actions
    :param legal: Numbers of the legal ones; None for all
    :return: Equal probabilities of the legal actions, ``(n,)``
    """
    if legal is None:
        return np.full(n, 1.0 / n)
    strategy = np.zeros(n)
    strategy[list(legal)] = 1.0 / len(legal)
    return strategy
