"""The two modes of sb3-contrib's batch renormalisation."""

from collections.abc import Iterator
from contextlib import contextmanager

from sb3_contrib.common.torch_layers import BatchRenorm
from torch import nn


def set_batch_norm_mode(network: nn.Module, training: bool) -> None:
    """
    :param network: Network
    :param training: True for the moments of the minibatch, which update the running statistics;
        False for the running statistics
    """
    for module in network.modules():
        if isinstance(module, BatchRenorm):
            module.train(training)


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """
    Context in which batch normalisation takes the moments of the minibatch, and updates its running
    statistics. Outside it takes the running statistics.

    :param network: Network
    """
    set_batch_norm_mode(network, True)
    try:
        yield
    finally:
        set_batch_norm_mode(network, False)
