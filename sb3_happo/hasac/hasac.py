"""HASAC: Heterogeneous-Agent Soft Actor-Critic."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_happo.common.agent_order import check_agent_order, fixed_order
from sb3_happo.common.heads import MAX_COMBINATIONS, Expansion
from sb3_happo.common.hyperparameters import COUNT, Setting
from sb3_happo.common.off_policy_learning import mean_over
from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.common.soft_policy import SoftJointPolicy
from sb3_happo.common.temperatures import Temperatures
from sb3_happo.common.type_aliases import AgentOrder


class HASAC(Temperatures):
    """
    Heterogeneous-Agent Soft Actor-Critic (Liu et al. 2024, "Maximum Entropy Heterogeneous-Agent
    Reinforcement Learning", arXiv 2306.10715).

    Critics value the state and the joint action with the entropies of all policies. The agents are
    updated one after another, in view of the new actions of those before. The mean over an agent's
    own discrete actions is exact. With one agent and the same settings the numbers are SB3's
    ``SAC``.

    :param policy: Name of a policy, "MlpPolicy", "CnnPolicy" or "MultiInputPolicy", or a class
    :param env: Environment of any form that ``HAPPO`` takes
    :param learning_rate: Learning rate of actors and temperatures, >= 0, constant or a schedule
    :param args: Further arguments of
        :class:`~sb3_happo.common.off_policy_algorithm.MultiAgentOffPolicyAlgorithm`
    :param agent_order: Order of the agents in each update: "random", "fixed", "reverse", or a
        callable of the agents' names
    :param ent_coef: Temperature; "auto" to learn one per agent, "auto_0.1" with an initial value
    :param target_entropy: Entropy that learned temperatures aim at, one for all agents or
        ``{agent: entropy}``; "auto" for minus the number of continuous actions plus half the
        largest entropy of the discrete ones
    :param target_update_interval: Gradient steps between two updates of the target networks
    :param kwargs: Keyword arguments of ``MultiAgentOffPolicyAlgorithm``
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": SoftJointPolicy,
        "CnnPolicy": SoftJointPolicy,
        "MultiInputPolicy": SoftJointPolicy,
    }
    settings: ClassVar[dict[str, Setting]] = Temperatures.settings | {
        "target_update_interval": COUNT,
    }
    critic_loss_weight: ClassVar[float] = 0.5
    #: Whether agents see the new actions of those before them
    sequential: ClassVar[bool] = True
    policy: SoftJointPolicy

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        learning_rate: float | Schedule = 3e-4,
        *args: Any,
        agent_order: AgentOrder = "random",
        ent_coef: str | float = "auto",
        target_entropy: str | float | Mapping[str, float] = "auto",
        target_update_interval: int = 1,
        **kwargs: Any,
    ) -> None:
        self.agent_order = agent_order
        self.ent_coef = ent_coef
        self.target_entropy = target_entropy
        self.target_update_interval = target_update_interval
        super().__init__(policy, env, learning_rate, *args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        check_agent_order(self.agent_order, self.agents, greedy=False)

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """
        Gradient steps of temperatures, critics and actors.

        :param gradient_steps: Number of gradient steps
        :param batch_size: Transitions per gradient step
        """
        self._begin_training()
        for step in range(gradient_steps):
            data = self._sample(batch_size)
            # In SB3's order of random numbers
            decisions = {agent: self._decide(agent, data) for agent in self.agents}
            coefs = self._update_temperatures(decisions, data)
            self._record("train/ent_coef", coefs.mean())
            self._update_critic(data, self._targets(data, coefs))
            self._update_actors(data, decisions, coefs)
            if step % self.target_update_interval == 0:
                self.policy.update_targets(self.tau)
        self._n_updates += gradient_steps
        self._log_training()

    @th.no_grad()
    def _targets(self, data: JointSamples, coefs: th.Tensor) -> th.Tensor:
        """Soft targets of the critics, ``(batch, n_values)``."""
        parts, log_probs = [], []
        for agent in self.agents:
            outputs = self.policy.outputs(data.next_observations, agent)
            actions, log_prob = self.policy.rsample(outputs, data.next_observations, agent)
            parts.append(actions)
            log_probs.append(log_prob)
        active = None if data.activity is None else data.activity.next_active
        actions = self._only_active(th.cat(parts, dim=1), active)
        costs = coefs * th.stack(log_probs, dim=1)
        if active is not None:
            costs = costs * active
        if self.critic.n_values == 1:
            costs = costs.sum(dim=1, keepdim=True)
        values = self.policy.critic_target.least(data.next_observations, actions) - costs
        return self._rewards(data) + (1.0 - data.dones) * data.discounts * values

    def _decide(self, agent: str, data: JointSamples) -> tuple[Expansion, th.Tensor]:
        """All choices of an agent, and one sample for the others' losses."""
        policy = self.policies[agent]
        outputs = self.policy.outputs(data.observations, agent)
        if not 1 < policy.action_head.n_combinations <= MAX_COMBINATIONS:
            sample, log_prob = self.policy.rsample(outputs, data.observations, agent)
            ones = th.ones_like(log_prob).unsqueeze(1)
            return Expansion(sample.unsqueeze(1), log_prob.unsqueeze(1), ones), sample.detach()
        masks = self.policy.action_masks(data.observations, agent)
        choices = policy.action_head.expand(outputs, policy.effective_log_std(), masks)
        drawn = th.multinomial(choices.probs.detach(), 1).squeeze(1)
        rows = th.arange(len(drawn), device=drawn.device)
        return choices, choices.actions[rows, drawn].detach()

    def _update_actors(
        self,
        data: JointSamples,
        decisions: dict[str, tuple[Expansion, th.Tensor]],
        coefs: th.Tensor,
    ) -> None:
        """Update the agents one after another."""
        features = self.critic.observe(data.observations).detach()
        actions = {agent: own[1] for agent, own in decisions.items()}
        remaining = list(fixed_order(self.agent_order, self.agents))
        while remaining:
            agent = remaining.pop(0)
            coef = coefs[self.agents.index(agent)]
            self._ascend(agent, decisions[agent][0], actions, features, data, coef)
            for changed in self.policy.group_of(agent) if remaining else ():
                if not self.sequential and changed not in remaining:
                    continue
                with th.set_grad_enabled(changed in remaining):
                    decisions[changed] = self._decide(changed, data)
                if self.sequential:
                    actions[changed] = decisions[changed][1]

    def _ascend(
        self,
        agent: str,
        choices: Expansion,
        others: dict[str, th.Tensor],
        features: th.Tensor,
        data: JointSamples,
        coef: th.Tensor,
    ) -> None:
        """One gradient step of an agent along the soft value of the joint action."""
        active = self._active(agent, data)
        if active is not None and not active.any():
            return
        n = choices.actions.shape[1]
        joint = self._join(others, data).unsqueeze(1).repeat(1, n, 1)
        joint[:, :, self.policy.columns[agent]] = choices.actions
        values = self.critic.evaluate(features.repeat_interleave(n, dim=0), joint.flatten(0, 1))
        start = self._value_index(agent) * self.critic.n_critics
        least = values[start : start + self.critic.n_critics].amin(dim=0).view(-1, n)
        losses = (choices.probs * (coef * choices.log_probs - least)).sum(dim=1)
        loss = mean_over(losses, active, dim=0)
        self._descend(loss, self.policies[agent].optimizer, f"agent {agent!r}")
        q_value = mean_over((choices.probs * least).sum(dim=1), active, dim=0)
        self._record_actor(agent, actor_loss=loss, q_value=q_value, ent_coef=coef)
