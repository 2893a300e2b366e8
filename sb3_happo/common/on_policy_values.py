"""Values of an on-policy algorithm: rewards that they predict, bootstrapping, the critic."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import update_learning_rate

from sb3_happo.common.bootstrap import (
    last_observations,
    mean_of_active_agents,
    values_of_all_agents,
)
from sb3_happo.common.checks import check_observations
from sb3_happo.common.hyperparameters import Setting
from sb3_happo.common.recurrent import select_envs
from sb3_happo.common.rollout_buffer import MultiAgentRolloutBuffer
from sb3_happo.common.rollout_state import RolloutState
from sb3_happo.common.type_aliases import RNNStates
from sb3_happo.common.value_learning import ValueLoss, update_critic
from sb3_happo.vec_env.step_facts import StepFacts

#: Share of the critic that the target critic takes over at each update
TARGET_TAU = Setting("greater than 0 and at most 1", lambda value: 0 < value <= 1)


class OnPolicyValues(RolloutState):
    """
    Part of the on-policy algorithms that concerns values: rewards that they predict, values at time
    limits and of absent agents, and the learning of the critic.
    """

    rollout_buffer: MultiAgentRolloutBuffer  # type: ignore[assignment]
    batch_size: int | None
    n_epochs: int
    critic_learning_rate: float | Schedule | None
    critic_lr_schedule: Schedule
    critic_n_epochs: int | None
    critic_batch_size: int | None
    clip_range_vf: float | Schedule | None
    use_clipped_value_loss: bool
    huber_delta: float | None
    target_critic_tau: float | None

    def _split_rewards(self, rewards: np.ndarray | th.Tensor, facts: StepFacts) -> th.Tensor:
        """
        Hook: rewards that the critic's values predict. Here the team's reward for all of them.

        :param rewards: Team rewards, ``(n_envs,)``
        :param facts: Facts of the step, with each agent's own reward
        :return: New tensor, ``(n_envs, n_values)``
        """
        column = th.as_tensor(rewards, dtype=th.float32, device=self.device).unsqueeze(1)
        return column.repeat(1, self.critic.n_values)

    def _value_after_leaving(self, values: th.Tensor, active: th.Tensor) -> th.Tensor:
        """
        Hook: value of agents that have left the team.

        :param values: Values of an observation, ``(n, n_values)``
        :param active: Active mask of the observation, ``(n, n_agents)``
        :return: ``(n, 1)`` or ``(n, n_values)``
        """
        return mean_of_active_agents(values, active)

    def _bootstrap_time_limits(
        self,
        rewards: th.Tensor,
        facts: StepFacts,
        infos: list[dict[str, Any]],
        states: RNNStates,
        own_values: th.Tensor,
    ) -> None:
        """
        Add the value of the last observation of episodes that a time limit cut off, as SB3 does.

        :param rewards: ``(n_envs, n_values)``, changed in place
        :param facts: Facts of the step
        :param infos: Infos of the step, with the terminal observations
        :param states: Hidden states before these observations
        :param own_values: Values of each agent's last active step, ``(n_envs, n_values)``
        """
        if not facts.truncated.any():
            return
        assert isinstance(self.observation_space, spaces.Dict)
        keys = list(self.observation_space.spaces)
        cut, observations, presence = last_observations(
            facts.truncated, infos, keys, len(self.agents)
        )
        if not cut:
            return
        last = self._to_tensors(observations)
        check_observations(last, cut, self.num_timesteps)
        with th.no_grad():
            values = self.policy.predict_values(last, select_envs(states, cut))
        if self.critic.n_values > 1:
            values = values_of_all_agents(
                values, own_values[cut], presence, self._value_after_leaving
            )
        rewards[cut] += self.gamma * self._clip_values(values)

    # ---------------------------------------------------------------- learning

    def _update_critic(self) -> None:
        """Fit the critic to the TD(lambda) returns (the last line of the pseudocode)."""
        schedule = self.lr_schedule
        if self.critic_learning_rate is not None:
            schedule = self.critic_lr_schedule
        rate = schedule(self._current_progress_remaining)
        update_learning_rate(self.critic.optimizer, rate)
        n_epochs, batch_size = self.critic_n_epochs, self.critic_batch_size
        update = update_critic(
            self.critic,
            self.rollout_buffer.critic_data(),
            self.value_loss,
            self.n_epochs if n_epochs is None else n_epochs,
            self.batch_size if batch_size is None else batch_size,
            self.max_grad_norm,
            self._executor,
            self.policy.target_critic,
        )
        if self.target_critic_tau is not None:
            self.policy.update_target_critic(self.target_critic_tau)
        self.logger.record("train/value_loss", update.value_loss)
        self.logger.record("train/explained_variance", update.explained_variance)
        self.logger.record("train/critic_learning_rate", rate)

    @property
    def value_loss(self) -> ValueLoss:
        """
        :return: Form of the value loss at the present progress
        """
        clip_range = None
        if self.clip_range_vf is not None:
            assert callable(self.clip_range_vf)
            clip_range = self.clip_range_vf(self._current_progress_remaining)
        return ValueLoss(self.vf_coef, clip_range, self.use_clipped_value_loss, self.huber_delta)


def check_target_critic(model: Any) -> None:
    """
    :param model: On-policy algorithm with its settings
    :raises ValueError: If a target critic does not go together with other settings
    """
    if model.target_critic_tau is not None and model.clip_range_vf is not None:
        raise ValueError(
            "clip_range_vf limits the change of the critic's own values of the rollout, and with "
            "target_critic_tau these are the target critic's. Omit one of them."
        )
