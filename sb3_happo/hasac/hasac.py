"""HASAC: Heterogeneous-Agent Soft Actor-Critic."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule

from sb3_happo.common.agent_order import fixed_order
from sb3_happo.common.heads import Expansion
from sb3_happo.common.hyperparameters import COUNT, Setting
from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.common.soft_learning import SoftLearning


class HASAC(SoftLearning):
    """
    Heterogeneous-Agent Soft Actor-Critic (Liu et al. 2024, "Maximum Entropy Heterogeneous-Agent
    Reinforcement Learning", arXiv 2306.10715).

    The agents are updated one after another, in view of the new actions of those before. With one
    agent and the same settings the numbers are SB3's ``SAC``.

    :param policy: Name of a policy, "MlpPolicy", "CnnPolicy" or "MultiInputPolicy", or a class
    :param env: Environment of any form that ``HAPPO`` takes
    :param learning_rate: Learning rate of actors and temperatures, >= 0, constant or a schedule
    :param args: Further arguments of
        :class:`~sb3_happo.common.off_policy_algorithm.MultiAgentOffPolicyAlgorithm`
    :param target_update_interval: Gradient steps between two updates of the target networks
    :param kwargs: ``agent_order`` of :class:`~sb3_happo.common.soft_learning.SoftLearning`,
        ``ent_coef`` and ``target_entropy`` of
        :class:`~sb3_happo.common.temperatures.Temperatures`, and keyword arguments of
        ``MultiAgentOffPolicyAlgorithm``
    """

    settings: ClassVar[dict[str, Setting]] = SoftLearning.settings | {
        "target_update_interval": COUNT,
    }
    #: Whether agents see the new actions of those before them
    sequential: ClassVar[bool] = True

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        learning_rate: float | Schedule = 3e-4,
        *args: Any,
        target_update_interval: int = 1,
        **kwargs: Any,
    ) -> None:
        self.target_update_interval = target_update_interval
        super().__init__(policy, env, learning_rate, *args, **kwargs)

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
            coefs = self._temperatures()
            excess = {}
            for agent in self._acting(data):
                excess[agent] = self._excess(agent, decisions[agent][0], self._active(agent, data))
            self._update_temperatures(excess)
            self._update_critic(data, self._targets(data, coefs))
            self._update_actors(data, decisions, coefs)
            if step % self.target_update_interval == 0:
                self.policy.update_targets(self.tau)
        self._n_updates += gradient_steps
        self._log_training()

    @th.no_grad()
    def _targets(self, data: JointSamples, coefs: th.Tensor) -> th.Tensor:
        """
        :param data: Transitions
        :param coefs: Temperatures, ``(n_agents,)``
        :return: Targets of the critics by the target networks, ``(batch, n_values)``
        """
        actions, log_probs = self._next_actions(data)
        values = self.policy.critic_target.least(data.next_observations, actions)
        return self._soft_targets(data, values, log_probs, coefs)

    def _update_actors(
        self,
        data: JointSamples,
        decisions: dict[str, tuple[Expansion, th.Tensor]],
        coefs: th.Tensor,
    ) -> None:
        """
        Update the agents one after another.

        :param data: Transitions
        :param decisions: Decisions of the present policies
        :param coefs: Temperatures, ``(n_agents,)``
        """
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
