"""Stochastic actors of the soft actor-critic algorithms."""

from typing import Any, ClassVar

import torch as th
from torch import nn

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.heads import HeadName
from sb3_happo.common.off_policy_policy import OffPolicyJointPolicy


class SoftJointPolicy(OffPolicyJointPolicy):
    """
    Team of actors with squashed Gaussians and categorical choices, as in SAC.

    :param args: Arguments of ``OffPolicyJointPolicy``
    :param kwargs: Keyword arguments of ``OffPolicyJointPolicy``
    """

    actor_head: ClassVar[HeadName] = "squashed"

    def _make_actor(self, *args: Any, **kwargs: Any) -> AgentPolicy:
        policy = super()._make_actor(*args, **kwargs)
        if has_two_layers(policy):
            order_as_two_layers(policy.head)
        return policy


def has_two_layers(policy: AgentPolicy) -> bool:
    """
    :param policy: Policy of one agent
    :return: True if its outputs are means and deviations of a single Box, as in SB3's SAC
    """
    return len(policy.action_head.parts) == 1 and not policy.action_head.factors


@th.no_grad()
def order_as_two_layers(layer: nn.Linear) -> None:
    """
    Give the initial weights of a layer of means and deviations the order in which SB3's SAC draws
    those of its two layers. The distribution is the same; a team of one starts with SB3's weights.

    :param layer: Layer with the outputs of the means, then of the deviations
    """
    drawn = th.cat([layer.weight.flatten(), layer.bias])
    means, deviations = drawn.chunk(2)
    n_weights = layer.weight.numel() // 2
    weights = th.cat([means[:n_weights], deviations[:n_weights]])
    layer.weight.copy_(weights.view_as(layer.weight))
    layer.bias.copy_(th.cat([means[n_weights:], deviations[n_weights:]]))
