"""Features extractors for Dict observations whose keys cannot name a module of PyTorch."""

from collections.abc import Mapping
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor
from torch import nn

_EMPTY = nn.ModuleDict()


def is_module_name(key: str) -> bool:
    """
    :param key: Key of a Dict observation, such as "position" or "drone.1/position"
    :return: True if PyTorch takes it as the name of a module: no dot, not empty, and no attribute
        of modules, such as "type"
    """
    return bool(key) and "." not in key and not hasattr(_EMPTY, key)


def extractor_of_dict(space: spaces.Dict) -> type[BaseFeaturesExtractor]:
    """
    :param space: Dict observation space
    :return: SB3's ``CombinedExtractor``, or the same for keys of any characters
    """
    if all(is_module_name(key) for key in space.spaces):
        return CombinedExtractor
    return AnyKeyExtractor


class AnyKeyExtractor(CombinedExtractor):
    """
    SB3's ``CombinedExtractor`` for keys of any characters. The modules are named by the keys'
    positions.

    :param observation_space: Dict observation space
    :param kwargs: Keyword arguments of ``CombinedExtractor``
    """

    def __init__(self, observation_space: spaces.Dict, **kwargs: Any) -> None:
        names = {key: f"part_{index}" for index, key in enumerate(observation_space.spaces)}
        parts = [(names[key], part) for key, part in observation_space.spaces.items()]
        super().__init__(spaces.Dict(parts), **kwargs)
        self._observation_space = observation_space
        self._names = names

    def forward(self, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Observations by key, each ``(batch, ...)``
        :return: Features, ``(batch, features_dim)``
        """
        renamed = {name: observations[key] for key, name in self._names.items()}
        return super().forward(renamed)
