"""
Ablations of the HAPPO paper (Kuba et al. 2021, https://arxiv.org/abs/2109.11251), with HAPPO:
shared parameters against parameters of each agent's own, and the order in which the agents are
updated.

    python zoo/ablations.py

Every finished run is appended to ``zoo/ablations.jsonl``. Runs that are recorded there with the
same hyperparameters are not repeated, so an interrupted call can be continued, and ``--seeds`` or
``--envs`` divide the work among several processes. At the end the recorded runs are plotted and
described in ``docs/ablations.md``.
"""

import argparse
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sb3_happo_zoo.entries import read_settings
from sb3_happo_zoo.paths import DOCS, OUTPUT, command_words
from sb3_happo_zoo.plots import draw_seeds
from sb3_happo_zoo.results import Record, append_record, canonical, read_records
from sb3_happo_zoo.runs import Run, make_run, train_and_evaluate

RESULTS = OUTPUT / "ablations.jsonl"
# Number of evaluation episodes per environment: those of spread have 25 steps and returns of high
# variance, those of Walker up to 1,000 steps
ENVS = {"mamujoco/Walker2d-2x3-v1": 50, "mpe2/simple_spread_v3": 500}
N_TIMESTEPS = 300_000
SETTINGS = "happo_1m"
# Hyperparameters that differ from the environment's entry
VARIANTS: dict[str, dict[str, Any]] = {
    "random": {"agent_order": "random", "policy_kwargs": {"share_parameters": False}},
    "shared": {"agent_order": "random", "policy_kwargs": {"share_parameters": True}},
    "fixed": {"agent_order": "fixed", "policy_kwargs": {"share_parameters": False}},
    "greedy": {"agent_order": "greedy", "policy_kwargs": {"share_parameters": False}},
}
REFERENCE = "random"
_PRINTED = ("env", "variant", "seed", "return", "steps_per_second")
# Variants of each comparison, with their labels; the reference first
ABLATIONS = {
    "Shared parameters": {"random": "each its own", "shared": "shared"},
    "Order of the updates": {"random": "random", "fixed": "fixed", "greedy": "greedy"},
}


# Records by environment, variant and seed
Runs = dict[tuple[str, str, int], Record]


def variant_run(env_id: str, variant: str, seed: int, n_timesteps: int) -> Run:
    """
    :param env_id: Id of the environment, one of ``ENVS``
    :param variant: Name of the variant, one of ``VARIANTS``
    :param seed: Seed of the training
    :param n_timesteps: Number of joint steps
    :return: Run of the environment's entry with the variant's changes
    """
    changes = VARIANTS[variant]
    # The text of an expression
    policy_kwargs = read_settings(SETTINGS)[env_id].get("policy_kwargs", "dict()")
    merged = f"dict({policy_kwargs}, **{changes['policy_kwargs']})"
    changes = changes | {"policy_kwargs": merged, "n_timesteps": n_timesteps}
    return make_run("happo", env_id, seed, SETTINGS, changes)


def read_runs(path: Path, n_timesteps: int) -> Runs:
    """
    :param path: Path of the file of records
    :param n_timesteps: Number of joint steps
    :return: Finished runs with these steps and the present hyperparameters, by environment, variant
        and seed
    """
    runs: Runs = {}
    for run in read_records(path):
        if run["variant"] not in VARIANTS or run["budget"] != n_timesteps:
            continue
        today = variant_run(run["env"], run["variant"], run["seed"], n_timesteps).hyperparams
        if canonical(run["hyperparams"], "happo") == canonical(today, "happo"):
            runs[run["env"], run["variant"], run["seed"]] = run
    return runs


def train(env_id: str, variant: str, seed: int, n_timesteps: int, eval_episodes: int) -> Record:
    """
    Execute one run.

    :param env_id: Id of the environment, one of ``ENVS``
    :param variant: Name of the variant, one of ``VARIANTS``
    :param seed: Seed of the training
    :param n_timesteps: Number of joint steps
    :param eval_episodes: Number of evaluation episodes
    :return: Record of the run
    """
    run = variant_run(env_id, variant, seed, n_timesteps)
    with tempfile.TemporaryDirectory() as folder:
        record = train_and_evaluate(run, Path(folder), eval_episodes, vec_env="dummy")
    script = " ".join(command_words("ablations"))
    command = (
        f"{script} --envs {env_id} --variants {variant} --seeds {seed} --n-timesteps {n_timesteps}"
    )
    return record | {"variant": variant, "budget": n_timesteps, "command": command}


def draw(ablation: str, groups: dict[str, list[Record]], path: Path) -> None:
    """
    :param ablation: Title of the plot
    :param groups: Runs of each variant, by the variant's label
    :param path: Path of the PNG file
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for variant, runs in groups.items():
        draw_seeds(axes, [run["learning_curve"] for run in runs], variant)
    axes.set(title=ablation, xlabel="joint steps", ylabel="return of training episodes")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def compare(runs: Sequence[Record], reference: Sequence[Record]) -> str:
    """
    :param runs: Runs of a variant, one per seed
    :param reference: Runs of the reference, one per seed
    :return: Difference of the means, and whether the ranges of the seeds overlap
    """
    own, others = ([run["return"] for run in group] for group in (runs, reference))
    text = f"{np.mean(own) - np.mean(others):+,.1f}; "
    if min(len(own), len(others)) < 3:
        return text + "too few seeds to tell"
    if min(own) > max(others):
        return text + "every seed is better than each of the others"
    if max(own) < min(others):
        return text + "every seed is worse than each of the others"
    return text + "the seeds overlap: no difference shown"


_INTRODUCTION = """\
# Ablations: shared parameters, and the order of the updates

[Kuba et al. 2021](https://arxiv.org/abs/2109.11251) report for HATRPO, on the Walker of multi-agent
MuJoCo, that shared parameters cost much of the return, and that the updates need no fixed order: a
random one does as well or better. Here the same comparisons are made with HAPPO, on a Walker with
one agent per leg and on MPE's spread; the greedy order updates the agent with the largest surrogate
gradient first. Everything but the variant is the environment's entry in
`zoo/hyperparams/happo_1m.yml`. A shared network makes one optimisation step per agent, so it makes
more of them.

Learning curves: return of the last 100 training episodes; line: mean over seeds, band: from the
lowest seed to the highest. Tables: deterministic episodes after training. With three seeds each,
the seeds of two equal variants do not overlap by chance in one comparison of ten."""


def report(runs: Runs, folder: Path) -> None:
    """
    Draw the learning curves and write ``ablations.md``.

    :param runs: Records by environment, variant and seed
    :param folder: Folder for the files
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [_INTRODUCTION]
    for env_id in dict.fromkeys(env_id for env_id, _, _ in runs):
        for ablation, labels in ABLATIONS.items():
            groups = _groups(runs, env_id, labels)
            if labels[REFERENCE] in groups and len(groups) > 1:
                lines += _section(env_id, ablation, groups, folder)
    lines += _origins(list(runs.values()))
    (folder / "ablations.md").write_text("\n".join(lines) + "\n")


def _groups(runs: Runs, env_id: str, labels: dict[str, str]) -> dict[str, list[Record]]:
    """
    :param runs: Records by environment, variant and seed
    :param env_id: Id of the environment
    :param labels: Labels of the variants
    :return: Runs of each variant that has some, sorted by seed, by the variant's label
    """
    groups: dict[str, list[Record]] = {}
    for variant, label in labels.items():
        keys = [key for key in sorted(runs) if key[:2] == (env_id, variant)]
        if keys:
            groups[label] = [runs[key] for key in keys]
    return groups


def _section(
    env_id: str, ablation: str, groups: dict[str, list[Record]], folder: Path
) -> list[str]:
    """
    Draw the learning curves of one comparison.

    :param env_id: Id of the environment
    :param ablation: Title of the comparison
    :param groups: Runs of each variant, by the variant's label
    :param folder: Folder for the plot
    :return: Lines of Markdown
    """
    name = f"ablation_{env_id.split('/')[1]}_{ablation.lower().replace(' ', '_')}.png"
    draw(f"{ablation}: {env_id}", groups, folder / name)
    reference = ABLATIONS[ablation][REFERENCE]
    some = groups[reference][0]
    lines = [
        "",
        f"## {ablation}: `{env_id}`",
        "",
        f"![Learning curves]({name})",
        "",
        f"{some['n_timesteps']:,} joint steps, {some['episodes']} episodes per seed.",
        "",
        f"| {ablation.lower()} | return | each seed's | against the first line | steps/s |",
        "|---|---|---|---|---|",
    ]
    for label, group in groups.items():
        returns = [run["return"] for run in group]
        speed = np.median([run["steps_per_second"] for run in group])
        cells = [
            label,
            f"{np.mean(returns):,.1f}",
            ", ".join(f"{value:,.1f}" for value in returns),
            "" if label == reference else compare(group, groups[reference]),
            f"{speed:,.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _origins(runs: Sequence[Record]) -> list[str]:
    """
    :param runs: All records
    :return: Lines of Markdown with the command, commits and versions
    """
    origins = set()
    for run in runs:
        versions = ", ".join(map(" ".join, run["versions"].items()))
        origins.add(f"* At {run['commit']}: {versions}")
    seeds = " ".join(map(str, sorted({run["seed"] for run in runs})))
    budgets = " ".join(map(str, {run["budget"] for run in runs}))
    return [
        "",
        "## How",
        "",
        f"* `python zoo/ablations.py --seeds {seeds} --n-timesteps {budgets}`; every run is "
        "recorded in `zoo/ablations.jsonl` with its command.",
        *sorted(origins),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """
    Command line.

    :param argv: Arguments, by default those of the process
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--envs", nargs="+", default=list(ENVS), choices=ENVS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "-n", "--n-timesteps", type=int, default=N_TIMESTEPS, help="joint steps of each run"
    )
    parser.add_argument(
        "--eval-episodes",
        type=int,
        help="number of evaluation episodes, instead of the environment's own",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of records")
    parser.add_argument(
        "--folder", type=Path, default=DOCS, help="folder for the plots and the tables"
    )
    args = parser.parse_args(argv)
    # Sorted by seed, so that an interrupted call leaves complete comparisons
    for env_id, seed, variant in itertools.product(args.envs, args.seeds, args.variants):
        if (env_id, variant, seed) in read_runs(args.results, args.n_timesteps):
            continue
        run = train(env_id, variant, seed, args.n_timesteps, args.eval_episodes or ENVS[env_id])
        append_record(run, args.results)
        print({name: run[name] for name in _PRINTED}, flush=True)
    report(read_runs(args.results, args.n_timesteps), args.folder)


if __name__ == "__main__":
    main()
