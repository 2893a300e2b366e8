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
    :raises TypeError: If it is no Dict of the agents' spaces, or a space is not supported
    :raises ValueError: If there are no agents, a Box is unbounded, or an agent has nothing to
        decide
    """
    if not isinstance(action_space, spaces.Dict):
        raise TypeError(
            "A team's action space must be a Dict of the agents' own, not "
            f"{action_space}; wrap the env with JointEnv."
        )
    if not action_space.spaces:
        raise ValueError("The team has no agents.")
    for agent, space in action_space.spaces.items():
        _check_action_space(f"agent {agent!r}", space)


def _check_action_space(owner: str, space: spaces.Space) -> None:
    """
    :param owner: Agent, and part of its action, for errors
    :param space: Action space of the agent, or of that part
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        if not space.spaces:
            raise ValueError(
                f"{owner} has an empty action space {space}; give it something to decide, or leave "
                "it out of the team."
            )
        for name, _, subspace in subspaces(space):
            if not name:
                raise ValueError(
                    f"{owner} has an action space with an empty key; give the key a name."
                )
            _check_action_space(f"{owner}, part {name!r} of its action,", subspace)
    elif not isinstance(space, PLAIN_SPACES):
        raise TypeError(
            f"{owner} has an unsupported action space {space}; use Box, Discrete, MultiDiscrete, "
            "MultiBinary, or a Dict or Tuple of these."
        )
    elif isinstance(space, spaces.Box):
        _check_box_actions(owner, space)


def _check_box_actions(owner: str, space: spaces.Box) -> None:
    if not np.issubdtype(space.dtype, np.floating):
        raise TypeError(
            f"{owner} has a Box action space of {space.dtype}; use MultiDiscrete for whole numbers."
        )
    if not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError(
            f"{owner} has an infinite Box action space {space}; wrap the env so that its bounds "
            "are finite, for example with supersuit.action_lambda_v1 or "
            "gymnasium.wrappers.TransformAction."
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
    :raises ValueError: If SB3 cannot encode an entry, or the critic's entry is missing
    """
    if not isinstance(observation_space, spaces.Dict):
        raise TypeError(
            f"A team's observation space must be a Dict, not {observation_space}; wrap the env "
            "with JointEnv."
        )
    for key, space in observation_space.spaces.items():
        _check_entry(key, space)
    for key in observation_space.spaces:
        if key in (STATE, AGENT_STATES) or key.startswith(STATE + "/"):
            return
    raise ValueError(
        f"The joint observation has no entry {STATE!r} for the critic; wrap the env with JointEnv."
    )


def _check_entry(key: str, space: spaces.Space) -> None:
    """
    :param key: Key of an entry of the joint observation
    :param space: Space of the entry
    """
    if not isinstance(space, PLAIN_SPACES):
        raise TypeError(
            f"Entry {key!r} of the joint observation has an unsupported space {space}; the Dict "
            "must be flat, of Box, Discrete, MultiDiscrete and MultiBinary. JointEnv makes it so."
        )
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) and np.any(space.start):
        raise ValueError(
            f"Entry {key!r} of the joint observation counts from {space.start}, and SB3 encodes "
            "such observations from 0; let the env subtract it."
        )
    scalar = isinstance(space, spaces.Box) and space.shape == ()
    nested = isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim > 1
    if scalar or nested:
        raise ValueError(
            f"Entry {key!r} of the joint observation has the shape {space.shape}, which SB3's "
            "features extractors do not take; let the env return a vector."
        )


def check_team_spaces(observation_space: spaces.Space, action_space: spaces.Space) -> None:
    """
    Check both of a team's spaces before training.

    :param observation_space: Joint observation space
    :param action_space: Joint action space
    :raises TypeError: If a space is not supported
    :raises ValueError: If the algorithms cannot learn on a space
    """
    check_action_spaces(action_space)
    check_observation_spaces(observation_space)
    _check_flags(cast(spaces.Dict, observation_space), cast(spaces.Dict, action_space))


def _check_flags(observation_space: spaces.Dict, action_space: spaces.Dict) -> None:
    """
    Check the shapes of the active mask and the action masks. Multiples of their length are
    accepted: VecFrameStack concatenates them.
    """
    sizes = {ACTIVE: len(action_space.spaces)}
    for agent, space in action_space.spaces.items():
        sizes[f"{agent}/{ACTION_MASK}"] = n_choices(space)
    for key, size in sizes.items():
        if not size or key not in observation_space.spaces:
            continue
        shape = observation_space[key].shape or ()
        if len(shape) != 1 or shape[0] == 0 or shape[0] % size:
            raise ValueError(
                f"Entry {key!r} of the joint observation has the shape {shape}, where ({size},) is "
                "needed. If a wrapper stacks frames, use SB3's VecFrameStack, or SuperSuit's "
                "frame_stack_v1 on the env before it is joined."
            )
