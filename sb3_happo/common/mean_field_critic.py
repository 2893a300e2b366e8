"""Team of mean-field actors, and networks of values beside them: the policy of MFAC."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_happo.common.boltzmann import log_boltzmann
from sb3_happo.common.mean_field_policy import MeanFieldPolicy
from sb3_happo.common.networks import NetworkOptions, make_optimizer
from sb3_happo.suggestions import check_names


class ValueNetworks(nn.Module):
    """
    Networks of the values of each group of agents, with one optimiser.

    :param networks: Network of each group
    :param lr_schedule: Learning rate
    :param options: Options of the optimiser
    """

    def __init__(self, networks: list[Any], lr_schedule: Schedule, options: NetworkOptions) -> None:
        super().__init__()
        for network in networks:
            del network.optimizer
        self.networks = nn.ModuleList(networks)
        self.optimizer = make_optimizer(self, lr_schedule, options)


class MeanFieldActorCriticPolicy(MeanFieldPolicy):
    """
    Team whose agents choose by networks of their own (logits), with further networks for the values
    of their actions. Both read the mean action of the neighbours.

    :param args: Arguments of ``MeanFieldPolicy``
    :param kwargs: Keyword arguments of ``MeanFieldPolicy``; ``critic_kwargs`` may hold network
        options of the values
    """

    has_target_actors: ClassVar[bool] = False

    def make_action_critic(  # type: ignore[override]
        self, lr_schedule: Schedule, kwargs: dict[str, Any], overrides: dict[str, Any]
    ) -> nn.Module:
        """
        Hook: one set of value networks, or its target.

        :param lr_schedule: Learning rate of the values
        :param kwargs: Keyword arguments of every agent's policy
        :param overrides: Keyword arguments of the values alone (``critic_kwargs``)
        :return: Networks
        """
        check_names(overrides, set(NetworkOptions.names()), "policy_kwargs['critic_kwargs']")
        networks = []
        for group in self.groups:
            own = kwargs | self._init_kwargs["agent_kwargs"].get(group[0], {}) | overrides
            agent_id = self.policies[group[0]].agent_id
            networks.append(self._make_actor(group[0], lr_schedule, agent_id, own))
        return ValueNetworks(networks, lr_schedule, networks[0].options)

    def networks(self, targets: bool = False) -> list[Any]:
        """
        :param targets: Without effect: the actors have no target networks
        :return: Actor of each group
        """
        return [self.policies[group[0]] for group in self.groups]

    def value_networks(self, targets: bool = False) -> list[Any]:
        """
        :param targets: Target networks instead of the networks
        :return: Network of the values of each group
        """
        module: Any = self.critic_target if targets else self.critic
        return list(module.networks)

    def log_probabilities(
        self, observations: Mapping[str, th.Tensor], means: th.Tensor
    ) -> list[th.Tensor]:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param means: Mean actions, ``(batch, n_agents, n_mean)``
        :return: Log-probabilities of the options of each group, differentiable,
            ``(n_group, batch, n_options)``
        """
        logits = self.outputs_given(observations, means, self.networks())
        results = []
        for group, own in zip(self.groups, logits, strict=True):
            factors = self.policies[group[0]].action_head.factors
            results.append(log_boltzmann(own, factors, self.temperature.value))
        return results
