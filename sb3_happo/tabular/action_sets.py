"""Actions of an agent as numbers from 0."""

import math
from typing import Any

import numpy as np
from gymnasium import spaces

#: Number of actions of one agent at most
MAX_ACTIONS = 10_000


class ActionSet:
    """
    All actions of an agent, numbered from 0.

    :param agent: Name of the agent, for errors
    :param space: Action space: Discrete, MultiDiscrete or MultiBinary
    :param owner: Name of the algorithm, for errors
    :raises ValueError: If the space is continuous or nested, or too large
    """

    def __init__(self, agent: str, space: spaces.Space, owner: str) -> None:
        self._agent = agent
        self.space = space
        if isinstance(space, spaces.Discrete):
            sizes, starts = [int(space.n)], np.array([space.start])
        elif isinstance(space, spaces.MultiDiscrete):
            sizes, starts = space.nvec.ravel().tolist(), space.start.ravel()
        elif isinstance(space, spaces.MultiBinary):
            sizes = [2] * math.prod(space.shape)
            starts = np.zeros(len(sizes), np.int64)
        else:
            raise ValueError(
                f"{owner} learns a table of actions, and the actions of agent {agent!r} are those "
                f"of {space}; Discrete, MultiDiscrete and MultiBinary are possible. Make them "
                "discrete with a wrapper, or learn with networks, such as HAPPO."
            )
        #: Number of actions
        self.n = math.prod(sizes)
        if self.n > MAX_ACTIONS:
            raise ValueError(
                f"Agent {agent!r} has {self.n} actions ({space}), and a table of {owner} takes at "
                f"most {MAX_ACTIONS}; learn with networks, such as HAPPO."
            )
        #: Choices of each part, counted from 0, ``(n, n_parts)``
        self._choices = np.stack(np.unravel_index(np.arange(self.n), sizes), axis=1)
        self._offsets = np.cumsum([0, *sizes[:-1]])
        values = (self._choices + starts).reshape(self.n, *(space.shape or ()))
        #: Actions as the environment takes them, ``(n, *shape)``
        self.values = values.astype(space.dtype)

    def legal(self, mask: Any) -> tuple[int, ...] | None:
        """
        :param mask: Action mask, 1 where a choice is legal, one part after the other
        :return: Numbers of the legal actions; None for all
        :raises ValueError: If the mask is of another length, or allows nothing
        """
        allowed = np.asarray(mask).ravel() != 0
        n_choices = int(self._offsets[-1] + self._choices[:, -1].max() + 1)
        if len(allowed) < n_choices:
            raise ValueError(
                f"agent {self._agent!r}: the action mask has {len(allowed)} entries, and needs "
                f"{n_choices}."
            )
        # With VecFrameStack, the latest mask is the last one
        allowed = allowed[-n_choices:]
        if allowed.all():
            return None
        legal = np.flatnonzero(allowed[self._choices + self._offsets].all(axis=1))
        if not len(legal):
            raise ValueError(
                f"agent {self._agent!r}: its action mask allows nothing; one action must be legal."
            )
        return tuple(legal.tolist())
