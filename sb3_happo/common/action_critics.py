"""Critics of states and joint actions, Q(s, a): several networks as one product."""

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_happo.common.networks import CRITIC_OUTPUT_GAIN, NetworkOptions, make_body, make_optimizer
from sb3_happo.common.stacked_networks import SeparateNetworks, StackedNetworks
from sb3_happo.common.state_critics import critic_keys
from sb3_happo.envs.spaces import STATE


class ActionCritic(BaseModel):
    """
    Critics of the state and the encoded actions of all agents: SB3's ``ContinuousCritic`` for a
    team, with the same numbers for the same weights. All networks are evaluated in one product,
    those with batch normalisation one after another.

    There are ``n_critics`` networks for each of ``n_values`` rewards: one for the team's reward, or
    one per agent.

    :param observation_space: Joint observation space
    :param n_actions: Number of columns of the agents' encoded actions, side by side
    :param lr_schedule: Learning rate over the remaining progress
    :param options: Network options; of ``net_arch`` the hidden layers "qf" ("vf") are used
    :param n_critics: Number of networks per value, of which the least is taken for targets
    :param n_values: Number of values: 1, or the number of agents
    :raises ValueError: If the joint observation holds no state
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Dict,
        n_actions: int,
        lr_schedule: Schedule,
        options: NetworkOptions | None = None,
        n_critics: int = 2,
        n_values: int = 1,
    ) -> None:
        options = options or NetworkOptions(ortho_init=False)
        keys = critic_keys(observation_space)
        if not keys:
            raise ValueError(
                "The joint observation has no state for the critic, only "
                f"{list(observation_space.spaces)}; build the environment with `JointEnv` or "
                "`make_joint_env`."
            )
        own_space = observed_space(observation_space, keys)
        super().__init__(
            own_space,
            spaces.Box(-1, 1, (n_actions,)),
            options.extractor_class(own_space),
            options.features_extractor_kwargs,
            normalize_images=options.normalize_images,
        )
        #: Entries of the joint observation that the critic reads
        self.keys = keys
        self.n_critics = n_critics
        self.n_values = n_values
        self.options = options
        self.features_extractor = self.make_features_extractor()
        networks = [self._make_network(options, n_actions) for _ in range(n_critics * n_values)]
        self.networks: StackedNetworks | SeparateNetworks
        self.networks = (SeparateNetworks if options.batch_norm else StackedNetworks)(networks)
        self.optimizer = make_optimizer(self, lr_schedule, options)

    def _make_network(self, options: NetworkOptions, n_actions: int) -> nn.Sequential:
        assert self.features_extractor is not None
        body, dim = make_body(self.features_extractor, options, "vf", n_actions)
        head = nn.Linear(dim, 1)
        if options.ortho_init:
            orthogonal(body, head, options.gain(CRITIC_OUTPUT_GAIN))
        return nn.Sequential(*body, head)

    def split(self, n_values: int) -> None:
        """
        Learn several values from now on, each by copies of the networks of the present one.

        :param n_values: Number of values
        """
        self.networks.repeat(n_values, self.optimizer)
        self.n_values = n_values

    def observe(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        """
        Features of the state. They may be computed once for several joint actions.

        :param observations: Joint observation, each entry ``(batch, ...)``
        :return: Features, ``(batch, n_features)``
        """
        own: PyTorchObs = observations[self.keys[0]]
        if len(self.keys) > 1 or self.keys[0].startswith(STATE + "/"):
            own = {key.removeprefix(STATE + "/"): observations[key] for key in self.keys}
        assert self.features_extractor is not None
        return self.extract_features(own, self.features_extractor)

    def evaluate(
        self, features: th.Tensor, actions: th.Tensor, rows: slice | None = None
    ) -> th.Tensor:
        """
        :param features: Features of the state, ``(batch, n_features)``
        :param actions: Encoded actions of all agents, ``(batch, n_actions)``
        :param rows: Networks to evaluate; None for all. Those of one value are side by side
        :return: Values, ``(n_networks, batch)``
        """
        return self.networks(th.cat([features, actions], dim=1), rows).squeeze(2)

    def forward(self, observations: dict[str, th.Tensor], actions: th.Tensor) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param actions: Encoded actions of all agents, ``(batch, n_actions)``
        :return: Values, ``(n_critics, batch, n_values)``
        """
        values = self.evaluate(self.observe(observations), actions)
        # (n_values * n_critics, batch) -> (n_critics, batch, n_values)
        return values.unflatten(0, (self.n_values, self.n_critics)).permute(1, 2, 0)

    def least(self, observations: dict[str, th.Tensor], actions: th.Tensor) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :param actions: Encoded actions of all agents, ``(batch, n_actions)``
        :return: Least value of the networks, ``(batch, n_values)``
        """
        return self(observations, actions).amin(dim=0)

    def first(self, features: th.Tensor, actions: th.Tensor, value: int = 0) -> th.Tensor:
        """
        Value by the first network alone, along which deterministic policies ascend.

        :param features: Features of the state, ``(batch, n_features)``
        :param actions: Encoded actions of all agents, ``(batch, n_actions)``
        :param value: Index of the value
        :return: Values, ``(batch,)``
        """
        start = value * self.n_critics
        return self.evaluate(features, actions, slice(start, start + 1))[0]


def observed_space(observation_space: spaces.Dict, keys: list[str]) -> spaces.Space:
    """
    :param observation_space: Joint observation space
    :param keys: Entries that a critic reads
    :return: Space of the critic's observation: that of the entry, or a Dict of the entries of a
        state that has several
    """
    if len(keys) == 1 and not keys[0].startswith(STATE + "/"):
        return observation_space.spaces[keys[0]]
    parts = [(key.removeprefix(STATE + "/"), observation_space.spaces[key]) for key in keys]
    return spaces.Dict(parts)


def orthogonal(body: nn.Module, head: nn.Linear, gain: float) -> None:
    """
    Draw orthogonal weights, as SB3 does for its on-policy networks.

    :param body: Hidden layers
    :param head: Output layer
    :param gain: Gain of the output layer
    """
    layers: list[tuple[Any, float]] = [(layer, 2**0.5) for layer in body.modules()]
    for layer, own_gain in [*layers, (head, gain)]:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, gain=own_gain)
            nn.init.zeros_(layer.bias)
