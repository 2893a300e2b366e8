"""Centralized critics: they see the state, and live only in training."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_happo.common.networks import NetArch, TeamModel, ValueNorm, default_features_extractor, make_mlp, optimizer_defaults

STATE = "state"
AGENT_STATES = "agent_states"


def critic_keys(observation_space: spaces.Dict) -> list[str]:
    """
    Entries of the joint observation that the shared critic reads.

    :param observation_space: The joint observation space
    :return: ``["agent_states"]``, or ``["state"]``, or all of ``"state/<key>"``
    """
    if AGENT_STATES in observation_space.spaces:
        return [AGENT_STATES]
    return [key for key in observation_space.spaces if key == STATE or key.startswith(STATE + "/")]


class CentralizedCritic(TeamModel):
    """
    The value of the state, shared by the whole team.

    With an agent-specific state (HARL's "FP": one row per agent, key ``"agent_states"``), the same network values each row, and
    ``n_values`` is the number of agents; otherwise it is 1.

    :param observation_space: Joint observation space
    :param n_agents: Number of agents of the team
    :param lr_schedule: Learning rate over the remaining progress
    :param net_arch: Units of the hidden layers, or SB3's ``dict(pi=..., vf=...)`` of which ``vf`` is used
    :param activation_fn: Activation function
    :param ortho_init: Orthogonal initialisation
    :param output_gain: Gain of the output layer's initialisation
    :param input_layer_norm: Layer normalisation of the features that go in
    :param layer_norm: Layer normalisation after each hidden layer
    :param normalize_value: Predict normalised returns (see :class:`~sb3_happo.common.networks.ValueNorm`)
    :param features_extractor_class: Features extractor; by default SB3's choice for the state's space
    :param features_extractor_kwargs: Keyword arguments of the features extractor
    :param normalize_images: Divide images by 255
    :param optimizer_class: Optimiser
    :param optimizer_kwargs: Keyword arguments of the optimiser, without the learning rate
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        n_agents: int,
        lr_schedule: Schedule,
        net_arch: NetArch | None = None,
        activation_fn: type[nn.Module] = nn.ReLU,
        ortho_init: bool = True,
        output_gain: float = 1.0,
        input_layer_norm: bool = False,
        layer_norm: bool = False,
        normalize_value: bool = True,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.keys = critic_keys(observation_space)
        if not self.keys:
            raise ValueError(
                f"The joint observation has no state for the critic, only {list(observation_space.spaces)}; "
                "build the environment with `JointEnv` or `make_joint_env`."
            )
        space: spaces.Space = observation_space.spaces[self.keys[0]]
        self.agent_specific = self.keys == [AGENT_STATES]
        if self.agent_specific:
            assert isinstance(space, spaces.Box)
            # One agent's row is what the network sees
            space = spaces.Box(space.low[0], space.high[0], dtype=space.dtype.type)
        elif self.keys != [STATE]:
            space = spaces.Dict([(key.removeprefix(STATE + "/"), observation_space.spaces[key]) for key in self.keys])
        super().__init__(
            space,
            spaces.Discrete(1),  # a critic does not act, SB3's base class only wants some space
            features_extractor_class or default_features_extractor(space),
            features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_defaults(optimizer_class, optimizer_kwargs),
        )
        self.ortho_init = ortho_init
        self.output_gain = output_gain
        self.n_values = n_agents if self.agent_specific else 1
        self.features_extractor = self.make_features_extractor()
        self.body, latent_dim = make_mlp(
            self.features_extractor, net_arch, "vf", activation_fn, input_layer_norm, layer_norm
        )
        self.head = nn.Linear(latent_dim, 1)
        self.value_norm = ValueNorm(1) if normalize_value else None
        self.optimizer = optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Joint observation, of which the critic's own keys are read, each ``(batch, ...)``
        :return: Values as the network gives them (normalised, if values are), ``(batch, n_values)``
        """
        state: Any = observations[self.keys[0]]
        if self.agent_specific:
            state = state.flatten(end_dim=1)  # (batch, n_agents, dim) -> (batch * n_agents, dim)
        elif self.keys != [STATE]:
            state = {key.removeprefix(STATE + "/"): observations[key] for key in self.keys}
        assert self.features_extractor is not None
        features = self.extract_features(state, self.features_extractor)
        return self.head(self.body(features)).reshape(-1, self.n_values)

    def predict_values(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :return: Values in units of reward, ``(batch, n_values)``
        """
        values = self(observations)
        return values if self.value_norm is None else self.value_norm.denormalize(values)
