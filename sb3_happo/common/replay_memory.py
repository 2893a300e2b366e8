"""Memory of a replay buffer: bytes by entry, and the machine's limit."""

from collections.abc import Sequence

import torch as th
from gymnasium import spaces

from sb3_happo.common.distributions import action_leaves
from sb3_happo.common.replay_entries import entry_dtype, entry_size
from sb3_happo.common.rollout_memory import available_bytes, describe


def replay_bytes(
    observation_space: spaces.Dict,
    action_space: spaces.Dict,
    buffer_size: int,
    keys: Sequence[str] | None = None,
) -> dict[str, int]:
    """
    :param observation_space: Joint observation space
    :param action_space: Joint action space
    :param buffer_size: Number of transitions
    :param keys: Stored entries of the joint observation; None for all
    :return: Bytes of the entries, and of ``"actions and rewards"``
    """
    sizes = {}
    for key in observation_space.spaces if keys is None else keys:
        space = observation_space.spaces[key]
        # Before and after the step
        sizes[key] = 2 * entry_dtype(key, space).itemsize * entry_size(space)
    # Reward, done and time limit; actions and own rewards; four masks of activity
    n_agents = len(action_space.spaces)
    floats = 3 + n_agents
    for space in action_space.spaces.values():
        floats += sum(leaf.n_actions for leaf in action_leaves(space))
    sizes["actions and rewards"] = 4 * floats + 4 * n_agents
    return {key: size * buffer_size for key, size in sizes.items()}


def check_replay_memory(sizes: dict[str, int], buffer_size: int) -> None:
    """
    :param sizes: Bytes by entry
    :param buffer_size: Number of transitions
    :raises MemoryError: If the machine has less memory left
    """
    # SB3's buffers are NumPy arrays: in the memory of the CPU, whatever the model's device is
    available = available_bytes(th.device("cpu"))
    needed = sum(sizes.values())
    if available is None or needed <= available:
        return
    fitting = int(buffer_size * available / needed)
    raise MemoryError(
        f"A replay buffer of buffer_size={buffer_size} takes {describe(sizes)}, and "
        f"{available / 1e9:.1f} GB of memory are available. Reduce `buffer_size` below {fitting}, "
        "or choose a smaller `state` of the environment."
    )
