"""
Records of finished runs, one line of JSON each in ``zoo/results.jsonl``, and their statistics.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rliable.metrics import aggregate_iqm
from scipy import stats

from sb3_happo_zoo.entries import evaluated, read_settings
from sb3_happo_zoo.paths import OUTPUT

Record = dict[str, Any]

RESULTS = OUTPUT / "results.jsonl"
ENV_HYPERPARAMS = ("env_kwargs", "joint_kwargs", "wrappers", "env_wrapper")
N_RESAMPLES = 10_000


class Estimate(NamedTuple):
    """
    Estimate of a result from several seeds.

    :param iqm: Interquartile mean of the seeds' results
    :param low: Lower end of its 95 % bootstrap interval; NaN with one seed
    :param high: Upper end of the interval; NaN with one seed
    """

    iqm: float
    low: float
    high: float

    def __str__(self) -> str:
        decimals = 1 if abs(self.iqm) >= 10 else 2
        mean, low, high = (f"{value:,.{decimals}f}" for value in self)
        return mean if np.isnan(self.low) else f"{mean} [{low}, {high}]"


class Group(NamedTuple):
    """
    Runs that differ in their seed only: a line of the table.

    :param runs: One record per seed, sorted by seed
    """

    runs: list[Record]

    @property
    def id(self) -> str:
        """Short name, which does not depend on the seeds."""
        return hashlib.sha1(repr(group_key(self.runs[0])).encode()).hexdigest()[:6]

    def estimate(self, field: str) -> Estimate:
        """
        :param field: ``"return"`` or ``"sum_over_agents"``
        :return: Estimate of the field over the seeds
        """
        return estimate([run[field] for run in self.runs])


def canonical(hyperparams: dict[str, Any], algo: str) -> str:
    """
    Hyperparameters in a form that can be compared. Records of versions before ``benchmark.py`` have
    the texts of the values, later ones the values of the YAML file: both give the same.

    :param hyperparams: Hyperparameters of an entry or a record
    :param algo: Name of the algorithm; ``"random"`` learns nothing, so only hyperparameters of the
        environment count
    :return: Names and values as JSON, sorted by name
    """
    names = [name for name in sorted(hyperparams) if algo != "random" or name in ENV_HYPERPARAMS]
    return json.dumps({name: _text(hyperparams[name]) for name in names})


def _text(value: Any) -> str:
    text = str(evaluated(value))
    # An object without a text of its own, such as a function, has an address in its text
    return str(value) if " at 0x" in text else text


def same_entry(run: Record, settings: str) -> dict[str, Any] | None:
    """
    :param run: Record of a run
    :param settings: File of hyperparameters, see :func:`~sb3_happo_zoo.entries.read_settings`; it
        may be followed by changes, " name=value" each
    :return: The file's present entry of the run's environment, if its hyperparameters equal the
        run's except for the changes
    """
    file, *changes = settings.split(" ")
    try:
        entry = read_settings(file).get(run["env"])
    except ValueError:
        return None
    if entry is None:
        return None
    changed = {change.partition("=")[0] for change in changes}
    now, then = (_without(had, changed) for had in (entry, run["hyperparams"]))
    return entry if canonical(now, run["algo"]) == canonical(then, run["algo"]) else None


def _without(hyperparams: dict[str, Any], names: set[str]) -> dict[str, Any]:
    return {key: value for key, value in hyperparams.items() if key not in names}


def group_key(run: Record) -> tuple[str, ...]:
    """
    :param run: Record of a run
    :return: Key that runs with other seeds share
    """
    hyperparams = canonical(run["hyperparams"], run["algo"])
    return run["env"], run["algo"], run["settings"], str(run["n_timesteps"]), hyperparams


def read_records(path: Path = RESULTS) -> list[Record]:
    """
    :param path: Path of the file
    :return: Records in the order of writing; empty if there is no file
    """
    records: list[Record] = []
    if not path.exists():
        return records
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # the writing process was killed
            warnings.warn(
                f"{path}, line {number} is broken; its run counts as not finished.", stacklevel=2
            )
    return records


def append_record(run: Record, path: Path = RESULTS) -> None:
    """
    Append a record to the file. Several processes may do so at the same time.

    :param run: Record of the run
    :param path: Path of the file
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:  # a single write, which the system appends
        end = file.seek(0, 2)
        file.seek(max(end - 1, 0))
        broken = end > 0 and file.read(1) != b"\n"
        file.write(b"\n" * broken + json.dumps(run).encode() + b"\n")


def grouped(records: Sequence[Record]) -> list[Group]:
    """
    :param records: Records in the order of writing; of several with the same seed, the last one
        counts
    :return: Groups, sorted by environment, algorithm, settings and steps
    """
    groups: dict[tuple[str, ...], dict[int, Record]] = {}
    for run in records:
        groups.setdefault(group_key(run), {})[run["seed"]] = run
    keys = sorted(groups, key=lambda key: (*key[:3], int(key[3]), key[4]))
    return [Group(_sorted_by_seed(groups[key])) for key in keys]


def _sorted_by_seed(runs: dict[int, Record]) -> list[Record]:
    return [runs[seed] for seed in sorted(runs)]


def estimate(results: Sequence[float]) -> Estimate:
    """
    Interquartile mean over runs, and percentile interval of a bootstrap over runs, as `rliable
    <https://arxiv.org/abs/2108.13264>`_ reports them for one environment. ``rliable.library``
    computes the same interval sample by sample, which takes many times as long.

    With fewer than four runs the interquartile mean equals the mean.

    :param results: One result per seed
    :return: The estimate
    """
    values = np.asarray(results, dtype=float)
    iqm = float(aggregate_iqm(values[:, None]))  # (n_runs, n_tasks)
    if len(values) == 1:
        return Estimate(iqm, np.nan, np.nan)
    if np.ptp(values) == 0:
        return Estimate(iqm, iqm, iqm)
    interval = stats.bootstrap(
        (values,),
        partial(stats.trim_mean, proportiontocut=0.25),
        n_resamples=N_RESAMPLES,
        method="percentile",
        rng=0,
    ).confidence_interval
    return Estimate(iqm, float(interval.low), float(interval.high))
