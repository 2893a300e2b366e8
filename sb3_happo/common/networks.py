"""Building blocks of policies and critics: options, layers, optimisers, initialisation."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.torch_layers import BatchRenorm1d
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

from sb3_happo.common.extractors import extractor_of_dict
from sb3_happo.common.image_extractors import (
    SmallImagesExtractor,
    announce_small_images,
    is_small_image,
)
from sb3_happo.common.net_arch import NetArch, check_net_arch, check_width
from sb3_happo.common.recurrent import RecurrentKind, RecurrentLayers
from sb3_happo.common.threads import torch_threads
from sb3_happo.common.value_norm import ValueNorm as ValueNorm

#: Gains of the output layers where ``NetworkOptions.output_gain`` is None: small ones for actors,
#: which start near the uniform policy
ACTOR_OUTPUT_GAIN = 0.01
CRITIC_OUTPUT_GAIN = 1.0


@dataclass(frozen=True)
class NetworkOptions:
    """
    Hyperparameters of a network, which actors and critics share.

    :param net_arch: Units of the hidden layers, ``[64, 64]``, or SB3's ``dict(pi=..., vf=...)``, of
        which actors take ``pi`` and critics ``vf``; None for no hidden layer after a CNN, else two
        of 128
    :param activation_fn: Activation function after each hidden layer
    :param ortho_init: Orthogonal initialisation (applied by :func:`initialise`)
    :param output_gain: Gain of the output layer's initialisation; None for ``ACTOR_OUTPUT_GAIN``
        in actors and ``CRITIC_OUTPUT_GAIN`` in critics
    :param input_layer_norm: Layer normalisation of the features (HARL's
        ``use_feature_normalization``)
    :param layer_norm: Layer normalisation after each activation, as in HARL's networks
    :param features_extractor_class: Features extractor; None for SB3's choice for the space
    :param features_extractor_kwargs: Keyword arguments of the features extractor
    :param normalize_images: Whether images are divided by 255
    :param optimizer_class: Optimiser
    :param optimizer_kwargs: Keyword arguments of the optimiser, without the learning rate; None for
        those of :func:`make_optimizer`
    :param batch_norm: Batch renormalisation before each layer with weights, as in CrossQ; for
        policies that support it
    :param batch_norm_momentum: Weight of a minibatch in the running statistics
    :param batch_norm_eps: Number that is added to variances
    :param renorm_warmup_steps: Number of minibatches before the running statistics correct the
        moments of a minibatch
    :param recurrent: Recurrent layers between the features and the hidden layers: "lstm", "gru", or
        None
    :param lstm_hidden_size: Units of each recurrent layer
    :param n_lstm_layers: Number of recurrent layers
    :param lstm_kwargs: Further keyword arguments of ``nn.LSTM`` or ``nn.GRU``: ``bias`` and
        ``dropout``
    """

    net_arch: NetArch | None = None
    activation_fn: type[nn.Module] = nn.ReLU
    ortho_init: bool = True
    output_gain: float | None = None
    input_layer_norm: bool = False
    layer_norm: bool = False
    features_extractor_class: type[BaseFeaturesExtractor] | None = None
    features_extractor_kwargs: dict[str, Any] | None = None
    normalize_images: bool = True
    optimizer_class: type[th.optim.Optimizer] = th.optim.Adam
    optimizer_kwargs: dict[str, Any] | None = None
    recurrent: RecurrentKind | None = None
    lstm_hidden_size: int = 256
    n_lstm_layers: int = 1
    lstm_kwargs: dict[str, Any] | None = None
    batch_norm: bool = False
    batch_norm_momentum: float = 0.01
    batch_norm_eps: float = 0.001
    renorm_warmup_steps: int = 100_000

    def __post_init__(self) -> None:
        object.__setattr__(self, "net_arch", check_net_arch(self.net_arch, "net_arch"))
        for name in ("lstm_hidden_size", "n_lstm_layers"):
            check_width(getattr(self, name), name)

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """
        :return: Names of the options, for checks of keyword arguments
        """
        return tuple(field.name for field in fields(cls))

    @classmethod
    def from_kwargs(cls, kwargs: Mapping[str, Any]) -> tuple["NetworkOptions", dict[str, Any]]:
        """
        Split keyword arguments into the options of a network and others.

        :param kwargs: Keyword arguments, such as ``policy_kwargs``
        :return: The options, with defaults for those not given; and the other arguments
        """
        rest = dict(kwargs)
        own = {name: rest.pop(name) for name in cls.names() if name in rest}
        return cls(**own), rest

    def replace(self, **changes: Any) -> "NetworkOptions":
        """
        :param changes: New values by name, such as the overrides of a single agent
        :return: A copy with these values
        :raises TypeError: If a name is unknown
        """
        return replace(self, **changes)

    def as_kwargs(self) -> dict[str, Any]:
        """
        :return: The options as keyword arguments, from which :meth:`from_kwargs` makes equal ones
        """
        return {name: getattr(self, name) for name in self.names()}

    def gain(self, default: float) -> float:
        """
        :param default: The owner's gain, ``ACTOR_OUTPUT_GAIN`` or ``CRITIC_OUTPUT_GAIN``
        :return: Gain of the output layer's initialisation
        """
        return default if self.output_gain is None else self.output_gain

    def hidden_units(self, part: str, after_cnn: bool = False) -> list[int]:
        """
        :param part: List to take where ``net_arch`` is a dict, "pi" or "vf"
        :param after_cnn: Whether the features come out of SB3's ``NatureCNN``
        :return: Units of each hidden layer
        """
        if self.net_arch is None:
            return [] if after_cnn else [128, 128]
        if isinstance(self.net_arch, dict):
            return self.net_arch.get(part, [])
        return self.net_arch

    def extractor_class(self, space: spaces.Space) -> type[BaseFeaturesExtractor]:
        """
        :param space: Observation space of the network
        :return: The features extractor, by default SB3's choice
        """
        given = self.features_extractor_class
        if given is CombinedExtractor and isinstance(space, spaces.Dict):
            return extractor_of_dict(space)
        return given or default_features_extractor(space)


def default_features_extractor(space: spaces.Space) -> type[BaseFeaturesExtractor]:
    """
    The features extractor that SB3 would choose for a space.

    :param space: Observation space
    :return: ``CombinedExtractor`` for Dict spaces, ``NatureCNN`` for images, ``FlattenExtractor``
        for others. Images that are too small for ``NatureCNN`` are flattened
    """
    parts = list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]
    if any(map(is_small_image, parts)):
        announce_small_images(space)
        return SmallImagesExtractor if isinstance(space, spaces.Dict) else FlattenExtractor
    if isinstance(space, spaces.Dict):
        return extractor_of_dict(space)
    return NatureCNN if is_image_space(space) else FlattenExtractor


def make_optimizer(
    network: nn.Module, lr_schedule: Schedule, options: NetworkOptions
) -> th.optim.Optimizer:
    """
    :param network: Network whose parameters are optimised
    :param lr_schedule: Learning rate over the remaining progress
    :param options: Options of the network. Without ``optimizer_kwargs`` it has SB3's, where Adam's
        epsilon is large enough to avoid NaN. PyTorch's common optimisers run fused unless
        ``fused=False`` is among them
    :return: The optimiser, at the schedule's first rate
    """
    optimizer_class, optimizer_kwargs = options.optimizer_class, options.optimizer_kwargs
    if optimizer_kwargs is None:
        optimizer_kwargs = {"eps": 1e-5} if optimizer_class is th.optim.Adam else {}
    if optimizer_class in (th.optim.Adam, th.optim.AdamW, th.optim.SGD):
        optimizer_kwargs = {"fused": True} | optimizer_kwargs
    make: Any = optimizer_class
    return make(network.parameters(), lr=lr_schedule(1), **optimizer_kwargs)


def make_memory(n_inputs: int, options: NetworkOptions) -> RecurrentLayers | None:
    """
    :param n_inputs: Number of features that go in
    :param options: Options of the network
    :return: The recurrent layers, or None for a feed-forward network
    :raises ValueError: If the options name an unknown kind of layers or argument of theirs
    """
    if not options.recurrent:
        return None
    return RecurrentLayers(
        options.recurrent,
        n_inputs,
        options.lstm_hidden_size,
        options.n_lstm_layers,
        options.input_layer_norm,
        options.lstm_kwargs,
    )


def make_body(
    features_extractor: BaseFeaturesExtractor,
    options: NetworkOptions,
    part: str,
    n_extra: int = 0,
    memory: RecurrentLayers | None = None,
) -> tuple[nn.Sequential, int]:
    """
    The hidden layers of a policy or a critic.

    :param features_extractor: Features extractor before them
    :param options: Options of the network
    :param part: List to take where ``net_arch`` is a dict, "pi" or "vf"
    :param n_extra: Number of inputs beside the features
    :param memory: Recurrent layers between the features and the hidden layers, if any; they
        normalise their own input
    :return: The layers, and the number of features that come out of them
    """
    dim = features_extractor.features_dim + n_extra
    input_layer_norm = options.input_layer_norm
    if memory is not None:
        # The output of recurrent layers is normalised like that of a hidden layer
        dim, input_layer_norm = memory.hidden_size, options.layer_norm
    layers: list[nn.Module] = [nn.LayerNorm(dim)] if input_layer_norm else []
    widths = options.hidden_units(part, isinstance(features_extractor, NatureCNN))
    # As in CrossQ, whose actors without hidden layers are not normalised
    if widths or part != "pi":
        layers += _batch_norm(dim, options)
    for n_units in widths:
        layers += [nn.Linear(dim, n_units), options.activation_fn()]
        if options.layer_norm:
            layers.append(nn.LayerNorm(n_units))
        layers += _batch_norm(n_units, options)
        dim = n_units
    return nn.Sequential(*layers), dim


def _batch_norm(dim: int, options: NetworkOptions) -> list[nn.Module]:
    """Batch renormalisation of ``dim`` features; empty without ``batch_norm``."""
    if not options.batch_norm:
        return []
    momentum, warmup_steps = options.batch_norm_momentum, options.renorm_warmup_steps
    return [BatchRenorm1d(dim, options.batch_norm_eps, momentum, True, warmup_steps)]


class TanhMeans(nn.Linear):
    """
    Output layer of an actor whose continuous columns pass through tanh, so that the means of the
    actions lie in (-1, 1).

    :param in_features: Number of features that go in
    :param bounded: Mask of the columns that pass through tanh, ``(out_features,)``
    """

    bounded: th.Tensor

    def __init__(self, in_features: int, bounded: th.Tensor) -> None:
        super().__init__(in_features, len(bounded))
        self.register_buffer("bounded", bounded, persistent=False)

    def bound(self, outputs: th.Tensor) -> th.Tensor:
        """
        :param outputs: Outputs of the linear layer, ``(..., out_features)``
        :return: Outputs with tanh of the continuous columns, ``(..., out_features)``
        """
        return th.where(self.bounded, outputs.tanh(), outputs)

    def forward(self, input: th.Tensor) -> th.Tensor:
        """
        :param input: Features, ``(..., in_features)``
        :return: Outputs, ``(..., out_features)``
        """
        return self.bound(super().forward(input))


class TeamModel(BaseModel):
    """
    A network of the team: an SB3 model whose initialisation is separate from its construction.

    The networks of a team are initialised together (see :func:`initialise`), all bodies before all
    heads. With one agent this draws the random numbers in SB3's order, so that a seed gives the
    same weights as in ``PPO``.
    """

    ortho_init: bool
    output_gain: float
    memory: RecurrentLayers | None
    body: nn.Sequential
    head: nn.Linear

    def init_body(self) -> None:
        """Draw orthogonal weights for the features extractor and the hidden layers, as SB3 does."""
        assert self.features_extractor is not None
        for module in (self.features_extractor, self.body):
            module.apply(lambda layer: _orthogonal(layer, np.sqrt(2)))

    def init_head(self) -> None:
        """Draw orthogonal weights for the output layer, scaled by ``output_gain``."""
        self.head.apply(lambda layer: _orthogonal(layer, self.output_gain))


def _orthogonal(layer: nn.Module, gain: float) -> None:
    if isinstance(layer, (nn.Linear, nn.Conv2d)):
        nn.init.orthogonal_(layer.weight, gain=gain)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def initialise(models: Iterable[TeamModel]) -> None:
    """
    Draw the weights of a team's networks with ``ortho_init``.

    :param models: Networks, actors before critics
    """
    models = [model for model in models if model.ortho_init]
    # The decomposition behind orthogonal weights depends on the number of threads
    with torch_threads(1):
        for model in models:
            model.init_body()
        for model in models:
            model.init_head()
