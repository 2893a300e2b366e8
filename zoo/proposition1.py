"""
Proposition 1 of the HAPPO paper (Kuba et al. 2021, https://arxiv.org/abs/2109.11251), measured: what shared parameters cost.

    python zoo/proposition1.py

Of n agents, the first half must play 0 and the second half 1, or the other way round; then all get 1, else 0, and the episode
ends. Everybody sees the same, so agents that share parameters play 1 with one common probability p, and their expected return
is ``2 p^(n/2) (1 - p)^(n/2)``: at most ``2 / 2^n``, where agents with parameters of their own reach 1.

Writes ``docs/proposition1.md`` and ``docs/proposition1.png``.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from matplotlib.figure import Figure
from pettingzoo import ParallelEnv
from plots import draw_seeds
from stable_baselines3.common.callbacks import BaseCallback

import sb3_happo
from sb3_happo import HAPPO, HATRPO, MAPPO, make_joint_vec_env
from sb3_happo.vec_env import JointDummyVecEnv

DOCS = Path(__file__).resolve().parents[1] / "docs"
PACKAGES = ("torch", "stable-baselines3", "gymnasium", "pettingzoo", "numpy")
TEAMS: dict[str, tuple[type[HAPPO], bool]] = {
    "MAPPO, shared parameters": (MAPPO, True),
    "MAPPO, not shared": (MAPPO, False),
    "HAPPO": (HAPPO, False),
    "HATRPO": (HATRPO, False),
}
N_ENVS = 64
N_STEPS = 8  # 512 episodes per update: of 8 agents that play at random, four of them pay
N_TIMESTEPS = 10_240
LEARNING_RATE = 5e-3
NET_ARCH = (16,)
SOLVED = 0.95


class TwoHalves(ParallelEnv):
    """
    The proposition's game: one step, the actions 0 and 1, an observation that never changes.

    :param n_agents: An even number
    """

    metadata: ClassVar[dict[str, Any]] = {"name": "two_halves_v0", "render_modes": []}
    render_mode = None

    def __init__(self, n_agents: int) -> None:
        self.possible_agents = [f"agent_{index}" for index in range(n_agents)]
        self.agents: list[str] = []
        self.observation_spaces = {
            agent: spaces.Box(0, 1, (1,), np.float32) for agent in self.possible_agents
        }
        self.action_spaces = {agent: spaces.Discrete(2) for agent in self.possible_agents}

    def observation_space(self, agent: str) -> spaces.Space:
        return self.observation_spaces[agent]

    def action_space(self, agent: str) -> spaces.Space:
        return self.action_spaces[agent]

    def reset(self, seed: int | None = None, options: dict | None = None) -> tuple[dict, dict]:
        self.agents = self.possible_agents[:]
        return {agent: np.ones(1, np.float32) for agent in self.agents}, {
            agent: {} for agent in self.agents
        }

    def step(self, actions: dict[str, int]) -> tuple[dict, dict, dict, dict, dict]:
        team, half = self.agents, len(self.agents) // 2
        played = [int(actions[agent]) for agent in team]
        reward = float(
            len(set(played[:half])) == len(set(played[half:])) == 1 and played[0] != played[-1]
        )
        self.agents = []
        return (
            {agent: np.ones(1, np.float32) for agent in team},
            dict.fromkeys(team, reward),
            dict.fromkeys(team, True),
            dict.fromkeys(team, False),
            {agent: {} for agent in team},
        )


class ExpectedReturn(BaseCallback):
    """The team's expected return before the first update and after each: exact, from the agents' probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.curve: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        """Add a point."""
        policies = self.model.policies.values()  # type: ignore[attr-defined]
        with th.no_grad():
            ones = np.array(
                [
                    float(policy.get_distribution(th.ones(1, 1)).distribution.probs[0, 1])
                    for policy in policies
                ]
            )
        half = len(ones) // 2
        right = np.concatenate(
            [1 - ones[:half], ones[half:]]
        )  # each agent's probability of its part in one of the two ways
        self.curve.append((self.model.num_timesteps, float(right.prod() + (1 - right).prod())))

    def _on_training_end(self) -> None:
        self._on_rollout_start()


class Run(NamedTuple):
    """
    One training.

    :param curve: Steps and expected return
    :param seconds: That it took
    """

    curve: list[tuple[int, float]]
    seconds: float

    @property
    def reached(self) -> float:
        """
        :return: The expected return at the end
        """
        return self.curve[-1][1]

    @property
    def solved_after(self) -> float:
        """
        :return: Steps before the first update after which the expected return was at least 0.95; infinite if never
        """
        return next((steps for steps, value in self.curve if value >= SOLVED), float("inf"))


def train(team: str, n_agents: int, seed: int, n_timesteps: int) -> Run:
    """
    :param team: One of ``TEAMS``
    :param n_agents: An even number
    :param seed: Of the training
    :param n_timesteps: Its joint steps, which here are episodes
    :return: What came out
    """
    algorithm, share = TEAMS[team]
    env = make_joint_vec_env(
        TwoHalves, N_ENVS, seed, env_kwargs={"n_agents": n_agents}, vec_env_cls=JointDummyVecEnv
    )
    model = algorithm(
        env,
        learning_rate=LEARNING_RATE,
        n_steps=N_STEPS,
        batch_size=None,
        policy_kwargs={"net_arch": list(NET_ARCH), "share_parameters": share},
        seed=seed,
        device="cpu",
    )
    recorder = ExpectedReturn()
    start = time.perf_counter()
    model.learn(n_timesteps, recorder)
    return Run(recorder.curve, time.perf_counter() - start)


def bound(n_agents: int) -> float:
    """
    :param n_agents: An even number
    :return: The most that agents with shared parameters can expect
    """
    return 2 / 2**n_agents


def draw(runs: dict[tuple[int, str], list[Run]], path: Path) -> None:
    """
    :param runs: By the number of agents and the team; one for each seed
    :param path: Of the PNG
    """
    sizes = list(dict.fromkeys(n_agents for n_agents, _ in runs))
    figure = Figure(figsize=(3.2 * len(sizes), 3.4), layout="constrained")
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for axes, n_agents in zip(panels, sizes, strict=True):
        for team in TEAMS:
            draw_seeds(axes, [run.curve for run in runs[n_agents, team]], team)
        axes.axhline(
            bound(n_agents),
            color="black",
            linestyle=":",
            label="bound with shared parameters, $2/2^n$",
        )
        axes.set(title=f"{n_agents} agents", xlabel="episodes", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("expected return")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False
    )
    figure.savefig(path, dpi=110)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """
    :param header: Names of the columns
    :param rows: Their cells
    :return: Lines of Markdown
    """
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def describe_return(runs: Sequence[Run]) -> str:
    """
    :param runs: Of one team, one for each seed
    :return: The mean of what they reached, and the lowest
    """
    reached = [run.reached for run in runs]
    return f"{np.mean(reached):.4f} ({min(reached):.4f})"


def describe_steps(runs: Sequence[Run]) -> str:
    """
    :param runs: Of one team, one for each seed
    :return: The median of the steps that those needed which got there, and how many these are if not all
    """
    solved = [run.solved_after for run in runs if run.solved_after < float("inf")]
    if not solved:
        return "never"
    return f"{np.median(solved):,.0f}" + (
        f" ({len(solved)} of {len(runs)} seeds)" if len(solved) < len(runs) else ""
    )


def slowdown(runs: dict[tuple[int, str], list[Run]], n_agents: int) -> float:
    """
    :param runs: By the number of agents and the team
    :param n_agents: In which game
    :return: Episodes that MAPPO without sharing needs, in multiples of HAPPO's (medians); NaN if one of them never got there
    """
    own, happo = (
        np.median([run.solved_after for run in runs[n_agents, team]])
        for team in ("MAPPO, not shared", "HAPPO")
    )
    return float(own / happo) if np.isfinite([own, happo]).all() else float("nan")


def write(runs: dict[tuple[int, str], list[Run]], args: argparse.Namespace, path: Path) -> None:
    """
    :param runs: By the number of agents and the team; one for each seed
    :param args: Of the command line
    :param path: Of the Markdown file
    """
    sizes = list(dict.fromkeys(n_agents for n_agents, _ in runs))
    shares = [
        run.reached / bound(n_agents)
        for (n_agents, team), group in runs.items()
        if TEAMS[team][1]
        for run in group
    ]
    solved = {
        team: [run.reached >= SOLVED for n_agents in sizes for run in runs[n_agents, team]]
        for team in TEAMS
    }
    versions = {"python": platform.python_version(), "sb3_happo": sb3_happo.__version__} | {
        name: metadata.version(name) for name in PACKAGES
    }
    n_episodes = N_ENVS * N_STEPS
    lines = [
        "# What shared parameters cost: Proposition 1",
        "",
        "The game of Proposition 1 of [Kuba et al. 2021](https://arxiv.org/abs/2109.11251): one step, `n` agents, the actions",
        "0 and 1. All get 1 if the first half plays 0 and the second half 1, or the other way round, else 0. Everybody sees",
        "the same, so agents that share parameters play 1 with one common probability `p`; the best that they can expect is",
        "`max over p of 2 p^(n/2) (1 - p)^(n/2) = 2/2^n`, at `p = 1/2`. Agents with parameters of their own can reach 1.",
        "",
        "![Learning curves](proposition1.png)",
        "",
        "Line: mean over seeds; band: from the lowest seed to the highest.",
        "",
        f"## Expected return after {args.n_timesteps:,} episodes",
        "",
        f"Exact for the trained, stochastic team, from its agents' probabilities. Mean over the seeds {args.seeds}, and in",
        "brackets the lowest.",
        "",
        *table(
            ["n", "bound 2/2^n", *TEAMS],
            [
                [
                    f"{n_agents}",
                    f"{bound(n_agents):g}",
                    *(describe_return(runs[n_agents, team]) for team in TEAMS),
                ]
                for n_agents in sizes
            ],
        ),
        "",
        f"## Episodes until the expected return is {SOLVED}",
        "",
        f"Median over the seeds, looked at after every update, which is every {n_episodes} episodes.",
        "",
        *table(
            ["n", *TEAMS],
            [
                [f"{n_agents}", *(describe_steps(runs[n_agents, team]) for team in TEAMS)]
                for n_agents in sizes
            ],
        ),
        "",
        "## What it says",
        "",
        f"* Runs that ended at {SOLVED} or more: "
        + "; ".join(f"{team}: {sum(which)} of {len(which)}" for team, which in solved.items())
        + ".",
        f"* With shared parameters, runs ended at {min(shares):.0%} to {max(shares):.0%} of the bound.",
        "* MAPPO without sharing tells the cost of sharing from that of updating all agents at once. Its episodes until "
        f"{SOLVED}, in",
        f"  multiples of HAPPO's: {', '.join(f'{slowdown(runs, n_agents):.2f} (n = {n_agents})' for n_agents in sizes)}.",
        f"* More agents make the reward rarer: of the {n_episodes} episodes of the first update, "
        + ", ".join(f"{n_episodes * bound(n_agents):.0f} (n = {n_agents})" for n_agents in sizes),
        "  pay on average. Nothing but the policies' own randomness was needed to find them (no entropy bonus).",
        "",
        "## How",
        "",
        f"* `python zoo/proposition1.py --n-agents {' '.join(map(str, sizes))} --seeds {' '.join(map(str, args.seeds))} "
        f"--n-timesteps {args.n_timesteps}`",
        f"* {N_ENVS} environments x {N_STEPS} steps in one full batch, learning rate {LEARNING_RATE}, "
        f"`net_arch={list(NET_ARCH)}`;",
        "  the rest are each algorithm's defaults.",
        f"* The longest run took {max(run.seconds for group in runs.values() for run in group):.0f} s on one core.",
        f"* {', '.join(' '.join(pair) for pair in versions.items())}",
    ]
    path.write_text("\n".join(lines) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """
    Command line.

    :param argv: Its arguments; by default the process's
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--n-agents", type=int, nargs="+", default=[2, 4, 6, 8], help="even numbers"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("-n", "--n-timesteps", type=int, default=N_TIMESTEPS)
    parser.add_argument("--folder", type=Path, default=DOCS, help="where the table and the plot go")
    args = parser.parse_args(argv)
    odd = [n_agents for n_agents in args.n_agents if n_agents < 2 or n_agents % 2]
    if odd:
        parser.error(
            f"--n-agents takes even numbers from 2, so that the team has two halves, not {odd}"
        )
    th.set_num_threads(1)
    runs: dict[tuple[int, str], list[Run]] = {}
    for n_agents in args.n_agents:
        for team in TEAMS:
            runs[n_agents, team] = [
                train(team, n_agents, seed, args.n_timesteps) for seed in args.seeds
            ]
            reached = [round(run.reached, 4) for run in runs[n_agents, team]]
            print(
                f"n={n_agents} {team}: {reached} (bound with shared parameters {bound(n_agents):g})",
                flush=True,
            )
    args.folder.mkdir(parents=True, exist_ok=True)
    draw(runs, args.folder / "proposition1.png")
    write(runs, args, args.folder / "proposition1.md")


if __name__ == "__main__":
    main()
