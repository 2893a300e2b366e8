"""HATD3: Heterogeneous-Agent Twin Delayed Deep Deterministic Policy Gradient."""

from typing import Any, ClassVar, NamedTuple

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule

from sb3_happo.common.agent_order import check_agent_order, fixed_order
from sb3_happo.common.hyperparameters import COUNT, NOT_NEGATIVE, Setting
from sb3_happo.common.off_policy_algorithm import MultiAgentOffPolicyAlgorithm
from sb3_happo.common.off_policy_learning import mean_over
from sb3_happo.common.off_policy_policy import DeterministicJointPolicy
from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.common.type_aliases import AgentOrder


class Decision(NamedTuple):
    """
    Decision of one agent on the observations of a minibatch.

    :param outputs: Outputs of its network, ``(batch, n_params)``
    :param actions: Encoded actions, ``(batch, n_encoded)``
    """

    outputs: th.Tensor
    actions: th.Tensor


class HATD3(MultiAgentOffPolicyAlgorithm):
    """
    Heterogeneous-Agent Twin Delayed Deep Deterministic Policy Gradient (Zhong et al. 2024,
    "Heterogeneous-Agent Reinforcement Learning", JMLR 25).

    Two critics value the state and the actions of all agents; targets take the smaller value. The
    agents are updated one after another: each ascends the critic's value of the joint action, in
    which the agents before it already act by their new policies, and those after it by their
    present ones. With one agent and the same settings the numbers are those of SB3's ``TD3``.

    Discrete actions are drawn from the actor's logits in training, with straight-through gradients
    (Gumbel-softmax); ``predict`` with ``deterministic=True`` takes the most likely ones.

    :param policy: Name of a policy, "MlpPolicy", "CnnPolicy" or "MultiInputPolicy", or a class
    :param env: Environment of any form that ``HAPPO`` takes
    :param learning_rate: Learning rate of the actors, >= 0, constant or a schedule
    :param args: Further arguments of
        :class:`~sb3_happo.common.off_policy_algorithm.MultiAgentOffPolicyAlgorithm`
    :param agent_order: Order of the agents in each update: "random" for a new permutation each
        time, "fixed", "reverse", or a callable of the agents' names
    :param policy_delay: Gradient steps of the critics per update of the actors and the targets
    :param target_policy_noise: Standard deviation of the noise of target actions
    :param target_noise_clip: Bound of that noise
    :param logit_regularization: Weight of the mean square of the logits of discrete actions in the
        actors' losses, against logits that grow without bound
    :param kwargs: Keyword arguments of ``MultiAgentOffPolicyAlgorithm``
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": DeterministicJointPolicy,
        "CnnPolicy": DeterministicJointPolicy,
        "MultiInputPolicy": DeterministicJointPolicy,
    }
    settings: ClassVar[dict[str, Setting]] = MultiAgentOffPolicyAlgorithm.settings | {
        "policy_delay": COUNT,
        "target_policy_noise": NOT_NEGATIVE,
        "target_noise_clip": NOT_NEGATIVE,
        "logit_regularization": NOT_NEGATIVE,
    }
    policy: DeterministicJointPolicy

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        learning_rate: float | Schedule = 1e-3,
        *args: Any,
        agent_order: AgentOrder = "random",
        policy_delay: int = 2,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        logit_regularization: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        self.agent_order = agent_order
        self.policy_delay = policy_delay
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        self.logit_regularization = logit_regularization
        super().__init__(policy, env, learning_rate, *args, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        check_agent_order(self.agent_order, self.agents, greedy=False)

    def train(self, gradient_steps: int, batch_size: int = 256) -> None:
        """
        Gradient steps of the critics, and of the actors and targets at every ``policy_delay``-th.

        :param gradient_steps: Number of gradient steps of the critics
        :param batch_size: Transitions per gradient step
        """
        self._begin_training()
        for _ in range(gradient_steps):
            self._n_updates += 1
            data = self._sample(batch_size)
            self._update_critic(data, self._targets(data))
            if self._n_updates % self.policy_delay == 0:
                self._update_actors(data)
                self.policy.update_targets(self.tau)
        self._log_training()

    @th.no_grad()
    def _targets(self, data: JointSamples) -> th.Tensor:
        """
        :param data: Transitions
        :return: Targets of the critics by the target actors' noisy actions, ``(batch, n_values)``
        """
        actions = self._smooth(self.policy.target_actions(data.next_observations))
        active = None if data.activity is None else data.activity.next_active
        actions = self._only_active(actions, active)
        next_values = self.policy.critic_target.least(data.next_observations, actions)
        return self._returns(data, next_values)

    def _smooth(self, actions: th.Tensor) -> th.Tensor:
        """Encoded actions with clipped noise on the continuous columns."""
        if not (self.target_policy_noise and self.target_noise_clip):
            return actions
        noise = th.empty_like(actions).normal_(0.0, self.target_policy_noise)
        noise = noise.clamp(-self.target_noise_clip, self.target_noise_clip)
        noisy = (actions + noise).clamp(-1.0, 1.0)
        if self.policy.is_continuous:
            return noisy
        return noisy.where(self.policy.continuous, actions)

    def _update_actors(self, data: JointSamples) -> None:
        """
        Update the agents one after another, each in view of the new actions of those before it.

        :param data: Transitions
        """
        features = self.critic.observe(data.observations).detach()
        decisions = {agent: self._decide(agent, data) for agent in self.agents}
        actions = {agent: own.actions.detach() for agent, own in decisions.items()}
        remaining = list(fixed_order(self.agent_order, self.agents))
        while remaining:
            agent = remaining.pop(0)
            self._ascend(agent, decisions[agent], actions, features, data)
            # The new policy acts for the agents that follow, also in agents with the same network
            for changed in self.policy.group_of(agent) if remaining else ():
                with th.set_grad_enabled(changed in remaining):
                    decisions[changed] = self._decide(changed, data)
                actions[changed] = decisions[changed].actions.detach()

    def _decide(self, agent: str, data: JointSamples) -> Decision:
        """Present actions of an agent, differentiable."""
        outputs = self.policy.outputs(data.observations, agent)
        actions, _ = self.policy.rsample(outputs, data.observations, agent)
        return Decision(outputs, actions)

    def _ascend(
        self,
        agent: str,
        decision: Decision,
        others: dict[str, th.Tensor],
        features: th.Tensor,
        data: JointSamples,
    ) -> None:
        """
        One gradient step of an agent along the critic's value of the joint action.

        :param agent: Name of the agent
        :param decision: Present actions of the agent, differentiable
        :param others: Encoded actions of the other agents, ``(batch, n_encoded)`` each
        :param features: Features of the state, ``(batch, n_features)``
        :param data: Transitions, of which those at which the agent acted count
        """
        active = self._active(agent, data)
        if active is not None and not active.any():
            return
        joint = self._join(others | {agent: decision.actions}, data)
        values = self.critic.first(features, joint, self._value_index(agent))
        losses = -values
        penalty = self.policy.logit_penalty(decision.outputs, agent)
        if penalty is not None:
            losses = losses + self.logit_regularization * penalty
        loss = mean_over(losses, active, dim=0)
        self._descend(loss, self.policies[agent].optimizer, f"agent {agent!r}")
        self._record_actor(agent, actor_loss=loss, q_value=mean_over(values, active, dim=0))
