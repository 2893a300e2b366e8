"""Neighbours of agents: all, those within a radius, those of a graph."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_happo.common.team_spaces import TeamSpaces
from sb3_happo.suggestions import did_you_mean

#: "all", a radius, an adjacency matrix, ``{agent: neighbours}``, or a function of an agent's name
Neighbors: TypeAlias = Any
#: Columns of the own observation, ``(n_agents, n_dims)``, or a function of the joint observation
Positions: TypeAlias = Sequence[Any] | np.ndarray | Callable[[Mapping[str, th.Tensor]], th.Tensor]


class Neighborhood(nn.Module):
    """
    Sums over the neighbours of each agent. An agent is not a neighbour of itself.

    :param team: Spaces of the team
    :param neighbors: "all" for all other agents; a radius, a number above 0, with ``positions``; an
        adjacency matrix of zeros and ones, ``(n_agents, n_agents)``, whose row is an agent's
        neighbours; a dict ``{agent: [names of its neighbours]}``; or a function of an agent's name
        that returns these names, which is called once for each agent
    :param positions: Positions for a radius: indices of the columns of each agent's own observation
        that are its coordinates; fixed coordinates, ``(n_agents, n_dims)``, as an array; or a
        function of the joint observation, tensors ``(batch, ...)`` by key, that returns
        coordinates ``(batch, n_agents, n_dims)``
    :raises ValueError: If an agent is unknown, or an argument has another form
    """

    def __init__(
        self, team: TeamSpaces, neighbors: Neighbors = "all", positions: Positions | None = None
    ) -> None:
        super().__init__()
        self.team = team
        self.radius: float | None = None
        self.positions: Any = None
        matrix = None
        if _is_number(neighbors):
            self.radius = _checked_radius(neighbors)
            matrix = self._prepare_positions(positions)
        elif positions is not None:
            raise ValueError(
                "`positions` are for a radius, and `neighbors` is no number; omit `positions`, or "
                "pass the largest distance of neighbours as `neighbors`."
            )
        elif not (isinstance(neighbors, str) and neighbors == "all"):
            matrix = self._matrix(neighbors)
        self.matrix: th.Tensor | None
        self.register_buffer("matrix", matrix, persistent=False)

    # ---------------------------------------------------------------- arguments

    def _prepare_positions(self, positions: Any) -> th.Tensor | None:
        """Check positions; fixed ones become an adjacency matrix."""
        if positions is None:
            raise ValueError(
                f"neighbors={self.radius} is a radius and needs `positions`: the columns of each "
                "agent's own observation that are its coordinates, such as [0, 1]; an array of "
                "fixed coordinates, (n_agents, n_dims); or a function of the joint observation."
            )
        if callable(positions):
            self.positions = positions
            return None
        array = np.asarray(positions)
        if array.ndim == 1 and array.size and np.issubdtype(array.dtype, np.integer):
            self.positions = [int(column) for column in array]
            self._check_columns()
            return None
        if array.ndim != 2 or len(array) != len(self.team.agents):
            raise ValueError(
                f"`positions` must be columns of the observations, whole numbers, or coordinates "
                f"of shape ({len(self.team.agents)}, n_dims), one row for each agent; they have "
                f"the shape {array.shape}."
            )
        fixed = th.as_tensor(array, dtype=th.float32)
        return self._within_radius(fixed.unsqueeze(0)).squeeze(0)

    def _check_columns(self) -> None:
        for agent, space in self.team.own.items():
            if not isinstance(space, spaces.Box) or len(space.shape) != 1:
                raise ValueError(
                    f"`positions` {self.positions} are columns, and the observation of agent "
                    f"{agent!r} is {space}, not a vector; pass a function of the joint observation."
                )
            for column in self.positions:
                if not -space.shape[0] <= column < space.shape[0]:
                    raise ValueError(
                        f"`positions` name the column {column}, and the observation of agent "
                        f"{agent!r} has {space.shape[0]}."
                    )

    def _matrix(self, neighbors: Any) -> th.Tensor:
        """Adjacency matrix, ``(n_agents, n_agents)``."""
        agents = self.team.agents
        if callable(neighbors):
            neighbors = {agent: neighbors(agent) for agent in agents}
        if isinstance(neighbors, Mapping):
            return self._matrix_of_names(neighbors)
        if isinstance(neighbors, str):
            raise ValueError(
                f"neighbors={neighbors!r} is unknown. It is 'all', a radius, an adjacency matrix, "
                "{agent: [neighbours]}, or a function of an agent's name."
            )
        try:
            array = np.asarray(neighbors, np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`neighbors` is a {type(neighbors).__name__}, from which no adjacency matrix can "
                f"be made: {error}"
            ) from error
        if array.shape != (len(agents), len(agents)):
            raise ValueError(
                f"The adjacency matrix `neighbors` has the shape {array.shape}; this team of "
                f"{len(agents)} agents needs ({len(agents)}, {len(agents)})."
            )
        if not np.isin(array, (0.0, 1.0)).all():
            wrong = array[~np.isin(array, (0.0, 1.0))][0]
            raise ValueError(
                f"The adjacency matrix `neighbors` must hold zeros and ones, and has {wrong}."
            )
        itself = np.flatnonzero(array.diagonal())
        if len(itself):
            raise ValueError(
                f"The adjacency matrix `neighbors` makes agent {agents[itself[0]]!r} a neighbour "
                "of itself, whose own action its value has already; set the diagonal to 0."
            )
        return th.as_tensor(array, dtype=th.float32)

    def _matrix_of_names(self, neighbors: Mapping[Any, Any]) -> th.Tensor:
        agents = self.team.agents
        indices = {agent: index for index, agent in enumerate(agents)}
        matrix = th.zeros(len(agents), len(agents))
        given = {str(agent): names for agent, names in neighbors.items()}
        missing = [agent for agent in agents if agent not in given]
        for agent, names in given.items():
            self._check_known(agent, indices, "`neighbors`")
            if isinstance(names, str):
                names = [names]
            for name in map(str, names):
                self._check_known(name, indices, f"the neighbours of agent {agent!r}")
                if name == agent:
                    raise ValueError(f"`neighbors` makes agent {agent!r} a neighbour of itself.")
                matrix[indices[agent], indices[name]] = 1.0
        if missing:
            raise ValueError(
                f"`neighbors` has no entry for agent {missing[0]!r}; give an empty list to an "
                "agent without neighbours."
            )
        return matrix

    def _check_known(self, name: str, known: Mapping[str, int], where: str) -> None:
        if name not in known:
            hint = did_you_mean(name, known, otherwise=f"This team has {', '.join(known)}.")
            raise ValueError(f"Unknown agent {name!r} in {where}. {hint}")

    def plain(self) -> dict[str, Any]:
        """
        :return: Arguments that make the same neighbourhood, plain data except for a function of
            positions
        """
        if self.matrix is not None:
            names = {}
            for agent, row in zip(self.team.agents, self.matrix.bool().tolist(), strict=True):
                pairs = zip(self.team.agents, row, strict=True)
                names[agent] = [name for name, is_neighbor in pairs if is_neighbor]
            return {"neighbors": names, "positions": None}
        neighbors = "all" if self.radius is None else self.radius
        return {"neighbors": neighbors, "positions": self.positions}

    # ---------------------------------------------------------------- sums

    def forward(self, values: th.Tensor, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        """
        :param values: Numbers of each agent, ``(batch, n_agents, n)``
        :param observations: Joint observation, each entry ``(batch, ...)``
        :return: Sums over the neighbours of each agent, ``(batch, n_agents, n)``
        """
        if self.matrix is not None:
            return self.matrix @ values
        if self.radius is None:
            return values.sum(dim=1, keepdim=True) - values
        return self._within_radius(self._coordinates(observations)) @ values

    def _coordinates(self, observations: Mapping[str, th.Tensor]) -> th.Tensor:
        if callable(self.positions):
            return self.positions(observations)
        columns = []
        for agent in self.team.agents:
            columns.append(observations[agent][..., self.positions])
        return th.stack(columns, dim=1)

    def _within_radius(self, coordinates: th.Tensor) -> th.Tensor:
        """Adjacency matrices, ``(batch, n_agents, n_agents)``."""
        assert self.radius is not None
        # Not by a product of matrices, whose rounding moves agents over the bound
        mode = "donot_use_mm_for_euclid_dist"
        near = th.cdist(coordinates, coordinates, compute_mode=mode) <= self.radius
        others = ~th.eye(coordinates.shape[1], dtype=th.bool, device=near.device)
        return (near & others).float()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _checked_radius(value: Any) -> float:
    radius = float(value)
    if not math.isfinite(radius) or radius <= 0:
        raise ValueError(f"neighbors={value} is a radius and must be a finite number above 0.")
    return radius
