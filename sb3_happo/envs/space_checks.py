"""Checks of a team's spaces before training."""

from typing import cast

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.spaces import (
    ACTION_MASK,
    ACTIVE,
    AGENT_STATES,
    PLAIN_SPACES,
    STATE,
    n_choices,
    subspaces,
)


def check_action_spaces(action_space: spaces.Space) -> None:
    """
    Check that the algorithms can learn on a team's action spaces.

    :param action_space: Joint action space
    :raises TypeError: If it is no Dict of the agents' spaces, or an agent's space is of an unsupported kind
    :raises ValueError: If there are no agents, a Box is unbounded, or an agent has nothing to decide
    """
    if not isinstance(action_space, spaces.Dict):
        raise TypeError(
            f"A team's action space must be a Dict of the agents' own, not {action_space}; wrap the env with JointEnv."
        )
    if not action_space.spaces:
        raise ValueError("The team has no agents.")
    for agent, space in action_space.spaces.items():
        _check_action_space(f"agent {agent!r}", space)


def _check_action_space(owner: str, space: spaces.Space) -> None:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        if not space.spaces:
            raise ValueError(
                f"{owner} has an empty action space {space}; give it something to decide, or leave it out of the team."
            )
        for name, _, subspace in subspaces(space):
            if not name:
                raise ValueError(
                    f"{owner} has an action space with an empty key; give the key a name."
                )
            _check_action_space(f"{owner}, part {name!r} of its action,", subspace)
    elif not isinstance(space, PLAIN_SPACES):
        raise TypeError(
            f"{owner} has an unsupported action space {space}; "
            "use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these."
        )
    elif isinstance(space, spaces.Box):
        if not np.issubdtype(space.dtype, np.floating):
            raise TypeError(
                f"{owner} has a Box action space of {space.dtype}; use MultiDiscrete for whole numbers."
            )
        if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
            raise ValueError(
                f"{owner} has an infinite Box action space {space}; wrap the env so that its bounds are finite, "
                "for example with supersuit.action_lambda_v1 or gymnasium.wrappers.TransformAction."
            )
        if not np.prod(space.shape):
            raise ValueError(
                f"{owner} has a Box action space of shape {space.shape}, with nothing to decide."
            )


def check_observation_spaces(observation_space: spaces.Space) -> None:
    """
    Check that the algorithms can learn on a joint observation space.

    :param observation_space: Joint observation space
    :raises TypeError: If it is no flat Dict of supported spaces
    :raises ValueError: If the critic's entry is missing
    """
    if not isinstance(observation_space, spaces.Dict):
        raise TypeError(
            f"A team's observation space must be a Dict, not {observation_space}; wrap the env with JointEnv."
        )
    for key, space in observation_space.spaces.items():
        if not isinstance(space, PLAIN_SPACES):
            raise TypeError(
                f"Entry {key!r} of the joint observation has an unsupported space {space}; the Dict must be flat, of Box, "
                "Discrete, MultiDiscrete and MultiBinary. JointEnv makes it so."
            )
        if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(space.start):
            raise ValueError(
                f"Entry {key!r} of the joint observation counts from {space.start}, and SB3 encodes such observations from 0; "
                "let the env subtract it."
            )
        if (space.shape == () and isinstance(space, spaces.Box)) or (
            isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim > 1
        ):
            raise ValueError(
                f"Entry {key!r} of the joint observation has the shape {space.shape}, which SB3's features extractors do not "
                "take; let the env return a vector."
            )
    if not any(
        key in (STATE, AGENT_STATES) or key.startswith(STATE + "/")
        for key in observation_space.spaces
    ):
        raise ValueError(
            f"The joint observation has no entry {STATE!r} for the critic; wrap the env with JointEnv."
        )


def check_team_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    Check both of a team's spaces before training.

    :param observation_space: Joint observation space
    :param action_space: Joint action space
    :raises TypeError: If a space is of an unsupported kind
    :raises ValueError: If a space cannot be learned on
    """
    check_action_spaces(action_space)
    check_observation_spaces(observation_space)
    _check_flags(cast(spaces.Dict, observation_space), cast(spaces.Dict, action_space))


def _check_flags(observation_space: spaces.Dict, action_space: spaces.Dict) -> None:
    """Those of VecFrameStack, which puts them one behind the other, are as good as single ones."""
    sizes = {ACTIVE: len(action_space.spaces)} | {
        f"{agent}/{ACTION_MASK}": n_choices(space) for agent, space in action_space.spaces.items()
    }
    for key, size in sizes.items():
        shape = (observation_space[key].shape or ()) if key in observation_space.spaces else (size,)
        if size and (len(shape) != 1 or shape[0] == 0 or shape[0] % size):
            raise ValueError(
                f"Entry {key!r} of the joint observation has the shape {shape}, where ({size},) is needed. If a wrapper "
                "stacks frames, use SB3's VecFrameStack, or SuperSuit's frame_stack_v1 on the env before it is joined."
            )
