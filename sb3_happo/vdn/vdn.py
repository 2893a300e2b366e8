"""VDN: value-decomposition networks."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_happo.common.optimizer_group import OptimizerGroup
from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.common.value_based_algorithm import ValueBasedAlgorithm, ValueLoss
from sb3_happo.common.value_policy import SumValuePolicy


class VDN(ValueBasedAlgorithm):
    """
    Value-decomposition networks (Sunehag et al. 2017, arXiv 1706.05296): the value of a joint
    action is the sum of the agents' values, and is learned from the team's reward. Agents that do
    not act add nothing.

    :param policy: As for :class:`~sb3_happo.common.value_based_algorithm.ValueBasedAlgorithm`
    :param env: As there
    :param args: As there
    :param double_q: Choice of the next actions by the networks instead of the target networks
    :param value_loss: "mse" or "huber"
    :param kwargs: As there
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": SumValuePolicy,
        "CnnPolicy": SumValuePolicy,
        "MultiInputPolicy": SumValuePolicy,
    }

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        *args: Any,
        double_q: bool = True,
        value_loss: ValueLoss = "mse",
        **kwargs: Any,
    ) -> None:
        super().__init__(policy, env, *args, double_q=double_q, value_loss=value_loss, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        optimizers = [self.policies[group[0]].optimizer for group in self.policy.groups]
        if hasattr(self.critic, "optimizer"):
            optimizers.append(self.critic.optimizer)
        self._optimizers = OptimizerGroup(optimizers)

    def _learn(self, data: JointSamples) -> None:
        absent = set(self.agents) - set(self._acting(data))
        joint = self._joint_values(data)
        loss = self._losses(joint, self._targets(data)).mean()
        frozen = self.critic.frozen([agent in absent for agent in self.agents])
        self._descend(loss, self._optimizers, "the team", frozen)  # type: ignore[arg-type]
        self._record("train/loss", loss)
        self._record("train/q_value", joint.mean())

    def _joint_values(self, data: JointSamples) -> th.Tensor:
        """
        Hook: values of the joint actions of the buffer.

        :param data: Transitions
        :return: Values, differentiable, ``(batch, 1)``
        """
        taken = self._taken_values(data)
        for agent in set(self.agents) - set(self._acting(data)):
            # Without a gradient: one of zero would leave the network to the optimiser's momentum
            taken[agent] = taken[agent].detach()
        values = th.stack(list(taken.values()), dim=1)
        if data.activity is not None:
            values = values * data.activity.active
        joint: th.Tensor = self.critic(values, data.observations)
        return joint

    @th.no_grad()
    def _targets(self, data: JointSamples) -> th.Tensor:
        """
        :param data: Transitions
        :return: Targets of the values of the joint actions, ``(batch, 1)``
        """
        next_values = self._next_values(data)
        if data.activity is not None:
            next_values = next_values * data.activity.next_active
        joint: th.Tensor = self.policy.critic_target(next_values, data.next_observations)
        return data.rewards + (1.0 - data.dones) * data.discounts * joint

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_optimizers"]
