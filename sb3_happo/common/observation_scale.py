"""Warnings of observations far from unit scale, and of values far from the returns."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN

from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.common.networks import NetworkOptions
from sb3_happo.common.rollout_buffer import MultiAgentRolloutBuffer
from sb3_happo.common.state_critics import CentralizedCritic
from sb3_happo.common.warn_once import warn_once
from sb3_happo.envs.spaces import is_flag

#: Root mean square of an entry from which on observations are too large
LARGE = 10.0
#: Largest number of an entry, in absolute value, up to which observations are too small
SMALL = 1e-3
#: Normalised value from which on the critic is warned of, in absolute value
LARGE_OUTPUT = 10.0
#: Entries that a warning names
MOST_NAMES = 3

_PLAIN_EXTRACTORS = (None, FlattenExtractor, CombinedExtractor, NatureCNN)


class Reader(NamedTuple):
    """
    Network that reads entries of the joint observation.

    :param name: Name for a warning, such as ``"agent 'walker'"``
    :param keys: Entries that it reads
    :param options: Options of the network
    """

    name: str
    keys: list[str]
    options: NetworkOptions

    def normalizes(self) -> bool:
        """
        :return: True if the network normalises its input, or has an extractor of the user's, which
            may do so
        """
        own = self.options.features_extractor_class not in _PLAIN_EXTRACTORS
        return own or self.options.input_layer_norm


class Scale(NamedTuple):
    """
    Scale of an entry of the joint observation.

    :param rms: Root mean square of all numbers, >= 0
    :param largest: Largest absolute value, >= 0
    """

    rms: float
    largest: float

    @classmethod
    def of_entry(cls, values: th.Tensor) -> "Scale":
        """
        :param values: Numbers of any shape, at least one
        :return: Scale of them
        """
        values = values.double()
        return cls(values.square().mean().sqrt().item(), values.abs().max().item())

    def far(self, small: bool) -> bool:
        """
        :param small: Whether small numbers count
        :return: True if it is far from 1. An entry of zeros is not: it may be that of an absent
            agent
        """
        return self.rms > LARGE or (small and 0.0 < self.largest < SMALL)


def _readers(policy: JointPolicy) -> Iterator[Reader]:
    """The team's networks."""
    for agent, keys in policy.team_spaces.keys.items():
        yield Reader(f"agent {agent!r}", list(keys), policy.policies[agent].options)
    if isinstance(policy.critic, CentralizedCritic):
        yield Reader("the critic", policy.critic.keys, policy.critic.networks[0].options)
        return
    for (agent, keys), network in zip(
        policy.team_spaces.keys.items(), policy.critic.networks, strict=False
    ):
        yield Reader(f"the critic of agent {agent!r}", list(keys), network.options)


def _is_measured(space: spaces.Space | None, key: str) -> bool:
    """True for vectors of numbers. Discrete spaces are one-hot encoded, images divided by 255."""
    return isinstance(space, spaces.Box) and not is_image_space(space) and not is_flag(key)


def _far_entries(
    policy: JointPolicy, observations: Mapping[str, th.Tensor], small: bool
) -> list[str]:
    """Descriptions of the entries that are far from unit scale."""
    assert isinstance(policy.observation_space, spaces.Dict)
    found = []
    for reader in _readers(policy):
        if reader.normalizes():
            continue
        for key in reader.keys:
            if key not in observations or not _is_measured(policy.observation_space.get(key), key):
                continue
            scale = Scale.of_entry(observations[key])
            if scale.far(small):
                found.append(
                    f"{reader.name}, entry {key!r}: root mean square {scale.rms:.3g}, largest "
                    f"absolute value {scale.largest:.3g}"
                )
    return found


def warn_of_observations(
    owner: object,
    policy: JointPolicy,
    observations: Mapping[str, th.Tensor],
    small: bool = True,
) -> None:
    """
    Warn once of observations far from unit scale that reach a network without normalisation.

    :param owner: Algorithm whose warning it is
    :param policy: Team
    :param observations: Joint observations as they arrive, each entry ``(..., *shape)``
    :param small: Whether to warn of small numbers as well as of large ones
    """
    found = _far_entries(policy, observations, small)
    if not found:
        return
    named = "; ".join(found[:MOST_NAMES])
    if len(found) > MOST_NAMES:
        named += f"; and {len(found) - MOST_NAMES} others"
    warn_once(
        owner,
        "observations",
        f"Observations are far from unit scale ({named}). Networks learn badly from such numbers. "
        "Normalise them: VecNormalize(env, norm_reward=False), or "
        "policy_kwargs=dict(input_layer_norm=True).",
    )


def warn_of_values(owner: object, critic: Any, rollout_buffer: MultiAgentRolloutBuffer) -> None:
    """
    Warn once of normalised values far from the returns.

    :param owner: Algorithm whose warning it is
    :param critic: Critic
    :param rollout_buffer: Rollout, with the values as the critic predicted them
    """
    norm = critic.value_norm
    if norm is None:
        return
    outputs = norm.normalize(rollout_buffer.values).abs()
    if critic.n_values > 1:
        # The output for an agent that is absent has no meaning
        outputs = outputs * rollout_buffer.active
    largest = outputs.max().item()
    if largest <= LARGE_OUTPUT:
        return
    name = "The critic"
    if critic.n_values > 1:
        column = int(outputs.flatten(end_dim=1).amax(dim=0).argmax())
        name = f"The critic of agent {rollout_buffer.policy.agents[column]!r}"
    warn_once(
        owner,
        "values",
        f"{name} predicts a value {largest:.3g} standard deviations from the mean of the returns. "
        "Values are clipped to the range of the discounted sums of rewards, with a margin, so that "
        "they stay bounded. Check that observations are near unit scale (VecNormalize(env), or "
        "policy_kwargs=dict(input_layer_norm=True)), or lower `critic_learning_rate`.",
    )
