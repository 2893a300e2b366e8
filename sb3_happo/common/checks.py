"""Checks of spaces and numbers before and during training."""

import contextlib
import warnings
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.common.state_critics import critic_keys
from sb3_happo.envs.spaces import ACTION_MASK


def is_joint(observation_space: spaces.Space, action_space: spaces.Space) -> bool:
    """
    :param observation_space: Observation space of an environment
    :param action_space: Action space of the environment
    :return: True if they are those of a ``JointEnv``
    """
    if not isinstance(action_space, spaces.Dict) or not isinstance(observation_space, spaces.Dict):
        return False
    return bool(critic_keys(observation_space))


def check_channel_order(observation_space: spaces.Space) -> None:
    """
    :param observation_space: Joint observation space
    :raises ValueError: If there are images with channels first and others with channels last. SB3
        transposes all images of an environment or none
    """
    assert isinstance(observation_space, spaces.Dict)
    first: list[str] = []
    last: list[str] = []
    for key, space in observation_space.spaces.items():
        if is_image_space(space):
            assert isinstance(space, spaces.Box)
            (first if is_image_space_channels_first(space) else last).append(key)
    if first and last:
        raise ValueError(
            f"The images {first} have their channels first, {last} have them last, and SB3 handles "
            "either, not both (the smallest axis is taken for the channels). Transpose some in the "
            'environment; for the critic\'s state, joint_kwargs=dict(state="observations") makes '
            "one of the agents' images."
        )


def takes_tensors(env: VecEnv) -> bool:
    """
    :param env: Vectorised environment
    :return: True if it takes actions as tensors and then returns tensors. SB3's wrappers support
        NumPy arrays only
    """
    return env is env.unwrapped and getattr(env, "takes_tensors", False)


def describe_masks(env: VecEnv, observation_space: spaces.Space, action_space: spaces.Space) -> str:
    """
    :param env: Vectorised joint environment
    :param observation_space: Joint observation space
    :param action_space: Joint action space
    :return: Sentence that names the agents with action masks, and where these come from
    """
    assert isinstance(observation_space, spaces.Dict) and isinstance(action_space, spaces.Dict)
    masked = []
    for agent in action_space.spaces:
        if f"{agent}/{ACTION_MASK}" in observation_space.spaces:
            masked.append(agent)
    if not masked:
        return "Action masks: none"
    sources: dict[str, str] = {}
    with contextlib.suppress(NotImplementedError):
        if env.has_attr("mask_sources"):
            sources = env.get_attr("mask_sources", 0)[0]
        elif env.has_attr("action_masks"):
            sources = dict.fromkeys(masked, "action_masks()")
    agents: dict[str, list[str]] = {}
    for agent in masked:
        agents.setdefault(sources.get(agent, "observation"), []).append(agent)
    found = [f"{', '.join(names)} ({source})" for source, names in agents.items()]
    return f"Action masks: {'; '.join(found)}"


def check_batch_sizes(n_steps: int, n_envs: int, sizes: dict[str, int | None]) -> None:
    """
    :param n_steps: Steps per environment and rollout
    :param n_envs: Number of environments
    :param sizes: Rows per minibatch, by the name of the setting; None for all rows
    :raises ValueError: If a rollout or a minibatch has a single row, which cannot be normalised
    """
    n_rows = n_envs * n_steps
    if n_rows < 2:
        raise ValueError(
            f"`n_steps * n_envs` must be greater than 1; here n_steps={n_steps} and "
            f"n_envs={n_envs}."
        )
    warned = set()
    for name, size in sizes.items():
        if size is None:
            continue
        if size < 2:
            raise ValueError(
                f"`{name}` must be greater than 1, not {size}: a single sample cannot be "
                "normalised."
            )
        if size < n_rows and n_rows % size and size not in warned:
            warned.add(size)
            warnings.warn(
                f"`n_steps * n_envs = {n_rows}` is not a multiple of `{name}={size}`: the last "
                f"minibatch of every epoch has only {n_rows % size} samples. We recommend a "
                f"`{name}` that divides {n_rows} (n_steps={n_steps}, n_envs={n_envs}).",
                stacklevel=4,
            )


def all_finite(values: Sequence[th.Tensor]) -> bool:
    """
    :param values: Tensors of any shapes, on one device
    :return: True if there is neither NaN nor infinity in them; False may also be an overflow
    """
    # Sums are faster than a check of every number, and one value is copied from the device
    sums = [value.sum() for value in values if value.is_floating_point()]
    return not sums or bool(th.stack(sums).isfinite().all())


def first_not_finite(values: th.Tensor) -> int | None:
    """
    :param values: ``(n, ...)``
    :return: Index of the first row with NaN or infinity, or None
    """
    rows = (~values.isfinite()).reshape(len(values), -1).any(dim=1).nonzero()
    return int(rows[0]) if len(rows) else None


def check_observations(
    obs: dict[str, th.Tensor], env_indices: Sequence[int], num_timesteps: int
) -> None:
    """
    :param obs: Observations, each entry ``(n, ...)``
    :param env_indices: Indices of their environments, ``(n,)``
    :param num_timesteps: Timesteps so far, for the error
    :raises ValueError: If an observation is NaN or infinite
    """
    for key, value in obs.items():
        row = first_not_finite(value)
        if row is not None:
            refuse_number(f"observation {key!r}", env_indices[row], num_timesteps)


def check_rewards(
    rewards: th.Tensor, agents: Sequence[str], infos: list[dict[str, Any]], num_timesteps: int
) -> None:
    """
    :param rewards: Rewards to learn from, ``(n_envs, ...)``
    :param agents: Names of the agents
    :param infos: Infos of the step, with each agent's own reward
    :param num_timesteps: Timesteps so far, for the error
    :raises ValueError: If a reward is NaN or infinite, with the names of its agents
    """
    index = first_not_finite(rewards)
    if index is None:
        return
    own = zip(agents, infos[index].get("agent_rewards", ()), strict=False)
    blamed = [repr(agent) for agent, reward in own if not np.isfinite(reward)]
    what = f"the reward of {', '.join(blamed)}" if blamed else "the team's reward"
    refuse_number(what, index, num_timesteps)


def refuse_number(what: str, env_index: int, num_timesteps: int) -> NoReturn:
    """
    :param what: Name of the quantity
    :param env_index: Index of its environment
    :param num_timesteps: Timesteps so far
    :raises ValueError: Always
    """
    raise ValueError(
        f"The environment returned NaN or infinity in {what} (environment {env_index}, after "
        f"{num_timesteps} timesteps); run `check_marl_env` on it, or correct the observation or "
        "the reward there."
    )


def check_env_of_model(
    env: VecEnv, observation_space: spaces.Space, action_space: spaces.Space
) -> None:
    """
    :param env: Vectorised joint environment
    :param observation_space: Observation space of the model
    :param action_space: Action space of the model
    :raises ValueError: If the spaces differ, saying where
    """
    assert isinstance(observation_space, spaces.Dict) and isinstance(action_space, spaces.Dict)
    assert isinstance(env.observation_space, spaces.Dict)
    assert isinstance(env.action_space, spaces.Dict)
    if tuple(env.action_space.spaces) != tuple(action_space.spaces):
        raise ValueError(
            f"The model was trained for the team {list(action_space.spaces)}, but this environment "
            f"has {list(env.action_space.spaces)}; load it on the environment it was trained on, "
            "or train a new model."
        )
    _compare("action", action_space, env.action_space)
    _compare("observation", observation_space, env.observation_space)


def _compare(kind: str, of_model: spaces.Dict, of_env: spaces.Dict) -> None:
    """Raise if two joint spaces differ."""
    differing = []
    for key in dict.fromkeys([*of_model.spaces, *of_env.spaces]):
        mine, theirs = of_model.spaces.get(key), of_env.spaces.get(key)
        if mine != theirs:
            differing.append(f"{key!r}: {mine} in the model, {theirs} here")
    if differing:
        raise ValueError(
            f"The model was trained on other {kind} spaces than this environment has "
            f"({'; '.join(differing)}); make the environment with the same arguments and wrappers "
            "as in training."
        )


def check_update_of(algorithm: str, policy: type, names: Collection[str]) -> None:
    """
    :param algorithm: Name of the algorithm
    :param policy: Class of the team
    :param names: Names of the policies of the algorithm
    :raises ValueError: If the algorithm updates agents one after another, and those of the policy
        communicate, so that they have one update
    """
    if getattr(policy, "communicates", False) and "CommNetPolicy" not in names:
        raise ValueError(
            f"{algorithm} updates the agents one after another, and those of {policy.__name__} "
            "read one another's messages and have one update; use MAPPO, IPPO or HAA2C."
        )
