"""
Train the zoo's entries with several seeds, and record the results with all that is needed to repeat
them.

    python zoo/benchmark.py
    python zoo/benchmark.py --algos happo mappo --envs mpe2/simple_spread_v3 --seeds 0 1 2 \\
        --n-jobs 2 --ship
    python zoo/benchmark.py --algos happo --envs mpe2/simple_spread_v3 --settings happo_harl
    python zoo/benchmark.py --algos happo --envs mpe2/simple_spread_v3 \\
        --hyperparams 'agent_order:"fixed"'
    python zoo/benchmark.py --algos random
    python zoo/benchmark.py --table

Every finished run is appended to ``zoo/results.jsonl``, one line of JSON each. Runs that are
recorded there with the same hyperparameters are not repeated, so an interrupted call can be
continued, and ``--algos``, ``--envs`` and ``--seeds`` divide the work. At the end
``zoo/benchmark.md`` and the learning curves in ``zoo/curves`` are written. ``--ship`` copies the
final agents of the best seeds into ``zoo/agents``, if their log folders exist.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import threading
from collections import deque
from collections.abc import Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from sb3_happo.vec_env.joint_subproc_vec_env import available_cores
from sb3_happo_zoo.algorithms import TEAM_ALGOS
from sb3_happo_zoo.cli import StoreHyperparams, count, timesteps, usage_errors
from sb3_happo_zoo.entries import read_settings, unknown
from sb3_happo_zoo.paths import OUTPUT
from sb3_happo_zoo.report import write_report
from sb3_happo_zoo.results import ENV_HYPERPARAMS, RESULTS, Record, append_record, read_records
from sb3_happo_zoo.runs import Run, configured, default_settings, make_run, train_and_evaluate
from sb3_happo_zoo.trained_agents import ship

LOGS = Path("logs") / "benchmark"


class RunOptions(NamedTuple):
    """
    Options for executing runs.

    :param log_folder: Parent of the runs' log folders
    :param results: Path of the file of records
    :param n_episodes: Number of evaluation episodes; None: see :func:`~sb3_happo_zoo.runs.evaluate`
    :param n_jobs: Number of runs at a time
    :param n_threads: Number of PyTorch's threads per run; None divides the cores among the runs
    :param device: PyTorch's device
    """

    log_folder: Path
    results: Path
    n_episodes: int | None
    n_jobs: int
    n_threads: int | None
    device: str = "cpu"


def find_entries(args: argparse.Namespace) -> dict[str, list[str]]:
    """
    :param args: Parsed command line
    :return: Environment ids of the entries of each algorithm
    :raises ValueError: If there is no such algorithm, environment or file
    """
    algorithms = (*TEAM_ALGOS, "random")
    for algo in args.algos:
        if algo not in algorithms:
            raise ValueError(unknown("algorithm", algo, algorithms))
    settings = {algo: args.settings or default_settings(algo) for algo in args.algos}
    entries: dict[str, list[str]] = {}
    for algo, name in settings.items():
        entries[algo] = list(read_settings(name))
        if "default" in entries[algo]:  # RL Zoo's, for environments without an entry
            entries[algo].remove("default")
    known = dict.fromkeys(env for own in entries.values() for env in own)
    for env in args.envs or ():
        if env not in known:
            files = ", ".join(dict.fromkeys(settings.values()))
            raise ValueError(f"{unknown('entry', env, known)} (looked in {files})")
    return entries


def changed_hyperparameters(args: argparse.Namespace, algo: str) -> dict[str, Any]:
    """
    :param args: Parsed command line
    :param algo: Name of the algorithm, or ``"random"``
    :return: Hyperparameters of the command line that concern the algorithm; a random team has only
        those of the environment
    """
    changes = dict(args.hyperparams)
    if args.n_timesteps is not None:
        changes["n_timesteps"] = args.n_timesteps
    if algo != "random":
        return changes
    return {name: value for name, value in changes.items() if name in ENV_HYPERPARAMS}


def plan(args: argparse.Namespace) -> list[Run]:
    """
    :param args: Parsed command line
    :return: Runs of the command, sorted by seed, so that an interrupted call leaves complete
        comparisons
    :raises ValueError: If there is no such algorithm, environment or file
    """
    entries = find_entries(args)
    runs = []
    for seed, algo in itertools.product(args.seeds, args.algos):
        changes = changed_hyperparameters(args, algo)
        for env in args.envs or entries[algo]:
            if env in entries[algo]:
                run = make_run(algo, env, seed, args.settings, changes, args.eval_episodes)
                runs.append(run)
    return runs


def work(run: Run, folder: Path, results: Path, *args: Any) -> None:
    """
    Execute one run; main function of a process.

    :param run: The run
    :param folder: Folder for its logs
    :param results: Path of the file of records
    :param args: Further arguments of :func:`~sb3_happo_zoo.runs.train_and_evaluate`
    """
    # Ctrl-C reaches all processes of the terminal; the parent process ends the others
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    shutil.rmtree(folder, ignore_errors=True)  # files of a killed process
    folder.mkdir(parents=True)
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    append_record(train_and_evaluate(run, folder, *args), results)


def _end_with_parent() -> None:
    """Wait until the parent process has ended, even if it was killed, and end this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


class Executor:
    """
    Executes runs in processes, several at a time.

    :param runs: Runs to execute
    :param options: Options for executing them
    """

    def __init__(self, runs: Sequence[Run], options: RunOptions) -> None:
        self.options = options
        self.n_runs = len(runs)
        self.n_threads = options.n_threads or max(1, available_cores() // options.n_jobs)
        # Several runs use the cores better than worker processes of one; the episodes are the same
        self.vec_env = "auto" if min(options.n_jobs, len(runs)) == 1 else "dummy"
        self.waiting = deque(runs)
        self.failed: list[Run] = []
        self.active: dict[int, tuple[BaseProcess, Run]] = {}
        # A fork would copy PyTorch's threads
        self.context = multiprocessing.get_context("spawn")

    def execute(self) -> list[Run]:
        """
        :return: Runs that have failed
        """
        try:
            while self.waiting or self.active:
                while self.waiting and len(self.active) < self.options.n_jobs:
                    self._start(self.waiting.popleft())
                for sentinel in connection.wait(list(self.active)):
                    assert isinstance(sentinel, int)
                    self._finish(*self.active.pop(sentinel))
        finally:
            for process, _ in self.active.values():
                process.terminate()
            for process, _ in self.active.values():
                process.join()
        return self.failed

    def _start(self, run: Run) -> None:
        """
        :param run: Run to start in a process of its own
        """
        options = self.options
        folder = options.log_folder / run.name
        process: BaseProcess = self.context.Process(
            target=work,
            args=(
                run,
                folder,
                options.results,
                options.n_episodes,
                self.n_threads,
                self.vec_env,
                options.device,
            ),
        )
        process.start()
        self.active[process.sentinel] = process, run

    def _finish(self, process: BaseProcess, run: Run) -> None:
        """
        :param process: Process that has ended
        :param run: Run of the process
        """
        process.join()
        n_finished = self.n_runs - len(self.waiting) - len(self.active)
        count = f"[{n_finished}/{self.n_runs}]"
        record = None
        if process.exitcode == 0:
            record = run.record_in(read_records(self.options.results), self.options.n_episodes)
        if record is not None:
            print(f"{count} {describe(record)}", flush=True)
            return
        self.failed.append(run)
        output = self.options.log_folder / run.name / "output.txt"
        text = output.read_text(errors="replace") if output.is_file() else ""
        last = text.strip().rpartition("\n")[2]
        print(f"{count} {run.name} failed ({last}): see {output}", flush=True)


def run_all(runs: Sequence[Run], options: RunOptions) -> list[Run]:
    """
    Execute runs, several at a time.

    :param runs: Runs to execute
    :param options: Options for executing them
    :return: Runs that have failed
    """
    return Executor(runs, options).execute()


def describe(run: Record) -> str:
    """
    :param run: Record of a finished run
    :return: Description in one line
    """
    return (
        f"{run['algo']} {run['env']} ({run['settings']}) seed {run['seed']}: "
        f"return {run['return']:,.2f}, S {run['sum_over_agents']:,.2f} "
        f"after {run['n_timesteps']:,} steps at {run['steps_per_second']:,} steps/s"
    )


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--algos",
        nargs="+",
        default=list(TEAM_ALGOS),
        help="algorithms, or random; by default all algorithms, without random",
    )
    parser.add_argument("--envs", nargs="+", help="environment ids of entries; by default all")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of the trainings"
    )
    parser.add_argument(
        "--settings",
        help="name of a file in zoo/hyperparams, or path of a YAML file; by default <algo>",
    )
    parser.add_argument(
        "-params",
        "--hyperparams",
        nargs="+",
        action=StoreHyperparams,
        default={},
        metavar="NAME:VALUE",
        help="hyperparameters that replace the entry's",
    )
    parser.add_argument(
        "-n", "--n-timesteps", type=timesteps, help="number of timesteps, instead of the entry's"
    )
    parser.add_argument(
        "--eval-episodes",
        type=count,
        help="number of evaluation episodes; by default those of 100,000 steps, but 50 to 500",
    )
    parser.add_argument("--n-jobs", type=count, default=1, help="number of runs at a time")
    parser.add_argument(
        "--num-threads",
        type=int,
        help="number of PyTorch's threads per run; by default the runs share the cores",
    )
    parser.add_argument(
        "--device", default="cpu", help="PyTorch's device; small teams are slower on an accelerator"
    )
    parser.add_argument(
        "-f", "--log-folder", type=Path, default=LOGS, help="parent of the runs' log folders"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="file of records; table and curves are written beside it",
    )
    parser.add_argument(
        "--ship", action="store_true", help="copy the agents of the best seeds into zoo/agents"
    )
    parser.add_argument("--agents", type=Path, default=OUTPUT / "agents", help=argparse.SUPPRESS)
    parser.add_argument(
        "--table", action="store_true", help="only write the table, without trainings"
    )
    return parser


def check_runs(runs: Sequence[Run]) -> None:
    """
    :param runs: Runs of the command
    :raises ValueError: If the hyperparameters of an entry are wrong
    """
    for run in {(run.algo, run.env): run for run in runs}.values():
        # A wrapper that is not installed lets its runs fail, not the others
        with contextlib.suppress(ImportError):
            configured(run)


def main(argv: Sequence[str] | None = None) -> int:
    """
    Command line.

    :param argv: Arguments, by default those of the process
    :return: Exit code: 0, 1 if a run failed, 130 after Ctrl-C
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    with usage_errors(parser, verbose=1):
        wanted = plan(args)
        if not args.table:
            check_runs(wanted)
    failed: list[Run] = []
    if not args.table:
        records = read_records(args.results)
        runs = [run for run in wanted if run.record_in(records, args.eval_episodes) is None]
        print(f"{len(wanted)} runs, {len(wanted) - len(runs)} of them finished before", flush=True)
        options = RunOptions(
            args.log_folder,
            args.results,
            args.eval_episodes,
            args.n_jobs,
            args.num_threads,
            args.device,
        )
        try:
            failed = run_all(runs, options)
        except KeyboardInterrupt:
            print(
                "Interrupted. Finished runs are recorded; the same command does the others.",
                flush=True,
            )
            return 130
    if args.ship:
        for folder in ship(wanted, read_records(args.results), args.log_folder, args.agents):
            print(f"Shipped {folder}")
    print(write_report(read_records(args.results), args.results))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
