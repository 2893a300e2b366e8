"""Memory of a rollout: entries that are stored, their bytes, and the machine's limit."""

import math
import os
from pathlib import Path

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.envs.spaces import AGENT_STATES, is_flag

_DTYPES = {np.dtype(np.uint8): th.uint8, np.dtype(np.int8): th.int8, np.dtype(np.int64): th.int64}
_CGROUP = Path("/sys/fs/cgroup")


def storage_dtype(key: str, space: spaces.Space) -> th.dtype:
    """
    :param key: Key of the joint observation
    :param space: Space of the entry
    :return: Type in which a rollout stores it
    """
    # VecNormalize turns whole numbers into fractions, and does not change the space's dtype
    quantity = isinstance(space, spaces.Box) and not is_image_space(space) and not is_flag(key)
    return th.float32 if quantity else _DTYPES.get(np.dtype(space.dtype), th.float32)


def stored_keys(policy: JointPolicy) -> list[str]:
    """
    :param policy: Team
    :return: Entries of the joint observation that an actor or the critic reads; others, such as the
        state beside local critics, are not stored
    """
    team = policy.team_spaces
    read = {*policy.critic.keys, *team.mask_keys.values()}
    for own in team.keys.values():
        read.update(own)
    assert isinstance(policy.observation_space, spaces.Dict)
    return [key for key in policy.observation_space.spaces if key in read]


def rollout_bytes(
    policy: JointPolicy, n_steps: int, n_envs: int, n_values: int = 1
) -> dict[str, int]:
    """
    :param policy: Team
    :param n_steps: Steps per environment
    :param n_envs: Number of environments
    :param n_values: Columns of the critic's values
    :return: Bytes of the entries of the joint observation, and of ``"actions and values"``
    """
    assert isinstance(policy.observation_space, spaces.Dict)
    sizes = {}
    for key in stored_keys(policy):
        space = policy.observation_space.spaces[key]
        item = th.empty((), dtype=storage_dtype(key, space)).element_size()
        sizes[key] = item * math.prod(space.shape or ())
    # Actions, a log-probability and an active flag per agent; rewards, values, returns, advantages
    floats = 4 * n_values + 1
    for actor in policy.policies.values():
        floats += 1 + sum(leaf.n_actions for leaf in actor.env_actions.leaves)
    sizes["actions and values"] = 4 * floats + len(policy.agents)
    return {key: size * n_steps * n_envs for key, size in sizes.items()}


def available_bytes(device: th.device) -> int | None:
    """
    :param device: Device
    :return: Bytes that a process can allocate on it, None if unknown. On a CPU the least of the
        free memory of the machine and of the process's control group
    """
    if device.type == "cuda":
        return th.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    limits = [limit for limit in (_free_memory(), _free_in_group()) if limit is not None]
    return min(limits, default=None)


def _free_memory() -> int | None:
    """Memory that is free or can be freed, of the machine; where unknown all its memory."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    except (OSError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _free_in_group() -> int | None:
    """Memory left in the control group of a container, None without a limit."""
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        return max(0, limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        return None


def describe(sizes: dict[str, int]) -> str:
    """
    :param sizes: Bytes by entry
    :return: Sum, and the largest entry
    """
    largest = max(sizes, key=lambda key: sizes[key])
    return f"{_text(sum(sizes.values()))} (largest entry: {largest!r}, {_text(sizes[largest])})"


def _text(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.1f} MB"


def check_memory(
    policy: JointPolicy, n_steps: int, n_envs: int, n_values: int, device: th.device
) -> None:
    """
    :param policy: Team
    :param n_steps: Steps per environment
    :param n_envs: Number of environments
    :param n_values: Columns of the critic's values
    :param device: Device of the rollout
    :raises MemoryError: If the rollout needs more memory than the machine has left
    """
    sizes = rollout_bytes(policy, n_steps, n_envs, n_values)
    available = available_bytes(device)
    if available is None or sum(sizes.values()) <= available:
        return
    remedy = "Reduce `n_steps` or `n_envs`"
    if AGENT_STATES in sizes:
        remedy += ", or give the environment state='observations' in the place of state='agent'"
    else:
        remedy += ", or choose a smaller `state` of the environment"
    raise MemoryError(
        f"A rollout of n_steps={n_steps} in n_envs={n_envs} takes {describe(sizes)}, and "
        f"{_text(available)} of memory are available on {str(device)!r}. {remedy}."
    )
