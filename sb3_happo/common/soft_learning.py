"""Losses of the soft actor-critic algorithms."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_happo.common.agent_order import check_agent_order
from sb3_happo.common.heads import MAX_COMBINATIONS, Expansion
from sb3_happo.common.off_policy_learning import mean_over
from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.common.soft_policy import SoftJointPolicy
from sb3_happo.common.temperatures import Temperatures
from sb3_happo.common.type_aliases import AgentOrder


class SoftLearning(Temperatures):
    """
    Base of the soft actor-critic algorithms. Critics value the state and the joint action with the
    entropies of all policies. The mean over an agent's own discrete actions is exact.

    :param args: Arguments of :class:`~sb3_happo.common.temperatures.Temperatures`
    :param agent_order: Order of the agents in each update: "random" for a new permutation each
        time, "fixed", "reverse", or a callable of the agents' names
    :param kwargs: Keyword arguments of ``Temperatures``
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": SoftJointPolicy,
        "CnnPolicy": SoftJointPolicy,
        "MultiInputPolicy": SoftJointPolicy,
    }
    critic_loss_weight: ClassVar[float] = 0.5
    policy: SoftJointPolicy

    def __init__(self, *args: Any, agent_order: AgentOrder = "random", **kwargs: Any) -> None:
        self.agent_order = agent_order
        super().__init__(*args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        check_agent_order(self.agent_order, self.agents, greedy=False)

    # ---------------------------------------------------------------- critics

    def _next_actions(self, data: JointSamples) -> tuple[th.Tensor, th.Tensor]:
        """
        :param data: Transitions
        :return: Samples of the present policies at the next observations, encoded, with zeros for
            inactive agents, ``(batch, n_encoded)``; and their log-probabilities,
            ``(batch, n_agents)``
        """
        parts, log_probs = [], []
        for agent in self.agents:
            outputs = self.policy.outputs(data.next_observations, agent)
            actions, log_prob = self.policy.rsample(outputs, data.next_observations, agent)
            parts.append(actions)
            log_probs.append(log_prob)
        active = None if data.activity is None else data.activity.next_active
        return self._only_active(th.cat(parts, dim=1), active), th.stack(log_probs, dim=1)

    def _soft_targets(
        self,
        data: JointSamples,
        next_values: th.Tensor,
        log_probs: th.Tensor,
        coefs: th.Tensor,
    ) -> th.Tensor:
        """
        :param data: Transitions
        :param next_values: Values of the next joint actions, ``(batch, n_values)``
        :param log_probs: Log-probabilities of the next actions, ``(batch, n_agents)``
        :param coefs: Temperatures, ``(n_agents,)``
        :return: Targets of the critics, ``(batch, n_values)``
        """
        costs = coefs * log_probs
        if data.activity is not None:
            costs = costs * data.activity.next_active
        if self.critic.n_values == 1:
            costs = costs.sum(dim=1, keepdim=True)
        return self._returns(data, next_values - costs)

    # ---------------------------------------------------------------- actors

    def _decide(self, agent: str, data: JointSamples) -> tuple[Expansion, th.Tensor]:
        """
        :param agent: Name of the agent
        :param data: Transitions
        :return: All choices of the agent, differentiable; and one sample for the others' losses,
            ``(batch, n_encoded)``
        """
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

    def _ascend(
        self,
        agent: str,
        choices: Expansion,
        others: dict[str, th.Tensor],
        features: th.Tensor,
        data: JointSamples,
        coef: th.Tensor,
    ) -> None:
        """
        One gradient step of an agent along the soft value of the joint action.

        :param agent: Name of the agent
        :param choices: All choices of the agent, differentiable
        :param others: Encoded actions of all agents, ``(batch, n_encoded)`` each
        :param features: Features of the state, ``(batch, n_features)``
        :param data: Transitions, of which those at which the agent acted count
        :param coef: Temperature of the agent
        """
        active = self._active(agent, data)
        if active is not None and not active.any():
            return
        n = choices.actions.shape[1]
        joint = self._join(others, data).unsqueeze(1).repeat(1, n, 1)
        joint[:, :, self.policy.columns[agent]] = choices.actions
        start = self._value_index(agent) * self.critic.n_critics
        values = self.critic.evaluate(
            features.repeat_interleave(n, dim=0),
            joint.flatten(0, 1),
            slice(start, start + self.critic.n_critics),
        )
        least = values.amin(dim=0).view(-1, n)
        losses = (choices.probs * (coef * choices.log_probs - least)).sum(dim=1)
        loss = mean_over(losses, active, dim=0)
        self._descend(loss, self.policies[agent].optimizer, f"agent {agent!r}")
        q_value = mean_over((choices.probs * least).sum(dim=1), active, dim=0)
        self._record_actor(agent, actor_loss=loss, q_value=q_value, ent_coef=coef)
