"""IQL: independent Q-learning."""

from typing import Any

import numpy as np
import torch as th

from sb3_happo.common.off_policy_learning import mean_over
from sb3_happo.common.own_rewards import OwnRewards
from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.common.value_based_algorithm import ValueBasedAlgorithm
from sb3_happo.vec_env.step_facts import StepFacts


class IQL(ValueBasedAlgorithm):
    """
    Independent Q-learning (Tan 1993): each agent learns the values of its own actions from its own
    observation and reward, as if the others were a part of the environment. With one agent and the
    same settings the numbers are those of SB3's ``DQN``.

    Agents have separate networks, unless ``policy_kwargs`` has ``share_parameters``. With
    ``hysteretic`` below 1 values fall more slowly than they rise (Matignon, Laurent & Le Fort-Piat
    2007), so that the exploration of the others misleads an agent less.

    In turn-based environments the value of an agent that waits is that of its best action, and is
    learned too: there the value of the moves of others arrives. Dead agents learn nothing.

    See :class:`~sb3_happo.common.value_based_algorithm.ValueBasedAlgorithm` for the parameters.
    """

    _reward_check: OwnRewards | None = None

    def _own_rewards(self, rewards: np.ndarray, facts: StepFacts) -> np.ndarray:
        """
        :param rewards: Team rewards as they arrived, ``(n_envs,)``
        :param facts: Facts of the step, with each agent's own reward
        :return: Individual rewards before normalisation, ``(n_envs, n_agents)``; the team's where
            the environment gives none
        :raises ValueError: If a wrapper has changed the team's reward only
        """
        assert self.env is not None
        if self._reward_check is None or self._reward_check.env is not self.env:
            self._reward_check = OwnRewards(self.env, self.agents, type(self).__name__)
        self._reward_check(rewards, facts)
        own: Any = super()._own_rewards(rewards, facts)
        return np.where(np.isnan(own), np.asarray(rewards)[:, np.newaxis], own)

    def _learn(self, data: JointSamples) -> None:
        counts = None if data.activity is None else data.activity.alive
        taken, targets = self._taken_values(data), self._targets(data)
        for group in self.policy.groups:
            columns = [self.agents.index(agent) for agent in group]
            own_counts = None if counts is None else counts[:, columns].flatten()
            if own_counts is not None and not own_counts.any():
                continue
            values = th.stack([taken[agent] for agent in group], dim=1)
            losses = self._losses(values, targets[:, columns])
            loss = mean_over(losses.flatten(), own_counts, dim=0)
            self._descend(loss, self.policies[group[0]].optimizer, f"agent {group[0]!r}")
            self._record("train/loss", loss)
            for agent in group:
                self._record(f"{self._log_names[agent]}/loss", loss)

    def _targets(self, data: JointSamples) -> th.Tensor:
        """
        :param data: Transitions
        :return: Targets of the values, ``(batch, n_agents)``
        """
        next_values = self._next_values(data)
        if data.activity is not None:
            next_values = next_values * data.activity.next_alive
        return data.agent_rewards + (1.0 - data.dones) * data.discounts * next_values

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_reward_check"]
