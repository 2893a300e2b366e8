"""MFAC: mean-field actor-critic."""

from typing import ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_happo.common.mean_field_critic import MeanFieldActorCriticPolicy
from sb3_happo.common.off_policy_learning import mean_over
from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.mfq.mfq import MFQ


class MFAC(MFQ):
    """
    Mean-field actor-critic (Yang et al. 2018, arXiv 1802.05438, Algorithm 2): as
    :class:`~sb3_happo.MFQ`, but a second network of each type of agents is the policy, which
    follows the gradient of the mean-field values.

    The gradient is exact in the agent's own action, ``sum_a grad pi(a) Q(a)``, where the paper
    draws one. The entropy of the policy is added with the weight ``temperature``, so that the
    policy moves towards Boltzmann's at this temperature, and with a small one towards the greedy
    one. Targets hold the values of the policy, without the entropy.

    See :class:`~sb3_happo.MFQ` for the parameters; ``critic_learning_rate`` is the learning rate of
    the values, and ``policy_kwargs["critic_kwargs"]`` has options of their networks.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": MeanFieldActorCriticPolicy,
        "CnnPolicy": MeanFieldActorCriticPolicy,
        "MultiInputPolicy": MeanFieldActorCriticPolicy,
    }
    policy: MeanFieldActorCriticPolicy

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        Gradient steps of values and policies: the loop of Algorithm 2 over minibatches.

        :param gradient_steps: Number of gradient steps
        :param batch_size: Transitions per gradient step
        """
        self._begin_training()
        for _ in range(gradient_steps):
            data = self._sample(batch_size)
            means = self._mean_actions(data)
            # y = r + gamma sum_a pi(a | s', mean') Q'(s', a, mean')
            next_values = self._next_policy_values(data, means)
            targets = data.agent_rewards + (1.0 - data.dones) * data.discounts * next_values
            # Critic: minimise the squared error of Q(s, a, mean)
            self._update_values(data, means, targets)
            # Actor: maximise the sum over a of pi(a | s, mean) Q(s, a, mean)
            self._update_policies(data, means)
        self._n_updates += gradient_steps
        self._log_training()

    def _update_policies(self, data: JointSamples, means: th.Tensor) -> None:
        """
        One gradient step of the policy of each group of agents.

        :param data: Transitions
        :param means: Mean actions of the steps, ``(batch, n_agents, n_mean)``
        """
        policy = self.policy
        with th.no_grad():
            values = policy.action_values(data.observations, means)
        log_probs = policy.log_probabilities(data.observations, means)
        rows = zip(policy.groups, policy.group_indices, values, log_probs, strict=True)
        for group, indices, own, log_prob in rows:
            active = None if data.activity is None else data.activity.active[:, indices].T
            if active is not None and not active.any():
                continue
            terms = log_prob.exp() * (own - self.present_temperature * log_prob)
            objectives = terms.sum(dim=2)  # (n_group, batch)
            counts = None if active is None else active.flatten()
            loss = -mean_over(objectives.flatten(), counts, dim=0)
            self._descend(loss, self.policies[group[0]].optimizer, f"agent {group[0]!r}")
            self._record("train/actor_loss", loss)
            self._record_agents("actor_loss", group, -mean_over(objectives, active, dim=1))

    def _probabilities(
        self, data: JointSamples, means: th.Tensor, values: list[th.Tensor]
    ) -> list[th.Tensor]:
        return self.policy.probabilities(data.observations, means)

    def _step_on_values(self, losses: dict[str, th.Tensor]) -> None:
        if losses:
            total = th.stack(list(losses.values())).sum()
            self._descend(total, self.critic.optimizer, "the values")

    def _set_temperature(self) -> None:
        """Leave the actors' logits as they are: the temperature is the weight of the entropy."""
