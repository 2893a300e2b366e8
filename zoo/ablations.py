"""
The ablations of the HAPPO paper (Kuba et al. 2021, https://arxiv.org/abs/2109.11251), with HAPPO: shared parameters against
each agent's own, and the order in which the agents are updated.

    python zoo/ablations.py

Every run is written down in ``zoo/ablations.jsonl`` when it ends; runs that stand there with the same hyperparameters are not
repeated, so an interrupted call goes on where it stopped, and ``--seeds`` or ``--envs`` divide the work among several
processes. At the end, what is there is drawn and told in ``docs/ablations.md``.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from plots import draw_seeds
from records import Record, append_record, canonical, read_entries, read_records
from runs import Run, make_run, train_and_evaluate

ZOO = Path(__file__).resolve().parent
RESULTS = ZOO / "ablations.jsonl"
DOCS = ZOO.parent / "docs"
# With the episodes of an evaluation: those of spread have 25 steps and vary much, those of Walker up to 1,000
ENVS = {"mamujoco/Walker2d-2x3-v1": 50, "mpe2/simple_spread_v3": 500}
N_TIMESTEPS = 300_000
SETTINGS = "happo_1m"
# What differs from the environment's entry in the settings
VARIANTS: dict[str, dict[str, Any]] = {
    "random": {"agent_order": "random", "policy_kwargs": {"share_parameters": False}},
    "shared": {"agent_order": "random", "policy_kwargs": {"share_parameters": True}},
    "fixed": {"agent_order": "fixed", "policy_kwargs": {"share_parameters": False}},
    "greedy": {"agent_order": "greedy", "policy_kwargs": {"share_parameters": False}},
}
REFERENCE = "random"
# Which variants are compared, and what they are called there; the reference first
ABLATIONS = {
    "Shared parameters": {"random": "each its own", "shared": "shared"},
    "Order of the updates": {"random": "random", "fixed": "fixed", "greedy": "greedy"},
}


def variant_run(env_id: str, variant: str, seed: int, n_timesteps: int) -> Run:
    """
    :param env_id: One of ``ENVS``
    :param variant: One of ``VARIANTS``
    :param seed: Of the training
    :param n_timesteps: Budget
    :return: The environment's entry with the variant's changes
    """
    changes = VARIANTS[variant]
    policy_kwargs = read_entries(SETTINGS)[env_id].get(
        "policy_kwargs", "dict()"
    )  # the text of an expression
    merged = f"dict({policy_kwargs}, **{changes['policy_kwargs']})"
    changes = changes | {"policy_kwargs": merged, "n_timesteps": n_timesteps}
    return make_run("happo", env_id, seed, SETTINGS, changes)


def read_runs(path: Path, n_timesteps: int) -> dict[tuple[str, str, int], Record]:
    """
    :param path: Of the results
    :param n_timesteps: Budget
    :return: The finished runs with this budget and today's hyperparameters, by environment, variant and seed
    """
    runs: dict[tuple[str, str, int], Record] = {}
    for run in read_records(path):
        if run["variant"] not in VARIANTS or run["budget"] != n_timesteps:
            continue
        today = variant_run(run["env"], run["variant"], run["seed"], n_timesteps).hyperparams
        if canonical(run["hyperparams"], "happo") == canonical(today, "happo"):
            runs[run["env"], run["variant"], run["seed"]] = run
    return runs


def train(env_id: str, variant: str, seed: int, n_timesteps: int, eval_episodes: int) -> Record:
    """
    One run.

    :param env_id: One of ``ENVS``
    :param variant: One of ``VARIANTS``
    :param seed: Of the training
    :param n_timesteps: Budget
    :param eval_episodes: After it
    :return: What is written down of it
    """
    run = variant_run(env_id, variant, seed, n_timesteps)
    with tempfile.TemporaryDirectory() as folder:
        record = train_and_evaluate(run, Path(folder), eval_episodes, vec_env="dummy")
    command = f"python zoo/ablations.py --envs {env_id} --variants {variant} --seeds {seed} --n-timesteps {n_timesteps}"
    return record | {"variant": variant, "budget": n_timesteps, "command": command}


def draw(ablation: str, groups: dict[str, list[Record]], path: Path) -> None:
    """
    :param ablation: Title
    :param groups: The runs of each variant, by its name in the legend
    :param path: Of the PNG
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
    :param runs: Of a variant, one for each seed
    :param reference: Those that it is compared with
    :return: The difference of the means, and whether it is larger than what seeds do
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


def report(runs: dict[tuple[str, str, int], Record], folder: Path) -> None:
    """
    Draw the learning curves and write ``ablations.md``.

    :param runs: By environment, variant and seed
    :param folder: Where to
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        "# Ablations: shared parameters, and the order of the updates",
        "",
        "[Kuba et al. 2021](https://arxiv.org/abs/2109.11251) report for HATRPO, on the Walker of multi-agent MuJoCo, that",
        "shared parameters cost much of the return, and that the updates need no fixed order: a random one does as well or",
        "better. Here the same questions are put to HAPPO, on a Walker with one agent for each leg and on MPE's spread; the",
        "greedy order is that of the largest surrogate gradient first. Everything but the variant is the environment's entry",
        "in `zoo/hyperparams/happo_1m.yml`. A shared network takes a step for every agent, so it takes more of them.",
        "",
        "Learning curves: return of the last 100 training episodes; line: mean over seeds, band: from the lowest seed to the",
        "highest. Tables: deterministic episodes after training. With three seeds each, chance alone keeps the seeds of equal",
        "variants from overlapping in one comparison of ten.",
    ]
    for env_id in dict.fromkeys(env_id for env_id, _, _ in runs):
        for ablation, labels in ABLATIONS.items():
            found = {
                label: [
                    run
                    for (env, name, _), run in sorted(runs.items())
                    if (env, name) == (env_id, variant)
                ]
                for variant, label in labels.items()
            }
            groups = {label: group for label, group in found.items() if group}
            reference = labels[REFERENCE]
            if reference not in groups or len(groups) < 2:
                continue
            name = f"ablation_{env_id.split('/')[1]}_{ablation.lower().replace(' ', '_')}.png"
            draw(f"{ablation}: {env_id}", groups, folder / name)
            some = groups[reference][0]
            lines += [
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
                verdict = "" if label == reference else compare(group, groups[reference])
                lines.append(
                    f"| {label} | {np.mean(returns):,.1f} | {', '.join(f'{value:,.1f}' for value in returns)} | {verdict} "
                    f"| {np.median([run['steps_per_second'] for run in group]):,.0f} |"
                )
    origins = {
        (run["commit"], ", ".join(" ".join(pair) for pair in run["versions"].items()))
        for run in runs.values()
    }
    seeds, budgets = ({run[key] for run in runs.values()} for key in ("seed", "budget"))
    lines += [
        "",
        "## How",
        "",
        f"* `python zoo/ablations.py --seeds {' '.join(map(str, sorted(seeds)))} "
        f"--n-timesteps {' '.join(map(str, budgets))}`; every run stands in `zoo/ablations.jsonl` with its command.",
        *(f"* At {commit}: {versions}" for commit, versions in sorted(origins)),
    ]
    (folder / "ablations.md").write_text("\n".join(lines) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    """
    Command line.

    :param argv: Its arguments; by default the process's
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--envs", nargs="+", default=list(ENVS), choices=ENVS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("-n", "--n-timesteps", type=int, default=N_TIMESTEPS, help="of each run")
    parser.add_argument("--eval-episodes", type=int, help="instead of the environment's own number")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help="where the runs are written down"
    )
    parser.add_argument(
        "--folder", type=Path, default=DOCS, help="where the plots and the tables go"
    )
    args = parser.parse_args(argv)
    # Seed by seed, so that an interrupted call leaves whole comparisons
    wanted = [
        (env_id, variant, seed)
        for env_id in args.envs
        for seed in args.seeds
        for variant in args.variants
    ]
    for key in wanted:
        if key in read_runs(args.results, args.n_timesteps):
            continue
        env_id, variant, seed = key
        run = train(env_id, variant, seed, args.n_timesteps, args.eval_episodes or ENVS[env_id])
        append_record(run, args.results)
        print(
            {name: run[name] for name in ("env", "variant", "seed", "return", "steps_per_second")},
            flush=True,
        )
    report(read_runs(args.results, args.n_timesteps), args.folder)


if __name__ == "__main__":
    main()
