"""``zoo/benchmark.md`` and its learning curves, from the records of finished runs."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from huggingface_sb3 import EnvironmentName
from matplotlib.figure import Figure
from plots import draw_seeds
from records import Group, Record, grouped, same_entry

INTRODUCTION = """# Benchmark

Made by `python zoo/benchmark.py` from [`{results}`]({results}), where every run stands with its seed, settings, learning
curve, versions, commit and command. `python zoo/reproduce.py ID` runs a line again and says whether it comes out as it did.

* **return**: of the team, as the settings define its reward; **S**: the return summed over the agents. (In multi-agent MuJoCo
  every agent gets the same reward: read the return.) A run's result is the mean of episodes after training, with the most
  likely actions unless the settings say `deterministic: false`. **random** is a team whose actions are drawn uniformly.
* The interquartile mean over the seeds, and its 95 % interval from a bootstrap over the seeds, as in
  [rliable](https://arxiv.org/abs/2108.13264). With fewer than four seeds nothing is left out, so it is the mean; with three,
  the interval runs from the worst seed to the best. One seed gives none.
* **wall time** and **steps/s**: the median run's, with whatever else that machine was doing.
* Settings are files in `zoo/hyperparams`, or with a path, and what was changed on the command line. *Earlier*: the file says
  otherwise today.
* Learning curves: return of the last 100 training episodes (sampled actions); line: mean over seeds, band: from the lowest
  seed to the highest.
"""


def is_current(run: Record) -> bool:
    """
    :param run: A record
    :return: Whether its settings, but for what was changed on the command line, are what the file says today
    """
    return run["algo"] == "random" or same_entry(run, run["settings"]) is not None


def draw_curves(groups: Sequence[Group]) -> Figure | None:
    """
    The learning curves of the algorithms with the zoo's own settings, those for short trainings (``<algo>_1m``) too, or where
    there are none those of all settings that are still there; and a random team's return.

    :param groups: Of one environment
    :return: The plot, None if there is nothing to draw
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    budgets: list[int] = []
    there = [
        (group.runs[0], curves)
        for group in groups
        if (curves := [run["learning_curve"] for run in group.runs if run.get("learning_curve")])
        and is_current(group.runs[0])
    ]
    own = [
        (run, curves)
        for run, curves in there
        if run["settings"] in (run["algo"], f"{run['algo']}_1m")
    ]
    for run, curves in own or there:
        draw_seeds(
            axes,
            curves,
            run["settings"].upper() if own else f"{run['algo'].upper()}: {run['settings']}",
        )
        budgets.append(run["n_timesteps"])
    for group in groups:
        if group.runs[0]["algo"] == "random":
            axes.axhline(group.estimate("return").iqm, color="grey", linestyle="--", label="random")
    if not budgets:
        return None
    if max(budgets) > 2 * min(budgets):
        axes.set_xscale("log")
    axes.set(
        title=groups[0].runs[0]["env"], xlabel="joint steps", ylabel="return of training episodes"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def duration(seconds: float) -> str:
    """
    :param seconds: >= 0
    :return: In the unit that people would use
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def table_line(group: Group) -> str:
    """
    :param group: Runs that differ in their seed alone
    :return: Their line of Markdown
    """
    run = group.runs[0]
    seeds = ", ".join(str(run["seed"]) for run in group.runs)
    speed, wall = (
        np.median([run[field] for run in group.runs])
        for field in ("steps_per_second", "wall_seconds")
    )
    trained = run["n_timesteps"] > 0
    cells = [
        f"`{group.id}`",
        run["algo"],
        run["settings"] + " (earlier)" * (not is_current(run)),
        f"{run['n_timesteps']:,}" if trained else "",
        seeds,
        ", ".join(f"{number:,}" for number in dict.fromkeys(run["episodes"] for run in group.runs)),
        str(group.estimate("return")),
        str(group.estimate("sum_over_agents")),
        duration(wall) if trained else "",
        f"{speed:,.0f}" if trained else "",
    ]
    return f"| {' | '.join(cells)} |"


def origins(groups: Sequence[Group]) -> list[str]:
    """
    :param groups: All of the table
    :return: Lines of Markdown: each group's results seed by seed, its commands and commits, and the sets of versions
    """
    numbers: dict[str, int] = {}
    lines = ["## Where each line comes from", ""]
    lines += ["| id | return of each seed | command | commit | versions |", "|---|---|---|---|---|"]
    for group in groups:
        used = {
            numbers.setdefault(json.dumps(run["versions"]), len(numbers) + 1) for run in group.runs
        }
        # Runs of one command are written down one by one
        commands: dict[str, str] = {}
        for run in group.runs:
            start, flag, seed = run["command"].rpartition(" --seeds ")
            own = flag and run["command"].startswith("python zoo/benchmark.py")
            key = start + flag if own else run["command"]
            commands[key] = f"{commands[key]} {seed}" if own and key in commands else run["command"]
        lines.append(
            f"| `{group.id}` | {', '.join(format(run['return'], ',.2f') for run in group.runs)} "
            f"| {'<br>'.join(f'`{command}`' for command in commands.values())} "
            f"| {', '.join(dict.fromkeys(run['commit'] for run in group.runs))} | {', '.join(map(str, sorted(used)))} |"
        )
    lines += ["", "Versions:", ""]
    for text, number in numbers.items():
        lines.append(f"{number}. {', '.join(' '.join(pair) for pair in json.loads(text).items())}")
    return lines


def write_report(records: Sequence[Record], results: Path) -> Path:
    """
    Write ``benchmark.md`` and the folder ``curves`` beside the file of results.

    :param records: What stands there
    :param results: The file's path
    :return: The table's path
    """
    groups = grouped(records)
    lines = [INTRODUCTION.format(results=results.name)]
    for env_id in dict.fromkeys(group.runs[0]["env"] for group in groups):
        own = [group for group in groups if group.runs[0]["env"] == env_id]
        lines += [f"## `{env_id}`", ""]
        curves = results.with_name("curves") / f"{EnvironmentName(env_id)}.png"
        figure = draw_curves(own)
        if figure is not None:
            curves.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(curves, dpi=100, metadata={"Software": None})
            lines += [f"![Learning curves](curves/{curves.name})", ""]
        lines += [
            "| id | algorithm | settings | steps | seeds | episodes each | return | S | wall time | steps/s |",
            "|---|---|---|---|---|---|---|---|---|---|",
            *map(table_line, own),
            "",
        ]
    path = results.with_name("benchmark.md")
    path.write_text("\n".join(lines + origins(groups)) + "\n")
    return path
