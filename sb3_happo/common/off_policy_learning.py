"""Gradient steps of the off-policy algorithms: critics, joint actions, and the log."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import ClassVar

import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.utils import update_learning_rate

from sb3_happo.common.critic_choice import rewards_differ
from sb3_happo.common.finite import count_left_out
from sb3_happo.common.gradient_step import descend
from sb3_happo.common.off_policy_policy import OffPolicyJointPolicy
from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.common.replay_checkpoint import ReplayCheckpoint
from sb3_happo.vec_env.step_facts import StepFacts


class OffPolicyLearning(ReplayCheckpoint):
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
    #: True if agents have got different rewards at a step
    _rewards_differ: bool = False

    def _begin_training(self) -> None:
        """Switch to training mode, and set the learning rates of all networks."""
        assert self.replay_buffer is not None
        if self._chooses_critics and self._rewards_differ:
            self._split_critics()
        self.policy.set_training_mode(True)
        self._figures = {}
        for group in self.policy.groups:
            self._set_actor_rate(group[0])
        self._set_critic_rate()

    @property
    def _chooses_critics(self) -> bool:
        """True while critics are the team's, and may become the agents' own."""
        return getattr(self.policy, "own_critics", False) == "auto" and len(self.agents) > 1

    def _own_rewards(self, rewards: np.ndarray, facts: StepFacts) -> np.ndarray:
        own = super()._own_rewards(rewards, facts)
        if self._chooses_critics and not self._rewards_differ:
            active, waiting = self._presence
            alive = active if waiting is None or active is None else active | waiting
            self._rewards_differ = rewards_differ(own, alive)
        return own

    def _split_critics(self) -> None:
        """
        Learn each agent's own reward from now on. Before, all agents got the same one, so that the
        critics of the team's reward are a start for those of each agent's.
        """
        self.policy.split_critics()
        self.policy_kwargs = self.policy_kwargs | {"own_critics": True}
        if self._last_good is not None:
            # Copies of the weights have other shapes
            self._last_good = self.last_good_class()
            self._last_good.begin_rollout(self)
            self._last_good.end_rollout(self)
        if self.verbose >= 1:
            print(
                f"The agents' rewards differ: each agent has critics of its own from step "
                f"{self.num_timesteps} on (own_critics='auto'; pass own_critics=False for critics "
                "of the team's reward)"
            )

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

    def _descend(
        self,
        loss: th.Tensor,
        optimizer: th.optim.Optimizer,
        owner: str,
        frozen: AbstractContextManager[None] | None = None,
    ) -> None:
        """
        One gradient step.

        :param loss: Loss, a scalar
        :param optimizer: Optimiser
        :param owner: Name of the network for warnings
        :param frozen: Context of the optimiser's step that keeps some parameters; None for none
        :raises NotFiniteError: If the gradients of three steps in a row were NaN or infinite
        """
        norm = float("inf") if self.max_grad_norm is None else self.max_grad_norm
        learned = descend(loss, optimizer, norm, owner, frozen)
        count_left_out(self, owner, learned)

    def _update_critic(self, data: JointSamples, targets: th.Tensor) -> None:
        """
        Fit the critics to targets by a gradient step.

        :param data: Transitions
        :param targets: Targets of the values, ``(batch, n_values)``
        """
        self._fit_critic(self.critic(data.observations, self._encoded(data)), targets, data)

    def _fit_critic(self, values: th.Tensor, targets: th.Tensor, data: JointSamples) -> None:
        """
        :param values: Values of the transitions, differentiable, ``(n_critics, batch, n_values)``
        :param targets: Targets of the values, ``(batch, n_values)``
        :param data: Transitions
        """
        errors = (values - targets).square()
        counts = absent = None
        if self.critic.n_values > 1 and data.activity is not None:
            # The value of an agent that has left is not learned
            counts = data.activity.alive
            absent = ~counts.any(dim=0).repeat_interleave(self.critic.n_critics)
        losses = mean_over(errors, counts, dim=1).sum(dim=0) * self.critic_loss_weight
        loss = losses.sum()
        optimizer = self.critic.optimizer
        self._descend(loss, optimizer, "the critic", self.critic.networks.frozen(optimizer, absent))
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

    def _returns(self, data: JointSamples, next_values: th.Tensor) -> th.Tensor:
        """
        :param data: Transitions
        :param next_values: Values after the transitions, ``(batch, n_values)``
        :return: Targets of the critics, ``(batch, n_values)``
        """
        if self.critic.n_values > 1 and data.activity is not None:
            # An agent's own critic learns nothing of states in which the agent has left
            next_values = next_values * data.activity.next_alive
        return self._rewards(data) + (1.0 - data.dones) * data.discounts * next_values

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

    def _acting(self, data: JointSamples) -> list[str]:
        """Agents that acted in some of the transitions."""
        if data.activity is None:
            return list(self.agents)
        acted = data.activity.active.any(dim=0).tolist()
        return [agent for agent, own in zip(self.agents, acted, strict=True) if own]

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
        if len(self.agents) > 1 and hasattr(self.critic, "n_values"):
            self.logger.record("train/own_critics", int(self.critic.n_values > 1))


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
