"""HAD3QN: Heterogeneous-Agent Dueling Double Deep Q-Network."""

from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.policies import BasePolicy

from sb3_happo.common.agent_order import check_agent_order, fixed_order
from sb3_happo.common.joint_values import JointValuePolicy
from sb3_happo.common.off_policy_learning import mean_over
from sb3_happo.common.replay_buffer import JointSamples
from sb3_happo.common.type_aliases import AgentOrder
from sb3_happo.common.value_based_algorithm import ValueBasedAlgorithm, ValueLoss


class HAD3QN(ValueBasedAlgorithm):
    """
    Heterogeneous-Agent Dueling Double Deep Q-Network (Zhong et al. 2024, "Heterogeneous-Agent
    Reinforcement Learning", JMLR 25), for at most 4,096 joint actions.

    A dueling network of the state has a value for each joint action, and learns from the team's
    reward: the agents choose the next joint action, the target network values it. The agents are
    updated one after another: each fits its values to those of the joint actions that differ from
    the team's choice in its own action alone, in which the agents before it already take their best
    actions. A joint action is therefore stable where no single change improves it.

    :param policy: As for :class:`~sb3_happo.common.value_based_algorithm.ValueBasedAlgorithm`
    :param env: As there
    :param args: As there
    :param agent_order: Order of the agents in each update: "random" for a new permutation each
        time, "fixed", "reverse", or a callable of the agents' names
    :param value_loss: "mse" or "huber"
    :param kwargs: As there, without ``double_q``; ``critic_learning_rate`` is the learning rate of
        the values of joint actions
    :raises ValueError: If there are more than 4,096 joint actions, or ``double_q`` is given
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": JointValuePolicy,
        "CnnPolicy": JointValuePolicy,
        "MultiInputPolicy": JointValuePolicy,
    }
    policy: JointValuePolicy

    def __init__(
        self,
        policy: Any,
        env: Any = None,
        *args: Any,
        agent_order: AgentOrder = "random",
        value_loss: ValueLoss = "mse",
        **kwargs: Any,
    ) -> None:
        if "double_q" in kwargs:
            raise ValueError(
                f"double_q={kwargs['double_q']!r}: HAD3QN always lets the agents choose the next "
                "joint action, and the target network value it; omit it."
            )
        self.agent_order = agent_order
        super().__init__(policy, env, *args, double_q=True, value_loss=value_loss, **kwargs)

    def _setup_model(self) -> None:
        super()._setup_model()
        check_agent_order(self.agent_order, self.agents, greedy=False)

    def _learn(self, data: JointSamples) -> None:
        self._update_critic(data, self._targets(data))
        self._update_agents(data)

    @th.no_grad()
    def _targets(self, data: JointSamples) -> th.Tensor:
        """
        :param data: Transitions
        :return: Targets of the values of the joint actions, ``(batch, 1)``
        """
        active = None if data.activity is None else data.activity.next_active
        choices = self._only_active_choices(self.policy.greedy(data.next_observations), active)
        index = self.critic.index(choices).unsqueeze(1)
        next_values = self.policy.critic_target(data.next_observations).gather(1, index)
        return data.rewards + (1.0 - data.dones) * data.discounts * next_values

    def _update_critic(self, data: JointSamples, targets: th.Tensor) -> None:
        active = None if data.activity is None else data.activity.active
        index = self.critic.index(self._only_active_choices(data.actions, active)).unsqueeze(1)
        taken = self.critic(data.observations).gather(1, index)
        loss = self._losses(taken, targets).mean()
        self._descend(loss, self.critic.optimizer, "the critic")
        self._record("train/critic_loss", loss)
        self._record("train/q_value", taken.mean())

    def _update_agents(self, data: JointSamples) -> None:
        """
        Fit the agents' values one after another to those of the critic.

        :param data: Transitions
        """
        active = None if data.activity is None else data.activity.active
        with th.no_grad():
            table = self.critic(data.observations)
            choices = self._only_active_choices(self.policy.greedy(data.observations), active)
        for agent in fixed_order(self.agent_order, self.agents):
            own_active = self._active(agent, data)
            if own_active is not None and not own_active.any():
                continue
            values = self.policy.values(data.observations, agent)
            goals, best = self._goals(agent, table, choices, values.detach())
            choices = self._only_active_choices(best, active)
            legal = self.policy.legal(values)
            losses = self._distances(values.where(legal, goals), goals).sum(dim=1)
            loss = mean_over(losses, own_active, dim=0)
            self._descend(loss, self.policies[agent].optimizer, f"agent {agent!r}")
            self._record("train/loss", loss)
            self._record(f"{self._log_names[agent]}/loss", loss)
            q_value = mean_over(self.policy.best(values, agent), own_active, dim=0)
            self._record(f"{self._log_names[agent]}/q_value", q_value)

    @th.no_grad()
    def _goals(
        self, agent: str, table: th.Tensor, choices: th.Tensor, values: th.Tensor
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :param agent: Name of the agent
        :param table: Values of all joint actions, ``(batch, n_joint)``
        :param choices: Choices of all agents side by side, ``(batch, n_choices)``
        :param values: Present values of the agent's options, which tell illegal ones,
            ``(batch, n_options)``
        :return: Values of the joint actions that differ from ``choices`` in one choice of the agent
            alone, ``(batch, n_options)``; and ``choices`` with the agent's best legal options
        """
        choices = choices.clone()
        columns = self.policy.raw_columns[agent]
        legal = self.policy.legal(values).split(self.policies[agent].action_head.factors, dim=1)
        goals = []
        for column, allowed in zip(range(columns.start, columns.stop), legal, strict=True):
            own = table.gather(1, self.critic.neighbours(choices, column))
            choices[:, column] = own.masked_fill(~allowed, -th.inf).argmax(dim=1)
            goals.append(own)
        return th.cat(goals, dim=1), choices

    def _only_active_choices(self, choices: th.Tensor, active: th.Tensor | None) -> th.Tensor:
        """Choices side by side, the first ones of inactive agents, whose actions have no effect."""
        if active is None:
            return choices
        sizes = [columns.stop - columns.start for columns in self.policy.raw_columns.values()]
        repeats = th.tensor(sizes, device=active.device)
        return choices * active.repeat_interleave(repeats, dim=1)
