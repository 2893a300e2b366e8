"""Gradient steps of the off-policy algorithms: critics, joint actions, and the log."""

from collections.abc import Mapping
from typing import ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import update_learning_rate

from sb3_happo.common.finite import count_left_out
from sb3_happo.common.gradient_step import descend
from sb3_happo.common.off_policy_policy import OffPolicyJointPolicy
from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.common.replay_state import ReplayState


class OffPolicyLearning(ReplayState):
    """
    Parts of a gradient step that the off-policy algorithms share.
    """

    policy: OffPolicyJointPolicy
    critic_learning_rate: float | Schedule | None
    critic_lr_schedule: Schedule
    max_grad_norm: float | None
    #: Factor of the critics' squared errors, as in SB3's algorithm
    critic_loss_weight: ClassVar[float] = 1.0
    #: Figures of the gradient steps of the present update, by their names in the log
    _figures: dict[str, list[th.Tensor]]

    def _begin_training(self) -> None:
        """Switch to training mode, and set the learning rates of all networks."""
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        self._figures = {}
        for group in self.policy.groups:
            self._set_actor_rate(group[0])
        self._set_critic_rate()

    def _set_critic_rate(self) -> None:
        update_learning_rate(self.critic.optimizer, self._critic_rate())

    def _critic_rate(self) -> float:
        schedule = self.lr_schedule
        if self.critic_learning_rate is not None:
            schedule = self.critic_lr_schedule
        return schedule(self._current_progress_remaining)

    def _sample(self, batch_size: int) -> JointSamples:
        assert self.replay_buffer is not None
        return self.replay_buffer.sample(batch_size, env=self.normalizer)

    def _descend(self, loss: th.Tensor, optimizer: th.optim.Optimizer, owner: str) -> None:
        """
        One gradient step.

        :param loss: Loss, a scalar
        :param optimizer: Optimiser
        :param owner: Name of the network for warnings
        :raises NotFiniteError: If the gradients of three steps in a row were NaN or infinite
        """
        norm = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        learned = descend(loss, optimizer, norm, owner)
        count_left_out(self, owner, learned)

    def _update_critic(self, data: JointSamples, targets: th.Tensor) -> None:
        """
        Fit the critics to targets by a gradient step.

        :param data: Transitions
        :param targets: Targets of the values, ``(batch, n_values)``
        """
        actions = self._encoded(data)
        values = self.critic(data.observations, actions)  # (n_critics, batch, n_values)
        errors = (values - targets).square()
        counts = None
        if self.critic.n_values > 1 and data.activity is not None:
            # The value of an agent that has left is not learned
            counts = data.activity.alive
        losses = mean_over(errors, counts, dim=1).sum(dim=0) * self.critic_loss_weight
        loss = losses.sum()
        self._descend(loss, self.critic.optimizer, "the critic")
        if self.critic.n_values > 1:
            for agent, own in zip(self.agents, losses, strict=True):
                self._record(f"{self._log_names[agent]}/critic_loss", own)
        self._record("train/critic_loss", loss)
        self._record("train/q_value", values.mean())

    def _rewards(self, data: JointSamples) -> th.Tensor:
        """
        :param data: Transitions
        :return: Rewards that the critics learn, the team's or each agent's own,
            ``(batch, n_values)``
        :raises ValueError: If agents with critics of their own get no rewards of their own
        """
        if self.critic.n_values == 1:
            return data.rewards
        if not bool(data.agent_rewards.isfinite().all()):
            raise ValueError(
                "own_critics=True needs the individual rewards of the agents, and the environment "
                "gives none for some steps. Use own_critics=False, or an environment whose infos "
                "hold 'agent_rewards'."
            )
        return data.agent_rewards

    def _encoded(self, data: JointSamples) -> th.Tensor:
        """Encoded actions of the buffer, zeros for inactive agents, ``(batch, n_encoded)``."""
        actions = self.policy.encode(data.actions)
        active = None if data.activity is None else data.activity.active
        return self._only_active(actions, active)

    def _only_active(self, actions: th.Tensor, active: th.Tensor | None) -> th.Tensor:
        """
        :param actions: Encoded actions of all agents, ``(batch, n_encoded)``
        :param active: Active mask, ``(batch, n_agents)``; None for all
        :return: Actions with zeros for inactive agents, whose actions have no effect
        """
        if active is None:
            return actions
        sizes = [columns.stop - columns.start for columns in self.policy.columns.values()]
        repeats = th.tensor(sizes, device=active.device)
        return actions * active.repeat_interleave(repeats, dim=1)

    def _join(self, actions: Mapping[str, th.Tensor], data: JointSamples) -> th.Tensor:
        """
        :param actions: Encoded actions of each agent, ``(batch, n_encoded)``
        :param data: Transitions
        :return: Encoded joint actions, with zeros for inactive agents, ``(batch, n_encoded)``
        """
        joint = th.cat([actions[agent] for agent in self.agents], dim=1)
        return self._only_active(joint, None if data.activity is None else data.activity.active)

    def _active(self, agent: str, data: JointSamples) -> th.Tensor | None:
        """Mask of the transitions in which an agent acted, ``(batch,)``; None for all."""
        if data.activity is None:
            return None
        return data.activity.active[:, self.agents.index(agent)]

    def _value_index(self, agent: str) -> int:
        """Index of the critic's value of an agent's reward."""
        return self.agents.index(agent) if self.critic.n_values > 1 else 0

    # ---------------------------------------------------------------- log

    def _record_actor(self, agent: str, **figures: th.Tensor) -> None:
        """
        Keep figures of an agent's update.

        :param agent: Name of the agent
        :param figures: Scalars; the mean of "actor_loss" over the agents is logged too
        """
        for name, value in figures.items():
            self._record(f"{self._log_names[agent]}/{name}", value)
        self._record("train/actor_loss", figures["actor_loss"])

    def _record(self, key: str, value: th.Tensor) -> None:
        """
        Keep a figure for the mean over the gradient steps of this update.

        :param key: Name in the log
        :param value: Scalar
        """
        self._figures.setdefault(key, []).append(value.detach())

    def _log_training(self) -> None:
        """Record the figures of the gradient steps in the log."""
        for key, values in self._figures.items():
            self.logger.record(key, th.stack(values).mean().item())
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        rate = self.lr_schedule(self._current_progress_remaining)
        self.logger.record("train/learning_rate", rate)
        self.logger.record("train/critic_learning_rate", self._critic_rate())


def mean_over(values: th.Tensor, counts: th.Tensor | None, dim: int) -> th.Tensor:
    """
    :param values: Values
    :param counts: Mask of the values that count, of a shape that broadcasts; None for all
    :param dim: Axis of the mean
    :return: Mean over this axis; 0 where no value counts
    """
    if counts is None:
        return values.mean(dim=dim)
    weights = counts.to(values.dtype).expand_as(values)
    return (values * weights).sum(dim=dim) / weights.sum(dim=dim).clamp(min=1.0)
