"""A small tennis in two dimensions, seen from the side."""

from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

from sb3_happo.envs.games.drawing import BLACK, BLUE, GREEN, RED, YELLOW, Canvas
from sb3_happo.envs.games.game import Game, at_least

_FLIGHT = 20  # steps from a hit to the ground
_APEX = 0.8  # height of a flight from the ground
_GRAVITY = 8.0 * _APEX / _FLIGHT**2
_LANDING = (0.3, 0.9)  # distances from the net at which a return would land
_SPEED = 0.08  # of the rackets, per step
_REACH = 0.12  # distance from the racket within which the ball is hit
_NEAR, _FAR, _HIGH = 0.1, 1.0, 0.5  # region of a racket: distances from the net, height
_START = np.array([0.6, 0.1])
_RETURN, _MISS = 0.1, -0.01
_FRAMES = 3
_SIDES = np.array([-1.0, 1.0])  # of the two agents, as seen by the camera
_WIDTH, _HEIGHT, _UNIT = 440, 240, 200.0


class Tennis(Game):
    """
    Tennis of two agents who keep a ball in play, a small stand-in for Unity's Tennis. Each moves
    its racket in its half of the court: the two actions, in [-1, 1], are its velocity away from the
    net and upwards. A ball that comes within reach is returned to a random place of the other half,
    where it would touch the ground 20 steps later. A return pays 0.1; if the ball touches the
    ground, the agent in whose half it lies gets -0.01 and the episode ends. It also ends after
    ``max_returns`` returns.

    The 24 observations of an agent are the last three frames, the oldest first, of 8 numbers: own
    racket (distance from the net, height), its velocity, the ball (distance from the net, negative
    in the other half; height), its velocity. Velocities are per 10 steps. Both agents see the court
    from their own side, so that one policy can play both.

    Optimum: the score of an episode is the larger of the two returns, in ``info["score"]`` at its
    end. Both agents return in turns, and every ball can be reached, so that the best score is
    ``0.1 * ceil(max_returns / 2)``, 1.0 by default; :meth:`follow` reaches it. Random play scores
    about 0.04. Unity's Tennis counts as solved at a mean score of 0.5 over 100 episodes.

    :param max_returns: Number of returns after which an episode ends
    :param render_mode: "rgb_array" or None
    :raises ValueError: If the number of returns is too small
    """

    metadata: ClassVar[dict[str, Any]] = {**Game.metadata, "name": "tennis", "render_fps": 20}

    def __init__(self, max_returns: int = 20, render_mode: str | None = None) -> None:
        self.max_returns = at_least("max_returns", max_returns, 1)
        super().__init__(
            ["left", "right"],
            [spaces.Box(-3, 3, (8 * _FRAMES,), np.float32) for _ in range(2)],
            [spaces.Box(-1, 1, (2,), np.float32) for _ in range(2)],
            length=(self.max_returns + 1) * (_FLIGHT + 2),
            render_mode=render_mode,
        )
        self._rackets = np.stack([_START, _START])  # distance from the net, height
        self._velocities = np.zeros((2, 2))
        self._ball = np.zeros(2)  # place as seen by the camera, height
        self._ball_velocity = np.zeros(2)
        self._frames = np.zeros((2, _FRAMES, 8), np.float32)
        self._scores = np.zeros(2)
        self._receiver = 0
        self._n_returns = 0
        self._fell = False

    @property
    def optimum(self) -> float:
        """
        :return: Best score of an episode, the larger of the two agents' returns
        """
        return _RETURN * ((self.max_returns + 1) // 2)

    @staticmethod
    def follow(observation: np.ndarray) -> np.ndarray:
        """
        Action of a perfect player, who runs to where the ball will touch the ground.

        :param observation: Observation of an agent, ``(24,)``
        :return: Action, ``(2,)``
        """
        place, height, _, _, ball, ball_height, speed, rise = observation[-8:].astype(np.float64)
        rise /= 10.0
        # Time to the ground: the positive root of height + rise t - gravity t^2 / 2
        time = (rise + np.sqrt(rise**2 + 2.0 * _GRAVITY * max(ball_height, 0.0))) / _GRAVITY
        landing = ball + speed / 10.0 * time
        target = landing if landing > 0 else _START[0]
        way = np.array([target - place, _START[1] - height]) / _SPEED
        return np.clip(way, -1.0, 1.0).astype(np.float32)

    # ---------------------------------------------------------------- physics

    def _begin(self) -> None:
        self._rackets = np.stack([_START, _START])
        self._velocities = np.zeros((2, 2))
        self._scores = np.zeros(2)
        self._n_returns = 0
        self._fell = False
        self._receiver = int(self._rng.integers(2))
        self._ball = np.array([0.0, 0.5])
        self._launch()
        for _ in range(_FRAMES):
            self._add_frame()

    def _launch(self) -> None:
        """Send the ball to a random place of the receiver's half."""
        landing = _SIDES[self._receiver] * self._rng.uniform(*_LANDING)
        place, height = self._ball
        rise = _GRAVITY * _FLIGHT / 2.0 - height / _FLIGHT
        self._ball_velocity = np.array([(landing - place) / _FLIGHT, rise])

    def _play(self, actions: list[Any]) -> np.ndarray:
        before = self._rackets.copy()
        self._rackets = self._rackets + _SPEED * np.stack(actions)
        self._rackets = np.clip(self._rackets, [_NEAR, 0.0], [_FAR, _HIGH])
        self._velocities = self._rackets - before
        start = self._ball
        self._ball = start + self._ball_velocity - np.array([0.0, _GRAVITY / 2.0])
        self._ball_velocity = self._ball_velocity - np.array([0.0, _GRAVITY])
        rewards = np.zeros(2)
        receiver = self._receiver
        touched = self._touched(start)
        if touched is not None:
            rewards[receiver] = _RETURN
            self._n_returns += 1
            self._ball = touched
            self._receiver = 1 - receiver
            self._launch()
        elif self._ball[1] <= 0.0:
            rewards[receiver] = _MISS
            self._fell = True
        self._scores += rewards
        self._add_frame()
        return rewards

    def _touched(self, start: np.ndarray) -> np.ndarray | None:
        """
        Find where the receiver's racket touches the ball.

        :param start: Place of the ball before the step
        :return: Point of the ball's way that is nearest to the racket, above the ground; None if it
            is out of reach or not in the receiver's half
        """
        distance, height = self._rackets[self._receiver]
        racket = np.array([_SIDES[self._receiver] * distance, height])
        way = self._ball - start
        share = float(np.clip((racket - start) @ way / max(way @ way, 1e-12), 0.0, 1.0))
        if start[1] + share * way[1] < 0.0:
            share = start[1] / -way[1]
        nearest = start + share * way
        in_own_half = nearest[0] * _SIDES[self._receiver] > 0.0
        if in_own_half and np.linalg.norm(racket - nearest) <= _REACH:
            return nearest
        return None

    def _is_over(self) -> bool:
        return self._fell or self._n_returns >= self.max_returns

    # ---------------------------------------------------------------- what is seen

    def _add_frame(self) -> None:
        self._frames[:, :-1] = self._frames[:, 1:].copy()
        for agent, side in enumerate(_SIDES):
            mirror = np.array([side, 1.0])
            self._frames[agent, -1] = np.concatenate(
                [
                    self._rackets[agent],
                    10.0 * self._velocities[agent],
                    mirror * self._ball,
                    10.0 * mirror * self._ball_velocity,
                ]
            )

    def _observations(self) -> list[np.ndarray]:
        return [frames.flatten() for frames in self._frames]

    def _infos(self) -> list[dict[str, Any]]:
        if self.agents:
            return [{}, {}]
        score = float(self._scores.max())
        return [{"score": score}, {"score": score}]

    def _draw(self) -> np.ndarray:
        canvas = Canvas(_WIDTH, _HEIGHT)
        ground = _HEIGHT - 20
        canvas.rectangle(0, ground, _WIDTH, 20, GREEN)
        canvas.rectangle(_WIDTH / 2 - 2, ground - 30, 4, 30, BLACK)
        for (distance, height), side, colour in zip(
            self._rackets, _SIDES, (BLUE, RED), strict=True
        ):
            x = _WIDTH / 2 + side * distance * _UNIT
            canvas.disc(x, ground - height * _UNIT, _REACH * _UNIT, colour)
        x, y = self._ball
        canvas.disc(_WIDTH / 2 + x * _UNIT, ground - y * _UNIT, 7, YELLOW)
        canvas.text(_WIDTH / 2, 14, f"{self._scores[0]:.2f}  {self._scores[1]:.2f}")
        return canvas.pixels
