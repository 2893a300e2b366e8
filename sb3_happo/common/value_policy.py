"""Networks of the value-based algorithms: values of each agent's actions, and a mixer."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch as th
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.heads import HeadName
from sb3_happo.common.leaf_heads import ILLEGAL
from sb3_happo.common.mixers import MonotonicMixer, NoMixer, SumMixer
from sb3_happo.common.networks import NetworkOptions
from sb3_happo.common.off_policy_policy import OffPolicyJointPolicy
from sb3_happo.suggestions import check_names


class IndependentValuePolicy(OffPolicyJointPolicy):
    """
    Team of agents that take the legal actions of the highest values, with target networks. By
    default the networks have two hidden layers of 64 units, as in SB3's ``DQN``.

    :param args: Arguments of ``MultiAgentPolicy``
    :param net_arch: Units of the hidden layers
    :param kwargs: Keyword arguments of ``MultiAgentPolicy``
    :raises ValueError: If an argument is unknown
    """

    actor_head: ClassVar[HeadName] = "greedy"
    has_target_actors: ClassVar[bool] = True
    own_kwargs: ClassVar[frozenset[str]] = OffPolicyJointPolicy.own_kwargs - {
        *("n_critics", "own_critics")
    }

    def __init__(self, *args: Any, net_arch: Any = (64, 64), **kwargs: Any) -> None:
        for name in ("n_critics", "own_critics"):
            if name in kwargs:
                raise ValueError(
                    f"policy_kwargs: {name!r} has no meaning here, for there is no critic of joint "
                    "actions; omit it."
                )
        layers = list(net_arch) if isinstance(net_arch, tuple) else net_arch
        super().__init__(*args, net_arch=layers, **kwargs)

    def make_action_critic(  # type: ignore[override]
        self, lr_schedule: Schedule, kwargs: dict[str, Any], overrides: dict[str, Any]
    ) -> nn.Module:
        """
        Hook: one mixer, as the mixer or as its target.

        :param lr_schedule: Learning rate of the mixer
        :param kwargs: Keyword arguments of every agent's policy
        :param overrides: Keyword arguments of the mixer alone (``critic_kwargs``)
        :return: Mixer
        """
        check_names(overrides, set(), "policy_kwargs['critic_kwargs']")
        return NoMixer()

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        for name in self._critic_form:
            parameters.pop(name)
        return parameters

    @property
    def target_networks(self) -> dict[str, AgentPolicy]:
        """
        :return: Target network of each agent
        """
        networks: dict[str, AgentPolicy] = {}
        for group, network in zip(self.groups, self.target_actors, strict=True):
            networks |= dict.fromkeys(group, network)
        return networks

    def values(
        self, observations: Mapping[str, th.Tensor], agent: str, network: AgentPolicy | None = None
    ) -> th.Tensor:
        """
        :param observations: Joint observation with the action masks, each entry ``(batch, ...)``
        :param agent: Name of the agent
        :param network: Network in the place of the agent's own, such as its target
        :return: Values of all options, -1e8 where an option is illegal, ``(batch, n_options)``.
            Where none is legal, as for agents that do not act, all count as legal
        """
        outputs = self.outputs(observations, agent, network)
        masks = self.action_masks(observations, agent)
        if masks is not None:
            some = masks.bool().any(dim=1, keepdim=True)
            masks = masks.where(some, th.ones_like(masks))
        return self.policies[agent].action_head.values(outputs, masks)

    def legal(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: Values of all options, as :meth:`values` returns them
        :return: Mask of the legal options, of the same shape
        """
        return values > 0.5 * ILLEGAL

    def best(self, values: th.Tensor, agent: str, chosen_by: th.Tensor | None = None) -> th.Tensor:
        """
        :param values: Values of all options of an agent, ``(batch, n_options)``
        :param agent: Name of the agent
        :param chosen_by: Values by which the best options are chosen, ``(batch, n_options)``; None
            for ``values``
        :return: Values of the best options, over several choices added, ``(batch,)``
        """
        factors = self.policies[agent].action_head.factors
        choosing = values if chosen_by is None else chosen_by
        total = values.new_zeros(len(values))
        pairs = zip(values.split(factors, dim=1), choosing.split(factors, dim=1), strict=True)
        for own, criterion in pairs:
            index = criterion.argmax(dim=1, keepdim=True)
            total = total + own.gather(1, index).squeeze(1)
        return total

    def taken(self, values: th.Tensor, actions: th.Tensor, agent: str) -> th.Tensor:
        """
        :param values: Values of all options of an agent, ``(batch, n_options)``
        :param actions: Raw actions of all agents side by side, ``(batch, action_dim)``
        :param agent: Name of the agent
        :return: Values of its options that were taken, over several choices added, ``(batch,)``
        """
        own = self.policies[agent].action_head.encode(actions[:, self.raw_columns[agent]])
        return (values * own).sum(dim=1)

    @th.no_grad()
    def explore(self, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(n_envs, ...)``
        :return: Raw actions of the highest values of all agents side by side,
            ``(n_envs, action_dim)``
        """
        parts = []
        for agent, policy in self.policies.items():
            head = policy.action_head
            masks = self.action_masks(observations, agent)
            parts.append(head.decode(head.mode(self.outputs(observations, agent), masks)))
        return th.cat(parts, dim=1)


class SumValuePolicy(IndependentValuePolicy):
    """
    Team whose joint action has the sum of the agents' values.

    :param args: Arguments of :class:`IndependentValuePolicy`
    :param kwargs: Keyword arguments of :class:`IndependentValuePolicy`
    """

    def make_action_critic(  # type: ignore[override]
        self, lr_schedule: Schedule, kwargs: dict[str, Any], overrides: dict[str, Any]
    ) -> nn.Module:
        check_names(overrides, set(), "policy_kwargs['critic_kwargs']")
        return SumMixer()


class MixedValuePolicy(IndependentValuePolicy):
    """
    Team whose joint action has a value that a network of the state mixes of the agents' values.

    :param args: Arguments of :class:`IndependentValuePolicy`
    :param kwargs: Keyword arguments of :class:`IndependentValuePolicy`; ``critic_kwargs`` may hold
        ``mixing_dim``, ``hypernet_dim``, and options of the features extractor and the optimiser
    """

    def make_action_critic(  # type: ignore[override]
        self, lr_schedule: Schedule, kwargs: dict[str, Any], overrides: dict[str, Any]
    ) -> nn.Module:
        names = set(NetworkOptions.names())
        sizes = {"mixing_dim", "hypernet_dim"}
        check_names(overrides, names | sizes, "policy_kwargs['critic_kwargs']")
        own = {name: value for name, value in kwargs.items() if name in names} | overrides
        dims = {name: own.pop(name) for name in sizes & set(own)}
        team = self.team_spaces.observation_space
        options = NetworkOptions(**own)
        return MonotonicMixer(team, len(self.agents), lr_schedule, options, **dims)
