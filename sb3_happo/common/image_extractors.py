"""Features of images that are too small for SB3's ``NatureCNN``."""

import warnings

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import nn

#: Least height and width of an image for ``NatureCNN``, in pixels
MIN_PIXELS = 36


def is_small_image(space: spaces.Space) -> bool:
    """
    :param space: Observation space
    :return: True if it is an image that ``NatureCNN`` cannot take
    """
    return is_image_space(space) and sorted(space.shape or ())[1] < MIN_PIXELS


def announce_small_images(space: spaces.Space) -> None:
    """
    Warn that images are flattened.

    :param space: Observation space with small images
    """
    parts = list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]
    shapes = sorted({part.shape or () for part in parts if is_small_image(part)})
    # Python shows equal warnings of one place once
    warnings.warn(
        f"Images of the shapes {shapes} are flattened: SB3's NatureCNN needs {MIN_PIXELS} x "
        f"{MIN_PIXELS} pixels. For another network pass `features_extractor_class` in "
        "policy_kwargs, its agent_kwargs or critic_kwargs.",
        stacklevel=2,
    )


class SmallImagesExtractor(BaseFeaturesExtractor):
    """
    SB3's ``CombinedExtractor`` for observations among which there are small images: these are
    flattened, as vectors are; larger images pass a ``NatureCNN`` each.

    :param observation_space: Dict of plain spaces
    :param cnn_output_dim: Number of features of each larger image
    :param normalized_image: Whether images are floats in [0, 1] already
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        cnn_output_dim: int = 256,
        normalized_image: bool = False,
    ) -> None:
        sizes = []
        extractors: list[nn.Module] = []
        for space in observation_space.spaces.values():
            if is_image_space(space, normalized_image) and not is_small_image(space):
                extractors.append(NatureCNN(space, cnn_output_dim, normalized_image))
                sizes.append(cnn_output_dim)
            else:
                extractors.append(nn.Flatten())
                sizes.append(get_flattened_obs_dim(space))
        super().__init__(observation_space, int(np.sum(sizes)))
        self.keys = tuple(observation_space.spaces)
        # By index: a key need not be a legal name of a module
        self.extractors = nn.ModuleList(extractors)

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Observations by key, each ``(batch, ...)``
        :return: Features, ``(batch, features_dim)``
        """
        pairs = zip(self.keys, self.extractors, strict=True)
        return th.cat([extractor(observations[key]) for key, extractor in pairs], dim=1)
