"""Report ``zoo/benchmark.md`` with its learning curves, made from the records of finished runs."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from huggingface_sb3 import EnvironmentName
from matplotlib.figure import Figure

from sb3_happo_zoo.plots import Curve, draw_seeds
from sb3_happo_zoo.results import Group, Record, grouped, same_entry

# Beginnings of the recorded commands that take several seeds
_BENCHMARKS = ("python zoo/benchmark.py", "sb3-happo benchmark")
_COLUMNS = (
    "id",
    "algorithm",
    "settings",
    "steps",
    "seeds",
    "episodes each",
    "return",
    "S",
    "wall time",
    "steps/s",
)
_TIMES = ("steps_per_second", "wall_seconds")
INTRODUCTION = """# Benchmark

Made by `python zoo/benchmark.py` from [`{results}`]({results}), which has the seed, settings,
learning curve, versions, commit and command of every run. `python zoo/reproduce.py ID` repeats a
run of a line and says whether its result is reproduced.

* **return**: return of the team, whose reward the settings define; **S**: return summed over the
  agents. (In multi-agent MuJoCo all agents get the same reward: read the return.) The result of a
  run is the mean of episodes after training, with the most likely actions unless the settings say
  `deterministic: false`. **random** is a team whose actions are sampled uniformly.
* Results are the interquartile mean over the seeds, with its 95 % interval from a bootstrap over
  the seeds, as in [rliable](https://arxiv.org/abs/2108.13264). With fewer than four seeds the
  interquartile mean equals the mean; with three seeds the interval ends at the worst and the best
  seed. One seed gives no interval.
* **wall time** and **steps/s**: median over the runs, on a machine that may do other work as well.
* Settings are files in `zoo/hyperparams`, or paths of files, followed by the changes of the command
  line. *Earlier*: the file has other hyperparameters today.
* Learning curves: return of the last 100 training episodes (sampled actions); line: mean over
  seeds, band: from the lowest seed to the highest.
"""


def is_current(run: Record) -> bool:
    """
    :param run: Record of a run
    :return: Whether the file still has its hyperparameters, except for changes on the command line
    """
    return run["algo"] == "random" or same_entry(run, run["settings"]) is not None


def draw_curves(groups: Sequence[Group]) -> Figure | None:
    """
    Draw the learning curves of the algorithms with the zoo's own settings (``<algo>`` and, for
    short trainings, ``<algo>_1m``), or if there are none those of all settings that still exist;
    and the return of a random team.

    :param groups: Groups of one environment
    :return: The plot, None if there are no curves
    """
    drawn = [group for group in groups if _curves(group) and is_current(group.runs[0])]
    if not drawn:
        return None
    own = [group for group in drawn if _has_own_settings(group.runs[0])]
    shown = own or drawn
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for group in shown:
        run = group.runs[0]
        label = run["settings"].upper() if own else f"{run['algo'].upper()}: {run['settings']}"
        draw_seeds(axes, _curves(group), label)
    for value in _random_returns(groups):
        axes.axhline(value, color="grey", linestyle="--", label="random")
    budgets = [group.runs[0]["n_timesteps"] for group in shown]
    if max(budgets) > 2 * min(budgets):
        axes.set_xscale("log")
    axes.set(
        title=groups[0].runs[0]["env"], xlabel="joint steps", ylabel="return of training episodes"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _random_returns(groups: Sequence[Group]) -> list[float]:
    """
    :param groups: Groups of one environment
    :return: Returns of the random teams
    """
    random = [group for group in groups if group.runs[0]["algo"] == "random"]
    return [group.estimate("return").iqm for group in random]


def _curves(group: Group) -> list[Curve]:
    """
    :param group: Runs of one line
    :return: Learning curves of those runs that have one
    """
    return [run["learning_curve"] for run in group.runs if run.get("learning_curve")]


def _has_own_settings(run: Record) -> bool:
    """
    :param run: Record of a run
    :return: Whether it has the zoo's settings of its algorithm, without changes
    """
    return run["settings"] in (run["algo"], f"{run['algo']}_1m")


def duration(seconds: float) -> str:
    """
    :param seconds: Duration in seconds, >= 0
    :return: Text in seconds, minutes or hours
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def table_line(group: Group) -> str:
    """
    :param group: Runs that differ in their seed only
    :return: Line of the Markdown table
    """
    run = group.runs[0]
    speeds, walls = ([run[field] for run in group.runs] for field in _TIMES)
    training = ["", "", ""]
    if run["n_timesteps"] > 0:
        steps, speed = f"{run['n_timesteps']:,}", f"{np.median(speeds):,.0f}"
        training = [steps, duration(float(np.median(walls))), speed]
    steps, wall, speed = training
    episodes = dict.fromkeys(run["episodes"] for run in group.runs)
    cells = [
        f"`{group.id}`",
        run["algo"],
        run["settings"] + " (earlier)" * (not is_current(run)),
        steps,
        ", ".join(str(run["seed"]) for run in group.runs),
        ", ".join(f"{number:,}" for number in episodes),
        str(group.estimate("return")),
        str(group.estimate("sum_over_agents")),
        wall,
        speed,
    ]
    return f"| {' | '.join(cells)} |"


def merged_commands(runs: Sequence[Record]) -> list[str]:
    """
    :param runs: Records of a line
    :return: Their commands; those of ``benchmark.py`` that differ in the seed only are one command
        with all seeds
    """
    commands: dict[str, str] = {}
    for run in runs:
        command = run["command"]
        start, flag, seed = command.rpartition(" --seeds ")
        if not flag or not command.startswith(_BENCHMARKS):
            commands[command] = command
        elif start in commands:
            commands[start] += f" {seed}"
        else:
            commands[start] = command
    return list(commands.values())


def origins(groups: Sequence[Group]) -> list[str]:
    """
    :param groups: Groups of the whole table
    :return: Lines of Markdown: results per seed, commands, commits and versions of each group
    """
    numbers: dict[str, int] = {}
    lines = ["## Where each line comes from", ""]
    lines += ["| id | return of each seed | command | commit | versions |", "|---|---|---|---|---|"]
    for group in groups:
        used = set()
        for run in group.runs:
            used.add(numbers.setdefault(json.dumps(run["versions"]), len(numbers) + 1))
        cells = [
            f"`{group.id}`",
            ", ".join(format(run["return"], ",.2f") for run in group.runs),
            "<br>".join(f"`{command}`" for command in merged_commands(group.runs)),
            ", ".join(dict.fromkeys(run["commit"] for run in group.runs)),
            ", ".join(map(str, sorted(used))),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "Versions:", ""]
    for text, number in numbers.items():
        lines.append(f"{number}. {', '.join(map(' '.join, json.loads(text).items()))}")
    return lines


def write_report(records: Sequence[Record], results: Path) -> Path:
    """
    Write ``benchmark.md`` and the folder ``curves`` beside the file of results.

    :param records: Records of the file
    :param results: Path of the file
    :return: Path of the table
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
            f"| {' | '.join(_COLUMNS)} |",
            "|---" * len(_COLUMNS) + "|",
            *map(table_line, own),
            "",
        ]
    path = results.with_name("benchmark.md")
    path.write_text("\n".join(lines + origins(groups)) + "\n")
    return path
