"""
Run a line of ``zoo/benchmark.md`` again, and say whether it comes out as it did.

    python zoo/reproduce.py happo/mpe2/simple_spread_v3
    python zoo/reproduce.py 07c5df --seed 1

A line is named by its id, or by algorithm and environment: the zoo's own settings, if there are several. The seed is by
default the one whose result is in the middle of those recorded. Its return has been reproduced if it lies inside the recorded
95 % interval, or between that and what the same seed gave then. A single seed has no interval: in its place stands the 95 %
interval of the mean of its evaluation episodes, which says nothing about seeds.

The exit code is 0 if it was reproduced, 1 if not.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from benchmark import RunOptions, describe, run_all
from exp_manager import HYPERPARAMS
from records import RESULTS, Group, Record, grouped, read_records, same_entry, unknown
from report import is_current
from runs import Run


def find_group(name: str, groups: Sequence[Group]) -> Group:
    """
    :param name: Id of a line, or ``<algorithm>/<environment>``
    :param groups: All lines
    :return: The line; of several with that algorithm and environment the one with the zoo's own settings
    :raises ValueError: If there is none, or it is not clear which
    """
    for group in groups:
        if group.id == name:
            return group
    named = [group for group in groups if entry_name(group) == name]
    if not named:
        raise ValueError(
            unknown("line", name, [*map(entry_name, groups), *(group.id for group in groups)])
        )
    current = [
        group
        for group in named
        if group.runs[0]["settings"] == group.runs[0]["algo"] and is_current(group.runs[0])
    ]
    candidates = current or named
    if len(candidates) > 1:
        raise ValueError(
            f"{name} names several lines; give an id: {', '.join(group.id for group in candidates)}."
        )
    return candidates[0]


def entry_name(group: Group) -> str:
    """
    :param group: A line
    :return: ``<algorithm>/<environment>``
    """
    return f"{group.runs[0]['algo']}/{group.runs[0]['env']}"


def middle_run(group: Group) -> Record:
    """
    :param group: A line
    :return: The run whose return has as many above as below; with an even number the lower one of two
    """
    runs = sorted(group.runs, key=lambda run: run["return"])
    return runs[(len(runs) - 1) // 2]


def repeat_run(recorded: Record, seed: int) -> Run:
    """
    :param recorded: A record
    :param seed: Of the new run
    :return: The same run
    :raises ValueError: If its settings can no longer be had
    """
    hyperparams = recorded["hyperparams"]
    if all(
        isinstance(value, str) for value in hyperparams.values()
    ):  # of before benchmark.py: texts of evaluated values
        settings = [
            recorded["settings"],
            *(file.stem for file in sorted(HYPERPARAMS.glob("*.yml"))),
        ]
        entries = (same_entry(recorded, name) for name in settings)
        hyperparams = next((entry for entry in entries if entry is not None), None)
        if hyperparams is None:
            raise ValueError(
                f"The settings {recorded['settings']!r} of this line are no longer in zoo/hyperparams, and its record has "
                f"them as texts only; check out {recorded['commit']} and run `{recorded['command']}`."
            )
    return Run(
        recorded["algo"],
        recorded["env"],
        recorded["settings"],
        seed,
        hyperparams,
        recorded["command"],
    )


def accepted(group: Group, recorded: Record) -> tuple[float, float]:
    """
    :param group: A line
    :param recorded: One of its runs
    :return: Between which returns that run counts as reproduced
    """
    _, low, high = group.estimate("return")
    if np.isnan(low):
        error = 1.96 * recorded["return_std"] / np.sqrt(recorded["episodes"])
        return recorded["return"] - error, recorded["return"] + error
    return min(low, recorded["return"]), max(high, recorded["return"])


def differences(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """
    :param before: Versions of a record
    :param now: And of another one
    :return: What differs, in words; packages that only one of them names are left out
    """
    return [
        f"{name} {before[name]} then, {now[name]} now"
        for name in before
        if now.get(name, before[name]) != before[name]
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """
    Command line.

    :param argv: Its arguments; by default the process's
    :return: Exit code: 0 if the line was reproduced, else 1
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "entry", help="id of a line of zoo/benchmark.md, or <algorithm>/<environment>"
    )
    parser.add_argument(
        "--seed", type=int, help="by default the recorded one whose result is in the middle"
    )
    parser.add_argument("--num-threads", type=int, help="PyTorch's; by default one per core")
    parser.add_argument("--results", type=Path, default=RESULTS, help="what was recorded")
    parser.add_argument(
        "-f",
        "--log-folder",
        type=Path,
        default=Path("logs") / "reproduce",
        help="logs of the new run",
    )
    args = parser.parse_args(argv)
    try:
        group = find_group(args.entry, grouped(read_records(args.results)))
        recorded = next((run for run in group.runs if run["seed"] == args.seed), middle_run(group))
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
    print(
        f"The return {new['return']:,.2f} {'lies' if reproduced else 'does not lie'} between {low:,.2f} and {high:,.2f}."
    )
    before, now = (run["versions"] | {"commit": run["commit"]} for run in (recorded, new))
    for difference in differences(before, now):
        print(f"Differs: {difference}")
    return 0 if reproduced else 1


if __name__ == "__main__":
    sys.exit(main())
