"""The module that is exported: from an observation to the action of the environment."""

import copy
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import nn

from sb3_happo.common.actor_network import ActorNetwork
from sb3_happo.common.distributions import ActionLeaf
from sb3_happo.common.export.normalization import Statistics
from sb3_happo.common.export.signature import (
    Signature,
    TensorInfo,
    observation_parts,
    signature_of,
)
from sb3_happo.common.leaf_heads import BitsHead, ChoiceHead, LeafHead
from sb3_happo.common.recurrent import RecurrentLayers
from sb3_happo.envs.encodings import is_constant, own_space


def copy_for_cpu(policy: ActorNetwork) -> ActorNetwork:
    """
    :param policy: Policy of one agent
    :return: Copy on the CPU, for evaluation, without optimiser
    """
    optimizer = getattr(policy, "optimizer", None)
    twin = copy.deepcopy(policy, {id(optimizer): None} if optimizer is not None else {})
    twin.set_training_mode(False)
    return twin.to("cpu").requires_grad_(False)


class ExportedPolicy(nn.Module):
    """
    The deterministic policy of one agent, with all that lies between the environment and the
    network: encoding and normalisation of the observation, one-hot index of a shared network,
    action mask, scaling and clipping of the action. It holds no distribution objects, whose
    checks of their arguments ``torch.export`` cannot trace.

    :param policy: Policy of one agent, which is copied
    :param statistics: Statistics of the parts of the observation that are normalised
    """

    def __init__(self, policy: ActorNetwork, statistics: Mapping[str, Statistics]) -> None:
        super().__init__()
        self.policy = copy_for_cpu(policy)
        self.signature: Signature = signature_of(policy)
        encoders = []
        for key, space in observation_parts(policy.observation_space):
            encoders.append(Encoder(space, statistics.get(key)))
        self.encoders = nn.ModuleList(encoders)
        converters = []
        actions = self.signature.select("action")
        for info, leaf in zip(actions, policy.leaves, strict=True):
            converters.append(EnvAction(info, leaf, policy.rescale_actions))
        self.converters = nn.ModuleList(converters)

    def forward(self, *inputs: th.Tensor) -> tuple[th.Tensor, ...]:
        """
        :param inputs: Inputs in the order of the signature
        :return: Outputs in the order of the signature
        """
        by_role: dict[str, list[th.Tensor]] = {"observation": [], "action_mask": [], "state": []}
        for info, value in zip(self.signature.inputs, inputs, strict=True):
            by_role[info.role].append(value)
        masks = by_role["action_mask"]
        params, states = self._params_and_states(by_role["observation"], by_role["state"])
        actions = self._actions(params, masks[0] if masks else None)
        return (*actions, *states)

    def _params_and_states(
        self, observations: list[th.Tensor], states: list[th.Tensor]
    ) -> tuple[th.Tensor, list[th.Tensor]]:
        """Outputs of the actor's last layer, and the next recurrent states."""
        policy = self.policy
        features = self._features(observations)
        if policy.one_hot is not None:
            # `len` would fix the size of the batch in the exported graph
            ids = policy.one_hot.expand(features.shape[0], -1)
            features = th.cat([features, ids], dim=1)
        if policy.memory is not None:
            features, states = one_step(policy.memory, features, states)
        return policy.head(policy.body(features)), states

    def _features(self, observations: list[th.Tensor]) -> th.Tensor:
        space = self.policy.observation_space
        pairs = zip(observation_parts(space), self.encoders, observations, strict=True)
        encoded = {key: encoder(value) for (key, _), encoder, value in pairs}
        obs: Any = encoded if isinstance(space, spaces.Dict) else encoded[""]
        obs = preprocess_obs(obs, space, normalize_images=self.policy.normalize_images)
        assert self.policy.features_extractor is not None
        return self.policy.features_extractor(obs)

    def _actions(self, params: th.Tensor, masks: th.Tensor | None) -> list[th.Tensor]:
        parts = self.policy.action_head.parts
        outputs = params.split([part.n_params for part in parts], dim=1)
        n_choices = [part.n_choices for part in parts]
        legal: Any = [None] * len(parts)
        if masks is not None:
            # Not every runtime compares int8
            legal = masks.to(th.int32).split(n_choices, dim=1)
        actions = []
        for part, own, mask, convert in zip(parts, outputs, legal, self.converters, strict=True):
            actions.append(convert(best_action(part, own, mask)))
        return actions


class Encoder(nn.Module):
    """
    Conversion of one part of an observation from the environment's own form to that of the joint
    observation (:mod:`sb3_happo.envs.encodings`), and its normalisation.

    :param space: Space of the part in the policy's observation space
    :param statistics: Statistics of the part; None if it is not normalised
    """

    mean: th.Tensor
    std: th.Tensor
    start: th.Tensor

    def __init__(self, space: spaces.Space, statistics: Statistics | None) -> None:
        super().__init__()
        own = own_space(space)
        self.is_constant = is_constant(space)
        self.is_real = isinstance(own, spaces.Box) and own.dtype.kind == "f"
        self.is_number = isinstance(own, spaces.Box) and own.shape == ()
        self.is_vector = isinstance(own, spaces.MultiDiscrete)
        self.counts = isinstance(own, (spaces.Discrete, spaces.MultiDiscrete))
        if isinstance(own, (spaces.Discrete, spaces.MultiDiscrete)):
            self.register_buffer("start", th.as_tensor(np.asarray(own.start, np.int64)))
        self.clip = None if statistics is None else statistics.clip
        if statistics is not None:
            self.register_buffer("mean", th.as_tensor(statistics.mean, dtype=th.float64))
            self.register_buffer("std", th.as_tensor(statistics.std, dtype=th.float64))

    def forward(self, value: th.Tensor) -> th.Tensor:
        """
        :param value: Observations in the environment's form, ``(batch, ...)``
        :return: Observations in the form of the policy's space, normalised
        """
        if self.is_constant:
            return th.zeros_like(value)
        if self.counts:
            value = value.long() - self.start
        if self.is_vector:
            value = value.flatten(start_dim=1)
        if self.is_number:
            value = value.unsqueeze(1)
        if self.clip is not None:
            # In float64, as VecNormalize computes: a mean may be large beside the deviation
            value = ((value.double() - self.mean) / self.std).clamp(-self.clip, self.clip)
            value = value.float()
        return value.float() if self.is_real else value


class EnvAction(nn.Module):
    """
    Conversion of the raw action of one plain space to the environment's action, as in
    :class:`~sb3_happo.common.env_actions.EnvActions`.

    :param info: Output that holds the action
    :param leaf: The plain space
    :param rescale: Whether Box actions are scaled from [-1, 1] to their bounds
    """

    low: th.Tensor
    high: th.Tensor
    start: th.Tensor

    def __init__(self, info: TensorInfo, leaf: ActionLeaf, rescale: bool) -> None:
        super().__init__()
        space = leaf.space
        self.shape = info.shape
        self.dtype: th.dtype = getattr(th, info.dtype)
        self.rescale = rescale
        self.is_box = isinstance(space, spaces.Box)
        self.counts = isinstance(space, (spaces.Discrete, spaces.MultiDiscrete))
        if isinstance(space, spaces.Box):
            self.register_buffer("low", th.as_tensor(space.low))
            self.register_buffer("high", th.as_tensor(space.high))
        if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            start = np.asarray(space.start, np.int64).reshape(info.shape)
            self.register_buffer("start", th.as_tensor(start))

    def forward(self, raw: th.Tensor) -> th.Tensor:
        """
        :param raw: Raw actions, ``(batch, n_actions)``
        :return: Actions of the environment, ``(batch, ...)``
        """
        value = raw.reshape(-1, *self.shape)
        if self.counts:
            return value.long() + self.start
        if self.is_box and self.rescale:
            share = 0.5 * (value.clamp(-1.0, 1.0) + 1.0)
            value = self.low + share * (self.high - self.low)
        if self.is_box:
            value = value.clamp(self.low, self.high)
        return value.to(self.dtype)


def best_action(part: LeafHead, params: th.Tensor, mask: th.Tensor | None) -> th.Tensor:
    """
    :param part: Part of a head
    :param params: Outputs of the actor that belong to it, ``(batch, n_params)``
    :param mask: Legal choices, ``(batch, n_choices)``; None where all are
    :return: Most likely raw actions, ``(batch, n_actions)``
    """
    if isinstance(part, ChoiceHead):
        values = part.values(params, mask).split(part.factors, dim=1)
        return th.stack([options.argmax(dim=1) for options in values], dim=1)
    if isinstance(part, BitsHead):
        return (params > 0).to(params.dtype)
    return part.decode(part.mode(params, mask))


def one_step(
    memory: RecurrentLayers, features: th.Tensor, states: list[th.Tensor]
) -> tuple[th.Tensor, list[th.Tensor]]:
    """
    One step of recurrent layers.

    :param memory: Recurrent layers
    :param features: Features, ``(batch, input_size)``
    :param states: States before the step, each ``(n_layers, batch, hidden_size)``
    :return: Output ``(batch, hidden_size)``, and the states after the step
    """
    if memory.norm is not None:
        features = memory.norm(features)
    before: Any = states[0] if len(states) == 1 else tuple(states)
    output, after = memory.rnn(features.unsqueeze(0), before)
    after = [after] if len(states) == 1 else list(after)
    return output.squeeze(0), cast(list[th.Tensor], after)
