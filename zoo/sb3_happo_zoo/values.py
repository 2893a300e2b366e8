"""
Largest values of critics on observations far from unit scale, with and without their normalisation.

``python -m sb3_happo_zoo.values --games rendezvous one_step --scales 1 1000`` prints one line per
game, settings and scale of the observations. :func:`measure` is the measurement.
"""

import argparse
import warnings
from collections.abc import Callable
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from pettingzoo import ParallelEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_happo import HAPPO, make_joint_vec_env


class ScaledObservations(VecEnvWrapper):
    """
    Multiplies the vectors among the observations of a joint environment by a number.

    :param venv: Joint vectorised environment
    :param scale: Factor
    """

    def __init__(self, venv: VecEnv, scale: float) -> None:
        assert isinstance(venv.observation_space, spaces.Dict)
        self.scale = scale
        scaled: dict[str, spaces.Space] = {}
        for key, space in venv.observation_space.spaces.items():
            scaled[key] = space
            if isinstance(space, spaces.Box) and space.dtype == np.float32:
                scaled[key] = spaces.Box(-np.inf, np.inf, space.shape, np.float32)
        super().__init__(venv, observation_space=spaces.Dict(scaled))

    def _scale(self, obs: Any) -> Any:
        scaled = dict(obs)
        for key, value in obs.items():
            if value.dtype == np.float32:
                scaled[key] = (value * self.scale).astype(np.float32)
        return scaled

    def reset(self) -> Any:
        """
        :return: Scaled observations
        """
        return self._scale(self.venv.reset())

    def step_wait(self) -> Any:
        """
        :return: Scaled observations, rewards, dones and infos
        """
        obs, rewards, dones, infos = self.venv.step_wait()
        scaled = [dict(info) for info in infos]
        for info in scaled:
            if "terminal_observation" in info:
                info["terminal_observation"] = self._scale(info["terminal_observation"])
        return self._scale(obs), rewards, dones, scaled


class _TwoAgents(ParallelEnv):
    """
    Two agents with the same observation, of 4 numbers.

    :param length: Steps of an episode
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "two_agents"}
    render_mode = None
    n_choices = 3

    def __init__(self, length: int = 1) -> None:
        self.possible_agents = ["left", "right"]
        self.agents: list[str] = []
        self.length = length
        self.rng = np.random.default_rng()

    def observation_space(self, agent: str) -> spaces.Space:
        return spaces.Box(-np.inf, np.inf, (4,), np.float32)

    def action_space(self, agent: str) -> spaces.Space:
        return spaces.Discrete(self.n_choices)

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.agents = self.possible_agents[:]
        self.time = 0
        self.numbers = self.first_numbers()
        return self._observations(), {agent: {} for agent in self.agents}

    def _observations(self) -> dict[str, np.ndarray]:
        numbers = self.numbers.astype(np.float32)
        return {agent: numbers.copy() for agent in self.possible_agents}

    def step(self, actions: dict[str, Any]) -> Any:
        reward = self.move([int(action) for action in actions.values()])
        self.time += 1
        team, over = self.agents, self.time == self.length
        terminated = over and self.length == 1
        self.agents = [] if over else team
        flags = dict.fromkeys(team, terminated), dict.fromkeys(team, over and not terminated)
        rewards = dict.fromkeys(team, reward)
        return self._observations(), rewards, *flags, {agent: {} for agent in team}

    def first_numbers(self) -> np.ndarray:
        """
        :return: First observation, ``(4,)``
        """
        return self.rng.uniform(-1, 1, 4)

    def move(self, actions: list[int]) -> float:
        """
        :param actions: Action of each agent
        :return: Reward of the team
        """
        raise NotImplementedError


class OneStep(_TwoAgents):
    """Episodes of one step: half a point for each agent that finds the largest of 3 numbers."""

    def move(self, actions: list[int]) -> float:
        return actions.count(int(np.argmax(self.numbers[:3]))) / 2


class Meeting(_TwoAgents):
    """
    The README's Rendezvous with discrete steps: two agents on a line are paid for being close, for
    20 steps, at which a time limit cuts off.
    """

    def __init__(self) -> None:
        super().__init__(length=20)

    def first_numbers(self) -> np.ndarray:
        return np.append(self.rng.uniform(-5, 5, 2), [0.0, 1.0])

    def move(self, actions: list[int]) -> float:
        self.numbers[:2] += np.array(actions) - 1.0
        return -abs(float(self.numbers[0] - self.numbers[1]))


GAMES: dict[str, str | Callable[[], Any]] = {
    "spread": "mpe2/simple_spread_v3",
    "halfcheetah": "mamujoco/HalfCheetah-2x3-v1",
    "rendezvous": Meeting,
    "one_step": OneStep,
}
_HARL = dict(
    n_steps=200,
    batch_size=800,
    n_epochs=5,
    clip_range_vf=0.2,
    use_clipped_value_loss=True,
    huber_delta=10.0,
    normalize_advantage="rollout",
    ent_coef=0.01,
    vf_coef=1.0,
    max_grad_norm=10.0,
    policy_kwargs=dict(net_arch=[128, 128], input_layer_norm=True, layer_norm=True),
)
#: Number of environments and keyword arguments of ``HAPPO``, by name
SETTINGS: dict[str, tuple[int, MappingProxyType[str, Any]]] = {
    "small": (
        1,
        MappingProxyType(
            dict(n_steps=32, batch_size=None, n_epochs=2, policy_kwargs=dict(net_arch=[16]))
        ),
    ),
    "defaults": (1, MappingProxyType({})),
    "harl": (4, MappingProxyType(_HARL)),
}


class Values(NamedTuple):
    """
    Largest values of a training.

    :param values: Largest absolute value of each rollout, as advantages are computed with it
    :param returns: Largest absolute TD(lambda) return of each rollout
    :param bound: Largest absolute value that the bounds allow; infinity without normalisation
    :param finite: True if all parameters and statistics are finite at the end
    """

    values: np.ndarray
    returns: np.ndarray
    bound: float
    finite: bool


class _Record(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.values: list[float] = []
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        self.values.append(buffer.values.abs().max().item())
        self.returns.append(buffer.returns.abs().max().item())


def measure(
    game: str, settings: str, scale: float, normalize_value: bool, n_updates: int, seed: int = 0
) -> Values:
    """
    Train for some updates, and record the largest values.

    :param game: Name in ``GAMES``
    :param settings: Name in ``SETTINGS``
    :param scale: Factor of the observations
    :param normalize_value: Normalisation of the values
    :param n_updates: Number of updates
    :param seed: Seed
    :return: Largest values
    """
    n_envs, kwargs = SETTINGS[settings]
    env = ScaledObservations(make_joint_vec_env(GAMES[game], n_envs, seed=seed), scale)
    with warnings.catch_warnings():
        # Scales are the subject here
        warnings.filterwarnings("ignore", "Observations are far|The critic predicts")
        model = HAPPO(env, normalize_value=normalize_value, seed=seed, device="cpu", **kwargs)
        record = _Record()
        model.learn(n_updates * model.n_steps * n_envs, record)
    env.close()
    finite = all(bool(value.isfinite().all()) for value in model.policy.state_dict().values())
    norm = model.critic.value_norm
    bound = float("inf")
    if norm is not None:
        ends = th.tensor([[-1e30], [1e30]])
        bound = norm.clip(ends).abs().max().item()
    return Values(np.array(record.values), np.array(record.returns), bound, finite)


def main() -> int:
    """
    :return: Exit code: 0
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--games", nargs="+", choices=GAMES, default=list(GAMES))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0, 10.0, 100.0, 1000.0])
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    th.set_num_threads(1)
    print("largest values: not normalised | normalised | their largest ratio | bound | finite")
    for game in args.games:
        for settings in args.settings:
            for scale in args.scales:
                options = (args.updates, args.seed)
                plain = measure(game, settings, scale, False, *options)
                normal = measure(game, settings, scale, True, *options)
                ratio = (normal.values / plain.values).max()
                print(
                    f"{game:12} {settings:9} x{scale:<6g} {plain.values.max():10.4g} "
                    f"{normal.values.max():10.4g} {ratio:8.2f} {normal.bound:10.4g} "
                    f"{normal.finite}",
                    flush=True,
                )
    return 0


if __name__ == "__main__":
    main()
