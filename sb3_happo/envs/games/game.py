"""Base of the games."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium import logger, spaces
from pettingzoo import ParallelEnv

from sb3_happo.suggestions import did_you_mean

Step = tuple[
    dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]
]


class Game(ParallelEnv):
    """
    Base of the games: a team whose agents are all there from the first step to the last.

    A game defines ``_play``, and where needed ``_begin``, ``_observations`` and ``_draw``. All its
    random numbers come from ``_rng``, so that equal seeds give equal episodes.

    :param agents: Names of the agents
    :param observation_spaces: Observation spaces, in the order of the agents
    :param action_spaces: Action spaces, in the same order
    :param length: Number of steps of an episode
    :param truncate: True if the end after ``length`` steps is a time limit (truncation), False if
        it belongs to the game (termination)
    :param render_mode: "rgb_array" or None
    :raises ValueError: If the length or the render mode is not possible, or names are repeated
    """

    metadata: ClassVar[dict[str, Any]] = {
        "name": "game",
        "render_modes": ["rgb_array"],
        "render_fps": 4,
        "is_parallelizable": True,
    }

    def __init__(
        self,
        agents: Sequence[str],
        observation_spaces: Sequence[spaces.Space],
        action_spaces: Sequence[spaces.Space],
        length: int = 1,
        truncate: bool = False,
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode, self.metadata["render_modes"])
        self.possible_agents = list(agents)
        if len(set(agents)) != len(self.possible_agents):
            raise ValueError(f"Agents must have different names, not {self.possible_agents}.")
        self.agents: list[str] = []
        self.length = at_least("length", length, 1)
        self.truncate = truncate
        self.render_mode = render_mode
        self.observation_spaces = dict(zip(agents, observation_spaces, strict=True))
        self.action_spaces = dict(zip(agents, action_spaces, strict=True))
        self._rng = np.random.default_rng()
        self._t = 0

    # ---------------------------------------------------------------- hooks

    def _begin(self) -> None:
        """Draw the state in which an episode begins."""

    def _play(self, actions: list[Any]) -> Sequence[float] | np.ndarray:
        """
        Make one step.

        :param actions: Checked actions, in the order of the agents: integers for Discrete, float64
            arrays within the bounds for Box
        :return: Rewards, in the order of the agents
        """
        raise NotImplementedError

    def _observations(self) -> Sequence[Any]:
        """
        :return: Observations, in the order of the agents; by default the constant 1
        """
        return [np.ones(1, np.float32) for _ in self.possible_agents]

    def _infos(self) -> Sequence[dict[str, Any]]:
        """
        :return: Infos, in the order of the agents
        """
        return [{} for _ in self.possible_agents]

    def _is_over(self) -> bool:
        """
        :return: Whether the rules end the episode before its length
        """
        return False

    def _draw(self) -> np.ndarray:
        """
        :return: Picture of the present state, ``(height, width, 3)``, uint8
        """
        raise NotImplementedError

    # ---------------------------------------------------------------- PettingZoo's interface

    def observation_space(self, agent: str) -> spaces.Space:
        """
        :param agent: Name of an agent
        :return: Observation space of the agent
        """
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """
        :param agent: Name of an agent
        :return: Action space of the agent
        """
        return self.action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """
        Start an episode.

        :param seed: Seed of all later random numbers; None to go on with the present ones
        :param options: Ignored
        :return: Observations and infos, by agent
        """
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        self._t = 0
        self.agents = self.possible_agents[:]
        self._begin()
        return self._by_agent(self._observations()), self._by_agent(self._infos())

    def step(self, actions: Mapping[str, Any]) -> Step:
        """
        Make one step.

        :param actions: ``{agent: action}`` of all agents; actions beyond the bounds of a Box are
            clipped
        :return: Observations, rewards, terminations, truncations and infos, by agent
        :raises RuntimeError: If the episode is over
        :raises ValueError: If an agent has no action, or one that is not in its space
        """
        if not self.agents:
            raise RuntimeError("The episode is over; call reset() before the next step.")
        rewards = self._play(self._checked(actions))
        self._t += 1
        at_length = self._t >= self.length
        terminated = self._is_over() or (at_length and not self.truncate)
        truncated = at_length and not terminated
        if terminated or truncated:
            self.agents = []
        return (
            self._by_agent(self._observations()),
            self._by_agent([float(reward) for reward in rewards]),
            dict.fromkeys(self.possible_agents, terminated),
            dict.fromkeys(self.possible_agents, truncated),
            self._by_agent(self._infos()),
        )

    def render(self) -> np.ndarray | None:
        """
        :return: Picture of the present state, ``(height, width, 3)``, uint8; None without a render
            mode
        """
        if self.render_mode is None:
            logger.warn("Nothing is rendered: make the game with render_mode='rgb_array'.")
            return None
        return self._draw()

    def close(self) -> None:
        """Do nothing: there is nothing to release."""

    # ---------------------------------------------------------------- actions

    def _by_agent(self, values: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.possible_agents, values, strict=True))

    def _checked(self, actions: Mapping[str, Any]) -> list[Any]:
        """Actions in the agents' order; see :meth:`_play`."""
        checked = []
        for agent, space in self.action_spaces.items():
            if agent not in actions:
                raise ValueError(
                    f"No action for agent {agent!r}; all of {self.possible_agents} act, and the "
                    f"actions are of {list(actions)}."
                )
            action = _in_space(space, actions[agent])
            if action is None:
                raise ValueError(
                    f"The action {actions[agent]!r} of agent {agent!r} is not in its space {space}."
                )
            checked.append(action)
        return checked


def _in_space(space: spaces.Space, action: Any) -> Any:
    """Action as an integer or as an array within the bounds; None if it does not belong there."""
    if isinstance(space, spaces.Discrete):
        try:
            choice = operator.index(action)
        except TypeError:
            return None
        return choice if space.start <= choice < space.start + space.n else None
    assert isinstance(space, spaces.Box)
    try:
        array = np.asarray(action, np.float64)
    except (TypeError, ValueError):
        return None
    if array.shape != space.shape or not np.isfinite(array).all():
        return None
    return np.clip(array, space.low, space.high)


def names(n_agents: int) -> list[str]:
    """
    :param n_agents: Number of agents
    :return: Names "agent_0", "agent_1", ...
    """
    return [f"agent_{index}" for index in range(n_agents)]


def constant_spaces(n_agents: int) -> list[spaces.Space]:
    """
    :param n_agents: Number of agents
    :return: Observation spaces of agents that observe the constant 1
    """
    return [spaces.Box(1, 1, (1,), np.float32) for _ in range(n_agents)]


def check_render_mode(mode: str | None, modes: Sequence[str]) -> None:
    """
    :param mode: Render mode
    :param modes: Possible modes
    :raises ValueError: If the mode is neither None nor one of them
    """
    if mode is not None and mode not in modes:
        hint = did_you_mean(str(mode), modes, otherwise=f"There are {modes} and None.")
        raise ValueError(f"render_mode={mode!r} is unknown. {hint}")


def at_least(name: str, value: int, least: int) -> int:
    """
    :param name: Name of an argument, for errors
    :param value: Value of the argument
    :param least: Smallest possible value
    :return: Value, a Python integer
    :raises ValueError: If the value is no integer or too small
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or isinstance(value, bool):
        raise ValueError(f"{name} must be an integer of at least {least}, not {value!r}.")
    return number


def finite(name: str, value: float) -> float:
    """
    :param name: Name of an argument, for errors
    :param value: Value of the argument
    :return: Value, a Python float
    :raises ValueError: If it is no finite number
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        raise ValueError(f"{name} must be a finite number, not {value!r}.")
    return number


def positive(name: str, value: float) -> float:
    """
    :param name: Name of an argument, for errors
    :param value: Value of the argument
    :return: Value, a Python float
    :raises ValueError: If it is no finite number above 0
    """
    number = finite(name, value)
    if number <= 0:
        raise ValueError(f"{name} must be above 0, not {value!r}.")
    return number
