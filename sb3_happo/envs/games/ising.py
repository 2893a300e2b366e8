"""Lattice of spins: every agent wants to agree with its neighbours."""

import math
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.games.drawing import BLUE, YELLOW, Canvas
from sb3_happo.envs.games.game import Game, at_least, names

_CELL = 10


class Ising(Game):
    """
    Ising lattice of Yang et al. (2018), "Mean Field Multi-Agent Reinforcement Learning", arXiv
    1802.05438: ``size x size`` agents on a torus choose a spin each, -1 (action 0) or 1 (action 1).
    An agent's reward is half the sum of ``s_i s_j`` over its four neighbours ``j``, as in the
    paper's code, for the spins after the step. Each agent observes its neighbours' spins.

    Optimum: 2 per agent and step, if all spins agree.

    At a temperature the answer is that of physics. Agents that choose with probabilities
    proportional to ``exp(q / T)``, ``q`` the reward of the choice given the neighbours' spins, are
    heat-bath dynamics of the Ising model at temperature ``2 T``. The mean spin is then Onsager's
    ``(1 - sinh(1 / T)^-4)^(1/8)`` below the critical temperature 1.1346 and 0 above, see
    :meth:`exact_magnetization`; on 20 x 20 spins 0.957 at T = 0.9 and about 0.085 at T = 2.

    If all agents choose at once, the two sublattices may end in opposite phases, in which the mean
    spin is 0 and :attr:`staggered_magnetization` is not. With ``checkerboard=True`` they choose in
    turns: at even steps the white sites, at odd steps the black ones, and action masks let the
    others keep their spins only.

    :param size: Number of rows and of columns; at least 3, and even with ``checkerboard``
    :param length: Steps of an episode, which then is truncated
    :param observe_neighbors: True if an agent observes its neighbours' spins (up, down, left,
        right), False if it observes the constant 1
    :param checkerboard: Whether the two sublattices choose in turns
    :param render_mode: "rgb_array" or None
    :raises ValueError: If the size is not possible
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "ising", "render_fps": 10}

    #: Temperature of the agents' choices above which there is no order
    CRITICAL_TEMPERATURE: ClassVar[float] = 1.0 / math.log(1.0 + math.sqrt(2.0))

    def __init__(
        self,
        size: int = 20,
        length: int = 100,
        observe_neighbors: bool = True,
        checkerboard: bool = False,
        render_mode: str | None = None,
    ) -> None:
        self.size = at_least("size", size, 3)
        if checkerboard and self.size % 2:
            raise ValueError(f"checkerboard=True needs an even size, not {self.size}.")
        self.observe_neighbors = observe_neighbors
        self.checkerboard = checkerboard
        n_agents = self.size**2
        sites = np.arange(n_agents).reshape(self.size, self.size)
        shifts = [np.roll(sites, shift, axis) for axis in (0, 1) for shift in (1, -1)]
        #: Indices of the agents' neighbours (up, down, left, right), ``(n_agents, 4)``
        self.neighbors = np.stack(shifts, axis=-1).reshape(n_agents, 4)
        rows, columns = np.divmod(np.arange(n_agents), self.size)
        self._is_black = (rows + columns) % 2 == 1
        own = spaces.Box(0, 1, (1,), np.float32)
        if observe_neighbors:
            own = spaces.Box(-1, 1, (4,), np.float32)
        space: spaces.Space = own
        if checkerboard:
            mask_space = spaces.Box(0, 1, (2,), np.int8)
            space = spaces.Dict({"observation": own, "action_mask": mask_space})
        super().__init__(
            names(n_agents),
            [space] * n_agents,
            [spaces.Discrete(2) for _ in range(n_agents)],
            length,
            truncate=True,
            render_mode=render_mode,
        )
        self._spins = np.ones(n_agents, np.int8)

    @classmethod
    def exact_magnetization(cls, temperature: float) -> float:
        """
        Mean spin of an endless lattice in equilibrium (Onsager; Yang 1952).

        :param temperature: Temperature of the agents' choices
        :return: Absolute mean spin, in [0, 1]
        """
        if temperature >= cls.CRITICAL_TEMPERATURE:
            return 0.0
        if temperature < 0.01:  # the power below would overflow
            return 1.0
        return float((1.0 - math.sinh(1.0 / temperature) ** -4) ** 0.125)

    @property
    def optimum(self) -> float:
        """
        :return: Largest return of an episode, the mean over the agents
        """
        return 2.0 * self.length

    @property
    def spins(self) -> np.ndarray:
        """
        :return: Present spins, -1 or 1, ``(size, size)``, int8; a copy
        """
        return self._spins.reshape(self.size, self.size).copy()

    @property
    def magnetization(self) -> float:
        """
        :return: Absolute mean spin, in [0, 1]
        """
        return abs(float(self._spins.mean()))

    @property
    def staggered_magnetization(self) -> float:
        """
        :return: Absolute mean spin with the sign of the black sites turned round, in [0, 1]
        """
        return abs(float(np.where(self._is_black, -self._spins, self._spins).mean()))

    def state(self) -> np.ndarray:
        """
        :return: Present spins, ``(size * size,)``
        """
        return self._spins.astype(np.float32)

    def _begin(self) -> None:
        self._spins = self._rng.choice(np.array([-1, 1], np.int8), self.size**2)

    def _masks(self) -> np.ndarray:
        """Masks of all agents, ``(n_agents, 2)``: those not on turn keep their spins."""
        masks = np.ones((self.size**2, 2), np.int8)
        waiting = self._is_black if self._t % 2 == 0 else ~self._is_black
        masks[waiting] = np.stack([self._spins == -1, self._spins == 1], axis=-1)[waiting]
        return masks

    def _observations(self) -> list[Any]:
        own = np.ones((self.size**2, 1), np.float32)
        if self.observe_neighbors:
            own = self._spins[self.neighbors].astype(np.float32)
        if not self.checkerboard:
            return list(own)
        pairs = zip(own, self._masks(), strict=True)
        return [{"observation": row, "action_mask": mask} for row, mask in pairs]

    def _play(self, actions: list[Any]) -> np.ndarray:
        choices = np.array(actions)
        if self.checkerboard:
            legal = self._masks()[np.arange(len(choices)), choices]
            if not legal.all():
                first = self.possible_agents[int(np.argmin(legal))]
                raise ValueError(
                    f"Agent {first!r} is not on turn and must keep its spin; its action mask says "
                    "so."
                )
        self._spins = (2 * choices - 1).astype(np.int8)
        return 0.5 * self._spins * self._spins[self.neighbors].sum(axis=1)

    def _draw(self) -> np.ndarray:
        canvas = Canvas(self.size * _CELL, self.size * _CELL)
        for (row, column), spin in np.ndenumerate(self.spins):
            colour = YELLOW if spin > 0 else BLUE
            canvas.rectangle(column * _CELL, row * _CELL, _CELL - 1, _CELL - 1, colour)
        return canvas.pixels
