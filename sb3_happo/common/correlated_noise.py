"""
Standard normal numbers that are correlated over time, from which Gaussian policies draw actions.

Every number by itself is standard normal, at every step of an episode, so that an action
``mean + std * number`` has the distribution of the policy, and its log-probability is that of the
policy. Only successive numbers depend on each other: the actions of an agent deviate from its means
in the same direction for some time, and reach states that independent noise does not.

See Hollenstein et al. 2024, "Colored Noise in PPO: Improved Exploration and Performance through
Correlated Action Sampling" (https://arxiv.org/abs/2312.11091), and Eberhard et al. 2023, "Pink
Noise Is All You Need" (ICLR).
"""

import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import ActionNoise, OrnsteinUhlenbeckActionNoise

from sb3_happo.common.distributions import action_leaves
from sb3_happo.suggestions import did_you_mean

#: Largest exponent of coloured noise: that of Brownian motion
MAX_BETA = 2.0


class NoiseProcess(ABC):
    """
    Stationary process of standard normal numbers in several environments.

    :param n_actions: Number of continuous actions of the agent, which are independent of each other
    :param device: Device of the numbers
    """

    def __init__(self, n_actions: int, device: th.device | str = "cpu") -> None:
        self.n_actions = n_actions
        self.device = device

    @abstractmethod
    def draw(self, starts: th.Tensor) -> th.Tensor:
        """
        The numbers of the next step.

        :param starts: Mask of the environments that begin an episode, where the process begins
            anew, bool ``(n_envs,)``; all of them at the first step
        :return: Standard normal numbers, ``(n_envs, n_actions)``
        """

    @abstractmethod
    def state(self) -> list[th.Tensor]:
        """
        :return: State, for a checkpoint; empty before the first step
        """

    @abstractmethod
    def restore(self, state: Sequence[th.Tensor]) -> None:
        """
        :param state: Result of :meth:`state`
        """


class OrnsteinUhlenbeckNoise(NamedTuple):
    """
    Ornstein-Uhlenbeck process: the correlation of two numbers is ``exp(-lag / correlation_time)``.

    :param correlation_time: Steps after which the correlation is ``1 / e``, > 0. The default is
        that of DDPG's noise (``theta`` = 0.15)
    """

    correlation_time: float = 1 / 0.15

    @property
    def decay(self) -> float:
        """
        :return: Correlation of successive numbers, in (0, 1)
        """
        return math.exp(-1.0 / self.correlation_time)

    def autocorrelation(self, lags: np.ndarray) -> np.ndarray:
        """
        :param lags: Distances in steps, >= 0
        :return: Correlation of numbers at these distances, of the same shape
        """
        return self.decay ** np.asarray(lags, float)

    def check(self, name: str) -> None:
        """
        :param name: Name of the setting, for errors
        :raises ValueError: If the correlation time is not positive and finite
        """
        time = self.correlation_time
        if not _is_number(time) or not 0 < time < math.inf:
            raise ValueError(f"{name}: correlation_time must be greater than 0, not {time!r}")

    def process(self, n_actions: int, device: th.device | str = "cpu") -> NoiseProcess:
        """
        :param n_actions: Number of continuous actions
        :param device: Device of the numbers
        :return: Process
        """
        return _OrnsteinUhlenbeckProcess(self, n_actions, device)


class ColoredNoise(NamedTuple):
    """
    Coloured noise: the power of the frequency ``f`` is proportional to ``f**-beta``. 0 is white
    noise, whose numbers are independent; 1 is pink noise.

    The numbers are drawn for ``horizon`` steps at once, as a sum of waves with random amplitudes
    (Timmer and König 1995), of which half a period is used. In longer episodes, stretches of
    ``horizon`` steps are independent of each other.

    :param beta: Exponent, in [0, 2]
    :param horizon: Steps that are drawn at once, >= 2; as a rule the length of an episode
    """

    beta: float = 1.0
    horizon: int = 1000

    def powers(self) -> np.ndarray:
        """
        :return: Variance of the wave with ``k`` periods in ``2 * horizon`` steps, for ``k`` from 0
            to ``horizon``; their sum is 1, the variance of a number, ``(horizon + 1,)``
        """
        frequencies = np.arange(self.horizon + 1, dtype=float)
        # A constant has no period: it gets the power of the longest wave
        frequencies[0] = 1.0
        powers = frequencies**-self.beta
        # The first and the last have a cosine alone, the others a sine too
        powers[[0, -1]] /= 2.0
        return powers / powers.sum()

    def autocorrelation(self, lags: np.ndarray) -> np.ndarray:
        """
        :param lags: Distances in steps, >= 0, within the steps that are drawn at once
        :return: Correlation of numbers at these distances, of the same shape
        """
        angles = np.pi * np.arange(self.horizon + 1) / self.horizon
        return np.cos(np.multiply.outer(np.asarray(lags, float), angles)) @ self.powers()

    def check(self, name: str) -> None:
        """
        :param name: Name of the setting, for errors
        :raises ValueError: If the exponent or the horizon is out of range
        """
        if not _is_number(self.beta) or not 0 <= self.beta <= MAX_BETA:
            raise ValueError(
                f"{name}: the exponent of coloured noise must be in [0, {MAX_BETA:g}], not "
                f"{self.beta!r}; 0 for independent actions, 1 for pink noise"
            )
        whole = _is_number(self.horizon) and isinstance(self.horizon, numbers.Integral)
        if not whole or self.horizon < 2:
            raise ValueError(
                f"{name}: horizon must be a whole number, at least 2, not {self.horizon!r}"
            )

    def process(self, n_actions: int, device: th.device | str = "cpu") -> NoiseProcess:
        """
        :param n_actions: Number of continuous actions
        :param device: Device of the numbers
        :return: Process
        """
        return _ColoredProcess(self, n_actions, device)


#: Noise of one agent
NoiseSettings: TypeAlias = OrnsteinUhlenbeckNoise | ColoredNoise
#: Setting of the user: noise of all agents, or ``{agent: noise}``; None for independent actions
ExplorationNoise: TypeAlias = str | float | NoiseSettings | Mapping[str, Any] | None

NAMED_NOISES: dict[str, NoiseSettings] = {"ou": OrnsteinUhlenbeckNoise(), "pink": ColoredNoise()}


class _OrnsteinUhlenbeckProcess(NoiseProcess):
    def __init__(
        self, settings: OrnsteinUhlenbeckNoise, n_actions: int, device: th.device | str
    ) -> None:
        super().__init__(n_actions, device)
        self._decay = settings.decay
        self._scale = math.sqrt(1.0 - self._decay**2)
        self._numbers: th.Tensor | None = None

    def draw(self, starts: th.Tensor) -> th.Tensor:
        fresh = th.randn(len(starts), self.n_actions, device=self.device)
        before = self._numbers
        if before is None or before.shape != fresh.shape:
            self._numbers = fresh
        else:
            after = self._decay * before + self._scale * fresh
            self._numbers = th.where(starts.unsqueeze(1), fresh, after)
        return self._numbers

    def state(self) -> list[th.Tensor]:
        return [] if self._numbers is None else [self._numbers]

    def restore(self, state: Sequence[th.Tensor]) -> None:
        self._numbers = state[0].to(self.device) if state else None


class _ColoredProcess(NoiseProcess):
    def __init__(self, settings: ColoredNoise, n_actions: int, device: th.device | str) -> None:
        super().__init__(n_actions, device)
        self._horizon = int(settings.horizon)
        amplitudes = np.sqrt(settings.powers())
        # Waves inside have two conjugate terms
        amplitudes[1:-1] /= 2.0
        self._amplitudes = th.as_tensor(amplitudes, dtype=th.float32, device=device)
        # Numbers of this stretch, (n_envs, n_actions, horizon), and the step within it, (n_envs,)
        self._stretch: th.Tensor | None = None
        self._step: th.Tensor | None = None

    def draw(self, starts: th.Tensor) -> th.Tensor:
        n_envs = len(starts)
        if self._stretch is None or self._step is None or len(self._step) != n_envs:
            shape = (n_envs, self.n_actions, self._horizon)
            self._stretch = th.empty(shape, device=self.device)
            self._step = th.full((n_envs,), self._horizon, device=self.device)
        self._step = self._step + 1
        over = starts | (self._step >= self._horizon)
        n_over = int(over.sum())
        if n_over:
            self._stretch[over] = self._new_stretches(n_over)
            self._step[over] = 0
        index = self._step.view(-1, 1, 1).expand(-1, self.n_actions, 1)
        return self._stretch.gather(2, index).squeeze(2)

    def _new_stretches(self, n: int) -> th.Tensor:
        """
        :param n: Number of environments
        :return: Numbers, ``(n, n_actions, horizon)``
        """
        shape = (n, self.n_actions, self._horizon + 1)
        normals = th.randn(*shape, 2, device=self.device) * self._amplitudes.unsqueeze(1)
        # The constant and the shortest wave have no sine, and their terms are not halved
        normals[..., [0, -1], 1] = 0.0
        waves = th.fft.irfft(th.view_as_complex(normals), n=2 * self._horizon, norm="forward")
        return waves[..., : self._horizon]

    def state(self) -> list[th.Tensor]:
        if self._stretch is None or self._step is None:
            return []
        return [self._stretch, self._step]

    def restore(self, state: Sequence[th.Tensor]) -> None:
        self._stretch = state[0].to(self.device) if state else None
        self._step = state[1].to(self.device) if state else None


# ---------------------------------------------------------------- settings of the user


def noise_of_agents(
    setting: ExplorationNoise, action_space: spaces.Dict
) -> dict[str, NoiseSettings]:
    """
    Noise of each agent whose actions are correlated.

    :param setting: ``exploration_noise`` of an algorithm
    :param action_space: Joint action space, one entry per agent
    :return: Noise by agent; none for agents without continuous actions where the setting is that of
        all agents
    :raises ValueError: If a setting is unknown or out of range, an agent is unknown, or an agent
        that is named, or all of them, have no continuous actions
    """
    if setting is None:
        return {}
    sizes = continuous_sizes(action_space)
    if not isinstance(setting, Mapping):
        noise = _checked(setting, "exploration_noise")
        noises = {agent: noise for agent, size in sizes.items() if size}
        if not noises:
            raise ValueError(
                f"exploration_noise={setting!r} correlates the Gaussian draws of continuous "
                "actions, and no agent has some: the team has "
                f"{dict(action_space.spaces)}. Omit it; discrete actions are explored by sampling "
                "(ent_coef)."
            )
        return noises
    noises = {}
    for given, value in setting.items():
        agent = str(given)
        if agent not in sizes:
            hint = did_you_mean(agent, sizes, otherwise=f"The team has {list(sizes)}.")
            raise ValueError(f"exploration_noise: unknown agent {agent!r}. {hint}")
        if value is None:
            continue
        if not sizes[agent]:
            raise ValueError(
                f"exploration_noise[{agent!r}]: the actions of this agent, "
                f"{action_space.spaces[agent]}, have no continuous part whose Gaussian draws could "
                "be correlated. Omit this agent; its discrete actions are explored by sampling."
            )
        noises[agent] = _checked(value, f"exploration_noise[{agent!r}]")
    return noises


def continuous_sizes(action_space: spaces.Dict) -> dict[str, int]:
    """
    :param action_space: Joint action space, one entry per agent
    :return: Number of continuous actions of each agent
    """
    sizes = {}
    for agent, space in action_space.spaces.items():
        boxes = (leaf for leaf in action_leaves(space) if isinstance(leaf.space, spaces.Box))
        sizes[agent] = sum(leaf.n_actions for leaf in boxes)
    return sizes


def _checked(value: Any, name: str) -> NoiseSettings:
    """
    :param value: Noise as the user has given it
    :param name: Name of the setting, for errors
    :return: Noise
    """
    if isinstance(value, ActionNoise):
        raise ValueError(added_noise_words(name, value))
    noise = value
    if isinstance(value, str):
        if value not in NAMED_NOISES:
            hint = did_you_mean(value, NAMED_NOISES, otherwise="")
            raise ValueError(f"{name}={value!r} is unknown. {hint} {_CHOICES}".replace("  ", " "))
        noise = NAMED_NOISES[value]
    elif _is_number(value):
        noise = ColoredNoise(float(value))
    if not isinstance(noise, (OrnsteinUhlenbeckNoise, ColoredNoise)):
        raise ValueError(f"{name} is {value!r}. {_CHOICES}")
    noise.check(name)
    return noise


_CHOICES = (
    'It takes "ou", "pink", an exponent from 0 to 2, OrnsteinUhlenbeckNoise(correlation_time) or '
    "ColoredNoise(beta, horizon) of sb3_happo.common.correlated_noise, or {agent: one of these}."
)


def added_noise_words(name: str, noise: Any) -> str:
    """
    :param name: Name of the setting
    :param noise: Noise that was to be added to actions
    :return: Error that says why an on-policy algorithm does not take it
    """
    remedy = 'exploration_noise="ou" or "pink"'
    if isinstance(noise, OrnsteinUhlenbeckActionNoise):
        rate = noise._theta * noise._dt
        if rate > 0:
            remedy = (
                "exploration_noise=OrnsteinUhlenbeckNoise(correlation_time="
                f"{1 / rate:.4g}), of sb3_happo.common.correlated_noise, which has its correlation "
                "time"
            )
    return (
        f"{name}={noise!r} would be added to actions, and on-policy algorithms do not take that: "
        "the actions would no longer be those of the policy, whose log-probabilities and ratios "
        "would be wrong. Correlate the policy's own draws instead, whose standard deviation it "
        f"learns: {remedy}. Or use an off-policy algorithm (HATD3, HADDPG), which takes "
        "action_noise."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
