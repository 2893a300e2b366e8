"""
Train a team with the hyperparameters of ``zoo/hyperparams``, as RL Zoo trains single agents.

    python zoo/train.py --algo happo --env mpe2/simple_spread_v3 -P
    python zoo/train.py --algo happo --env mpe2/simple_spread_v3 \\
        -i logs/happo/mpe2-simple_spread_v3_1/best_model.zip
    python zoo/train.py --resume logs/happo/mpe2-simple_spread_v3_1
    python zoo/train.py --algo mappo --env my_pkg/my_env_v0 --n-timesteps 1e6 \\
        --hyperparams learning_rate:0.0003 n_envs:8

The last model, the best model of the evaluations, normalisation statistics, evaluations, monitor
files, hyperparameters, the command and the versions are written to ``<log
folder>/<algo>/<env>_<run>/``. An environment without an entry gets the entry ``default``.

An interrupted run ends with a checkpoint, from which ``--resume`` goes on, and with an exit code
other than 0: 130 after Ctrl-C, 143 after SIGTERM.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_sb3 import EnvironmentName

from sb3_happo_zoo.algorithms import TEAM_ALGOS, is_off_policy
from sb3_happo_zoo.cli import (
    add_common_arguments,
    add_training_arguments,
    command_line,
    count,
    prepare,
    usage_errors,
    whole_number,
)
from sb3_happo_zoo.exp_manager import TeamExperimentManager
from sb3_happo_zoo.resume import (
    InterruptedRun,
    ResumedExperimentManager,
    is_resumed,
    resumed_arguments,
)
from sb3_happo_zoo.study import trial_entry

# Exit code of programs that Ctrl-C ends, as shells count
_INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line, with RL Zoo's flags
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    add_training_arguments(parser)
    parser.add_argument(
        "-i", "--trained-agent", default="", help="model (.zip) whose training is continued"
    )
    parser.add_argument(
        "-tb", "--tensorboard-log", default="", help="folder for TensorBoard's logs"
    )
    parser.add_argument(
        "--log-interval",
        type=int,
        default=-1,
        help="number of updates between logs (-1: default, -2: no logs)",
    )
    parser.add_argument(
        "--eval-freq",
        type=whole_number,
        default=25_000,
        help="number of timesteps between evaluations (negative: no evaluations)",
    )
    parser.add_argument(
        "--eval-episodes", type=count, default=5, help="number of episodes per evaluation"
    )
    parser.add_argument(
        "--save-freq",
        type=whole_number,
        default=-1,
        help="number of timesteps between copies of the model (negative: no copies)",
    )
    parser.add_argument(
        "--checkpoint-freq",
        type=whole_number,
        default=0,
        help="number of timesteps between checkpoints, from which --resume goes on, and at which "
        "the environments are reset (0: 10,000 steps of each environment; negative: no "
        "checkpoints)",
    )
    parser.add_argument(
        "--resume",
        metavar="FOLDER",
        help="folder of an interrupted run, which goes on with its own command",
    )
    parser.add_argument(
        "--save-replay-buffer",
        action="store_true",
        help="save the replay buffer of an off-policy algorithm with the last model; -i goes on "
        "with it",
    )
    parser.add_argument("-P", "--progress", action="store_true", help="show a progress bar")
    parser.add_argument(
        "-uuid",
        "--uuid",
        action="store_true",
        help="add a unique id to the name of the run's folder",
    )
    parser.add_argument(
        "--storage", help="storage of a study (see tune.py) with the hyperparameters"
    )
    parser.add_argument("--study-name", help="name of the study")
    parser.add_argument("--trial-id", type=int, help="number of the trial; by default the best one")
    parser.add_argument("--track", action="store_true", help="track the run with Weights & Biases")
    parser.add_argument(
        "--wandb-project-name", default="sb3_happo", help="project of Weights & Biases"
    )
    parser.add_argument("--wandb-entity", help="entity (team) of Weights & Biases")
    parser.add_argument("--wandb-group", help="group of Weights & Biases")
    parser.add_argument(
        "-tags", "--wandb-tags", nargs="+", default=[], help="tags of Weights & Biases"
    )
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """
    :param args: Parsed command line
    :raises ValueError: If the trained agent is no file or gets another network, a study is named
        without its storage, or a replay buffer is to be saved where there is none
    """
    _check_trained_agent(args)
    if args.save_replay_buffer and not is_off_policy(args.algo):
        others = ", ".join(filter(is_off_policy, TEAM_ALGOS))
        raise ValueError(
            f"--save-replay-buffer: {args.algo} has no replay buffer. Leave it out, or choose one "
            f"of {others}."
        )
    if args.storage is None and (args.study_name is not None or args.trial_id is not None):
        raise ValueError(
            "--study-name and --trial-id choose from a study; say with --storage where it is."
        )


def _check_trained_agent(args: argparse.Namespace) -> None:
    """Refuse a trained agent that does not exist, and networks that it does not have."""
    path = args.trained_agent
    if path and not (path.endswith(".zip") and Path(path).is_file()):
        raise ValueError(f"There is no trained agent {path}; it must be a .zip file that exists.")
    fixed = [name for name in ("policy", "policy_kwargs") if name in (args.hyperparams or {})]
    if path and fixed:
        raise ValueError(
            f"{' and '.join(fixed)} cannot be given with -i: the networks of {path} stay as they "
            "are. Leave it out, or train anew without -i."
        )


def study_entry(args: argparse.Namespace) -> dict[str, Any] | None:
    """
    :param args: Parsed command line
    :return: Entry of the study's trial, None if no study is named
    :raises ValueError: If there is no such study or trial
    """
    if args.storage is None:
        return None
    entry = trial_entry(args.storage, args.study_name, args.trial_id, args.algo, args.env)
    print(f"Hyperparameters of the study {args.study_name!r}, instead of the file's: {entry}")
    return entry


def make_manager(
    args: argparse.Namespace,
    entry: dict[str, Any] | None = None,
    resumed: InterruptedRun | None = None,
) -> TeamExperimentManager:
    """
    :param args: Parsed command line
    :param entry: Entry that replaces the file's
    :param resumed: Run that goes on, None for a new one
    :return: Manager of the run
    """
    kwargs: dict[str, Any] = dict(
        vec_env_type=args.vec_env,
        config=args.conf_file,
        entry=entry,
        checkpoint_freq=args.checkpoint_freq,
        tensorboard_log=args.tensorboard_log,
        n_timesteps=args.n_timesteps,
        eval_freq=args.eval_freq,
        n_eval_episodes=args.eval_episodes,
        save_freq=args.save_freq,
        save_replay_buffer=args.save_replay_buffer,
        hyperparams=args.hyperparams,
        env_kwargs=args.env_kwargs,
        eval_env_kwargs=args.eval_env_kwargs,
        trained_agent=args.trained_agent,
        uuid_str=f"_{time.time_ns():x}" if args.uuid else "",
        seed=args.seed,
        log_interval=args.log_interval,
        verbose=args.verbose,
        n_eval_envs=args.n_eval_envs,
        device=args.device,
        show_progress=args.progress,
    )
    places = (args, args.algo, args.env, args.log_folder)
    if resumed is not None:
        return ResumedExperimentManager(resumed, *places, **kwargs)
    return TeamExperimentManager(*places, **kwargs)


def main(argv: Sequence[str] | None = None) -> TeamExperimentManager:
    """
    Command line.

    :param argv: Arguments, by default those of the process
    :return: Manager of the finished run; its ``save_path`` is the folder of the run
    """
    parser = make_parser()
    words = sys.argv[1:] if argv is None else argv
    resumed = None
    if is_resumed(words):
        with usage_errors(parser, 1):
            args, resumed = resumed_arguments(parser, words)
    else:
        args = parser.parse_args(argv)
        args.command = command_line("train", argv)
    with usage_errors(parser, args.verbose):
        check_arguments(args)
        prepare(args)
        entry = study_entry(args) if resumed is None else None
        print("=" * 10, args.env, "=" * 10)
        print(f"Seed: {args.seed}")
        run = _track(args, resumed) if args.track else None
        manager = make_manager(args, entry, resumed)
        results = manager.setup_experiment()
    assert results is not None
    model, hyperparams = results
    if run is not None:
        run.config.setdefaults(vars(args) | {"saved_hyperparams": hyperparams})
        manager.notes["wandb"] = str(run.id)
    try:
        manager.learn(model)
        manager.save_trained_model(model)
        manager.mark_finished()
    except KeyboardInterrupt:
        manager.save_trained_model(model)
        raise SystemExit(_INTERRUPTED) from None
    finally:
        if manager.lock is not None:
            manager.lock.release()
    return manager


def _track(args: argparse.Namespace, resumed: InterruptedRun | None) -> Any:
    """
    Start a run of Weights & Biases that receives TensorBoard's logs.

    :param args: Parsed command line; gets the folder for TensorBoard's logs
    :param resumed: Run that goes on, None for a new one
    :return: The run
    :raises ImportError: If Weights & Biases is not installed
    """
    try:
        import wandb
    except ImportError as error:
        raise ImportError("--track needs Weights & Biases: pip install wandb") from error
    name = f"{EnvironmentName(args.env)}__{args.algo}__{args.seed}__{int(time.time())}"
    # The same run there, too
    identity = {} if resumed is None else {"id": resumed.notes.get("wandb"), "resume": "allow"}
    run = wandb.init(
        **identity,
        name=name,
        project=args.wandb_project_name,
        entity=args.wandb_entity,
        group=args.wandb_group,
        tags=args.wandb_tags,
        config=vars(args),
        sync_tensorboard=True,
    )
    args.tensorboard_log = f"runs/{name}"
    return run


if __name__ == "__main__":
    main()
