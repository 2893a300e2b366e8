"""Settings of runs, and the records of finished ones: one line of JSON each in ``zoo/results.jsonl``."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import exp_manager
import numpy as np
from exp_manager import HYPERPARAMS, ZOO, evaluate_expression, nearest
from rliable.metrics import aggregate_iqm
from scipy import stats

Record = dict[str, Any]

RESULTS = ZOO / "results.jsonl"
ENV_HYPERPARAMS = ("env_kwargs", "joint_kwargs", "wrappers", "env_wrapper")
N_RESAMPLES = 10_000


class Estimate(NamedTuple):
    """
    What several seeds say together.

    :param iqm: Interquartile mean of their results
    :param low: Lower end of its 95 % bootstrap interval; NaN with one seed
    :param high: Upper end
    """

    iqm: float
    low: float
    high: float

    def __str__(self) -> str:
        decimals = 1 if abs(self.iqm) >= 10 else 2
        interval = (
            "" if np.isnan(self.low) else f" [{self.low:,.{decimals}f}, {self.high:,.{decimals}f}]"
        )
        return f"{self.iqm:,.{decimals}f}{interval}"


class Group(NamedTuple):
    """
    Runs that differ in their seed alone: a line of the table.

    :param runs: One for each seed, in the order of seeds
    """

    runs: list[Record]

    @property
    def id(self) -> str:
        """A short name that stays the same as seeds are added."""
        return hashlib.sha1(repr(group_key(self.runs[0])).encode()).hexdigest()[:6]

    def estimate(self, field: str) -> Estimate:
        """
        :param field: ``"return"`` or ``"sum_over_agents"``
        :return: Over the seeds
        """
        return estimate([run[field] for run in self.runs])


def evaluated(value: Any) -> Any:
    """
    A hyperparameter as the algorithm gets it.

    :param value: From a YAML file, maybe an expression such as ``"dict(net_arch=[64])"``
    :return: The value of the expression; a string that is none as it is
    """
    try:
        return evaluate_expression("", value)
    except ValueError:  # the text of a value, such as "functools.partial(<class …>)"
        return value


def read_entries(settings: str) -> dict[str, dict[str, Any]]:
    """
    :param settings: Name of a file in ``zoo/hyperparams`` without its ending, or the path of a YAML file
    :return: Its entries as they stand there, by environment
    :raises ValueError: If there is no such file
    """
    path = (
        Path(settings) if settings.endswith((".yml", ".yaml")) else HYPERPARAMS / f"{settings}.yml"
    )
    if not path.exists():
        path = ZOO.parent / path  # as the zoo's own commands have it
    if not path.is_file():
        raise ValueError(
            unknown(
                "file of settings",
                settings,
                [file.stem for file in sorted(HYPERPARAMS.glob("*.yml"))],
            )
        )
    return exp_manager.read_entries(path)


def read_entry(settings: str, env_id: str) -> dict[str, Any]:
    """
    :param settings: As for :func:`read_entries`
    :param env_id: One of the entries
    :return: Its hyperparameters, expressions evaluated
    :raises ValueError: If there is no such file or entry
    """
    entries = read_entries(settings)
    if env_id not in entries:
        raise ValueError(unknown(f"entry of {settings}", env_id, entries))
    return {name: evaluated(value) for name, value in entries[env_id].items()}


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """
    :param kind: What was asked for
    :param name: Its wrong name
    :param known: The names that there are
    :return: The text of an error
    """
    names = list(dict.fromkeys(known))
    near = nearest(name, names)
    return f"There is no {kind} {name!r}. " + (
        f"Did you mean {near!r}?" if near else f"There are {', '.join(names)}."
    )


def canonical(hyperparams: dict[str, Any], algo: str) -> str:
    """
    Hyperparameters in a form that can be compared. Records of before ``benchmark.py`` have the values' texts, later ones what
    the YAML file says: both give the same.

    :param hyperparams: Of an entry or a record
    :param algo: Whose; to ``"random"``, which learns nothing, only those of the environment matter
    :return: Their names and values, sorted by name
    """
    names = [name for name in sorted(hyperparams) if algo != "random" or name in ENV_HYPERPARAMS]
    return json.dumps({name: _text(hyperparams[name]) for name in names})


def _text(value: Any) -> str:
    text = str(evaluated(value))
    return (
        str(value) if " at 0x" in text else text
    )  # an object without a text of its own, such as a function


def same_entry(run: Record, settings: str) -> dict[str, Any] | None:
    """
    :param run: A record
    :param settings: As for :func:`read_entries`, maybe with changes, " name=value" each
    :return: The entry of its environment, as it stands there today, if that has the run's hyperparameters but for the changes
    """
    file, *changes = settings.split(" ")
    try:
        entry = read_entries(file).get(run["env"])
    except ValueError:
        return None
    if entry is None:
        return None
    changed = {change.partition("=")[0] for change in changes}
    now, then = (
        {key: value for key, value in had.items() if key not in changed}
        for had in (entry, run["hyperparams"])
    )
    return entry if canonical(now, run["algo"]) == canonical(then, run["algo"]) else None


def group_key(run: Record) -> tuple[str, ...]:
    """
    :param run: A record
    :return: What it has in common with the runs of other seeds
    """
    hyperparams = canonical(run["hyperparams"], run["algo"])
    return run["env"], run["algo"], run["settings"], str(run["n_timesteps"]), hyperparams


def read_records(path: Path = RESULTS) -> list[Record]:
    """
    :param path: Of the results
    :return: What stands there, in the order in which it was written; none where there is no file
    """
    records = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else (), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:  # its process was killed while it wrote
            warnings.warn(
                f"{path}, line {number} is broken; its run counts as not finished.", stacklevel=2
            )
    return records


def append_record(run: Record, path: Path = RESULTS) -> None:
    """
    Write a run down. Processes may do so at the same time.

    :param run: The record
    :param path: Of the results
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+", buffering=0) as file:  # one write, at the end whoever else writes
        end = file.seek(0, 2)
        file.seek(max(end - 1, 0))
        broken = end > 0 and file.read(1) != b"\n"
        file.write(b"\n" * broken + json.dumps(run).encode() + b"\n")


def grouped(records: Sequence[Record]) -> list[Group]:
    """
    :param records: In the order in which they were written; of several with one seed, the last counts
    :return: Their groups, by environment, algorithm, settings and steps
    """
    groups: dict[tuple[str, ...], dict[int, Record]] = {}
    for run in records:
        groups.setdefault(group_key(run), {})[run["seed"]] = run
    keys = sorted(groups, key=lambda key: (*key[:3], int(key[3]), key[4]))
    return [Group([groups[key][seed] for seed in sorted(groups[key])]) for key in keys]


def estimate(results: Sequence[float]) -> Estimate:
    """
    What `rliable <https://arxiv.org/abs/2108.13264>`_ reports for one environment: the interquartile mean over runs, each with
    the mean of its episodes, and the percentile interval of a bootstrap over runs. (``rliable.library`` finds the same
    interval one sample after the other, which takes many times as long.)

    With fewer than four runs the interquartile mean leaves nothing out: it is the mean.

    :param results: One for each seed
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
