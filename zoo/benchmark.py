"""
Train the zoo's entries with several seeds, and write down what came out with all that is needed to repeat it.

    python zoo/benchmark.py
    python zoo/benchmark.py --algos happo mappo --envs mpe2/simple_spread_v3 --seeds 0 1 2 --n-jobs 2 --ship
    python zoo/benchmark.py --algos happo --envs mpe2/simple_spread_v3 --settings happo_harl
    python zoo/benchmark.py --algos happo --envs mpe2/simple_spread_v3 --hyperparams 'agent_order:"fixed"'
    python zoo/benchmark.py --algos random
    python zoo/benchmark.py --table

One line of JSON per finished run goes to ``zoo/results.jsonl``; runs that stand there with the same hyperparameters are not
repeated, so an interrupted call goes on where it stopped, and ``--algos``, ``--envs`` and ``--seeds`` divide the work. At the
end ``zoo/benchmark.md`` and the learning curves in ``zoo/curves`` are written anew. ``--ship`` puts the final agents of the
best seeds, as far as their log folders are here, into ``zoo/agents``.
"""

import argparse
import contextlib
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

from cli import StoreHyperparams, count, timesteps, usage_errors
from exp_manager import AGENTS, TEAM_ALGOS
from records import (
    ENV_HYPERPARAMS,
    RESULTS,
    Record,
    append_record,
    read_entries,
    read_records,
    unknown,
)
from report import write_report
from runs import Run, configured, default_settings, make_run, train_and_evaluate
from shipping import ship

from sb3_happo.vec_env.joint_subproc_vec_env import available_cores

LOGS = Path("logs") / "benchmark"


class RunOptions(NamedTuple):
    """
    How runs are worked through.

    :param log_folder: One folder per run goes there
    :param results: Where they are written down
    :param n_episodes: Of each evaluation; None: see :func:`runs.evaluate`
    :param n_jobs: Runs at a time
    :param n_threads: PyTorch's, of each run; None: the runs share the cores
    :param device: PyTorch's
    """

    log_folder: Path
    results: Path
    n_episodes: int | None
    n_jobs: int
    n_threads: int | None
    device: str = "cpu"


def plan(args: argparse.Namespace) -> list[Run]:
    """
    :param args: Of the command line
    :return: What it asks for, seed by seed, so that an interrupted call leaves whole comparisons
    :raises ValueError: If there is no such algorithm, environment or file
    """
    for algo in args.algos:
        if algo not in (*TEAM_ALGOS, "random"):
            raise ValueError(unknown("algorithm", algo, (*TEAM_ALGOS, "random")))
    settings = {algo: args.settings or default_settings(algo) for algo in args.algos}
    # RL Zoo's `default` is for environments without an entry
    entries = {
        algo: [env for env in read_entries(name) if env != "default"]
        for algo, name in settings.items()
    }
    known = dict.fromkeys(env for own in entries.values() for env in own)
    for env in args.envs or ():
        if env not in known:
            raise ValueError(
                f"{unknown('entry', env, known)} (looked in {', '.join(dict.fromkeys(settings.values()))})"
            )
    changes = dict(args.hyperparams)
    if args.n_timesteps is not None:
        changes["n_timesteps"] = args.n_timesteps
    env_changes = {name: value for name, value in changes.items() if name in ENV_HYPERPARAMS}
    return [
        make_run(
            algo,
            env,
            seed,
            args.settings,
            env_changes if algo == "random" else changes,
            args.eval_episodes,
        )
        for seed in args.seeds
        for algo in args.algos
        for env in args.envs or entries[algo]
        if env in entries[algo]
    ]


def work(run: Run, folder: Path, results: Path, *args: Any) -> None:
    """
    One run, in a process of its own.

    :param run: What to train
    :param folder: For its logs
    :param results: Where it is written down
    :param args: More of :func:`runs.train_and_evaluate`
    """
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches all processes; the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    shutil.rmtree(folder, ignore_errors=True)  # what a killed process has left
    folder.mkdir(parents=True)
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, sys.stdout.fileno())
    os.dup2(output, sys.stderr.fileno())
    append_record(train_and_evaluate(run, folder, *args), results)


def _end_with_parent() -> None:
    """Wait until the first process is gone, even if it was killed, and end this one."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def run_all(runs: Sequence[Run], options: RunOptions) -> list[Run]:
    """
    Work through runs, several at a time.

    :param runs: Which ones
    :param options: How
    :return: Those that have failed
    """
    context = multiprocessing.get_context("spawn")  # a fork would take PyTorch's threads with it
    n_threads = options.n_threads or max(1, available_cores() // options.n_jobs)
    # Runs side by side use the cores better than the workers of one; the episodes are the same
    vec_env = "auto" if min(options.n_jobs, len(runs)) == 1 else "dummy"
    waiting, failed = deque(runs), []
    active: dict[int, tuple[BaseProcess, Run]] = {}
    try:
        while waiting or active:
            while waiting and len(active) < options.n_jobs:
                run = waiting.popleft()
                folder = options.log_folder / run.name
                args = (
                    run,
                    folder,
                    options.results,
                    options.n_episodes,
                    n_threads,
                    vec_env,
                    options.device,
                )
                process: BaseProcess = context.Process(target=work, args=args)
                process.start()
                active[process.sentinel] = process, run
            for sentinel in connection.wait(list(active)):
                assert isinstance(sentinel, int)
                process, run = active.pop(sentinel)
                process.join()
                count = f"[{len(runs) - len(waiting) - len(active)}/{len(runs)}]"
                record = (
                    run.record_in(read_records(options.results), options.n_episodes)
                    if process.exitcode == 0
                    else None
                )
                if record is None:
                    failed.append(run)
                    output = options.log_folder / run.name / "output.txt"
                    last = (
                        output.read_text(errors="replace").strip().rpartition("\n")[2]
                        if output.is_file()
                        else ""
                    )
                    print(f"{count} {run.name} failed ({last}): see {output}", flush=True)
                else:
                    print(f"{count} {describe(record)}", flush=True)
    finally:
        for process, _ in active.values():
            process.terminate()
        for process, _ in active.values():
            process.join()
    return failed


def describe(run: Record) -> str:
    """
    :param run: A finished run
    :return: In one line
    """
    return (
        f"{run['algo']} {run['env']} ({run['settings']}) seed {run['seed']}: return {run['return']:,.2f}, "
        f"S {run['sum_over_agents']:,.2f} after {run['n_timesteps']:,} steps at {run['steps_per_second']:,} steps/s"
    )


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Of the command line
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--algos", nargs="+", default=list(TEAM_ALGOS), help="or random; by default all but random"
    )
    parser.add_argument("--envs", nargs="+", help="entries of the settings; by default all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--settings",
        help="file in zoo/hyperparams, or path of a YAML file; by default the algorithm's own",
    )
    parser.add_argument(
        "-params",
        "--hyperparams",
        nargs="+",
        action=StoreHyperparams,
        default={},
        metavar="NAME:VALUE",
        help="instead of the entry's",
    )
    parser.add_argument("-n", "--n-timesteps", type=timesteps, help="instead of the entry's")
    parser.add_argument(
        "--eval-episodes",
        type=count,
        help="by default as many as have 100,000 steps, but 50 to 500",
    )
    parser.add_argument("--n-jobs", type=count, default=1, help="runs at a time")
    parser.add_argument(
        "--num-threads",
        type=int,
        help="PyTorch's, of each run; by default the runs share the cores",
    )
    parser.add_argument(
        "--device", default="cpu", help="PyTorch's; small teams are slower on an accelerator"
    )
    parser.add_argument(
        "-f", "--log-folder", type=Path, default=LOGS, help="one folder per run goes there"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        help="the runs' records; table and curves go beside them",
    )
    parser.add_argument(
        "--ship", action="store_true", help="put the best seeds' agents into zoo/agents"
    )
    parser.add_argument("--agents", type=Path, default=AGENTS, help=argparse.SUPPRESS)
    parser.add_argument("--table", action="store_true", help="train nothing, only write the table")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Command line.

    :param argv: Its arguments; by default the process's
    :return: Exit code: 0, 1 if a run failed, 130 after Ctrl-C
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    with usage_errors(parser, verbose=1):
        wanted = plan(args)
        for run in () if args.table else {(run.algo, run.env): run for run in wanted}.values():
            with contextlib.suppress(
                ImportError
            ):  # of a wrapper that is not installed: its run alone fails
                configured(run)
    failed: list[Run] = []
    if not args.table:
        records = read_records(args.results)
        runs = [run for run in wanted if run.record_in(records, args.eval_episodes) is None]
        print(f"{len(wanted)} runs, {len(wanted) - len(runs)} of them finished before", flush=True)
        try:
            options = RunOptions(
                args.log_folder,
                args.results,
                args.eval_episodes,
                args.n_jobs,
                args.num_threads,
                args.device,
            )
            failed = run_all(runs, options)
        except KeyboardInterrupt:
            print(
                "Interrupted. Finished runs are written down; the same command does the others.",
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
