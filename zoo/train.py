"""
Train a team with the hyperparameters of ``zoo/hyperparams``, as RL Zoo trains single agents.

    python zoo/train.py --algo happo --env mpe2/simple_spread_v3 -P
    python zoo/train.py --algo happo --env mpe2/simple_spread_v3 -i logs/happo/mpe2-simple_spread_v3_1/best_model.zip
    python zoo/train.py --algo mappo --env my_pkg/my_env_v0 --n-timesteps 1e6 --hyperparams learning_rate:0.0003 n_envs:8

The model, the best one of the evaluations, normalisation statistics, evaluations, monitor's files, hyperparameters, the
command and the versions go to ``<log folder>/<algo>/<env>_<run>/``. An environment without an entry gets the ``default`` one.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli import (
    add_common_arguments,
    add_training_arguments,
    command_line,
    count,
    prepare,
    usage_errors,
    whole_number,
)
from exp_manager import TeamExperimentManager
from huggingface_sb3 import EnvironmentName
from study import trial_entry


def make_parser() -> argparse.ArgumentParser:
    """
    :return: The command line: RL Zoo's flags
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_common_arguments(parser)
    add_training_arguments(parser)
    parser.add_argument(
        "-i", "--trained-agent", default="", help="model (.zip) to continue training"
    )
    parser.add_argument("-tb", "--tensorboard-log", default="", help="folder for TensorBoard")
    parser.add_argument(
        "--log-interval",
        type=int,
        default=-1,
        help="updates between logs (-1: default, -2: no logs)",
    )
    parser.add_argument(
        "--eval-freq",
        type=whole_number,
        default=25_000,
        help="evaluate every so many timesteps (negative: never)",
    )
    parser.add_argument("--eval-episodes", type=count, default=5, help="episodes of an evaluation")
    parser.add_argument(
        "--save-freq",
        type=whole_number,
        default=-1,
        help="save the model every so many timesteps (negative: never)",
    )
    parser.add_argument("-P", "--progress", action="store_true", help="show a progress bar")
    parser.add_argument(
        "-uuid", "--uuid", action="store_true", help="give the run's folder a unique name"
    )
    parser.add_argument(
        "--storage", help="storage of a study (see tune.py) from which to take hyperparameters"
    )
    parser.add_argument("--study-name", help="the study")
    parser.add_argument("--trial-id", type=int, help="its trial; by default the best one")
    parser.add_argument("--track", action="store_true", help="track the run with Weights & Biases")
    parser.add_argument("--wandb-project-name", default="sb3_happo", help="its project")
    parser.add_argument("--wandb-entity", help="its entity (team)")
    parser.add_argument("--wandb-group", help="its group")
    parser.add_argument("-tags", "--wandb-tags", nargs="+", default=[], help="its tags")
    return parser


def main(argv: Sequence[str] | None = None) -> TeamExperimentManager:
    """
    Command line.

    :param argv: Arguments, by default those of the process
    :return: What has trained; its ``save_path`` is the folder of the run
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    args.command = command_line("train", argv)
    with usage_errors(parser, args.verbose):
        if args.trained_agent and not (
            args.trained_agent.endswith(".zip") and Path(args.trained_agent).is_file()
        ):
            raise ValueError(
                f"There is no trained agent {args.trained_agent}; it must be a .zip file that exists."
            )
        if args.storage is None and (args.study_name is not None or args.trial_id is not None):
            raise ValueError(
                "--study-name and --trial-id choose from a study; say with --storage where it is."
            )
        prepare(args)
        entry = None
        if args.storage is not None:
            entry = trial_entry(args.storage, args.study_name, args.trial_id, args.algo, args.env)
            print(
                f"Hyperparameters of the study {args.study_name!r}, instead of the file's: {entry}"
            )
        print("=" * 10, args.env, "=" * 10)
        print(f"Seed: {args.seed}")
        run = _track(args) if args.track else None
        manager = TeamExperimentManager(
            args,
            args.algo,
            args.env,
            args.log_folder,
            vec_env_type=args.vec_env,
            config=args.conf_file,
            entry=entry,
            tensorboard_log=args.tensorboard_log,
            n_timesteps=args.n_timesteps,
            eval_freq=args.eval_freq,
            n_eval_episodes=args.eval_episodes,
            save_freq=args.save_freq,
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
        results = manager.setup_experiment()
    assert results is not None
    model, hyperparams = results
    if run is not None:
        run.config.setdefaults(vars(args) | {"saved_hyperparams": hyperparams})
    manager.learn(model)
    manager.save_trained_model(model)
    return manager


def _track(args: argparse.Namespace) -> Any:
    """
    Start a run of Weights & Biases, and let TensorBoard's log go there.

    :param args: Of the command line
    :return: The run
    :raises ImportError: If it is not installed
    """
    try:
        import wandb
    except ImportError as error:
        raise ImportError("--track needs Weights & Biases: pip install wandb") from error
    name = f"{EnvironmentName(args.env)}__{args.algo}__{args.seed}__{int(time.time())}"
    run = wandb.init(
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
