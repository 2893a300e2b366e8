"""
Comparison of a team of one with a recurrent policy with sb3-contrib's ``RecurrentPPO``, with the
same settings, on CartPole without velocities.

    python zoo/memory.py

Writes ``docs/memory.md``. Times are the processor's times of the training only.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_happo import HAPPO
from sb3_happo_zoo.cli import command_line
from sb3_happo_zoo.paths import DOCS
from sb3_happo_zoo.versions import versions

# RL Zoo's settings of RecurrentPPO for CartPole without velocities, at a constant learning rate
SETTINGS: dict[str, Any] = dict(
    n_steps=128, batch_size=256, n_epochs=10, learning_rate=1e-3, gamma=0.99, ent_coef=0.0
)
POLICY_KWARGS: dict[str, Any] = dict(net_arch=[64], activation_fn=th.nn.Tanh, lstm_hidden_size=64)
VARIANTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "`RecurrentPPO`": (RecurrentPPO, {}),
    "`HAPPO`, whole rollouts": (HAPPO, {"chunk_length": None}),
    "`HAPPO`, chunks of 32 steps": (HAPPO, {"chunk_length": 32}),
}


class BlindCartPole(gym.ObservationWrapper):
    """CartPole without velocities, which a policy must infer from earlier positions."""

    def __init__(self) -> None:
        super().__init__(gym.make("CartPole-v1"))
        assert isinstance(self.env.observation_space, spaces.Box)
        self.observation_space = spaces.Box(
            self.env.observation_space.low[::2],
            self.env.observation_space.high[::2],
            dtype=np.float32,
        )

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """
        :param observation: Position, velocity, angle and angular velocity, ``(4,)``
        :return: Position and angle, ``(2,)``
        """
        return observation[::2]


def run(variant: str, seed: int, n_timesteps: int, n_episodes: int) -> tuple[float, float]:
    """
    :param variant: Name of the variant, one of ``VARIANTS``
    :param seed: Seed of the training
    :param n_timesteps: Number of timesteps
    :param n_episodes: Number of evaluation episodes
    :return: Mean deterministic return, and the processor's seconds of the training
    """
    algorithm, more = VARIANTS[variant]
    env = make_vec_env(BlindCartPole, 8, seed=seed)
    model = algorithm(
        "MlpLstmPolicy",
        env,
        seed=seed,
        device="cpu",
        policy_kwargs=POLICY_KWARGS.copy(),
        **SETTINGS,
        **more,
    )
    begin = time.process_time()
    model.learn(n_timesteps)
    seconds = time.process_time() - begin
    eval_env = make_vec_env(BlindCartPole, 8, seed=1000 + seed)
    mean, _ = evaluate_policy(model, eval_env, n_episodes)
    return float(np.mean(mean)), seconds


def report(
    returns: dict[str, list[float]], seconds: dict[str, list[float]], args: argparse.Namespace
) -> str:
    """
    :param returns: Mean returns of each variant, one per seed
    :param seconds: Processor's seconds of each variant, one per seed
    :param args: Parsed command line
    :return: Text of ``memory.md``
    """
    seeds = ", ".join(map(str, args.seeds))
    lines = [
        "# Memory",
        "",
        f"CartPole without velocities, {args.n_timesteps:,} steps, seeds {seeds}: deterministic "
        f"return of {args.eval_episodes} episodes (at most 500), and the processor's seconds for "
        "the training. A policy without memory cannot balance the pole for long.",
        "",
        "| | return | of each seed | seconds |",
        "|---|---|---|---|",
    ]
    for name in VARIANTS:
        values = ", ".join(f"{value:.1f}" for value in returns[name])
        mean, time_ = np.mean(returns[name]), np.mean(seconds[name])
        lines.append(f"| {name} | {mean:.1f} | {values} | {time_:.0f} |")
    lines += [
        "",
        f"Settings: `{SETTINGS | {'n_envs': 8, 'policy_kwargs': POLICY_KWARGS}}`",
        "",
        f"Made by `{command_line('memory', None)}` with {versions()}.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("-n", "--n-timesteps", type=int, default=40_000)
    parser.add_argument("--eval-episodes", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=DOCS, help="folder for the table")
    args = parser.parse_args()
    th.set_num_threads(1)
    returns, seconds = defaultdict(list), defaultdict(list)
    # Variants take turns, because the speed of the machine may change
    for seed in args.seeds:
        for name in VARIANTS:
            mean, duration = run(name, seed, args.n_timesteps, args.eval_episodes)
            returns[name].append(mean)
            seconds[name].append(duration)
            print(f"seed {seed}, {name}: return {mean:.1f}, {duration:.0f} s", flush=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "memory.md").write_text(report(returns, seconds, args))


if __name__ == "__main__":
    main()
