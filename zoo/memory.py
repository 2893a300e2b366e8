"""
A team of one with memory beside sb3-contrib's ``RecurrentPPO``, with the same settings, on CartPole without velocities.

    python zoo/memory.py

Writes what came out to ``docs/memory.md``. Time is the processor's, of the training alone.
"""

import argparse
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from cli import command_line
from exp_manager import versions
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_happo import HAPPO

DOCS = Path(__file__).resolve().parents[1] / "docs"
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
    """CartPole whose velocities must be found by remembering positions."""

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
        :param observation: CartPole's: position, velocity, angle, angular velocity
        :return: Position and angle
        """
        return observation[::2]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("-n", "--n-timesteps", type=int, default=40_000)
    parser.add_argument("--eval-episodes", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=DOCS, help="where the table goes")
    args = parser.parse_args()
    th.set_num_threads(1)
    returns, seconds = defaultdict(list), defaultdict(list)
    for seed in args.seeds:  # in turns, for the machine may be faster at one time than at another
        for name, (algorithm, more) in VARIANTS.items():
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
            model.learn(args.n_timesteps)
            seconds[name].append(time.process_time() - begin)
            mean, _ = evaluate_policy(
                model, make_vec_env(BlindCartPole, 8, seed=1000 + seed), args.eval_episodes
            )
            returns[name].append(float(np.mean(mean)))
            print(f"seed {seed}, {name}: return {mean:.1f}, {seconds[name][-1]:.0f} s", flush=True)
    lines = [
        "# Memory",
        "",
        f"CartPole without velocities, {args.n_timesteps:,} steps, seeds {', '.join(map(str, args.seeds))}: deterministic "
        f"return of {args.eval_episodes} episodes (at most 500), and the processor's seconds for the training. A policy "
        "without memory cannot balance the pole for long.",
        "",
        "| | return | of each seed | seconds |",
        "|---|---|---|---|",
        *(
            f"| {name} | {np.mean(returns[name]):.1f} | {', '.join(f'{value:.1f}' for value in returns[name])} "
            f"| {np.mean(seconds[name]):.0f} |"
            for name in VARIANTS
        ),
        "",
        f"Settings: `{SETTINGS | {'n_envs': 8, 'policy_kwargs': POLICY_KWARGS}}`",
        "",
        f"Made by `{command_line('memory', None)}` with {versions()}.",
        "",
    ]
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "memory.md").write_text("\n".join(lines))


if __name__ == "__main__":
    main()
