"""
Studies that several processes and machines share, and that end alike whether they were interrupted or not.

A study of n trials has the slots 0 to n - 1. A new trial takes the next slot; a trial that is lost, because its process was
killed or interrupted, is repeated in its slot, with the parameters that it had, or sampled again if it did not have them all
yet. What is sampled depends on the study's seed and the slot (and with TPE on what has finished before), so a study that was
broken and resumed has the trials of an unbroken one.
"""

import contextlib
import multiprocessing
import os
import platform
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
from exp_manager import nearest
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

# Attributes of trials
SLOT, WORKER, ENTRY = "slot", "worker", "entry"
DATABASES = ("sqlite", "postgresql", "mysql", "mariadb", "oracle", "mssql")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
# Seconds between a worker's signs of life, without one until its trial counts as lost, and until the first
SIGN_OF_LIFE = 20.0
LOST_AFTER = 120.0
BEGINS_WITHIN = 30.0
_POLL = 1.0


def open_storage(url: str, create: bool = True) -> BaseStorage:
    """
    :param url: Path of Optuna's journal file (``….log``), or a database's URL (``sqlite:///…``, ``postgresql://…``)
    :param create: Whether to make the file if it does not exist
    :return: The storage
    :raises ValueError: If the URL is wrong, the file does not exist, or the database does not answer
    :raises ImportError: If the database's driver is not installed
    """
    scheme, separator, path = url.partition("://")
    if not separator:
        if not url.endswith(".log"):
            raise ValueError(
                f"--storage {url}: expected a journal file (….log) or a URL such as sqlite:///study.db"
            )
        _prepare_file(url, Path(url), create)
        try:
            return JournalStorage(JournalFileBackend(url))
        except (ValueError, KeyError, OSError) as error:
            raise ValueError(f"--storage {url} is no journal file of Optuna's: {error}") from error
    database = scheme.partition("+")[0]
    if database not in DATABASES:
        near = nearest(database, DATABASES)
        hint = (
            f"did you mean {near}://?"
            if near
            else f"choose from {', '.join(DATABASES)}, or a journal file (….log)"
        )
        raise ValueError(f"--storage {url}: there is no {scheme}://, {hint}")
    engine_kwargs = {}
    if database == "sqlite":
        if path.partition("?")[0] in ("", "/", "/:memory:"):
            raise ValueError(
                f"--storage {url} would be lost with the process; give a file, such as sqlite:///study.db"
            )
        if not path.startswith("/file:"):  # SQLite's own URLs
            _prepare_file(url, Path(path.partition("?")[0].removeprefix("/")), create)
        engine_kwargs = {"connect_args": {"timeout": 60}}  # others may be writing
    for attempt in range(3):
        try:
            return RDBStorage(url, engine_kwargs=engine_kwargs)
        except ImportError as error:
            driver = {"postgresql": "psycopg2-binary", "mysql": "mysqlclient"}.get(database, scheme)
            raise ImportError(
                f"--storage {url} needs a driver of the database: pip install {driver} ({error})"
            ) from error
        except (
            sqlalchemy.exc.IntegrityError
        ) as error:  # another process was making the same new database
            last: Exception = error
            time.sleep(0.5 * (attempt + 1))
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError) as error:
            last = error
            break
    raise ValueError(f"--storage {url} cannot be opened: {last}") from last


def _prepare_file(url: str, path: Path, create: bool) -> None:
    if not create and not path.is_file():
        raise ValueError(f"--storage {url}: there is no file {path}")
    path.parent.mkdir(parents=True, exist_ok=True)


def study_settings(url: str, study_name: str) -> dict[str, Any]:
    """
    :param url: Of a storage, which need not exist
    :param study_name: Of a study, which need not exist
    :return: What the study was made with, nothing if there is none
    """
    try:
        storage = open_storage(url, create=False)
        return optuna.load_study(study_name=study_name, storage=storage).user_attrs.get(
            "settings", {}
        )
    except (ValueError, KeyError):
        return {}


class SlotSampler(BaseSampler):
    """
    Samples what a slot's trial tries, from a seed of its own.

    :param make: Makes a sampler from a seed
    :param seed: Of the study
    """

    def __init__(self, make: Callable[[int], BaseSampler], seed: int) -> None:
        self.make = make
        self.seed = seed
        self.sampler = make(seed)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """
        :param study: The study
        :param trial: About to be sampled
        """
        slot = slots(study.get_trials(deepcopy=False))[trial.number]
        self.sampler = self.make(
            int(np.random.SeedSequence([self.seed, slot]).generate_state(1)[0])
        )
        self.sampler.before_trial(study, trial)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """
        :param study: The study
        :param trial: The trial
        :return: What is sampled together
        """
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """
        :param study: The study
        :param trial: The trial
        :param search_space: What is sampled together
        :return: Its values
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
        :param param_name: What else is sampled
        :param param_distribution: From what
        :return: Its value
        """
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """
        :param study: The study
        :param trial: That has ended
        :param state: How
        :param values: With what
        """
        self.sampler.after_trial(study, trial, state, values)


def slots(trials: Sequence[FrozenTrial]) -> list[int]:
    """
    :param trials: All of a study, by number
    :return: The slot of each: repetitions say it, the others are counted
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
    :param n_trials: How many slots it has
    :return: The finished trial of each slot that has one
    """
    trials = study.get_trials(deepcopy=False)
    pairs = zip(slots(trials), trials, strict=True)
    return {slot: trial for slot, trial in pairs if trial.state in FINISHED and slot < n_trials}


def best_entry(study: Study, n_trials: int) -> tuple[FrozenTrial, dict[str, Any]]:
    """
    :param study: The study
    :param n_trials: How many slots it has
    :return: The best of its completed trials, and its entry
    :raises ValueError: If none is complete
    """
    complete = [
        trial
        for trial in finished_trials(study, n_trials).values()
        if trial.state == TrialState.COMPLETE
    ]
    if not complete:
        raise ValueError(f"No trial of the study {study.study_name!r} is complete.")
    best = max(complete, key=lambda trial: trial.values[0])
    return best, best.user_attrs[ENTRY]


def trial_entry(
    url: str, study_name: str | None, number: int | None, algo: str, env: str
) -> dict[str, Any]:
    """
    What ``train.py`` takes from a study.

    :param url: Its storage
    :param study_name: Its name
    :param number: The trial's number, None for the best
    :param algo: Name of the algorithm that is to be trained
    :param env: Id of the environment on which
    :return: The entry that the trial tried
    :raises ValueError: If there is no such study or trial, or the study was another algorithm's, or in another environment
    """
    storage = open_storage(url, create=False)
    names = [summary.study_name for summary in storage.get_all_studies()]
    if study_name not in names:
        near = nearest(study_name or "", names)
        raise ValueError(
            f"{url} has no study {study_name!r}."
            + (f" Did you mean {near!r}?" if near else f" It has {', '.join(names)}.")
        )
    study = optuna.load_study(study_name=study_name, storage=storage)
    settings = study.user_attrs.get("settings", {"algo": algo, "env": env})
    if (settings["algo"], settings["env"]) != (algo, env):
        raise ValueError(
            f"The study {study_name!r} tuned {settings['algo']} on {settings['env']}, not {algo} on {env}; to try its result "
            "there, rename the entry in its best.yml and pass that with --conf-file."
        )
    if number is None:
        return best_entry(study, len(study.trials))[1]
    trials = study.get_trials()
    if not 0 <= number < len(trials) or ENTRY not in trials[number].user_attrs:
        raise ValueError(
            f"The study {study_name!r} has no trial {number} with hyperparameters; it has {len(trials)} trials."
        )
    return trials[number].user_attrs[ENTRY]


def repeat_lost_trials(study: Study, n_trials: int) -> None:
    """
    Give up the trials of workers that are gone, and queue every slot's trial again that was given up.

    :param study: The study
    :param n_trials: How many slots it has
    """
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        if _is_lost(trial):
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
            # Before the entry is noted some may still be missing, which after the given ones would be sampled differently
            known = ENTRY in trial.user_attrs
            study.add_trial(
                optuna.create_trial(
                    state=TrialState.WAITING,
                    params=trial.params if known else {},
                    distributions=trial.distributions if known else {},
                    user_attrs={SLOT: slot} | ({ENTRY: trial.user_attrs[ENTRY]} if known else {}),
                )
            )


def work(study: Study, objective: Callable[[optuna.Trial], float], n_trials: int) -> None:
    """
    Run trials until the study has ``n_trials`` finished ones, together with whoever else works on it.

    :param study: With a :class:`SlotSampler`
    :param objective: Runs a trial
    :param n_trials: Finished trials that the study shall have, those of earlier calls included
    """
    while True:
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            return
        repeat_lost_trials(study, n_trials)
        if len(finished_trials(study, n_trials)) == n_trials:
            return
        trials = study.get_trials(deepcopy=False)
        of_slots = list(zip(slots(trials), trials, strict=True))
        waiting = any(trial.state == TrialState.WAITING for _, trial in of_slots)
        if not waiting and len({slot for slot, _ in of_slots if slot < n_trials}) == n_trials:
            time.sleep(
                _POLL
            )  # others run the last ones; should they be lost, they are repeated here
            continue
        trial = study.ask()
        if _is_superfluous(study, trial.number, n_trials):
            study.tell(trial, state=TrialState.FAIL)
            continue
        _run(study, trial, objective, n_trials)


def _run(
    study: Study, trial: optuna.Trial, objective: Callable[[optuna.Trial], float], n_trials: int
) -> None:
    value: float | None = None
    state = TrialState.COMPLETE
    start = time.time()
    try:
        with SignsOfLife(trial):
            value = objective(trial)
    except optuna.TrialPruned:
        state = TrialState.PRUNED
    except optuna.exceptions.UpdateFinishedTrialError:
        state = TrialState.FAIL
    except BaseException:
        with _undisturbed():
            study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
            repeat_lost_trials(study, n_trials)
        raise
    told = study.tell(trial, value, state, skip_if_finished=True)
    if told.state == TrialState.FAIL:
        print(
            f"Trial {trial.number} was taken for lost by another worker, and is repeated.",
            flush=True,
        )
        return
    done = len(finished_trials(study, n_trials))
    what = f"{state.name.lower()}{'' if told.value is None else f' with {told.value:.4g}'}"
    error = trial.user_attrs.get("error")
    what += f" ({error})" if error else ""
    print(
        f"Trial {trial.number} {what} after {time.time() - start:.0f} s; {done} of {n_trials} have finished.",
        flush=True,
    )


def _is_superfluous(study: Study, number: int, n_trials: int) -> bool:
    """Whether, in a race of workers, others have taken the last slots or the same one."""
    trials = study.get_trials(deepcopy=False)
    of_trials = slots(trials)
    slot = of_trials[number]
    return slot >= n_trials or any(
        other == slot and trial.number < number and trial.state in (TrialState.RUNNING, *FINISHED)
        for other, trial in zip(of_trials, trials, strict=True)
    )


def _is_lost(trial: FrozenTrial) -> bool:
    worker = trial.user_attrs.get(WORKER)
    if worker is None:  # it has only just begun, or its worker was killed just then
        assert trial.datetime_start is not None
        return time.time() - trial.datetime_start.timestamp() > BEGINS_WITHIN
    if worker["host"] == platform.node():
        try:
            return psutil.Process(worker["pid"]).create_time() != worker["started"]
        except psutil.NoSuchProcess:
            return True
    return time.time() - worker["alive"] > LOST_AFTER


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """An impatient second Ctrl-C shall not lose the trial."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


class SignsOfLife:
    """
    Notes in the storage who runs a trial, and every now and then that it still does.

    :param trial: The trial
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._worker = {
            "host": platform.node(),
            "pid": os.getpid(),
            "started": psutil.Process().create_time(),
        }

    def __enter__(self) -> None:
        self._note()
        self._thread.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _go_on(self) -> None:
        while not self._ended.wait(SIGN_OF_LIFE):
            try:
                self._note()
            except (
                optuna.exceptions.UpdateFinishedTrialError
            ):  # taken for lost, when this machine slept or was cut off
                return

    def _note(self) -> None:
        self.trial.set_user_attr(WORKER, self._worker | {"alive": time.time()})
