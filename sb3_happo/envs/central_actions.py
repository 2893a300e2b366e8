"""Actions of a whole team as the action of one agent."""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.spaces import action_converter, flatten_mask, n_choices, subspaces
from sb3_happo.suggestions import did_you_mean

#: Forms of discrete actions
FORMS = ("product", "factored")


class _Part(NamedTuple):
    """
    Part of an agent's action that is neither Dict nor Tuple.

    :param agent: Name of the agent
    :param space: Space of the part
    """

    agent: str
    space: spaces.Space


def central_actions(
    action_space: spaces.Dict, form: str, max_actions: int
) -> "ContinuousActions | DiscreteActions":
    """
    Action space of a team as one agent.

    :param action_space: Action spaces of the agents
    :param form: Form of discrete actions, "product" or "factored"
    :param max_actions: Largest number of choices of the product
    :return: Action space and the way back
    :raises TypeError: If some actions are continuous and others discrete, or a space is not
        supported
    :raises ValueError: If the form is unknown, or the product has too many choices
    """
    if form not in FORMS:
        hint = did_you_mean(str(form), FORMS, otherwise=f"There are {list(FORMS)}.")
        raise ValueError(f"actions={form!r} is unknown. {hint}")
    parts: list[_Part] = []
    for agent, space in action_space.spaces.items():
        parts += [_Part(agent, leaf) for leaf in _leaves(space)]
    continuous = [part.space for part in parts if isinstance(part.space, spaces.Box)]
    if continuous:
        _refuse_mixed(parts)
        return ContinuousActions(action_space, continuous)
    return DiscreteActions(action_space, parts, form == "product", max_actions)


def _refuse_mixed(parts: Sequence[_Part]) -> None:
    """Refuse continuous actions beside discrete ones."""
    # Names of the agents, each once
    continuous: dict[str, bool] = {}
    discrete: dict[str, bool] = {}
    for part in parts:
        kind = continuous if isinstance(part.space, spaces.Box) else discrete
        kind[part.agent] = True
    if discrete:
        raise TypeError(
            f"The actions of {list(continuous)} are continuous and those of {list(discrete)} "
            "discrete, and no algorithm of SB3 chooses both in one action. Train the team with "
            "HAPPO, whose agents each have their own kind, or let the environment turn one kind "
            "into the other."
        )


def _leaves(space: spaces.Space) -> list[spaces.Space]:
    """Spaces inside a Dict or Tuple space, in order; the space itself if it is neither."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        leaves = []
        for _, _, subspace in subspaces(space):
            leaves += _leaves(subspace)
        return leaves
    return [space]


def _nested(space: spaces.Space, values: Iterator[Any]) -> Any:
    """Action of the next values, nested as the space is."""
    if isinstance(space, spaces.Dict):
        return {key: _nested(subspace, values) for key, subspace in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nested(subspace, values) for subspace in space.spaces)
    return next(values)


class ContinuousActions:
    """
    Continuous actions of all agents in one Box, one after the other.

    :param action_space: Action spaces of the agents
    :param parts: Boxes of which they are made, in order
    """

    def __init__(self, action_space: spaces.Dict, parts: Sequence[spaces.Space]) -> None:
        self._agents = action_space
        self._parts = [part for part in parts if isinstance(part, spaces.Box)]
        with np.errstate(over="ignore"):  # bounds beyond the range of float32 become infinite
            low = [part.low.astype(np.float32).ravel() for part in self._parts]
            high = [part.high.astype(np.float32).ravel() for part in self._parts]
        self.space = spaces.Box(np.concatenate(low), np.concatenate(high), dtype=np.float32)
        self._ends = np.cumsum([len(one) for one in low])[:-1]

    def split(self, action: Any) -> dict[str, Any]:
        """
        :param action: Action of the one agent, ``(n,)``
        :return: ``{agent: action}``, of the types that the agents' spaces sample
        :raises ValueError: If the action has another shape
        """
        array = np.asarray(action, np.float32)
        if array.shape != self.space.shape:
            raise ValueError(f"The action has shape {array.shape}, its space {self.space.shape}.")
        values = []
        for part, numbers in zip(self._parts, np.split(array, self._ends), strict=True):
            convert = action_converter(part)
            own = numbers.reshape(part.shape)
            values.append(own if convert is None else convert(own))
        own_values = iter(values)
        return {agent: _nested(space, own_values) for agent, space in self._agents.spaces.items()}


class DiscreteActions:
    """
    Discrete actions of all agents as one choice among all combinations, or as one MultiDiscrete
    with a factor for each choice of each agent.

    In the product the last agent's choice changes fastest, as in ``numpy.ravel_multi_index``.

    :param action_space: Action spaces of the agents
    :param parts: Discrete, MultiDiscrete and MultiBinary spaces of which they are made, in order
    :param is_product: True for the product
    :param max_actions: Largest number of choices of the product
    :raises TypeError: If a space is not supported
    :raises ValueError: If the product has too many choices
    """

    def __init__(
        self, action_space: spaces.Dict, parts: Sequence[_Part], is_product: bool, max_actions: int
    ) -> None:
        self._agents = action_space
        self._parts = [part.space for part in parts]
        factors = [_factors(part) for part in parts]
        #: Number of choices of each factor
        self.sizes = tuple(size for sizes in factors for size in sizes)
        self._ends = np.cumsum([len(sizes) for sizes in factors])[:-1]
        self.is_product = is_product
        self.space: spaces.Space = spaces.MultiDiscrete(np.array(self.sizes))
        if is_product:
            n_actions = math.prod(self.sizes)
            if n_actions > max_actions:
                raise ValueError(
                    f"The team has {n_actions:,} joint actions ({' x '.join(map(str, self.sizes))})"
                    f", more than max_actions={max_actions:,}. Use actions='factored', a "
                    "MultiDiscrete with one factor for each choice, or raise max_actions."
                )
            self.space = spaces.Discrete(n_actions)

    def split(self, action: Any) -> dict[str, Any]:
        """
        :param action: Index of the joint action, or the choice of each factor, ``(n_factors,)``
        :return: ``{agent: action}``, of the types that the agents' spaces sample
        :raises ValueError: If the action is not in the space
        """
        values = []
        choices = self._choices(action)
        for part, chosen in zip(self._parts, np.split(choices, self._ends), strict=True):
            values.append(_action(part, chosen))
        own_values = iter(values)
        return {agent: _nested(space, own_values) for agent, space in self._agents.spaces.items()}

    def _choices(self, action: Any) -> np.ndarray:
        """Choice of each factor, ``(n_factors,)``."""
        array = np.asarray(action)
        fits = array.dtype.kind in "iu" and array.shape == (self.space.shape or ())
        if fits and self.is_product:
            fits = 0 <= int(array) < math.prod(self.sizes)
            if fits:
                array = np.array(np.unravel_index(int(array), self.sizes), np.int64)
        elif fits:
            fits = bool((array >= 0).all() and (array < self.sizes).all())
        if not fits:
            raise ValueError(f"The action {action!r} is not in {self.space}.")
        return array

    def mask(self, agent_masks: dict[str, np.ndarray]) -> np.ndarray:
        """
        Combine the agents' action masks.

        :param agent_masks: Flat masks of the agents that have one, ``(n_choices,)`` each
        :return: Mask of the product, ``(n_actions,)``; or of all factors, one after the other,
            ``(sum of sizes,)``; True where the choice is legal
        """
        masks: list[np.ndarray] = []
        for agent, space in self._agents.spaces.items():
            flat = flatten_mask(space, agent_masks.get(agent)).astype(bool)
            start = 0
            for leaf in _leaves(space):
                n_masked = n_choices(leaf)  # none of a MultiBinary, which has no masks
                own = flat[start : start + n_masked]
                start += n_masked
                sizes = _factors(_Part(agent, leaf))
                if not n_masked:
                    own = np.ones(sum(sizes), bool)
                masks += np.split(own, np.cumsum(sizes)[:-1])
        if self.is_product:
            return np.asarray(functools.reduce(np.logical_and.outer, masks)).ravel()
        return np.concatenate(masks)


def _factors(part: _Part) -> list[int]:
    """Numbers of choices of a discrete part."""
    space = part.space
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(size) for size in space.nvec.ravel()]
    if isinstance(space, spaces.MultiBinary):
        return [2] * int(np.prod(space.shape))
    raise TypeError(f"Agent {part.agent!r} has the unsupported action space {space}.")


def _action(space: spaces.Space, chosen: np.ndarray) -> Any:
    """Action in the form that the space samples, from the choice of each factor."""
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(space.start + chosen[0])
    if isinstance(space, spaces.MultiDiscrete):
        return (chosen.reshape(space.shape) + space.start).astype(space.dtype)
    assert space.shape is not None
    return chosen.reshape(space.shape).astype(space.dtype)
