"""Actors and critics of CrossQ for a team: batch renormalisation, and no target networks."""

from typing import Any, ClassVar

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.batch_norm import set_batch_norm_mode
from sb3_happo.common.soft_policy import SoftJointPolicy, has_two_layers


class TwoLayers(nn.Linear):
    """
    Layer of means and of deviations, computed one after the other, as the two layers of CrossQ's
    actor: rounding would make a difference, see
    :class:`~sb3_happo.common.stacked_networks.SeparateNetworks`.

    :param layer: Layer, whose parameters are used
    """

    def __init__(self, layer: nn.Linear) -> None:
        # The device "meta" draws no random numbers
        super().__init__(layer.in_features, layer.out_features, device="meta")
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: th.Tensor) -> th.Tensor:
        """
        :param x: Features, ``(batch, in)``
        :return: Means, then logarithms of deviations, ``(batch, out)``
        """
        parts = []
        for weight, bias in zip(self.weight.chunk(2), self.bias.chunk(2), strict=True):
            part = F.linear(x, weight, bias)
            if part.requires_grad:
                # The layout decides the order in which the gradient of the bias is summed
                part.register_hook(th.Tensor.contiguous)
            parts.append(part)
        return th.cat(parts, dim=1)


class CrossQJointPolicy(SoftJointPolicy):
    """
    Team of actors and critics with sb3-contrib's batch renormalisation. It takes the running
    statistics, except where the algorithm asks for the moments of a minibatch.

    Agents with batch normalisation cannot share parameters: each would be normalised by its own
    moments while it learns, and by those of all of them while it acts, and one-hot indices of the
    agents, which are constant in a minibatch, would be lost.

    :param args: Arguments of ``OffPolicyJointPolicy``
    :param net_arch: Units of the hidden layers; by default 256 and 256 in actors, 1024 and 1024 in
        critics
    :param batch_norm: Batch renormalisation, with ``batch_norm_momentum``, ``batch_norm_eps`` and
        ``renorm_warmup_steps``
    :param optimizer_class: Optimiser; Adam and AdamW have ``betas=(0.5, 0.999)`` by default
    :param optimizer_kwargs: Keyword arguments of the optimiser
    :param kwargs: Keyword arguments of ``OffPolicyJointPolicy``
    :raises ValueError: If agents with batch normalisation shall share parameters
    """

    has_target_critic: ClassVar[bool] = False
    supports_batch_norm: ClassVar[bool] = True

    def __init__(
        self,
        *args: Any,
        net_arch: Any = None,
        batch_norm: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if net_arch is None:
            net_arch = {"pi": [256, 256], "qf": [1024, 1024]}
        if optimizer_kwargs is None and optimizer_class in (th.optim.Adam, th.optim.AdamW):
            optimizer_kwargs = {"betas": (0.5, 0.999)}
        super().__init__(
            *args,
            net_arch=net_arch,
            batch_norm=batch_norm,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            **kwargs,
        )
        self._check_sharing()

    def _make_actor(self, *args: Any, **kwargs: Any) -> AgentPolicy:
        policy = super()._make_actor(*args, **kwargs)
        if policy.options.batch_norm and has_two_layers(policy):
            policy.head = TwoLayers(policy.head)
        return policy

    def _check_sharing(self) -> None:
        for group in self.groups:
            if len(group) > 1 and self.policies[group[0]].options.batch_norm:
                raise ValueError(
                    f"policy_kwargs: agents {', '.join(map(repr, group))} cannot share parameters "
                    "with batch normalisation, whose moments would be those of one of them at a "
                    "time. Omit share_parameters, pass batch_norm=False, or use HASAC."
                )

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: True for training mode; batch normalisation takes its running statistics in
            both
        """
        super().set_training_mode(mode)
        set_batch_norm_mode(self, False)
