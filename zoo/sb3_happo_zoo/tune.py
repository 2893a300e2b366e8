"""
Tune the hyperparameters of an entry with Optuna.

    python zoo/tune.py --algo happo --env mpe2/simple_spread_v3 -n 3e5 --n-trials 20 --n-seeds 3 \\
        --n-jobs 2
    python zoo/tune.py --algo happo --env mpe2/simple_spread_v3 -n 3e5 \\
        --storage sqlite:///studies.db --study-name spread
    python zoo/train.py --algo happo --env mpe2/simple_spread_v3 \\
        --storage sqlite:///studies.db --study-name spread

``--n-trials`` is the number of finished trials of the whole study. A study that was interrupted
(Ctrl-C, kill) is continued by the same command, its lost trials from their last checkpoints, and
several processes and machines with the same ``--storage`` and ``--study-name`` can work on it.
Hyperparameters that are not searched are the entry's; ``--hyperparams`` fixes hyperparameters for
all trials. The best trial's entry, ready to be pasted into ``zoo/hyperparams``, the table of all
trials and plots are written to ``<log folder>/<algo>/study_<name>/``.
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
from gymnasium import spaces
from huggingface_sb3 import EnvironmentName
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, sync_envs_normalization

from sb3_happo import ResumableCheckpointCallback
from sb3_happo.common.on_policy_algorithm import MultiAgentOnPolicyAlgorithm
from sb3_happo_zoo.algorithms import TEAM_ALGOS
from sb3_happo_zoo.cli import (
    add_common_arguments,
    add_training_arguments,
    command_line,
    count,
    prepare,
    usage_errors,
    whole_number,
)
from sb3_happo_zoo.exp_manager import (
    EVAL_SEED,
    STEPS_BETWEEN_CHECKPOINTS,
    TeamExperimentManager,
)
from sb3_happo_zoo.hyperparams_opt import TEAM_SAMPLERS, as_entry
from sb3_happo_zoo.noise import with_action_noise
from sb3_happo_zoo.study import (
    ENTRY,
    EVALUATIONS,
    SlotSampler,
    best_entry,
    finished_trials,
    open_storage,
    study_settings,
    work,
)
from sb3_happo_zoo.trial_checkpoints import (
    Evaluations,
    TrialCheckpoints,
    Values,
    finished_trainings,
    remove_folders,
    restore,
)

mpl.use("Agg")

# Arguments on which the values of a study's trials depend
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
    "checkpoint_freq",
)

#: Folder for the folders of trials that run, in the folder of the study
TRIALS = "trials"

# Distance between the seeds of a trial's trainings; larger than the number of environments, whose
# seeds are consecutive
_SEED_DISTANCE = 1000


class Tuning:
    """
    Trials of a study.

    :param args: Parsed command line; missing settings are taken from the entry
    :raises ValueError: If an argument or a hyperparameter is wrong
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        #: Folder for the checkpoints of the present training, None for no checkpoints
        self.checkpoints: Path | None = None
        manager = self.make_manager(args.seed)
        self.base = dict(manager.read_hyperparameters()[1])
        if args.env_kwargs:  # RL Zoo does not save them if the entry has none
            self.base["env_kwargs"] = args.env_kwargs
        self.fixed = args.hyperparams or {}
        arguments = manager.configure(self.base)
        self.policy_kwargs = arguments.get("policy_kwargs", {})
        self.n_envs = manager.n_envs
        args.n_timesteps = self.base["n_timesteps"] = manager.n_timesteps
        # Check the form in which trials use the entry
        manager.configure(as_entry(self.base, {"policy_kwargs": {}}, self.policy_kwargs))
        if args.n_evaluations is None:
            args.n_evaluations = max(1, manager.n_timesteps // 100_000)
        manager.n_evaluations = args.n_evaluations
        self.manager = manager
        self.continuous = self._check_model(arguments)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        searched = self.sample(optuna.create_study().ask()).keys()
        # Hyperparameters that trials do not take from the entry; they take parts of policy_kwargs
        self.searched = {*searched, "n_timesteps"} - {"policy_kwargs"}

    def _check_model(self, arguments: dict[str, Any]) -> bool:
        """
        Make the model once, so that errors appear before any trial.

        :param arguments: Arguments of the algorithm
        :return: Whether an agent has continuous actions
        """
        env = self.manager.create_envs(self.manager.n_envs, no_log=True)
        try:
            arguments = with_action_noise(arguments, env.action_space)
            model = TEAM_ALGOS[self.args.algo](env=env, device=self.args.device, **arguments)
            self.takes_target_critic = _takes_target_critic(model)
            assert isinstance(env.action_space, spaces.Dict)
            return any(isinstance(space, spaces.Box) for space in env.action_space.values())
        finally:
            env.close()

    def open_study(self) -> optuna.Study:
        """
        :return: New study, or an existing one that is continued
        :raises ValueError: If the existing study has other settings, or the storage is wrong
        """
        args = self.args
        # The multivariate TPE sampler is experimental
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            storage=open_storage(args.storage),
            study_name=args.study_name,
            direction="maximize",
            load_if_exists=True,
            sampler=SlotSampler(self._make_sampler, args.seed),
            pruner=self.manager._create_pruner(args.pruner),
        )
        settings = self._settings()
        # Studies of earlier versions do not have these
        missing = {name: settings[name] for name in ("hyperparams", "eval_env_kwargs")}
        missing["checkpoint_freq"] = -1
        before = missing | study.user_attrs.get("settings", settings)
        ignored = self.searched | ({"env_kwargs"} if args.env_kwargs else set())
        for saved in (settings, before):
            entry = saved["entry"]
            saved["entry"] = {name: entry[name] for name in entry if name not in ignored}
        if before != settings:
            raise ValueError(
                f"The study {args.study_name!r} in {args.storage} was made with other settings "
                f"({_changes(before, settings)}): keep those, or choose another --study-name."
            )
        study.set_user_attr("settings", settings)
        study.set_user_attr("command", args.command)
        return study

    def _settings(self) -> dict[str, Any]:
        """
        :return: Settings on which the values of the trials depend
        """
        settings = {name: getattr(self.args, name) for name in _SETTINGS}
        fixed = {name: repr(value) for name, value in sorted(self.fixed.items())}
        return settings | {
            "env_kwargs": repr(self.args.env_kwargs),
            "entry": as_entry(self.base, {}, {}),
            "hyperparams": fixed,
            "eval_env_kwargs": repr(self.args.eval_env_kwargs),
        }

    def objective(self, trial: optuna.Trial) -> float:
        """
        :param trial: Trial to run
        :return: Mean, or quantile, over the seeds of the mean return at the end of the training
        :raises optuna.TrialPruned: If the pruner ends the trial, or the training fails (NaN)
        """
        entry = as_entry(self.base, self.sample(trial), self.policy_kwargs)
        trial.set_user_attr(ENTRY, entry)
        if self.args.checkpoint_freq < 0:
            return self._run_trainings(trial, entry, None)
        checkpoints = TrialCheckpoints(trial, self.args.folder / TRIALS)
        ended = False
        try:
            value = self._run_trainings(trial, entry, checkpoints)
            ended = True
            return value
        except optuna.TrialPruned:
            ended = True
            raise
        finally:
            checkpoints.close(remove=ended)

    def _run_trainings(
        self, trial: optuna.Trial, entry: dict[str, Any], checkpoints: TrialCheckpoints | None
    ) -> float:
        """
        :param trial: Trial to run
        :param entry: Entry
        :param checkpoints: Checkpoints of its trainings, None without any
        :return: Mean, or quantile, over the seeds of the mean return at the end of the training
        """
        finals: list[float] = []
        evaluations: list[Values] = []

        def report(value: float, part: int) -> None:
            evaluations[-1].append((part, value))
            trial.report(
                self.summary([*finals, value]), len(finals) * self.args.n_evaluations + part
            )
            if trial.should_prune():
                raise optuna.TrialPruned

        for values in finished_trainings(trial):
            evaluations.append([])
            for part, value in values:
                report(value, part)
            finals.append(values[-1][1])
        for index in range(len(finals), self.args.n_seeds):
            evaluations.append([])
            self.checkpoints = None if checkpoints is None else checkpoints.of_training(index)
            try:
                finals.append(self.train(entry, self.args.seed + _SEED_DISTANCE * index, report))
            except (AssertionError, ValueError) as error:  # the same errors as in RL Zoo
                trial.set_user_attr("error", str(error))
                raise optuna.TrialPruned from error
            trial.set_user_attr(EVALUATIONS, evaluations)
        trial.set_user_attr("seeds", finals)
        return self.summary(finals)

    def sample(self, trial: optuna.Trial) -> dict[str, Any]:
        """
        :param trial: Trial that suggests values
        :return: Hyperparameters that are searched
        """
        additional_args = {
            "continuous": self.continuous,
            "target_critic": self.takes_target_critic,
            "fixed": self.fixed,
        }
        return TEAM_SAMPLERS[self.args.algo](trial, 0, self.n_envs, additional_args)

    def summary(self, values: Sequence[float]) -> float:
        """
        :param values: Mean returns, one per seed
        :return: Mean or quantile of the values
        """
        if self.args.objective == "mean":
            return float(np.mean(values))
        return float(np.quantile(values, self.args.quantile))

    def train(
        self, entry: dict[str, Any], seed: int, report: Callable[[float, int], None]
    ) -> float:
        """
        :param entry: Entry of hyperparameters
        :param seed: Seed of the training
        :param report: Function that is called with the mean return of each evaluation and the
            number of finished parts
        :return: Mean return at the end of the training
        """
        manager = self.make_manager(seed)
        arguments = manager.configure(entry)
        envs: list[VecEnv] = []
        try:
            envs += [
                manager.create_envs(manager.n_envs, no_log=True),
                manager.create_envs(self.args.n_eval_envs, eval_env=True),
            ]
            env, eval_env = envs
            arguments = with_action_noise(arguments, env.action_space)
            model = TEAM_ALGOS[self.args.algo](
                env=env, seed=seed, device=self.args.device, **arguments
            )

            def evaluate(part: int) -> float:
                sync_envs_normalization(env, eval_env)
                eval_env.seed(seed + EVAL_SEED)  # the same episodes in every trial
                returns, _ = evaluate_policy(
                    model,
                    eval_env,
                    self.args.eval_episodes,
                    manager.deterministic_eval,
                    return_episode_rewards=True,
                )
                return float(np.mean(returns))

            callbacks: list[BaseCallback] = [Evaluations(evaluate, self.args.n_evaluations, report)]
            if self.checkpoints is not None:
                callbacks.insert(0, self._checkpoint_callback(manager.n_envs))
                restore(model, self.checkpoints)
            model.learn(manager.n_timesteps, callbacks)
            final = evaluate(self.args.n_evaluations)
            report(final, self.args.n_evaluations)
            return final
        finally:
            for made in envs:
                made.close()

    def _checkpoint_callback(self, n_envs: int) -> ResumableCheckpointCallback:
        assert self.checkpoints is not None
        freq = self.args.checkpoint_freq or STEPS_BETWEEN_CHECKPOINTS * n_envs
        return ResumableCheckpointCallback(freq, self.checkpoints, unit="timesteps")

    def make_manager(self, seed: int) -> TeamExperimentManager:
        """
        :param seed: Seed of the training
        :return: Manager with the arguments of the command line
        """
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


def _takes_target_critic(model: Any) -> bool:
    """True for an on-policy algorithm whose settings go together with a target critic."""
    if not isinstance(model, MultiAgentOnPolicyAlgorithm):
        return False
    return model.clip_range_vf is None and not model.critic.recurrent


def _changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """
    :param before: Settings of the existing study
    :param now: Settings of the command line
    :return: Text with the settings that differ
    """
    changes = []
    for name, value in now.items():
        if before.get(name) != value:
            changes.append(f"{name} was {before.get(name)}, now {value}")
    return "; ".join(changes)


def write_report(study: optuna.Study, args: argparse.Namespace, folder: Path) -> None:
    """
    Print and save the results of the study.

    :param study: The study
    :param args: Parsed command line
    :param folder: Folder for ``best.yml``, ``trials.csv``, ``history.png`` and ``importances.png``
    """
    folder.mkdir(parents=True, exist_ok=True)
    study.trials_dataframe().to_csv(folder / "trials.csv", index=False)
    finished = finished_trials(study, args.n_trials)
    n_pruned = sum(trial.state.name == "PRUNED" for trial in finished.values())
    print(
        f"{len(finished)} of {args.n_trials} trials have finished, {n_pruned} of them pruned. "
        f"Trials: {folder / 'trials.csv'}"
    )
    try:
        best, entry = best_entry(study, args.n_trials)
    except ValueError as error:
        print(error)
        return
    aim = "mean" if args.objective == "mean" else f"{args.quantile} quantile"
    text = (
        f"# Trial {best.number} of the study {study.study_name!r} ({len(finished)} trials): "
        f"the return's {aim} over {args.n_seeds} seeds is\n"
        f"# {best.value:.4g} after {args.n_timesteps:,} steps.\n"
        f"# {args.command}\n"
    )
    text += yaml.safe_dump({args.env: entry}, sort_keys=False, width=200)
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
        except (ValueError, RuntimeError) as error:  # too few trials, or equal ones
            print(f"No plot {name}.png yet: {error}")
            continue
        axes.figure.savefig(folder / f"{name}.png", dpi=120, bbox_inches="tight")
        print(f"Plot: {folder / f'{name}.png'}")


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line, with RL Zoo's flags and others
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    add_training_arguments(parser)
    # Several trials use the cores better than worker processes of one
    parser.set_defaults(seed=0, n_eval_envs=5, vec_env="dummy")
    parser.add_argument(
        "--n-trials",
        type=count,
        default=100,
        help="number of finished trials of the whole study (%(default)s)",
    )
    parser.add_argument(
        "--n-jobs", type=count, default=1, help="number of processes that run trials (%(default)s)"
    )
    parser.add_argument("--study-name", help="name of the study; by default <algo>_<env>")
    parser.add_argument(
        "--storage",
        help="URL of a database, or Optuna's journal file (….log); by default in the log folder",
    )
    parser.add_argument(
        "--sampler", choices=["tpe", "random"], default="tpe", help="Optuna's sampler (%(default)s)"
    )
    parser.add_argument(
        "--pruner",
        choices=["median", "halving", "none"],
        default="median",
        help="Optuna's pruner (%(default)s)",
    )
    parser.add_argument(
        "--n-startup-trials",
        type=int,
        default=10,
        help="number of random trials before the sampler and the pruner start",
    )
    parser.add_argument(
        "--n-evaluations",
        type=count,
        help="number of evaluations per training; by default one per 100,000 timesteps",
    )
    parser.add_argument(
        "--eval-episodes",
        type=count,
        default=20,
        help="number of episodes per evaluation (%(default)s)",
    )
    parser.add_argument(
        "--n-seeds",
        type=count,
        default=1,
        help="number of trainings per trial, each with another seed (%(default)s)",
    )
    parser.add_argument(
        "--objective",
        choices=["mean", "quantile"],
        default="mean",
        help="statistic of the seeds' returns (%(default)s)",
    )
    parser.add_argument(
        "--quantile",
        type=float,
        default=0.25,
        help="quantile for --objective quantile (%(default)s)",
    )
    parser.add_argument(
        "--checkpoint-freq",
        type=whole_number,
        help="number of timesteps between checkpoints, from which a lost trial goes on, and at "
        "which the environments are reset (0: 10,000 steps of each environment; negative: no "
        "checkpoints); by default the study's, 0 for a new one",
    )
    parser.add_argument("--no-optim-plots", action="store_true", help="do not plot")
    return parser


def open_tuning(
    argv: Sequence[str] | None = None,
) -> tuple[argparse.Namespace, Tuning, optuna.Study]:
    """
    :param argv: Arguments, by default those of the process
    :return: Parsed command line, trials and study
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    args.command = command_line("tune", argv)
    with usage_errors(parser, args.verbose):
        if not 0 <= args.quantile <= 1:
            raise ValueError(f"--quantile must be in [0, 1], not {args.quantile}")
        if args.n_jobs > 1 and args.num_threads < 1:
            args.num_threads = max((os.cpu_count() or 1) // args.n_jobs, 1)
        args.study_name = args.study_name or f"{args.algo}_{EnvironmentName(args.env)}"
        folder = re.sub(r'[<>:"/\\|?*]', "-", f"study_{args.study_name}")  # for Windows
        args.folder = Path(args.log_folder) / args.algo / folder
        args.storage = args.storage or str(args.folder / "journal.log")
        saved = {}
        if args.seed < 0 or args.checkpoint_freq is None:
            saved = study_settings(args.storage, args.study_name)
        if args.seed < 0:  # a random one is drawn once per study
            args.seed = saved.get("seed", args.seed)
        if args.checkpoint_freq is None:
            # Trials of earlier versions had no checkpoints
            args.checkpoint_freq = saved.get("checkpoint_freq", -1) if saved else 0
        prepare(args)
        tuning = Tuning(args)
        return args, tuning, tuning.open_study()


def _work(argv: Sequence[str]) -> None:
    """Run trials; main function of one of several processes."""
    with contextlib.suppress(KeyboardInterrupt):
        args, tuning, study = open_tuning(argv)
        work(study, tuning.objective, args.n_trials)


def main(argv: Sequence[str] | None = None) -> optuna.Study:
    """
    Command line.

    :param argv: Arguments, by default those of the process
    :return: The study
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    args, tuning, study = open_tuning(argv)
    print(
        f"Study {args.study_name!r} in {args.storage}. "
        "It can be interrupted by Ctrl-C and continued by the same command.",
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
    if len(finished_trials(study, args.n_trials)) == args.n_trials:
        remove_folders(study.get_trials(deepcopy=False), args.folder / TRIALS)
    if failed:
        sys.exit("A worker has failed; its trial is run again by the same command.")
    return study


def _work_in_processes(argv: Sequence[str], n_jobs: int) -> bool:
    """
    Run trials in processes. Optuna's ``n_jobs`` uses threads, which would share the global random
    generators.

    :param argv: Arguments of each process
    :param n_jobs: Number of processes
    :return: Whether a process has failed
    """
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_work, args=(argv,)) for _ in range(n_jobs)]
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        # A terminal sends the signal to all processes, another sender perhaps to this one only
        for worker in workers:
            if worker.is_alive() and worker.pid is not None:
                os.kill(worker.pid, signal.SIGINT)
        for worker in workers:
            worker.join()
        raise
    return any(worker.exitcode for worker in workers)


if __name__ == "__main__":
    main()
