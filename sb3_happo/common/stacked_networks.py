"""Networks of one form as one network with an additional dimension."""

from collections.abc import Sequence
from typing import Any, cast

import torch as th
from torch import nn
from torch.nn import functional as F


class StackedLinear(nn.Module):
    """
    Linear layers of the same size, multiplied in one call.

    :param layers: Layers, whose weights are copied
    """

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__()
        # (n_networks, in, out): the gradient of the product then has the layout of the weights
        self.weight = nn.Parameter(th.stack([layer.weight.detach().T for layer in layers]))
        biases = th.stack([layer.bias.detach() for layer in layers])
        self.bias = nn.Parameter(biases.unsqueeze(1))

    def forward(self, x: th.Tensor, rows: slice | None = None) -> th.Tensor:
        """
        :param x: Inputs, ``(n_networks, batch, in)``
        :param rows: Networks that ``x`` belongs to; None for all
        :return: Outputs, ``(n_networks, batch, out)``
        """
        weight: th.Tensor = self.weight
        bias: th.Tensor = self.bias
        if rows is not None:
            weight, bias = weight[rows], bias[rows]
        return th.baddbmm(bias, x, weight)


class StackedLayerNorm(nn.Module):
    """
    Layer normalisations of the same size.

    :param layers: Layers, whose weights are copied
    """

    def __init__(self, layers: Sequence[nn.LayerNorm]) -> None:
        super().__init__()
        self.normalized_shape = layers[0].normalized_shape
        self.eps = layers[0].eps
        self.weight = nn.Parameter(th.stack([layer.weight.detach() for layer in layers])[:, None])
        self.bias = nn.Parameter(th.stack([layer.bias.detach() for layer in layers])[:, None])

    def forward(self, x: th.Tensor, rows: slice | None = None) -> th.Tensor:
        """
        :param x: Features, ``(n_networks, batch, dim)``
        :param rows: Networks that ``x`` belongs to; None for all
        :return: Features of the same shape
        """
        weight: th.Tensor = self.weight
        bias: th.Tensor = self.bias
        if rows is not None:
            weight, bias = weight[rows], bias[rows]
        return F.layer_norm(x, self.normalized_shape, eps=self.eps) * weight + bias


class StackedNetworks(nn.Module):
    """
    Feed-forward networks of one form, evaluated together. The numbers are those of the separate
    networks up to rounding.

    :param networks: Networks of Linear and LayerNorm layers and of layers without parameters that
        act on each number, whose weights are copied
    """

    def __init__(self, networks: Sequence[nn.Sequential]) -> None:
        super().__init__()
        self.n_networks = len(networks)
        layers: list[nn.Module] = []
        for same in zip(*networks, strict=True):
            layers.append(_stack_layers(same))
        self.layers: Any = nn.ModuleList(layers)

    def forward(self, x: th.Tensor, rows: slice | None = None) -> th.Tensor:
        """
        :param x: Inputs, the same for all networks ``(batch, in)``, or ``(n_networks, batch, in)``
        :param rows: Networks to evaluate; None for all
        :return: Outputs, ``(n_networks, batch, out)``
        """
        if x.dim() == 2:
            n_networks = self.n_networks
            if rows is not None:
                n_networks = len(range(n_networks)[rows])
            x = x.expand(n_networks, -1, -1)
        for layer in self.layers:
            has_weights = isinstance(layer, (StackedLinear, StackedLayerNorm))
            x = layer(x, rows) if has_weights else layer(x)
        return x


def _stack_layers(layers: Sequence[nn.Module]) -> nn.Module:
    """
    :param layers: The same layer of each network
    :return: Layer of all networks
    """
    if isinstance(layers[0], nn.Linear):
        return StackedLinear(cast(Sequence[nn.Linear], layers))
    if isinstance(layers[0], nn.LayerNorm):
        return StackedLayerNorm(cast(Sequence[nn.LayerNorm], layers))
    if next(layers[0].parameters(), None) is not None:
        raise TypeError(
            f"Networks with a layer {type(layers[0]).__name__} cannot be stacked; use activation "
            "functions without parameters."
        )
    return layers[0]
