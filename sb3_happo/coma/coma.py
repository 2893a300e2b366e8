"""COMA: Counterfactual Multi-Agent policy gradients."""

from typing import Any, ClassVar, NamedTuple

import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import update_learning_rate

from sb3_happo.common.counterfactual_policy import (
    CounterfactualPolicy,
    GruCounterfactualPolicy,
    LstmCounterfactualPolicy,
)
from sb3_happo.common.gradient_step import descend
from sb3_happo.common.minibatches import minibatches
from sb3_happo.common.type_aliases import ActorBatch
from sb3_happo.common.update_log import log_update
from sb3_happo.haa2c.haa2c import HAA2C


class JointActionBatch(NamedTuple):
    """
    Rows of a rollout for the critic of joint actions.

    :param observations: Entries of the joint observation that the critic reads, ``(batch, ...)``
    :param actions: Encoded actions of all agents, ``(batch, n_encoded)``
    :param returns: TD(lambda) returns in the units of the critic, ``(batch,)``
    :param sequences: None: this critic has no memory
    """

    observations: dict[str, th.Tensor]
    actions: th.Tensor
    returns: th.Tensor
    sequences: None = None


class COMA(HAA2C):
    """
    Counterfactual multi-agent policy gradients (Foerster et al. 2018, "Counterfactual Multi-Agent
    Policy Gradients", https://arxiv.org/abs/1705.08926), for discrete actions.

    Like :class:`~sb3_happo.HAA2C`, but the advantage of an agent is ``Q(s, a)`` minus the mean of
    ``Q`` over the agent's own actions, while the other agents' actions stay: what it contributed
    itself. As in the paper all agents learn at once, from the policies of the rollout.

    Differences from the paper: ``Q`` learns the TD(lambda) returns that the critic of states
    bootstraps, in the place of a target network, and reads all agents' actions as inputs instead of
    returning a value for each action of an agent; networks are shared by
    ``policy_kwargs["share_parameters"]`` only.

    :param policy: As for ``HAPPO``
    :param env: As for ``HAPPO``, with Discrete, MultiDiscrete or MultiBinary actions
    :param args: As for ``HAA2C``
    :param gae_lambda: Lambda of the returns, 0.8 in the paper
    :param kwargs: As for ``HAA2C``; ``agent_order`` has no effect on the objective
    :raises TypeError: If an agent has continuous actions, or too many combinations of choices
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": CounterfactualPolicy,
        "CnnPolicy": CounterfactualPolicy,
        "MultiInputPolicy": CounterfactualPolicy,
        "MlpLstmPolicy": LstmCounterfactualPolicy,
        "CnnLstmPolicy": LstmCounterfactualPolicy,
        "MultiInputLstmPolicy": LstmCounterfactualPolicy,
        "MlpGruPolicy": GruCounterfactualPolicy,
        "CnnGruPolicy": GruCounterfactualPolicy,
        "MultiInputGruPolicy": GruCounterfactualPolicy,
    }
    policy: CounterfactualPolicy  # type: ignore[assignment]

    def __init__(
        self, policy: Any, env: Any = None, *args: Any, gae_lambda: float = 0.8, **kwargs: Any
    ) -> None:
        super().__init__(policy, env, *args, gae_lambda=gae_lambda, **kwargs)

    def train(self) -> None:
        """One update of the team from a rollout."""
        self.policy.set_training_mode(True)
        # V(s) and Q(s, a) learn the TD(lambda) returns
        self._update_critic()
        rollout = self._joint_actions()
        self._update_action_critic(rollout)
        # A_i = Q(s, a) - sum over a' of pi_i(a') Q(s, (a_-i, a')), for all agents
        factor = th.ones(self.rollout_buffer.n_rows, device=self.device)
        data = self._counterfactual_data(rollout, factor)
        # Each agent ascends the policy gradient; those with one network do it together
        for group in self.policy.groups:
            self._update_actors({agent: data[agent] for agent in group})
        self._n_updates += 1
        log_update(self, factor)

    def _joint_actions(self) -> JointActionBatch:
        """All rows of the rollout for the critic of joint actions."""
        buffer, norm = self.rollout_buffer, self.critic.value_norm
        observations = {}
        for key in self.policy.action_critic.keys:
            observations[key] = buffer.observations[key].flatten(end_dim=1)
        raw = {agent: own.flatten(end_dim=1) for agent, own in buffer.actions.items()}
        returns = buffer.returns.flatten(end_dim=1)
        if norm is not None:
            returns = norm.normalize(returns)
        actions = self.policy.encode(raw, buffer.active.flatten(end_dim=1))
        return JointActionBatch(observations, actions, returns.squeeze(1))

    def _update_action_critic(self, rollout: JointActionBatch) -> None:
        """Fit Q(s, a) to the returns of the rollout."""
        critic = self.policy.action_critic
        update_learning_rate(critic.optimizer, self.critic.optimizer.param_groups[0]["lr"])
        n_epochs = self.n_epochs if self.critic_n_epochs is None else self.critic_n_epochs
        size = self.batch_size if self.critic_batch_size is None else self.critic_batch_size
        losses = []
        for batch in minibatches(rollout, size, n_epochs):
            values = self.policy.joint_values(critic.observe(batch.observations), batch.actions)
            loss = (values - batch.returns).square().mean()
            descend(self.vf_coef * loss, critic.optimizer, self.max_grad_norm, "the action critic")
            losses.append(loss.detach())
        self.logger.record("train/action_value_loss", th.stack(losses).mean().item())

    @th.no_grad()
    def _counterfactual_data(
        self, rollout: JointActionBatch, factor: th.Tensor
    ) -> dict[str, ActorBatch]:
        """Samples of all agents, with counterfactual advantages in units of reward."""
        self.policy.set_training_mode(False)
        features = self.policy.action_critic.observe(rollout.observations)
        norm = self.critic.value_norm
        data = {}
        for agent in self.agents:
            batch = self.rollout_buffer.agent_data(agent, factor)
            if len(batch.advantages):
                rows = slice(None) if batch.rows is None else batch.rows
                own = self.policy.counterfactual_advantages(
                    batch, agent, features[rows], rollout.actions[rows]
                )
                batch = batch._replace(advantages=own if norm is None else own * norm.std)
            data[agent] = batch
        self.policy.set_training_mode(True)
        return data

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        names, tensors = super()._get_torch_save_params()
        return [*names, "policy.action_critic.optimizer"], tensors
