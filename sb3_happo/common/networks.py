"""Building blocks that the policies and the critics share."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_happo.common.recurrent import RecurrentLayers

NetArch = list[int] | dict[str, list[int]]


def default_features_extractor(space: spaces.Space) -> type[BaseFeaturesExtractor]:
    """
    The features extractor that SB3 would choose for an observation.

    :param space: Observation space
    :return: ``CombinedExtractor`` for Dict spaces, ``NatureCNN`` for images, else ``FlattenExtractor``
    :raises ValueError: If there is an image too small for ``NatureCNN``
    """
    for part in space.spaces.values() if isinstance(space, spaces.Dict) else [space]:
        if is_image_space(part) and sorted(part.shape)[1] < 36:  # type: ignore[arg-type]
            raise ValueError(
                f"An image of shape {part.shape} is too small for SB3's NatureCNN, which needs 36 x 36 pixels; pass your own "
                "`features_extractor_class` in policy_kwargs, its agent_kwargs or critic_kwargs, or let the environment "
                "return a vector or floats."
            )
    if isinstance(space, spaces.Dict):
        return CombinedExtractor
    return NatureCNN if is_image_space(space) else FlattenExtractor


def make_optimizer(
    network: nn.Module,
    lr_schedule: Schedule,
    optimizer_class: type[th.optim.Optimizer],
    optimizer_kwargs: dict[str, Any] | None,
) -> th.optim.Optimizer:
    """
    :param network: Whose parameters to optimise
    :param lr_schedule: Learning rate over the remaining progress
    :param optimizer_class: Optimiser
    :param optimizer_kwargs: Its keyword arguments; by default SB3's own, a larger epsilon that avoids NaN in Adam. PyTorch's
        common optimisers run fused unless ``fused=False`` is among them
    :return: The optimiser, at the schedule's first rate
    """
    if optimizer_kwargs is None:
        optimizer_kwargs = {"eps": 1e-5} if optimizer_class is th.optim.Adam else {}
    if optimizer_class in (th.optim.Adam, th.optim.AdamW, th.optim.SGD):
        optimizer_kwargs = {"fused": True} | optimizer_kwargs
    return optimizer_class(network.parameters(), lr=lr_schedule(1), **optimizer_kwargs)  # type: ignore[call-arg]


def make_mlp(
    features_extractor: BaseFeaturesExtractor,
    net_arch: NetArch | None,
    part: str,
    activation_fn: type[nn.Module],
    input_layer_norm: bool = False,
    layer_norm: bool = False,
    n_extra: int = 0,
    memory: RecurrentLayers | None = None,
) -> tuple[nn.Sequential, int]:
    """
    The hidden layers of a policy or a critic.

    :param features_extractor: What goes before
    :param net_arch: Units of each hidden layer, or SB3's dict of such lists; by default none after a CNN, else two of 128
    :param part: Which list of a dict to take, "pi" or "vf"
    :param activation_fn: Activation after each layer
    :param input_layer_norm: Layer normalisation of the features (HARL's ``use_feature_normalization``)
    :param layer_norm: Layer normalisation after each activation, as HARL's networks have
    :param n_extra: Inputs beside the features
    :param memory: What stands between the features and the hidden layers, and normalises its own input
    :return: The layers, and the number of features that come out of them
    """
    if net_arch is None:
        net_arch = [] if isinstance(features_extractor, NatureCNN) else [128, 128]
    dim = features_extractor.features_dim + n_extra
    if memory is not None:
        dim, input_layer_norm = memory.hidden_size, layer_norm
    layers: list[nn.Module] = [nn.LayerNorm(dim)] if input_layer_norm else []
    for n_units in net_arch.get(part, []) if isinstance(net_arch, dict) else net_arch:
        layers += [nn.Linear(dim, n_units), activation_fn()]
        if layer_norm:
            layers.append(nn.LayerNorm(n_units))
        dim = n_units
    return nn.Sequential(*layers), dim


class TeamModel(BaseModel):
    """
    A network of the team: an SB3 model whose weights are drawn apart from its construction.

    A team's networks are initialised together (see :func:`initialise`), bodies before heads. For a team of one this draws
    the random numbers in SB3's order, so that a seed gives the same weights as in ``PPO``.
    """

    ortho_init: bool
    output_gain: float
    memory: RecurrentLayers | None
    body: nn.Sequential
    head: nn.Linear

    def init_body(self) -> None:
        """Orthogonal weights for the features extractor and the hidden layers, as SB3 draws them."""
        assert self.features_extractor is not None
        for module in (self.features_extractor, self.body):
            module.apply(lambda layer: _orthogonal(layer, np.sqrt(2)))

    def init_head(self) -> None:
        """Orthogonal weights for the output layer, scaled by ``output_gain``."""
        self.head.apply(lambda layer: _orthogonal(layer, self.output_gain))


def _orthogonal(layer: nn.Module, gain: float) -> None:
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        nn.init.orthogonal_(layer.weight, gain=gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def initialise(models: Iterable[TeamModel]) -> None:
    """
    Draw the weights of a team's networks.

    :param models: Actors first, then critics
    """
    models = [model for model in models if model.ortho_init]
    for model in models:
        model.init_body()
    for model in models:
        model.init_head()


class ValueNorm(nn.Module):
    """
    Running mean and variance of the returns (Yu et al. 2022, "The Surprising Effectiveness of PPO", appendix D.1).
    The critic predicts normalised returns; values leave it in units of reward.

    :param n_values: Number of separate statistics: one for all columns of the returns, or one for each
    :param decay: Weight of the old statistics at each update; the bias towards the initial zero is divided out, so that a
        decay near 1 averages over all updates so far
    :param epsilon: Least variance
    """

    mean: th.Tensor
    std: th.Tensor
    moments: th.Tensor
    weight: th.Tensor

    def __init__(self, n_values: int = 1, decay: float = 0.99999, epsilon: float = 1e-2) -> None:
        super().__init__()
        self.decay = decay
        self.epsilon = epsilon
        self.register_buffer("mean", th.zeros(n_values))
        self.register_buffer("std", th.ones(n_values))
        # Double precision: with a decay this close to 1 the first updates would be lost in float32
        self.register_buffer("moments", th.zeros(2, n_values, dtype=th.float64))
        self.register_buffer("weight", th.zeros(n_values, dtype=th.float64))

    @th.no_grad()
    def update(self, returns: th.Tensor, active: th.Tensor | None = None) -> None:
        """
        Take a rollout's returns into the statistics.

        :param returns: ``(batch, n_columns)``, units of reward; with a single statistic all columns count together
        :param active: Which of them count, ``(batch, n_columns)``
        """
        n_values = len(self.weight)
        returns = returns.double().reshape(-1, n_values)
        present = th.ones_like(returns) if active is None else active.double().reshape(-1, n_values)
        count = present.sum(dim=0)
        batch_moments = th.stack(
            [(returns * present).sum(dim=0), (returns**2 * present).sum(dim=0)]
        ) / count.clamp(min=1)
        step = (1 - self.decay) * (
            count > 0
        ).double()  # a column without a single return keeps its statistics
        self.moments.lerp_(batch_moments, step)
        self.weight.lerp_(th.ones_like(self.weight), step)
        mean, square = self.moments / self.weight.clamp(min=1e-12)
        seen = self.weight > 0
        self.mean.copy_(mean)
        self.std.copy_(th.where(seen, (square - mean**2).clamp(min=self.epsilon).sqrt(), 1.0))

    def normalize(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: ``(..., n_columns)``, units of reward
        :return: The same in standard deviations from the mean
        """
        return (values - self.mean) / self.std

    def denormalize(self, values: th.Tensor) -> th.Tensor:
        """
        :param values: ``(..., n_columns)``, as the critic's network gives them
        :return: The same in units of reward
        """
        return values * self.std + self.mean
