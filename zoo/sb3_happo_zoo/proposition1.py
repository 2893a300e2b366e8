"""
Measurement of the cost of shared parameters: Proposition 1 of the HAPPO paper (Kuba et al. 2021,
https://arxiv.org/abs/2109.11251).

    python zoo/proposition1.py

The game has n agents and one step. If the first half of the agents plays 0 and the second half 1,
or the other way round, all agents get 1, else 0. All agents observe the same, so agents that share
parameters play 1 with a common probability p, and their expected return is ``2 p^(n/2) (1 -
p)^(n/2)``, at most ``2 / 2^n``. Agents with parameters of their own can reach 1.

Writes ``docs/proposition1.md`` and ``docs/proposition1.png``.
"""

import argparse
import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch as th
from matplotlib.figure import Figure
from stable_baselines3.common.callbacks import BaseCallback

import sb3_happo
from sb3_happo import HAPPO, HATRPO, MAPPO, make_joint_vec_env
from sb3_happo.envs.games import Halves
from sb3_happo.vec_env import JointDummyVecEnv
from sb3_happo_zoo.paths import DOCS
from sb3_happo_zoo.plots import draw_seeds

PACKAGES = ("torch", "stable-baselines3", "gymnasium", "pettingzoo", "numpy")
TEAMS: dict[str, tuple[type[HAPPO], bool]] = {
    "MAPPO, shared parameters": (MAPPO, True),
    "MAPPO, not shared": (MAPPO, False),
    "HAPPO": (HAPPO, False),
    "HATRPO": (HATRPO, False),
}
N_ENVS = 64
N_STEPS = 8  # 512 episodes per update, of which 8 random agents win four on average
N_TIMESTEPS = 10_240
LEARNING_RATE = 5e-3
NET_ARCH = (16,)
SOLVED = 0.95
_INTRODUCTION = """\
# Cost of shared parameters: Proposition 1

The game of Proposition 1 of [Kuba et al. 2021](https://arxiv.org/abs/2109.11251): one step, `n`
agents, the actions 0 and 1. All agents get 1 if the first half plays 0 and the second half 1, or
the other way round, else 0. All agents observe the same, so agents that share parameters play 1
with a common probability `p`; their largest expected return is
`max over p of 2 p^(n/2) (1 - p)^(n/2) = 2/2^n`, at `p = 1/2`. Agents with parameters of their own
can reach 1.

![Learning curves](proposition1.png)

Line: mean over seeds; band: from the lowest seed to the highest."""


class ExpectedReturn(BaseCallback):
    """
    Records the team's expected return before the first update and after each update. It is exact,
    computed from the agents' probabilities.
    """

    def __init__(self) -> None:
        super().__init__()
        self.curve: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        """Add a point."""
        ones = []
        with th.no_grad():
            for policy in self.model.policies.values():  # type: ignore[attr-defined]
                probs = policy.get_distribution(th.ones(1, 1)).distribution.probs
                ones.append(float(probs[0, 1]))
        half = len(ones) // 2
        # Probability of each agent's action in one of the two winning combinations
        right = np.concatenate([1 - np.array(ones[:half]), ones[half:]])
        self.curve.append((self.model.num_timesteps, float(right.prod() + (1 - right).prod())))

    def _on_training_end(self) -> None:
        self._on_rollout_start()


class Run(NamedTuple):
    """
    Result of one training.

    :param curve: Points ``(steps, expected return)``
    :param seconds: Duration of the training
    """

    curve: list[tuple[int, float]]
    seconds: float

    @property
    def reached(self) -> float:
        """
        :return: Expected return at the end
        """
        return self.curve[-1][1]

    @property
    def solved_after(self) -> float:
        """
        :return: Steps until the expected return was at least ``SOLVED``; infinite if it never was
        """
        for steps, value in self.curve:
            if value >= SOLVED:
                return steps
        return float("inf")


# Runs of each number of agents and team, one per seed
Runs = dict[tuple[int, str], list[Run]]


def train(team: str, n_agents: int, seed: int, n_timesteps: int) -> Run:
    """
    :param team: Name of the team, one of ``TEAMS``
    :param n_agents: Number of agents, even
    :param seed: Seed of the training
    :param n_timesteps: Number of joint steps, which here are episodes
    :return: Result of the training
    """
    algorithm, share = TEAMS[team]
    env = make_joint_vec_env(
        Halves, N_ENVS, seed, env_kwargs={"n_agents": n_agents}, vec_env_cls=JointDummyVecEnv
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
    :param n_agents: Number of agents, even
    :return: Largest expected return of agents with shared parameters
    """
    return 2 / 2**n_agents


def draw(runs: Runs, path: Path) -> None:
    """
    :param runs: Runs of each number of agents and team
    :param path: Path of the PNG file
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
    :param rows: Cells of the rows
    :return: Lines of Markdown
    """
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def describe_return(runs: Sequence[Run]) -> str:
    """
    :param runs: Runs of one team, one per seed
    :return: Mean and minimum of the final expected returns
    """
    reached = [run.reached for run in runs]
    return f"{np.mean(reached):.4f} ({min(reached):.4f})"


def describe_steps(runs: Sequence[Run]) -> str:
    """
    :param runs: Runs of one team, one per seed
    :return: Median of the steps of the runs that were solved, and the number of these if not all
        were
    """
    solved = [run.solved_after for run in runs if run.solved_after < float("inf")]
    if not solved:
        return "never"
    some = f" ({len(solved)} of {len(runs)} seeds)" if len(solved) < len(runs) else ""
    return f"{np.median(solved):,.0f}{some}"


def slowdown(runs: Runs, n_agents: int) -> float:
    """
    :param runs: Runs of each number of agents and team
    :param n_agents: Number of agents
    :return: Median of the episodes that MAPPO without sharing needs, divided by HAPPO's; NaN if one
        of them is infinite
    """
    own, happo = (
        np.median([run.solved_after for run in runs[n_agents, team]])
        for team in ("MAPPO, not shared", "HAPPO")
    )
    return float(own / happo) if np.isfinite([own, happo]).all() else float("nan")


def shares_of_bound(runs: Runs) -> list[float]:
    """
    :param runs: Runs of each number of agents and team
    :return: Final expected returns of the runs with shared parameters, divided by the bound
    """
    shares = []
    for (n_agents, team), group in runs.items():
        _, shared = TEAMS[team]
        if shared:
            shares += [run.reached / bound(n_agents) for run in group]
    return shares


def count_solved(runs: Runs, team: str) -> str:
    """
    :param runs: Runs of each number of agents and team
    :param team: Name of the team
    :return: Text with the number of the team's runs that ended at ``SOLVED`` or more
    """
    ends = [run.reached for (_, name), group in runs.items() if name == team for run in group]
    return f"{team}: {sum(np.array(ends) >= SOLVED)} of {len(ends)}"


def findings(runs: Runs, sizes: Sequence[int]) -> list[str]:
    """
    :param runs: Runs of each number of agents and team
    :param sizes: Numbers of agents
    :return: Lines of Markdown
    """
    shares = shares_of_bound(runs)
    n_episodes = N_ENVS * N_STEPS
    slowdowns = ", ".join(f"{slowdown(runs, n_agents):.2f} (n = {n_agents})" for n_agents in sizes)
    wins = ", ".join(f"{n_episodes * bound(n_agents):.0f} (n = {n_agents})" for n_agents in sizes)
    return [
        f"* Runs that ended at {SOLVED} or more: "
        + "; ".join(count_solved(runs, team) for team in TEAMS)
        + ".",
        f"* With shared parameters, runs ended at {min(shares):.0%} to {max(shares):.0%} of the "
        "bound.",
        "* MAPPO without sharing separates the cost of sharing from that of updating all agents at "
        "once.",
        f"  Its episodes until {SOLVED}, in multiples of HAPPO's: {slowdowns}.",
        f"* With more agents rewards are rarer: of the {n_episodes} episodes of the first update,",
        f"  {wins} are rewarded on average. The randomness of the policies suffices to find them",
        "  (no entropy bonus).",
    ]


def software() -> str:
    """
    :return: Versions of Python and of the packages
    """
    versions = {"python": platform.python_version(), "sb3_happo": sb3_happo.__version__}
    versions |= {name: metadata.version(name) for name in PACKAGES}
    return ", ".join(map(" ".join, versions.items()))


def write(runs: Runs, args: argparse.Namespace, path: Path) -> None:
    """
    :param runs: Runs of each number of agents and team
    :param args: Parsed command line
    :param path: Path of the Markdown file
    """
    sizes = list(dict.fromkeys(n_agents for n_agents, _ in runs))
    returns, steps = [], []
    for n in sizes:
        returns.append(
            [f"{n}", f"{bound(n):g}", *(describe_return(runs[n, team]) for team in TEAMS)]
        )
        steps.append([f"{n}", *(describe_steps(runs[n, team]) for team in TEAMS)])
    longest = max(run.seconds for group in runs.values() for run in group)
    lines = [
        _INTRODUCTION,
        "",
        f"## Expected return after {args.n_timesteps:,} episodes",
        "",
        "Exact for the trained, stochastic team, from its agents' probabilities. Mean over the",
        f"seeds {args.seeds}, and in brackets the lowest.",
        "",
        *table(["n", "bound 2/2^n", *TEAMS], returns),
        "",
        f"## Episodes until the expected return is {SOLVED}",
        "",
        "Median over the seeds; the expected return is computed after every update, which is every",
        f"{N_ENVS * N_STEPS} episodes.",
        "",
        *table(["n", *TEAMS], steps),
        "",
        "## Findings",
        "",
        *findings(runs, sizes),
        "",
        "## How",
        "",
        f"* `python zoo/proposition1.py --n-agents {' '.join(map(str, sizes))} "
        f"--seeds {' '.join(map(str, args.seeds))} --n-timesteps {args.n_timesteps}`",
        f"* {N_ENVS} environments x {N_STEPS} steps in one full batch, learning rate "
        f"{LEARNING_RATE}, `net_arch={list(NET_ARCH)}`;",
        "  the rest are each algorithm's defaults.",
        f"* The longest run took {longest:.0f} s on one core.",
        f"* {software()}",
    ]
    path.write_text("\n".join(lines) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """
    Command line.

    :param argv: Arguments, by default those of the process
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--n-agents", type=int, nargs="+", default=[2, 4, 6, 8], help="numbers of agents, even"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("-n", "--n-timesteps", type=int, default=N_TIMESTEPS)
    parser.add_argument(
        "--folder", type=Path, default=DOCS, help="folder for the table and the plot"
    )
    args = parser.parse_args(argv)
    odd = [n_agents for n_agents in args.n_agents if n_agents < 2 or n_agents % 2]
    if odd:
        parser.error(
            f"--n-agents takes even numbers from 2, so that the team has two halves, not {odd}"
        )
    th.set_num_threads(1)
    runs: Runs = {}
    for n_agents in args.n_agents:
        for team in TEAMS:
            runs[n_agents, team] = [
                train(team, n_agents, seed, args.n_timesteps) for seed in args.seeds
            ]
            reached = [round(run.reached, 4) for run in runs[n_agents, team]]
            best = f"bound with shared parameters {bound(n_agents):g}"
            print(f"n={n_agents} {team}: {reached} ({best})", flush=True)
    args.folder.mkdir(parents=True, exist_ok=True)
    draw(runs, args.folder / "proposition1.png")
    write(runs, args, args.folder / "proposition1.md")


if __name__ == "__main__":
    main()
