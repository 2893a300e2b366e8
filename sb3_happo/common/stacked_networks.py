"""Networks of one form as one network with an additional dimension."""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch as th
from torch import nn
from torch.nn import functional as F

from sb3_happo.common.frozen_rows import frozen_rows


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

    def repeat(self, n_copies: int, optimizer: th.optim.Optimizer) -> None:
        """
        Put copies of all networks beside them, with the same moments in the optimiser.

        :param n_copies: Number of copies, with the networks themselves
        :param optimizer: Optimiser of the networks
        """
        self.n_networks *= n_copies
        for param in self.parameters():
            moments = optimizer.state[param].values() if param in optimizer.state else ()
            shape = param.shape
            for tensor in (param, *moments):
                if isinstance(tensor, th.Tensor) and tensor.shape == shape:
                    tensor.data = tensor.data.repeat(n_copies, 1, 1)
            param.grad = None

    def frozen(
        self, optimizer: th.optim.Optimizer, rows: th.Tensor | None
    ) -> AbstractContextManager[None]:
        """
        :param optimizer: Optimiser of the networks
        :param rows: Mask of the networks to keep, ``(n_networks,)``; None for none
        :return: Context of a step of the optimiser that leaves these networks as they are
        """
        kept = () if rows is None else self.parameters()
        return frozen_rows(optimizer, kept, rows)


class SeparateNetworks(nn.Module):
    """
    Networks of one form, evaluated one after another. Unlike those of :class:`StackedNetworks` the
    numbers are those of single networks to the last bit. Batch normalisation needs this to be
    comparable with another implementation: it removes the mean of a unit, so that the gradient of a
    bias before it is rounding alone where a ReLU is open for the whole minibatch, and Adam makes a
    full step of that.

    :param networks: Networks
    """

    def __init__(self, networks: Sequence[nn.Sequential]) -> None:
        super().__init__()
        self.n_networks = len(networks)
        self.networks: Any = nn.ModuleList(networks)

    def forward(self, x: th.Tensor, rows: slice | None = None) -> th.Tensor:
        """
        :param x: Inputs, the same for all networks, ``(batch, in)``
        :param rows: Networks to evaluate; None for all
        :return: Outputs, ``(n_networks, batch, out)``
        """
        chosen = self.networks if rows is None else self.networks[rows]
        # In CrossQ's layout, by which gradients are summed in its order
        return th.stack([network(x) for network in chosen], dim=1).transpose(0, 1)

    def repeat(self, n_copies: int, optimizer: th.optim.Optimizer) -> None:
        """
        Put copies of all networks beside them, with the same moments in the optimiser.

        :param n_copies: Number of copies, with the networks themselves
        :param optimizer: Optimiser of the networks
        """
        originals = list(self.networks)
        for _ in range(n_copies - 1):
            for network in originals:
                twin = copy.deepcopy(network)
                self.networks.append(twin)
                optimizer.param_groups[0]["params"] += twin.parameters()
                for old, new in zip(network.parameters(), twin.parameters(), strict=True):
                    if old in optimizer.state:
                        optimizer.state[new] = copy.deepcopy(optimizer.state[old])
        self.n_networks *= n_copies

    def frozen(
        self, optimizer: th.optim.Optimizer, rows: th.Tensor | None
    ) -> AbstractContextManager[None]:
        """
        :param optimizer: Optimiser of the networks
        :param rows: Mask of the networks to keep, ``(n_networks,)``; None for none
        :return: Context of a step of the optimiser that leaves these networks as they are
        """
        kept: list[nn.Parameter] = []
        for index in () if rows is None else rows.nonzero().flatten().tolist():
            kept += self.networks[index].parameters()
        return frozen_rows(optimizer, kept, slice(None))


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
