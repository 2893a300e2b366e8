"""
Repeat a run of a line of ``zoo/benchmark.md``, and say whether its result is reproduced.

    python zoo/reproduce.py happo/mpe2/simple_spread_v3
    python zoo/reproduce.py 07c5df --seed 1

A line is named by its id, or by algorithm and environment; if several lines have these, the one
with the zoo's own settings is meant. The default seed is the one with the median result. Its return
is reproduced if it lies inside the recorded 95 % interval, or between that interval and the
recorded return of the same seed. A single seed has no interval; instead, the 95 % interval of the
mean of its evaluation episodes is taken, which does not contain the variance between seeds.

The exit code is 0 if the return is reproduced, 1 if not.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_happo_zoo.benchmark import RunOptions, describe, run_all
from sb3_happo_zoo.entries import settings_names, unknown
from sb3_happo_zoo.report import is_current
from sb3_happo_zoo.results import RESULTS, Group, Record, grouped, read_records, same_entry
from sb3_happo_zoo.runs import Run


def find_group(name: str, groups: Sequence[Group]) -> Group:
    """
    :param name: Id of a line, or ``<algorithm>/<environment>``
    :param groups: Groups of all lines
    :return: The group; of several with that algorithm and environment the one with the zoo's own
        settings
    :raises ValueError: If there is none, or several
    """
    for group in groups:
        if group.id == name:
            return group
    named = [group for group in groups if entry_name(group) == name]
    if not named:
        names = [*map(entry_name, groups), *(group.id for group in groups)]
        raise ValueError(unknown("line", name, names))
    candidates = [group for group in named if _has_own_settings(group)] or named
    if len(candidates) > 1:
        ids = ", ".join(group.id for group in candidates)
        raise ValueError(f"{name} names several lines; give an id: {ids}.")
    return candidates[0]


def _has_own_settings(group: Group) -> bool:
    """
    :param group: Runs of one line
    :return: Whether its settings are the zoo's of its algorithm, and still in the file
    """
    run = group.runs[0]
    return bool(run["settings"] == run["algo"]) and is_current(run)


def entry_name(group: Group) -> str:
    """
    :param group: Runs of one line
    :return: ``<algorithm>/<environment>``
    """
    return f"{group.runs[0]['algo']}/{group.runs[0]['env']}"


def middle_run(group: Group) -> Record:
    """
    :param group: Runs of one line
    :return: Record with the median return; of an even number the lower one of the two in the middle
    """
    runs = sorted(group.runs, key=lambda run: run["return"])
    return runs[(len(runs) - 1) // 2]


def repeat_run(recorded: Record, seed: int) -> Run:
    """
    :param recorded: Record of a run
    :param seed: Seed of the new run
    :return: Run with the recorded hyperparameters
    :raises ValueError: If the record has them as texts only, and no file has them any more
    """
    return Run(
        recorded["algo"],
        recorded["env"],
        recorded["settings"],
        seed,
        recorded_hyperparameters(recorded),
        recorded["command"],
    )


def choose_run(group: Group, seed: int | None) -> Record:
    """
    :param group: Runs of one line
    :param seed: Seed of the run, None for the one with the median return
    :return: Record of the seed, or with the median return if there is none
    """
    for run in group.runs:
        if run["seed"] == seed:
            return run
    return middle_run(group)


def recorded_hyperparameters(recorded: Record) -> dict[str, Any]:
    """
    :param recorded: Record of a run
    :return: Hyperparameters of the run, in the form of a YAML file
    :raises ValueError: If the record has them as texts only, and no file has them any more
    """
    hyperparams = recorded["hyperparams"]
    # Versions before benchmark.py recorded texts of evaluated values
    if not all(isinstance(value, str) for value in hyperparams.values()):
        return dict(hyperparams)
    for settings in (recorded["settings"], *settings_names()):
        entry = same_entry(recorded, settings)
        if entry is not None:
            return entry
    raise ValueError(
        f"The settings {recorded['settings']!r} of this line are no longer in zoo/hyperparams, and "
        f"its record has them as texts only; check out {recorded['commit']} and run "
        f"`{recorded['command']}`."
    )


def accepted(group: Group, recorded: Record) -> tuple[float, float]:
    """
    :param group: Runs of one line
    :param recorded: Record of one of its runs
    :return: Lower and upper bound between which a return counts as reproduced
    """
    _, low, high = group.estimate("return")
    if np.isnan(low):
        error = 1.96 * recorded["return_std"] / np.sqrt(recorded["episodes"])
        return recorded["return"] - error, recorded["return"] + error
    return min(low, recorded["return"]), max(high, recorded["return"])


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """
    :param before: Versions of the record
    :param now: Versions of the new run
    :return: Descriptions of the differences; packages that only one of them has are left out
    """
    found = []
    for name, version in before.items():
        if now.get(name, version) != version:
            found.append(f"{name} {version} then, {now[name]} now")
    return found


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "entry", help="id of a line of zoo/benchmark.md, or <algorithm>/<environment>"
    )
    parser.add_argument(
        "--seed", type=int, help="seed of the run; by default the one with the median result"
    )
    parser.add_argument(
        "--num-threads", type=int, help="number of PyTorch's threads; by default one per core"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="file of records")
    parser.add_argument(
        "-f",
        "--log-folder",
        type=Path,
        default=Path("logs") / "reproduce",
        help="log folder of the new run",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Command line.

    :param argv: Arguments, by default those of the process
    :return: Exit code: 0 if the return is reproduced, else 1
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        group = find_group(args.entry, grouped(read_records(args.results)))
        recorded = choose_run(group, args.seed)
        run = repeat_run(recorded, recorded["seed"] if args.seed is None else args.seed)
    except ValueError as error:
        parser.error(str(error))
    print(f"Recorded: {describe(recorded)}", flush=True)
    results = args.log_folder / "results.jsonl"
    options = RunOptions(
        args.log_folder, results, recorded["episodes"], n_jobs=1, n_threads=args.num_threads
    )
    if run_all([run], options):
        return 1
    new = run.record_in(read_records(results), recorded["episodes"])
    assert new is not None
    low, high = accepted(group, recorded)
    reproduced = low <= new["return"] <= high
    lies = "lies" if reproduced else "does not lie"
    print(f"The return {new['return']:,.2f} {lies} between {low:,.2f} and {high:,.2f}.")
    before, now = (run["versions"] | {"commit": run["commit"]} for run in (recorded, new))
    for difference in differences(before, now):
        print(f"Differs: {difference}")
    return 0 if reproduced else 1


if __name__ == "__main__":
    sys.exit(main())
