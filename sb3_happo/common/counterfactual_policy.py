"""Team of actors with a critic of joint actions beside the critic of states."""

from collections.abc import Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule

from sb3_happo.common.action_critics import ActionCritic
from sb3_happo.common.distributions import action_leaves
from sb3_happo.common.formulas import counterfactual_advantages
from sb3_happo.common.heads import MAX_COMBINATIONS
from sb3_happo.common.joint_policy import GruJointPolicy, JointPolicy, LstmJointPolicy
from sb3_happo.common.networks import NetworkOptions
from sb3_happo.common.state_critics import Critic
from sb3_happo.common.type_aliases import ActorBatch

#: Joint actions that the critic values at once
_MAX_ROWS = 65_536


class CounterfactualPolicy(JointPolicy):
    """
    Team of :class:`~sb3_happo.COMA`: a ``JointPolicy`` with a critic of the state and the actions
    of all agents, ``action_critic``. Its network has the options of the critic of states, without
    recurrent layers.

    :param args: Arguments of ``JointPolicy``
    :param kwargs: Keyword arguments of ``JointPolicy``, without ``local_critics``
    :raises ValueError: If the critics are to be local
    :raises TypeError: If an agent has continuous actions, or too many combinations of choices
    """

    action_critic: ActionCritic

    def make_critic(
        self, lr_schedule: Schedule, kwargs: dict[str, Any], overrides: dict[str, Any]
    ) -> Critic:
        """
        :param lr_schedule: Learning rate of the critics
        :param kwargs: Keyword arguments of every agent's policy
        :param overrides: Keyword arguments of the critics alone (``critic_kwargs``)
        :return: Critic of states
        """
        if self._critic_form["local_critics"]:
            raise ValueError(
                "policy_kwargs: local_critics=True has no meaning here, for the counterfactual "
                "baseline needs a critic of the actions of all agents; omit it, or use IPPO."
            )
        self._check_actions()
        critic = super().make_critic(lr_schedule, kwargs, overrides)
        shared = set(NetworkOptions.names()) - {"output_gain"}
        own = {name: value for name, value in (kwargs | overrides).items() if name in shared}
        start = 0
        #: Columns of each agent in encoded joint actions
        self.columns: dict[str, slice] = {}
        for agent, policy in self.policies.items():
            stop = start + policy.action_head.n_encoded
            self.columns[agent] = slice(start, stop)
            start = stop
        options = NetworkOptions(**(own | {"recurrent": None}))
        space = self.team_spaces.observation_space
        self.action_critic = ActionCritic(space, start, lr_schedule, options, n_critics=1)
        return critic

    def _check_actions(self) -> None:
        for agent, policy in self.policies.items():
            space = policy.action_space
            if any(isinstance(leaf.space, spaces.Box) for leaf in action_leaves(space)):
                raise TypeError(
                    "The counterfactual baseline is a sum over an agent's actions, and agent "
                    f"{agent!r} has the continuous actions {space}; make them Discrete, or use "
                    "HAA2C or HAPPO."
                )
            if policy.action_head.n_combinations > MAX_COMBINATIONS:
                raise TypeError(
                    "The counterfactual baseline is a sum over an agent's actions, and those of "
                    f"agent {agent!r}, {space}, have {policy.action_head.n_combinations} "
                    f"combinations; at most {MAX_COMBINATIONS} are possible. Use HAA2C or HAPPO."
                )

    def encode(self, actions: Mapping[str, th.Tensor], active: th.Tensor) -> th.Tensor:
        """
        :param actions: Raw actions of each agent, ``(batch, action_dim)``
        :param active: Active mask, ``(batch, n_agents)``
        :return: Encoded actions of all agents, zeros for inactive ones, ``(batch, n_encoded)``
        """
        parts = []
        for (agent, policy), own in zip(self.policies.items(), active.unbind(dim=1), strict=True):
            parts.append(policy.action_head.encode(actions[agent]) * own.unsqueeze(1))
        return th.cat(parts, dim=1)

    def joint_values(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """
        Hook: values of joint actions.

        :param features: Features of the state by ``action_critic.observe``, ``(batch, n_features)``
        :param actions: Encoded actions of all agents, zeros for inactive ones,
            ``(batch, n_encoded)``
        :return: Values in the units of the critic, ``(batch,)``
        """
        return self.action_critic.evaluate(features, actions)[0]

    def choices(self, batch: ActorBatch, agent: str) -> tuple[th.Tensor, th.Tensor]:
        """
        :param batch: Rows of a rollout
        :param agent: Name of the agent
        :return: Encoded combinations of its choices ``(batch, n_combinations, n_encoded)``, and
            their probabilities under the present policy ``(batch, n_combinations)``
        """
        policy = self.policies[agent]
        params, _ = policy.parameters_of_actions(
            batch.observations, batch.sequences, batch.agent_ids
        )
        expansion = policy.action_head.expand(params, None, batch.action_masks)
        return expansion.actions, expansion.probs

    @th.no_grad()
    def counterfactual_advantages(
        self, batch: ActorBatch, agent: str, features: th.Tensor, actions: th.Tensor
    ) -> th.Tensor:
        """
        :param batch: Rows of a rollout at which the agent was active
        :param agent: Name of the agent
        :param features: Features of the state in these rows, ``(batch, n_features)``
        :param actions: Encoded actions of all agents in these rows, ``(batch, n_encoded)``
        :return: Value of each joint action minus its mean over the agent's own actions, in the
            units of the critic, ``(batch,)``
        """
        own, probs = self.choices(batch, agent)
        n = probs.shape[1]
        parts = []
        rows = th.arange(len(probs), device=probs.device)
        for part in rows.split(max(1, _MAX_ROWS // n)):
            alternatives = actions[part].unsqueeze(1).repeat(1, n, 1)
            alternatives[:, :, self.columns[agent]] = own[part]
            repeated = features[part].repeat_interleave(n, dim=0)
            values = self.joint_values(repeated, alternatives.flatten(0, 1)).view(-1, n)
            taken = self.joint_values(features[part], actions[part])
            parts.append(counterfactual_advantages(taken, values, probs[part]))
        return th.cat(parts)


class LstmCounterfactualPolicy(LstmJointPolicy, CounterfactualPolicy):
    """The same with LSTMs in the actors and in the critic of states."""


class GruCounterfactualPolicy(GruJointPolicy, CounterfactualPolicy):
    """The same with GRUs in the actors and in the critic of states."""
