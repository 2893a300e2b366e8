"""Rollout whose advantages follow the agents that were updated already."""

from typing import Any

import numpy as np
import torch as th

from sb3_happo.common.formulas import generalised_advantages
from sb3_happo.common.plain_classes import allow_in_files
from sb3_happo.common.rollout_buffer import MultiAgentRolloutBuffer
from sb3_happo.common.type_aliases import ActorBatch


class CorrectedRolloutBuffer(MultiAgentRolloutBuffer):
    """
    Rollout that estimates the advantages again for each agent, at the new policies of the agents
    updated before it; see :class:`~sb3_happo.A2PO`. The returns, targets of the critic, remain
    those of the rollout.

    :param args: Arguments of ``MultiAgentRolloutBuffer``
    :param kwargs: Keyword arguments of ``MultiAgentRolloutBuffer``
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._last_values = th.zeros(self.n_envs, self.n_values, device=self.device)
        self._last_dones = th.zeros(self.n_envs, device=self.device)

    def compute_returns_and_advantage(self, last_values: th.Tensor, dones: np.ndarray) -> None:
        """
        :param last_values: Values of the observations after the last step, ``(n_envs, n_values)``
        :param dones: True where the last step ended an episode, ``(n_envs,)``
        """
        super().compute_returns_and_advantage(last_values, dones)
        self._last_values = last_values
        self._last_dones = th.as_tensor(dones, dtype=th.float32, device=self.device)

    def corrected_advantages(self, factor: th.Tensor) -> th.Tensor:
        """
        :param factor: Product of the ratios of the agents updated before, ``(n_rows,)``
        :return: Advantages, ``(n_steps, n_envs, n_values)``; with a factor of 1 those of GAE
        """
        advantages, _ = generalised_advantages(
            self.rewards,
            # Of inactive agents, the values that GAE has put there
            self.values,
            self.episode_starts,
            self._last_values,
            self._last_dones,
            self.gamma,
            self.gae_lambda,
            ratios=factor.view(self.buffer_size, self.n_envs),
        )
        return advantages

    def agent_data(self, agent: str, factor: th.Tensor) -> ActorBatch:
        """
        :param agent: Name of an agent
        :param factor: Product of the ratios of the agents updated before, ``(n_rows,)``
        :return: Rows at which the agent was active, with corrected advantages
        """
        data = super().agent_data(agent, factor)
        column = self.policy.agents.index(agent) if self.n_values > 1 else 0
        advantages = self.corrected_advantages(factor)[..., column].flatten()
        return data._replace(advantages=advantages if data.rows is None else advantages[data.rows])


# Models name the class in their files
allow_in_files(CorrectedRolloutBuffer)
