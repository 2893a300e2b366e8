"""Random play of joint environments, and action spaces of every kind."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_happo.envs import JointEnv
from sb3_happo.envs.spaces import split_mask

ALL_KINDS = {
    "discrete": spaces.Discrete(3, start=2),
    "multi": spaces.MultiDiscrete([2, 3]),
    "binary": spaces.MultiBinary(4),
    "box": spaces.Box(-1, 1, (2, 2), np.float32),
    "scalar": spaces.Box(-1, 1, (), np.float32),
    "double": spaces.Box(0, 5, (2,), np.float64),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Box(-1, 1, (2,), np.float32)]),
    "dict": spaces.Dict(
        {
            "move": spaces.Box(-1, 1, (2,), np.float64),
            "say": spaces.Tuple([spaces.MultiDiscrete([2, 2])]),
        }
    ),
}


def legal_actions(env: JointEnv, observation: dict[str, Any]) -> dict[str, Any]:
    """Random actions of the whole team that keep to the masks."""
    actions = {}
    for agent, space in env.action_space.items():
        mask = observation.get(f"{agent}/action_mask")
        actions[agent] = space.sample(None if mask is None else split_mask(space, mask))
    return actions


def episode(env: JointEnv, seed: int = 0) -> Iterator[tuple[dict, float, bool, bool, dict]]:
    """One episode of random legal actions; the reset comes first, as a step without reward."""
    env.action_space.seed(seed)
    observation, info = env.reset(seed=seed)
    terminated = truncated = False
    yield observation, 0.0, False, False, info
    while not (terminated or truncated):
        observation, reward, terminated, truncated, info = env.step(legal_actions(env, observation))
        yield observation, reward, terminated, truncated, info
