"""
Studies that several processes and machines share, and that give the same trials whether they were
interrupted or not.

A study of n trials has the slots 0 to n - 1. A new trial gets the next slot. A trial whose process
was killed or interrupted is lost: it is repeated in its slot, with its parameters and from its last
checkpoint, or sampled again if it did not have all of its parameters yet. The sampled parameters
depend on the study's seed and on the slot (and with TPE on the trials that have finished before),
so a study that was interrupted and continued has the same trials as an uninterrupted one.
"""

import contextlib
import multiprocessing
import os
import platform
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import optuna
import psutil
import sqlalchemy
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from sb3_happo_zoo.entries import nearest

# Attributes of trials
SLOT, WORKER, ENTRY = "slot", "worker", "entry"
# Attributes that a repeated trial takes over: name of the folder with the checkpoints, evaluations
# of the trainings that are finished
FOLDER, EVALUATIONS = "folder", "evaluations"
DATABASES = ("sqlite", "postgresql", "mysql", "mariadb", "oracle", "mssql")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# Seconds between heartbeats of a worker, until a trial without heartbeat is lost, and until the
# first heartbeat
HEARTBEAT_INTERVAL = 20.0
LOST_AFTER = 120.0
BEGINS_WITHIN = 30.0
_POLL = 1.0
# Seconds for other processes to make the tables of a new database
_TABLES_WITHIN = 60.0
# Parts of databases' messages if another process makes the same tables
_MEANWHILE = ("already exists", "no such table", "does not exist", "duplicate", "locked")


def open_storage(url: str, create: bool = True) -> BaseStorage:
    """
    :param url: Path of a journal file of Optuna (``….log``), or URL of a database (``sqlite:///…``,
        ``postgresql://…``)
    :param create: Whether to make the file if it does not exist
    :return: The storage
    :raises ValueError: If the URL is wrong, the file does not exist, or the database does not
        answer
    :raises ImportError: If the database's driver is not installed
    """
    if "://" in url:
        return _open_database(url, create)
    if not url.endswith(".log"):
        raise ValueError(
            f"--storage {url}: expected a journal file (….log) or a URL such as sqlite:///study.db"
        )
    _prepare_file(url, Path(url), create)
    try:
        return JournalStorage(JournalFileBackend(url))
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"--storage {url} is no journal file of Optuna's: {error}") from error


def _open_database(url: str, create: bool) -> BaseStorage:
    """
    :param url: URL of a database
    :param create: Whether to make an SQLite file if it does not exist
    :return: The storage
    """
    scheme, _, path = url.partition("://")
    database = scheme.partition("+")[0]
    if database not in DATABASES:
        near = nearest(database, DATABASES)
        hint = f"choose from {', '.join(DATABASES)}, or a journal file (….log)"
        if near:
            hint = f"did you mean {near}://?"
        raise ValueError(f"--storage {url}: there is no {scheme}://, {hint}")
    engine_kwargs = {}
    if database == "sqlite":
        _prepare_sqlite(url, path.partition("?")[0], create)
        engine_kwargs = {"connect_args": {"timeout": 60}}  # other processes may be writing
    end = time.monotonic() + _TABLES_WITHIN
    while True:
        try:
            return RDBStorage(url, engine_kwargs=engine_kwargs)
        except ImportError as error:
            driver = {"postgresql": "psycopg2-binary", "mysql": "mysqlclient"}.get(database, scheme)
            raise ImportError(
                f"--storage {url} needs a driver of the database: pip install {driver} ({error})"
            ) from error
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            if not _is_being_made(error) or time.monotonic() > end:
                raise ValueError(f"--storage {url} cannot be opened: {error}") from error
        # Processes that have met do so again if they wait equally long
        time.sleep(random.uniform(0.05, 0.5))


def _is_being_made(error: Exception) -> bool:
    """
    :param error: Error of Optuna when it opens a database
    :return: True if another process makes the tables of the same new database at this moment.
        Optuna looks which tables there are, and then makes the others, so that two processes may
        make the same one
    """
    if isinstance(error, sqlalchemy.exc.IntegrityError):
        return True
    return isinstance(error, sqlalchemy.exc.DBAPIError) and any(
        text in str(error.orig).lower() for text in _MEANWHILE
    )


def _prepare_sqlite(url: str, path: str, create: bool) -> None:
    """
    :param url: URL of the storage
    :param path: Part of the URL after ``sqlite://``, without options
    :param create: Whether to make the folder of the file
    :raises ValueError: If the database would be in memory, or the file does not exist
    """
    if path in ("", "/", "/:memory:"):
        raise ValueError(
            f"--storage {url} would be lost with the process; give a file, such as "
            "sqlite:///study.db"
        )
    if not path.startswith("/file:"):  # SQLite's own form of URLs
        _prepare_file(url, Path(path.removeprefix("/")), create)


def _prepare_file(url: str, path: Path, create: bool) -> None:
    if not create and not path.is_file():
        raise ValueError(f"--storage {url}: there is no file {path}")
    path.parent.mkdir(parents=True, exist_ok=True)


def study_settings(url: str, study_name: str) -> dict[str, Any]:
    """
    :param url: URL of a storage, which need not exist
    :param study_name: Name of a study, which need not exist
    :return: Settings of the study, empty if there is none
    """
    try:
        storage = open_storage(url, create=False)
        study = optuna.load_study(study_name=study_name, storage=storage)
        return study.user_attrs.get("settings", {})
    except (ValueError, KeyError):
        return {}


class SlotSampler(BaseSampler):
    """
    Sampler that uses another seed for each slot.

    :param make: Function that makes a sampler from a seed
    :param seed: Seed of the study
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self.make = make
        self.seed = seed
        self.sampler = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """
        :param study: The study
        :param trial: Trial whose parameters are sampled next
        """
        slot = slots(study.get_trials(deepcopy=False))[trial.number]
        seeds = np.random.SeedSequence([self.seed, slot]).generate_state(1)
        self.sampler = self.make(int(seeds[0]))
        self.sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """
        :param study: The study
        :param trial: The trial
        :return: Distributions of the parameters that are sampled jointly
        """
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """
        :param study: The study
        :param trial: The trial
        :param search_space: Distributions of the parameters that are sampled jointly
        :return: Values of these parameters
        """
        return self.sampler.sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """
        :param study: The study
        :param trial: The trial
        :param param_name: Name of a parameter that is sampled independently
        :param param_distribution: Distribution of the parameter
        :return: Value of the parameter
        """
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """
        :param study: The study
        :param trial: Trial that has ended
        :param state: State of the trial
        :param values: Value of the trial, None without one
        """
        self.sampler.after_trial(study, trial, state, values)


def slots(trials: Sequence[FrozenTrial]) -> list[int]:
    """
    :param trials: All trials of a study, sorted by number
    :return: Slot of each trial: an attribute of repetitions, a count of the other trials
    """
    found, fresh = [], 0
    for trial in trials:
        if SLOT in trial.user_attrs:
            found.append(trial.user_attrs[SLOT])
        else:
            found.append(fresh)
            fresh += 1
    return found


def finished_trials(study: Study, n_trials: int) -> dict[int, FrozenTrial]:
    """
    :param study: The study
    :param n_trials: Number of slots
    :return: Finished trials by slot
    """
    trials = study.get_trials(deepcopy=False)
    pairs = zip(slots(trials), trials, strict=True)
    return {slot: trial for slot, trial in pairs if trial.state in FINISHED and slot < n_trials}


def best_entry(study: Study, n_trials: int) -> tuple[FrozenTrial, dict[str, Any]]:
    """
    :param study: The study
    :param n_trials: Number of slots
    :return: Best completed trial, and its entry
    :raises ValueError: If no trial is complete
    """
    finished = finished_trials(study, n_trials).values()
    complete = [trial for trial in finished if trial.state == TrialState.COMPLETE]
    if not complete:
        raise ValueError(f"No trial of the study {study.study_name!r} is complete.")
    best = max(complete, key=lambda trial: trial.values[0])
    return best, best.user_attrs[ENTRY]


def trial_entry(
    url: str, study_name: str | None, number: int | None, algo: str, env: str
) -> dict[str, Any]:
    """
    Entry of a trial, for ``train.py``.

    :param url: URL of the storage
    :param study_name: Name of the study
    :param number: Number of the trial, None for the best one
    :param algo: Name of the algorithm to train
    :param env: Id of the environment to train on
    :return: Entry of the trial
    :raises ValueError: If there is no such study or trial, or the study is of another algorithm or
        environment
    """
    storage = open_storage(url, create=False)
    names = [summary.study_name for summary in storage.get_all_studies()]
    if study_name not in names:
        near = nearest(study_name or "", names)
        hint = f"Did you mean {near!r}?" if near else f"It has {', '.join(names)}."
        raise ValueError(f"{url} has no study {study_name!r}. {hint}")
    study = optuna.load_study(study_name=study_name, storage=storage)
    settings = study.user_attrs.get("settings", {"algo": algo, "env": env})
    if (settings["algo"], settings["env"]) != (algo, env):
        raise ValueError(
            f"The study {study_name!r} tuned {settings['algo']} on {settings['env']}, "
            f"not {algo} on {env}; to try its result there, rename the entry in its best.yml and "
            "pass that with --conf-file."
        )
    if number is None:
        return best_entry(study, len(study.trials))[1]
    trials = study.get_trials()
    if not 0 <= number < len(trials) or ENTRY not in trials[number].user_attrs:
        raise ValueError(
            f"The study {study_name!r} has no trial {number} with hyperparameters; "
            f"it has {len(trials)} trials."
        )
    return trials[number].user_attrs[ENTRY]


def repeat_lost_trials(study: Study, n_trials: int) -> None:
    """
    Let the trials of workers that have ended fail, and queue the failed trial of every slot again.

    :param study: The study
    :param n_trials: Number of slots
    """
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if is_lost(trial):
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
    trials = study.get_trials(deepcopy=False)
    latest = dict(zip(slots(trials), trials, strict=True))
    taken = {
        slot
        for slot, trial in zip(slots(trials), trials, strict=True)
        if trial.state != TrialState.FAIL
    }
    for slot, trial in latest.items():
        if slot not in taken and slot < n_trials:
            # Without an entry some parameters may be missing, which would be sampled differently
            # after the given ones
            known = ENTRY in trial.user_attrs
            kept = (ENTRY, FOLDER, EVALUATIONS) if known else ()
            attributes = {key: trial.user_attrs[key] for key in kept if key in trial.user_attrs}
            study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING,
                    params=trial.params if known else {},
                    distributions=trial.distributions if known else {},
                    user_attrs={SLOT: slot} | attributes,
                )
            )


def work(study: Study, objective: Callable[[optuna.Trial], float], n_trials: int) -> None:
    """
    Run trials until the study has ``n_trials`` finished ones. Other processes may do so at the same
    time.

    :param study: Study with a :class:`SlotSampler`
    :param objective: Function that runs a trial
    :param n_trials: Number of finished trials of the study, those of earlier calls included
    """
    while True:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            return
        repeat_lost_trials(study, n_trials)
        if len(finished_trials(study, n_trials)) == n_trials:
            return
        if _all_taken(study.get_trials(deepcopy=False), n_trials):
            time.sleep(_POLL)  # a trial of another process that is lost is repeated here
            continue
        trial = study.ask()
        if _is_superfluous(study, trial.number, n_trials):
            study.tell(trial, state=TrialState.FAIL)
            continue
        _run(study, trial, objective, n_trials)


def _all_taken(trials: Sequence[FrozenTrial], n_trials: int) -> bool:
    """
    :param trials: All trials of a study, sorted by number
    :param n_trials: Number of slots
    :return: Whether every slot has a trial that is running or finished, and none is queued
    """
    if any(trial.state == TrialState.WAITING for trial in trials):
        return False
    return len({slot for slot in slots(trials) if slot < n_trials}) == n_trials


def _run(
    study: Study, trial: optuna.Trial, objective: Callable[[optuna.Trial], float], n_trials: int
) -> None:
    value: float | None = None
    state = TrialState.COMPLETE
    start = time.time()
    try:
        with Heartbeat(trial):
            value = objective(trial)
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except optuna.exceptions.UpdateFinishedTrialError:
        state = TrialState.FAIL
    except BaseException:
        with _ignore_interrupts():
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            repeat_lost_trials(study, n_trials)
        raise
    told = study.tell(trial, value, state, skip_if_finished=True)
    if told.state == TrialState.FAIL:
        print(f"Trial {trial.number} was stopped by another worker, and is repeated.", flush=True)
        return
    result = state.name.lower()
    if told.value is not None:
        result += f" with {told.value:.4g}"
    if "error" in trial.user_attrs:
        result += f" ({trial.user_attrs['error']})"
    print(
        f"Trial {trial.number} {result} after {time.time() - start:.0f} s; "
        f"{len(finished_trials(study, n_trials))} of {n_trials} have finished.",
        flush=True,
    )


def _is_superfluous(study: Study, number: int, n_trials: int) -> bool:
    """
    :param study: The study
    :param number: Number of a new trial
    :param n_trials: Number of slots
    :return: Whether other workers, at the same time, have taken the last slots or the trial's slot
    """
    trials = study.get_trials(deepcopy=False)
    of_trials = slots(trials)
    slot = of_trials[number]
    if slot >= n_trials:
        return True
    earlier = [trial for trial in trials[:number] if of_trials[trial.number] == slot]
    return any(trial.state in (TrialState.RUNNING, *FINISHED) for trial in earlier)


def is_lost(trial: FrozenTrial) -> bool:
    """
    :param trial: Running trial
    :return: Whether its worker has ended, or has sent no heartbeat for ``LOST_AFTER`` seconds from
        another machine
    """
    worker = trial.user_attrs.get(WORKER)
    if worker is None:  # the trial has just begun, or its worker was killed at that moment
        assert trial.datetime_start is not None
        return time.time() - trial.datetime_start.timestamp() > BEGINS_WITHIN
    if worker["host"] == platform.node():
        try:
            return psutil.Process(worker["pid"]).create_time() != worker["started"]
        except psutil.NoSuchProcess:
            return True
    return time.time() - worker["alive"] > LOST_AFTER


@contextlib.contextmanager
def _ignore_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C, so that a second one does not keep the trial from being repeated."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


class Heartbeat:
    """
    Writes the worker of a trial into the storage, and every ``HEARTBEAT_INTERVAL`` seconds the
    time.

    :param trial: The trial
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._worker = {
            "host": platform.node(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
        }

    def __enter__(self) -> None:
        self._write()
        self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_INTERVAL):
            try:
                self._write()
            except optuna.exceptions.UpdateFinishedTrialError:
                return  # another worker repeats the trial, since this machine did not answer

    def _write(self) -> None:
        self.trial.set_user_attr(WORKER, self._worker | {"alive": time.time()})
