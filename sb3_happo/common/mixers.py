"""Mixers: the value of a joint action by the values of the agents' own actions."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.type_aliases import Schedule
from torch import nn
from torch.nn import functional as F

from sb3_happo.common.action_critics import observed_space
from sb3_happo.common.frozen_rows import frozen_rows
from sb3_happo.common.networks import NetworkOptions, make_optimizer
from sb3_happo.common.state_critics import critic_keys
from sb3_happo.envs.spaces import STATE


class NoMixer(nn.Module):
    """Separate values of all agents, as in independent Q-learning."""

    def forward(self, values: th.Tensor, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param values: Values of the agents' actions, ``(batch, n_agents)``
        :param observations: Joint observation, each entry ``(batch, ...)``
        :return: The same values, ``(batch, n_agents)``
        """
        return values


class SumMixer(nn.Module):
    """Sum of the agents' values, as in VDN."""

    def forward(self, values: th.Tensor, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param values: Values of the agents' actions, ``(batch, n_agents)``
        :param observations: Joint observation, each entry ``(batch, ...)``
        :return: Values of the joint actions, ``(batch, 1)``
        """
        return values.sum(dim=1, keepdim=True)

    def frozen(self, absent: Sequence[bool]) -> AbstractContextManager[None]:
        """
        :param absent: Mask of the agents that did not act, ``(n_agents,)``
        :return: Context of a step of the optimiser, without effect: a sum learns nothing
        """
        return nullcontext()


class MonotonicMixer(BaseModel):
    """
    Mixing network of QMIX: two layers with an ELU between them, whose weights are absolute outputs
    of networks of the state (hypernetworks), so that the value of the joint action never falls if
    an agent's value rises. Biases may have any sign.

    :param observation_space: Joint observation space, with a state
    :param n_agents: Number of agents
    :param lr_schedule: Learning rate over the remaining progress
    :param options: Network options, of which the features extractor and the optimiser are used
    :param mixing_dim: Units of the mixing network
    :param hypernet_dim: Hidden units of the networks of the state
    :raises ValueError: If the joint observation holds no state
    """

    optimizer: th.optim.Optimizer

    def __init__(
        self,
        observation_space: spaces.Dict,
        n_agents: int,
        lr_schedule: Schedule,
        options: NetworkOptions,
        mixing_dim: int = 32,
        hypernet_dim: int = 64,
    ) -> None:
        keys = critic_keys(observation_space)
        if not keys:
            raise ValueError(
                "The joint observation has no state for QMIX's mixer, only "
                f"{list(observation_space.spaces)}; build the environment with `JointEnv` or "
                "`make_joint_env`, or use VDN, which needs none."
            )
        own_space = observed_space(observation_space, keys)
        super().__init__(
            own_space,
            spaces.Discrete(1),  # SB3's base class needs an action space; a mixer has none
            options.extractor_class(own_space),
            options.features_extractor_kwargs,
            normalize_images=options.normalize_images,
        )
        #: Entries of the joint observation that the mixer reads
        self.keys = keys
        self.n_agents = n_agents
        self.features_extractor = self.make_features_extractor()
        dim = self.features_extractor.features_dim
        self.first_weights = _hypernet(dim, hypernet_dim, n_agents * mixing_dim)
        self.first_bias = nn.Linear(dim, mixing_dim)
        self.last_weights = _hypernet(dim, hypernet_dim, mixing_dim)
        self.last_bias = _hypernet(dim, mixing_dim, 1)
        self.optimizer = make_optimizer(self, lr_schedule, options)

    def forward(self, values: th.Tensor, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param values: Values of the agents' actions, ``(batch, n_agents)``
        :param observations: Joint observation, each entry ``(batch, ...)``
        :return: Values of the joint actions, ``(batch, 1)``
        """
        features = self.observe(observations)
        # (batch, n_agents * mixing_dim) -> (batch, n_agents, mixing_dim)
        first = self.first_weights(features).abs().unflatten(1, (self.n_agents, -1))
        hidden = F.elu(th.einsum("ba,bam->bm", values, first) + self.first_bias(features))
        last = self.last_weights(features).abs()
        return (hidden * last).sum(dim=1, keepdim=True) + self.last_bias(features)

    def frozen(self, absent: Sequence[bool]) -> AbstractContextManager[None]:
        """
        :param absent: Mask of the agents that did not act, ``(n_agents,)``
        :return: Context of a step of the optimiser that leaves these agents' weights as they are
        """
        last: Any = self.first_weights[-1]
        mask = th.tensor(absent, device=last.weight.device)
        rows = mask.repeat_interleave(last.out_features // self.n_agents)
        return frozen_rows(self.optimizer, last.parameters(), rows)

    def observe(self, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param observations: Joint observation, each entry ``(batch, ...)``
        :return: Features of the state, ``(batch, n_features)``
        """
        own: Any = observations[self.keys[0]]
        if len(self.keys) > 1 or self.keys[0].startswith(STATE + "/"):
            own = {key.removeprefix(STATE + "/"): observations[key] for key in self.keys}
        assert self.features_extractor is not None
        return self.extract_features(own, self.features_extractor)


def _hypernet(n_inputs: int, n_hidden: int, n_outputs: int) -> nn.Sequential:
    """Network of the state with one hidden layer."""
    layers = (nn.Linear(n_inputs, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_outputs))
    return nn.Sequential(*layers)
