"""
Tune the hyperparameters of an entry with Optuna.

    python zoo/tune.py --algo happo --env mpe2/simple_spread_v3 -n 3e5 --n-trials 20 --n-seeds 3 --n-jobs 2
    python zoo/tune.py --algo happo --env mpe2/simple_spread_v3 -n 3e5 --storage sqlite:///studies.db --study-name spread
    python zoo/train.py --algo happo --env mpe2/simple_spread_v3 --storage sqlite:///studies.db --study-name spread

A study has ``--n-trials`` finished trials at the end, however often it was interrupted (Ctrl-C, kill) and called again, and
however many processes and machines with the same ``--storage`` and ``--study-name`` have worked on it. What the sampler does
not choose is the entry's, and ``--hyperparams`` hold in every trial. The best trial's entry, ready to be pasted into
``zoo/hyperparams``, the table of all trials and plots go to ``<log folder>/<algo>/study_<name>/``.
"""

import argparse
import contextlib
import multiprocessing
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
import yaml  # type: ignore[import-untyped]
from cli import (
    add_common_arguments,
    add_training_arguments,
    command_line,
    count,
    prepare,
    usage_errors,
)
from exp_manager import EVAL_SEED, TEAM_ALGOS, TeamExperimentManager
from gymnasium import spaces
from huggingface_sb3 import EnvironmentName
from hyperparams_opt import TEAM_SAMPLERS, as_entry
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization
from study import (
    ENTRY,
    SlotSampler,
    best_entry,
    finished_trials,
    open_storage,
    study_settings,
    work,
)

mpl.use("Agg")

# What changes the meaning of a study's values
_SETTINGS = (
    "algo",
    "env",
    "n_timesteps",
    "n_seeds",
    "n_evaluations",
    "eval_episodes",
    "objective",
    "quantile",
    "seed",
    "sampler",
)


_SEEDS_APART = 1000  # more than there are environments, whose seeds are counted up


class Evaluations(BaseCallback):
    """
    Evaluates when parts of the training are over, but for the last, after which the training's caller does it.

    :param evaluate: Called with the number of parts that are over
    :param n_parts: How many there are, all equal
    """

    def __init__(self, evaluate: Callable[[int], Any], n_parts: int) -> None:
        super().__init__()
        self.evaluate = evaluate
        self.n_parts = n_parts
        self.n_over = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        """After an update, whatever the length of the rollouts."""
        n_over = min(
            self.num_timesteps * self.n_parts // self.model._total_timesteps, self.n_parts - 1
        )
        if n_over > self.n_over:
            self.n_over = n_over
            self.evaluate(n_over)


class Tuning:
    """
    What the trials of a study have in common.

    :param args: Of the command line; settings that follow from the entry are filled in
    :raises ValueError: If something cannot work
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        manager = self._manager(args.seed)
        self.base = dict(manager.read_hyperparameters()[1])
        if args.env_kwargs:  # of which RL Zoo writes down nothing where the entry has none
            self.base["env_kwargs"] = args.env_kwargs
        self.fixed = args.hyperparams or {}
        arguments = manager.configure(self.base)
        self.policy_kwargs = arguments.get("policy_kwargs", {})
        self.n_envs = manager.n_envs
        args.n_timesteps = self.base["n_timesteps"] = manager.n_timesteps
        manager.configure(
            as_entry(self.base, {"policy_kwargs": {}}, self.policy_kwargs)
        )  # as the trials have it
        if args.n_evaluations is None:
            args.n_evaluations = max(1, manager.n_timesteps // 100_000)
        manager.n_evaluations = args.n_evaluations
        self.manager = manager
        # Once in vain, so that what is wrong is said before any trial
        env = manager.create_envs(manager.n_envs, no_log=True)
        try:
            TEAM_ALGOS[args.algo](env=env, device=args.device, **arguments)
            assert isinstance(env.action_space, spaces.Dict)
            self.continuous = any(
                isinstance(space, spaces.Box) for space in env.action_space.spaces.values()
            )
        finally:
            env.close()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        searched = self._sample(optuna.create_study().ask()).keys()
        # What trials do not take from the entry; their networks they do in part
        self.searched = {*searched, "n_timesteps"} - {"policy_kwargs"}

    def open_study(self) -> optuna.Study:
        """
        :return: The study, new or as it was left
        :raises ValueError: If it is another one's, or the storage is wrong
        """
        args = self.args
        warnings.filterwarnings(
            "ignore", category=optuna.exceptions.ExperimentalWarning
        )  # multivariate TPE
        study = optuna.create_study(
            storage=open_storage(args.storage),
            study_name=args.study_name,
            direction="maximize",
            load_if_exists=True,
            sampler=SlotSampler(self._make_sampler, args.seed),
            pruner=self.manager._create_pruner(args.pruner),
        )
        settings = {name: getattr(args, name) for name in _SETTINGS}
        settings |= {"env_kwargs": repr(args.env_kwargs), "entry": as_entry(self.base, {}, {})}
        settings["hyperparams"] = {name: repr(value) for name, value in sorted(self.fixed.items())}
        settings["eval_env_kwargs"] = repr(args.eval_env_kwargs)
        # Studies of before these two were noted do not say what they were
        unknown = {name: settings[name] for name in ("hyperparams", "eval_env_kwargs")}
        before = unknown | study.user_attrs.get("settings", settings)
        elsewhere = self.searched | ({"env_kwargs"} if args.env_kwargs else set())
        for saved in (settings, before):
            saved["entry"] = {
                name: value for name, value in saved["entry"].items() if name not in elsewhere
            }
        if before != settings:
            changes = [
                f"{name} was {before.get(name)}, now {settings[name]}"
                for name in settings
                if before.get(name) != settings[name]
            ]
            raise ValueError(
                f"The study {args.study_name!r} in {args.storage} was made with other settings ({'; '.join(changes)}): "
                "go on with those, or take another --study-name."
            )
        study.set_user_attr("settings", settings)
        study.set_user_attr("command", args.command)
        return study

    def objective(self, trial: optuna.Trial) -> float:
        """
        :param trial: To be run
        :return: The mean, or a low quantile, of the seeds' evaluations at the end of the training
        :raises optuna.TrialPruned: If it is not worth going on, or the hyperparameters lead nowhere (NaN)
        """
        entry = as_entry(self.base, self._sample(trial), self.policy_kwargs)
        trial.set_user_attr(ENTRY, entry)
        finals: list[float] = []

        def report(value: float, part: int) -> None:
            trial.report(
                self.summary([*finals, value]), len(finals) * self.args.n_evaluations + part
            )
            if trial.should_prune():
                raise optuna.TrialPruned

        for index in range(self.args.n_seeds):
            try:
                finals.append(self.train(entry, self.args.seed + _SEEDS_APART * index, report))
            except (AssertionError, ValueError) as error:  # as RL Zoo has it
                trial.set_user_attr("error", str(error))
                raise optuna.TrialPruned from error
        trial.set_user_attr("seeds", finals)
        return self.summary(finals)

    def _sample(self, trial: optuna.Trial) -> dict[str, Any]:
        return TEAM_SAMPLERS[self.args.algo](
            trial, 0, self.n_envs, {"continuous": self.continuous, "fixed": self.fixed}
        )

    def summary(self, values: Sequence[float]) -> float:
        """
        :param values: One of each seed
        :return: Their mean or quantile
        """
        return float(
            np.mean(values)
            if self.args.objective == "mean"
            else np.quantile(values, self.args.quantile)
        )

    def train(
        self, entry: dict[str, Any], seed: int, report: Callable[[float, int], None]
    ) -> float:
        """
        :param entry: The hyperparameters
        :param seed: Of the run
        :param report: Called with the mean return of each evaluation and the number of parts of the training that are over
        :return: The mean return at the end
        """
        manager = self._manager(seed)
        arguments = manager.configure(entry)
        envs: list[VecEnv] = []
        try:
            envs += [
                manager.create_envs(manager.n_envs, no_log=True),
                manager.create_envs(self.args.n_eval_envs, eval_env=True),
            ]
            env, eval_env = envs
            model = TEAM_ALGOS[self.args.algo](
                env=env, seed=seed, device=self.args.device, **arguments
            )

            def evaluate(part: int) -> float:
                sync_envs_normalization(env, eval_env)
                eval_env.seed(seed + EVAL_SEED)  # every trial plays the same episodes
                returns, _ = evaluate_policy(
                    model,
                    eval_env,
                    self.args.eval_episodes,
                    manager.deterministic_eval,
                    return_episode_rewards=True,
                )
                value = float(np.mean(returns))
                report(value, part)
                return value

            model.learn(manager.n_timesteps, Evaluations(evaluate, self.args.n_evaluations))
            return evaluate(self.args.n_evaluations)
        finally:
            for made in envs:
                made.close()

    def _manager(self, seed: int) -> TeamExperimentManager:
        args = self.args
        return TeamExperimentManager(
            args,
            args.algo,
            args.env,
            log_folder="",
            vec_env_type=args.vec_env,
            config=args.conf_file,
            n_timesteps=args.n_timesteps,
            hyperparams=args.hyperparams,
            env_kwargs=args.env_kwargs,
            eval_env_kwargs=args.eval_env_kwargs,
            n_startup_trials=args.n_startup_trials,
            n_evaluations=args.n_evaluations,
            seed=seed,
            verbose=0,
        )

    def _make_sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        self.manager.seed = seed
        return self.manager._create_sampler(self.args.sampler)


def write_report(study: optuna.Study, args: argparse.Namespace, folder: Path) -> None:
    """
    Tell what the study has found.

    :param study: The study
    :param args: Of the command line
    :param folder: Gets ``best.yml``, ``trials.csv``, ``history.png`` and ``importances.png``
    """
    folder.mkdir(parents=True, exist_ok=True)
    study.trials_dataframe().to_csv(folder / "trials.csv", index=False)
    finished = finished_trials(study, args.n_trials)
    n_pruned = sum(trial.state.name == "PRUNED" for trial in finished.values())
    print(
        f"{len(finished)} of {args.n_trials} trials have finished, {n_pruned} of them pruned. Trials: {folder / 'trials.csv'}"
    )
    try:
        best, entry = best_entry(study, args.n_trials)
    except ValueError as error:
        print(error)
        return
    aim = "mean" if args.objective == "mean" else f"{args.quantile} quantile"
    text = (
        f"# Trial {best.number} of the study {study.study_name!r} ({len(finished)} trials): the return's {aim} over "
        f"{args.n_seeds} seeds is\n# {best.value:.4g} after {args.n_timesteps:,} steps.\n# {args.command}\n"
        + yaml.safe_dump({args.env: entry}, sort_keys=False, width=200)
    )
    (folder / "best.yml").write_text(text)
    print(f"The best entry, for zoo/hyperparams/{args.algo}.yml ({folder / 'best.yml'}):\n\n{text}")
    if not args.no_optim_plots:
        _plot(study, folder)
    print(f"Look at it: pip install optuna-dashboard; optuna-dashboard {args.storage}")


def _plot(study: optuna.Study, folder: Path) -> None:
    plots: dict[str, Callable[[optuna.Study], Any]] = {
        "history": optuna.visualization.matplotlib.plot_optimization_history,
        "importances": optuna.visualization.matplotlib.plot_param_importances,
    }
    for name, plot in plots.items():
        try:
            axes = plot(study)
        except (ValueError, RuntimeError) as error:  # too few trials, or all alike
            print(f"No plot {name}.png yet: {error}")
            continue
        axes.figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        print(f"Plot: {folder / f'{name}.png'}")


def make_parser() -> argparse.ArgumentParser:
    """
    :return: The command line: RL Zoo's flags, and a few more
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    add_training_arguments(parser)
    # Trials side by side use the cores better than workers of one
    parser.set_defaults(seed=0, n_eval_envs=5, vec_env="dummy")
    parser.add_argument(
        "--n-trials",
        type=count,
        default=100,
        help="trials that the study has in the end (%(default)s)",
    )
    parser.add_argument(
        "--n-jobs", type=count, default=1, help="processes that run trials (%(default)s)"
    )
    parser.add_argument("--study-name", help="by default <algo>_<env>")
    parser.add_argument(
        "--storage",
        help="URL of a database, or Optuna's journal file (….log); by default one in the log folder",
    )
    parser.add_argument("--sampler", choices=["tpe", "random"], default="tpe", help="(%(default)s)")
    parser.add_argument(
        "--pruner", choices=["median", "halving", "none"], default="median", help="(%(default)s)"
    )
    parser.add_argument(
        "--n-startup-trials",
        type=int,
        default=10,
        help="random trials before the sampler and the pruner start",
    )
    parser.add_argument(
        "--n-evaluations",
        type=count,
        help="evaluations of a training; by default one per 100,000 timesteps",
    )
    parser.add_argument(
        "--eval-episodes", type=count, default=20, help="episodes of an evaluation (%(default)s)"
    )
    parser.add_argument(
        "--n-seeds",
        type=count,
        default=1,
        help="trainings of a trial, each with its own seed (%(default)s)",
    )
    parser.add_argument(
        "--objective",
        choices=["mean", "quantile"],
        default="mean",
        help="of the seeds' returns (%(default)s)",
    )
    parser.add_argument(
        "--quantile", type=float, default=0.25, help="for --objective quantile (%(default)s)"
    )
    parser.add_argument("--no-optim-plots", action="store_true", help="draw nothing")
    return parser


def _prepare(argv: Sequence[str] | None) -> tuple[argparse.Namespace, Tuning, optuna.Study]:
    parser = make_parser()
    args = parser.parse_args(argv)
    args.command = command_line("tune", argv)
    with usage_errors(parser, args.verbose):
        if not 0 <= args.quantile <= 1:
            raise ValueError(f"--quantile must be in [0, 1], not {args.quantile}")
        if args.n_jobs > 1 and args.num_threads < 1:
            args.num_threads = max((os.cpu_count() or 1) // args.n_jobs, 1)
        args.study_name = args.study_name or f"{args.algo}_{EnvironmentName(args.env)}"
        args.folder = (
            Path(args.log_folder)
            / args.algo
            / re.sub(r'[<>:"/\\|?*]', "-", f"study_{args.study_name}")
        )  # for Windows
        args.storage = args.storage or str(args.folder / "journal.log")
        if args.seed < 0:  # a random one, once
            args.seed = study_settings(args.storage, args.study_name).get("seed", args.seed)
        prepare(args)
        tuning = Tuning(args)
        return args, tuning, tuning.open_study()


def _work(argv: Sequence[str]) -> None:
    """One of several processes."""
    with contextlib.suppress(KeyboardInterrupt):
        args, tuning, study = _prepare(argv)
        work(study, tuning.objective, args.n_trials)


def main(argv: Sequence[str] | None = None) -> optuna.Study:
    """
    Command line.

    :param argv: Arguments, by default those of the process
    :return: The study
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    args, tuning, study = _prepare(argv)
    print(
        f"Study {args.study_name!r} in {args.storage}. Ctrl-C loses nothing: the same command goes on.",
        flush=True,
    )
    failed = False
    try:
        if args.n_jobs == 1:
            work(study, tuning.objective, args.n_trials)
        else:
            failed = _work_in_processes([*argv, "--seed", str(args.seed)], args.n_jobs)
    except KeyboardInterrupt:
        print("Interrupted.")
    write_report(study, args, args.folder)
    if failed:
        sys.exit("A worker has failed; its trial is run again by the same command.")
    return study


def _work_in_processes(argv: Sequence[str], n_jobs: int) -> bool:
    """Threads, Optuna's own way, would share the global random generators. Whether one has failed."""
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(argv,)) for _ in range(n_jobs)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except (
        KeyboardInterrupt
    ):  # a terminal sends it to all; who sends it to this process alone means all
        for worker in workers:
            if worker.is_alive() and worker.pid is not None:
                os.kill(worker.pid, signal.SIGINT)
        for worker in workers:
            worker.join()
        raise
    return any(worker.exitcode for worker in workers)


if __name__ == "__main__":
    main()
