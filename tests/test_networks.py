"""Options of networks, and the layers, optimisers and recurrent layers that are made of them."""

import dataclasses
import inspect

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn

from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.networks import (
    ACTOR_OUTPUT_GAIN,
    CRITIC_OUTPUT_GAIN,
    NetworkOptions,
    default_features_extractor,
    make_body,
    make_memory,
    make_optimizer,
)
from sb3_happo.common.state_critics import ValueNet

BOX = spaces.Box(-1.0, 1.0, (3,))


def test_options_are_split_from_other_arguments() -> None:
    kwargs = {"net_arch": [8], "masked": True, "recurrent": "gru"}
    options, rest = NetworkOptions.from_kwargs(kwargs)
    assert options == NetworkOptions(net_arch=[8], recurrent="gru")
    assert rest == {"masked": True}
    assert kwargs == {"net_arch": [8], "masked": True, "recurrent": "gru"}
    assert NetworkOptions.from_kwargs(options.as_kwargs()) == (options, {})


def test_options_are_replaced_in_a_copy() -> None:
    options = NetworkOptions(layer_norm=True)
    changed = options.replace(net_arch=[4])
    assert changed.net_arch == [4] and changed.layer_norm
    assert options.net_arch is None
    with pytest.raises(TypeError, match="net_arc"):
        options.replace(net_arc=[4])
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.net_arch = [4]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("network", "gain"), [(AgentPolicy, ACTOR_OUTPUT_GAIN), (ValueNet, CRITIC_OUTPUT_GAIN)]
)
def test_every_option_has_the_default_of_actors_and_critics(network: type, gain: float) -> None:
    parameters = inspect.signature(network).parameters
    options = NetworkOptions()
    for name, default in options.as_kwargs().items():
        if name == "output_gain":
            default = options.gain(gain)
        if name in parameters:
            assert parameters[name].default == default, name


def test_the_gain_of_the_output_is_the_owners_unless_given() -> None:
    assert NetworkOptions().gain(0.01) == 0.01
    assert NetworkOptions(output_gain=0.5).gain(0.01) == 0.5


def test_hidden_units_follow_the_part_and_the_features() -> None:
    assert NetworkOptions().hidden_units("pi") == [128, 128]
    assert NetworkOptions().hidden_units("pi", after_cnn=True) == []
    assert NetworkOptions(net_arch=[8]).hidden_units("vf", after_cnn=True) == [8]
    both = NetworkOptions(net_arch={"pi": [8], "vf": [16, 16]})
    assert both.hidden_units("pi") == [8]
    assert both.hidden_units("vf") == [16, 16]


def test_features_extractors_are_sb3s_unless_given() -> None:
    image = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
    mixed = spaces.Dict({"camera": image, "arm": BOX})
    assert NetworkOptions().extractor_class(BOX) is FlattenExtractor
    assert NetworkOptions().extractor_class(image) is NatureCNN
    assert NetworkOptions().extractor_class(mixed) is CombinedExtractor
    given = NetworkOptions(features_extractor_class=FlattenExtractor)
    assert given.extractor_class(image) is FlattenExtractor


def test_images_too_small_for_sb3s_cnn_are_flattened() -> None:
    small = spaces.Box(0, 255, (3, 20, 20), dtype=np.uint8)
    with pytest.warns(UserWarning, match=r"\(3, 20, 20\)\] are flattened: .* 36 x 36"):
        assert default_features_extractor(small) is FlattenExtractor
    large = spaces.Box(0, 255, (3, 36, 36), dtype=np.uint8)
    mixed = spaces.Dict({"a.camera": small, "film": large, "arm": BOX, "side": spaces.Discrete(2)})
    with pytest.warns(UserWarning, match="are flattened"):
        extractor = default_features_extractor(mixed)(mixed)
    assert extractor.features_dim == 3 * 20 * 20 + 256 + BOX.shape[0] + 2
    observations = {key: th.zeros(4, *(space.shape or (2,))) for key, space in mixed.items()}
    assert extractor(observations).shape == (4, extractor.features_dim)


def test_the_body_has_the_layers_of_the_options() -> None:
    options = NetworkOptions(
        net_arch=[5, 4], activation_fn=nn.Tanh, input_layer_norm=True, layer_norm=True
    )
    body, dim = make_body(FlattenExtractor(BOX), options, "pi", n_extra=2)
    norm, first, tanh, *_, last_norm = body
    assert dim == 4 and len(body) == 7
    assert isinstance(norm, nn.LayerNorm) and norm.normalized_shape == (5,)
    assert isinstance(first, nn.Linear) and first.in_features == 5
    assert isinstance(tanh, nn.Tanh)
    assert isinstance(last_norm, nn.LayerNorm)


def test_recurrent_layers_normalise_their_own_input() -> None:
    options = NetworkOptions(
        net_arch=[5], recurrent="lstm", lstm_hidden_size=6, n_lstm_layers=2, input_layer_norm=True
    )
    memory = make_memory(3, options)
    assert memory is not None
    assert memory.state_shape == (2, 2, 6)
    assert memory.norm is not None
    body, _ = make_body(FlattenExtractor(BOX), options, "pi", memory=memory)
    assert isinstance(body[0], nn.Linear) and body[0].in_features == 6
    assert make_memory(3, NetworkOptions()) is None


def test_optimisers_follow_the_options_and_the_schedule() -> None:
    network = nn.Linear(2, 1)
    adam = make_optimizer(network, lambda progress: 0.1 * progress, NetworkOptions())
    assert isinstance(adam, th.optim.Adam)
    assert adam.defaults["eps"] == 1e-5
    assert adam.defaults["lr"] == 0.1
    options = NetworkOptions(optimizer_class=th.optim.SGD, optimizer_kwargs={"momentum": 0.5})
    sgd = make_optimizer(network, lambda _: 0.1, options)
    assert isinstance(sgd, th.optim.SGD)
    assert sgd.defaults["momentum"] == 0.5
