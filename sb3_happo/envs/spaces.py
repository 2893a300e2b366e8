"""Spaces of a team: joint actions as structured arrays, action masks, and the checks of what can be learned on."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

STATE = "state"
AGENT_STATES = "agent_states"
ACTION_MASK = "action_mask"
ACTIVE = "active"
OBSERVATION = "observation"

_PLAIN_ACTION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_PLAIN_OBSERVATION_SPACES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def subspaces(space: spaces.Dict | spaces.Tuple) -> list[tuple[str, Any, spaces.Space]]:
    """
    The parts of a nested space.

    :param space: Dict or Tuple space
    :return: For each part its name (the key, or "0", "1", ... for a Tuple), its key in the space's own samples, and its space
    """
    items = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
    return [(str(key), key, subspace) for key, subspace in items]


# ---------------------------------------------------------------- joint actions


def joint_action_dtype(action_space: spaces.Dict) -> np.dtype:
    """
    The dtype of a team's joint actions: a structured array with one row per environment and one field per agent.

    Discrete becomes an int64 scalar, MultiDiscrete its own dtype and shape, MultiBinary int8 of its shape, Box float32 of its
    shape, and a Dict or Tuple a nested structured field whose sub-fields are named by key, or "0", "1", ... The fields hold
    actions of the agents' own spaces: a Discrete with ``start=5`` counts from 5.

    :param action_space: The agents' action spaces
    :return: The dtype; ``actions["agent_0"]`` is then that agent's batch, and ``actions[i]`` the joint action of environment
        ``i``
    :raises TypeError: If a space has no such form
    """
    return _field_dtype(action_space)


def _field_dtype(space: spaces.Space) -> np.dtype:
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return np.dtype([(name, _field_dtype(subspace)) for name, _, subspace in subspaces(space)])
    if isinstance(space, spaces.Discrete):
        return np.dtype(np.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return np.dtype((space.dtype, space.shape))
    if isinstance(space, spaces.MultiBinary):
        return np.dtype((np.int8, space.shape))
    if isinstance(space, spaces.Box):
        return np.dtype((np.float32, space.shape))
    raise TypeError(
        f"Unsupported action space {space}; use Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these."
    )


class _NestedConverter:
    """Rebuilds a Dict or Tuple action from the nested tuple that ``np.void.item()`` makes of it."""

    def __init__(self, space: spaces.Dict | spaces.Tuple) -> None:
        parts = subspaces(space)
        self.keys = [key for _, key, _ in parts] if isinstance(space, spaces.Dict) else None
        self.converters = [action_converter(subspace) for _, _, subspace in parts]

    def __call__(self, values: tuple) -> dict[str, Any] | tuple:
        pairs = zip(values, self.converters, strict=True)
        converted = tuple(value if convert is None else convert(value) for value, convert in pairs)
        return converted if self.keys is None else dict(zip(self.keys, converted, strict=True))


def action_converter(space: spaces.Space) -> Callable[[Any], Any] | None:
    """
    How to turn one agent's part of ``joint_action.item()`` into an action of its own space.

    :param space: The agent's action space
    :return: A picklable function, or None where the value already is the action
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return _NestedConverter(space)
    if isinstance(space, spaces.Box) and (space.dtype != np.float32 or space.shape == ()):
        return partial(np.asarray, dtype=space.dtype)
    return None


def joint_action_to_dict(
    action_space: spaces.Dict, joint_action: np.void | np.ndarray
) -> dict[str, Any]:
    """
    Split one environment's joint action.

    :param action_space: The agents' action spaces
    :param joint_action: One row of an array of dtype :func:`joint_action_dtype`
    :return: ``{agent: action}`` in the agents' own spaces (Discrete actions as ``int``)
    """
    values: Any = joint_action.item()
    return cast(dict[str, Any], _NestedConverter(action_space)(values))


# ---------------------------------------------------------------- action masks


def is_flag(key: str) -> bool:
    """
    :param key: Of an entry of a joint observation, or of a single agent's
    :return: Whether it is 0 or 1 and means that, an action mask or who is active: no quantity to be normalised
    """
    return key == ACTIVE or key.rpartition("/")[2] == ACTION_MASK


def n_choices(space: spaces.Space) -> int:
    """
    Length of an agent's action mask.

    :param space: The agent's action space
    :return: ``n`` of Discrete, the sum of ``nvec`` of MultiDiscrete, the sum over the parts of Dict and Tuple, 0 for the
        others
    """
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return sum(n_choices(subspace) for _, _, subspace in subspaces(space))
    return 0


def flatten_mask(space: spaces.Space, mask: Any) -> np.ndarray:
    """
    Lay out an environment's action mask flat, one head after the other, as sb3-contrib does.

    :param space: The agent's action space
    :param mask: A flat mask; or nested as Gymnasium's ``space.sample(mask)`` takes it (one array per MultiDiscrete head, a
        Dict or Tuple of masks for a Dict or Tuple space), in which None allows everything
    :return: 1 where a choice is legal, ``(n_choices,)``, int8
    :raises ValueError: If the mask has another length
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)) and isinstance(mask, (Mapping, tuple, list)):
        parts = [
            flatten_mask(subspace, mask.get(key) if isinstance(mask, Mapping) else mask[key])
            for _, key, subspace in subspaces(space)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, np.int8)
    size = n_choices(space)
    if mask is None or not size:
        return np.ones(size, np.int8)
    if isinstance(mask, (tuple, list)) and mask and np.ndim(mask[0]):
        mask = np.concatenate([np.ravel(head) for head in mask])
    flat = np.asarray(mask).ravel()
    if flat.shape != (size,):
        raise ValueError(
            f"an action mask of shape {np.shape(mask)} where {space} needs {size} entries"
        )
    return flat.astype(np.int8, copy=False)


def split_mask(space: spaces.Space, mask: np.ndarray) -> Any:
    """
    The inverse of :func:`flatten_mask`: the form that Gymnasium's ``space.sample(mask)`` takes.

    :param space: The agent's action space
    :param mask: 1 where a choice is legal, ``(n_choices,)``, int8
    :return: The mask, nested as the space is
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        parts = subspaces(space)
        ends = np.cumsum([n_choices(subspace) for _, _, subspace in parts])[:-1]
        masks = [
            split_mask(subspace, part)
            for (_, _, subspace), part in zip(parts, np.split(mask, ends), strict=True)
        ]
        if isinstance(space, spaces.Tuple):
            return tuple(masks)
        return dict(zip(space.spaces, masks, strict=True))
    if isinstance(space, spaces.MultiDiscrete):
        return _split_heads(space.nvec, mask)
    return mask if isinstance(space, spaces.Discrete) else None


def _split_heads(nvec: npt.NDArray[np.integer], mask: np.ndarray) -> tuple:
    if nvec.ndim == 1:
        return tuple(np.split(mask, np.cumsum(nvec)[:-1]))
    ends = np.cumsum(nvec.reshape(len(nvec), -1).sum(axis=1))[:-1]
    return tuple(
        _split_heads(heads, part) for heads, part in zip(nvec, np.split(mask, ends), strict=True)
    )


# ---------------------------------------------------------------- observations


def is_image(space: spaces.Space) -> bool:
    """
    :param space: An observation space
    :return: Whether Stable-Baselines3 takes it for an image: uint8 in [0, 255] with three dimensions
    """
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) == 3
        and bool((space.low == 0).all() and (space.high == 255).all())
    )


def float32_space(space: spaces.Space) -> spaces.Space:
    """
    :param space: A plain observation space
    :return: The same, with any floating-point Box turned into a float32 one
    """
    if (
        not isinstance(space, spaces.Box)
        or not np.issubdtype(space.dtype, np.floating)
        or space.dtype == np.float32
    ):
        return space
    with np.errstate(over="ignore"):  # float64's bounds beyond float32's range mean: no bounds
        return spaces.Box(
            space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32
        )


def observation_leaves(space: spaces.Space, path: tuple = ()) -> list[tuple[tuple, spaces.Space]]:
    """
    The plain spaces inside an observation space.

    :param space: An agent's observation space
    :param path: Keys that lead to ``space``
    :return: For each plain space the keys that lead to its value in an observation (empty where the whole space is plain), and
        the space, float32 where it was float64
    :raises TypeError: If a space is not supported
    """
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return [
            leaf
            for _, key, subspace in subspaces(space)
            for leaf in observation_leaves(subspace, (*path, key))
        ]
    if not isinstance(space, _PLAIN_OBSERVATION_SPACES):
        raise TypeError(
            f"unsupported observation space {space}; turn it into Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or "
            "Tuple of these, for example with a wrapper that pads sequences"
        )
    return [(path, float32_space(space))]


# ---------------------------------------------------------------- checks before training


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
    elif not isinstance(space, _PLAIN_ACTION_SPACES):
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
        if not isinstance(space, _PLAIN_OBSERVATION_SPACES):
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
