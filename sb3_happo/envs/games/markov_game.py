"""Base of games with few states whose dynamics are known exactly."""

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from sb3_happo.envs.games.game import check_render_mode


class Outcome(NamedTuple):
    """
    Possible result of a joint action.

    :param probability: Probability of this result
    :param state: Next state; None where the game ends
    :param rewards: Rewards of the agents, in the order of ``possible_agents``
    """

    probability: float
    state: Hashable | None
    rewards: tuple[float, ...]


class KnownGame(ParallelEnv):
    """
    Game whose agents all observe the state, a number, and whose dynamics are known.

    A subclass defines :meth:`initial_states` and :meth:`outcomes`. :meth:`step` draws from them, so
    that the exact solution of :class:`~sb3_happo.tabular.GameModel` is that of the game played.

    :param states: All states in which agents act. The observation of ``states[k]`` is ``k``
    :param n_actions: Number of actions of each agent
    :param random_starts: Start of the episodes in a random state of ``states``, which visits all of
        them; otherwise as :meth:`initial_states` says
    :param max_steps: Steps after which an episode is truncated; None for no limit
    :param render_mode: None or "rgb_array"
    :raises ValueError: If ``max_steps`` or ``render_mode`` is not allowed
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}

    def __init__(
        self,
        states: Sequence[Hashable],
        n_actions: Sequence[int],
        random_starts: bool = False,
        max_steps: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        if max_steps is not None and max_steps < 1:
            raise ValueError(f"max_steps must be at least 1, or None for no limit, not {max_steps}")
        check_render_mode(render_mode, self.metadata["render_modes"])
        self.possible_agents = [f"agent_{index}" for index in range(len(n_actions))]
        self.agents: list[str] = []
        self.states = tuple(states)
        self.random_starts = random_starts
        self.max_steps = max_steps
        self.render_mode = render_mode
        self._indices = {state: index for index, state in enumerate(self.states)}
        self.observation_spaces: dict[str, spaces.Space] = {}
        self.action_spaces: dict[str, spaces.Space] = {}
        for agent, n in zip(self.possible_agents, n_actions, strict=True):
            self.observation_spaces[agent] = spaces.Discrete(len(self.states))
            self.action_spaces[agent] = spaces.Discrete(n)
        self._known: dict[tuple[Hashable, tuple[int, ...]], tuple[Outcome, ...]] = {}
        self._rng = np.random.default_rng()
        self._t = 0
        #: Present state; the last one after the end of a game
        self.present: Any = self.states[0]

    # ---------------------------------------------------------------- the game

    def initial_states(self) -> list[tuple[float, Hashable]]:
        """
        :return: Probability and state of each possible start of the game
        """
        raise NotImplementedError

    def outcomes(self, state: Any, actions: tuple[int, ...]) -> list[Outcome]:
        """
        :param state: State in which the agents act
        :param actions: Actions, in the order of ``possible_agents``
        :return: Possible results, whose probabilities add up to 1
        """
        raise NotImplementedError

    def observe(self, state: Hashable) -> dict[str, Any]:
        """
        :param state: State of the game
        :return: Observations of it, ``{agent: index in states}``
        """
        return dict.fromkeys(self.possible_agents, self._indices[state])

    # ---------------------------------------------------------------- PettingZoo's interface

    def observation_space(self, agent: str) -> spaces.Space:
        """
        :param agent: Name of an agent
        :return: Numbers of the states
        """
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        """
        :param agent: Name of an agent
        :return: Numbers of the agent's actions
        """
        return self.action_spaces[agent]

    def state(self) -> np.ndarray:
        """
        :return: Share of the number of the present state in all states, ``(1,)``
        """
        return np.array([self._indices[self.present] / len(self.states)], np.float32)

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, dict]]:
        """
        Start a game.

        :param seed: Seed of the starts and of the dynamics
        :param options: ``{"state": state}`` to start in this state
        :return: Observations and empty infos
        :raises ValueError: If the state of the options is none of the game
        """
        if seed is not None:
            self._rng = np.random.default_rng(seed)
        given = (options or {}).get("state")
        if given is not None:
            if given not in self._indices:
                raise ValueError(
                    f"options['state'] is {given!r}, which is no state of the game; there are "
                    f"{len(self.states)}, such as {self.states[0]!r}."
                )
            self.present = given
        elif self.random_starts:
            self.present = self.states[int(self._rng.integers(len(self.states)))]
        else:
            starts = self.initial_states()
            self.present = starts[self._draw([probability for probability, _ in starts])][1]
        self._t = 0
        self.agents = self.possible_agents[:]
        return self.observe(self.present), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict]]:
        """
        Make one step.

        :param actions: Action of each agent
        :return: Observations, rewards, terminations, truncations and empty infos
        """
        joint = tuple(int(actions[agent]) for agent in self.possible_agents)
        outcomes = self._known.get((self.present, joint))
        if outcomes is None:
            outcomes = tuple(self.outcomes(self.present, joint))
            self._known[self.present, joint] = outcomes
        outcome = outcomes[self._draw([probability for probability, _, _ in outcomes])]
        self._t += 1
        terminated = outcome.state is None
        truncated = not terminated and self._t == self.max_steps
        if not terminated:
            self.present = outcome.state
        everyone = self.possible_agents
        if terminated or truncated:
            self.agents = []
        return (
            self.observe(self.present),
            dict(zip(everyone, outcome.rewards, strict=True)),
            dict.fromkeys(everyone, terminated),
            dict.fromkeys(everyone, truncated),
            {agent: {} for agent in everyone},
        )

    def _draw(self, probabilities: Sequence[float]) -> int:
        """Index drawn with these probabilities."""
        if len(probabilities) == 1:
            return 0
        point = self._rng.random()
        for index, probability in enumerate(probabilities):
            point -= probability
            if point < 0.0:
                return index
        return len(probabilities) - 1


# Pixels of a field, and colours
_PIXELS = 32
_GROUND, _LINE = (236, 240, 232), (150, 158, 148)
#: Colours of the agents
COLOURS = ((214, 69, 65), (52, 106, 190))


def draw_board(n_rows: int, n_columns: int) -> np.ndarray:
    """
    :param n_rows: Rows of fields
    :param n_columns: Columns of fields
    :return: Image of an empty board, uint8 ``(height, width, 3)``
    """
    image = np.empty((n_rows * _PIXELS + 1, n_columns * _PIXELS + 1, 3), np.uint8)
    image[:] = _GROUND
    image[::_PIXELS] = _LINE
    image[:, ::_PIXELS] = _LINE
    return image


def fill_field(
    image: np.ndarray, row: int, column: int, colour: tuple[int, int, int], margin: int = 6
) -> None:
    """
    Draw a square in a field.

    :param image: Image of :func:`draw_board`, changed in place
    :param row: Row of the field, from the top
    :param column: Column of the field, from the left
    :param colour: Colour, red, green and blue
    :param margin: Distance of the square from the edges of the field, in pixels
    """
    top, left = row * _PIXELS, column * _PIXELS
    far = _PIXELS + 1 - margin
    image[top + margin : top + far, left + margin : left + far] = colour
