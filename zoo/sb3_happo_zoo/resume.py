"""Interrupted runs, which ``zoo/train.py --resume FOLDER`` goes on with."""

import argparse
import os
import shlex
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat, configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.common.checkpoint_files import checkpoints_in
from sb3_happo.common.folder_lock import locked_folder
from sb3_happo.common.monitor_files import monitor_start
from sb3_happo.common.resumable_algorithm import ResumableAlgorithm
from sb3_happo_zoo.entries import find_config, is_yaml
from sb3_happo_zoo.exp_manager import TeamExperimentManager
from sb3_happo_zoo.run_folder import CHECKPOINTS, read_notes, read_yaml

#: Options beside ``--resume`` that do not change a training
_TAKEN = (
    *("--gym-packages", "--conf-file", "--trust-pickle", "--progress", "--verbose", "--device"),
)


class InterruptedRun(NamedTuple):
    """
    Run that goes on.

    :param folder: Folder of the run
    :param details: Folder inside it with the command and the hyperparameters
    :param command: Command that has started the run
    :param notes: Content of its ``run.yml``
    """

    folder: Path
    details: Path
    command: str
    notes: dict[str, Any]

    @property
    def checkpoints(self) -> Path:
        """
        :return: Folder with the checkpoints
        """
        return self.folder / CHECKPOINTS


def interrupted_run(path: str | Path) -> InterruptedRun:
    """
    :param path: Folder of a run
    :return: The run
    :raises ValueError: If it is no folder of a run, if the run is finished, if its algorithm makes
        no checkpoints, or if it has none
    """
    folder = Path(path)
    commands = sorted(folder.glob("*/command.txt"))
    if len(commands) != 1:
        raise ValueError(
            f"{folder} is no folder of a run: it must hold one */command.txt, and has "
            f"{len(commands)}. Pass a folder such as logs/happo/mpe2-simple_spread_v3_1."
        )
    details = commands[0].parent
    command, notes = commands[0].read_text().strip(), read_notes(details)
    if notes.get("finished"):
        raise ValueError(
            f"The run in {folder} is finished, so that there is nothing to resume; "
            f"-i {folder / details.name}.zip begins another training with its model."
        )
    if not checkpoints_in(folder / CHECKPOINTS):
        raise ValueError(
            f"There is no checkpoint in {folder / CHECKPOINTS}, so that the run cannot be resumed. "
            f"Start it anew: {command}"
        )
    return InterruptedRun(folder, details, command, notes)


def is_resumed(argv: Sequence[str]) -> bool:
    """
    :param argv: Arguments of ``train.py``
    :return: True if ``--resume`` is among them
    """
    return any(word == "--resume" or word.startswith("--resume=") for word in argv)


def resumed_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, InterruptedRun]:
    """
    :param parser: Parser of ``train.py``
    :param argv: Arguments with ``--resume``
    :return: Arguments of the run, with the kind of environments that was chosen, and the run
    :raises ValueError: If the run cannot be resumed, if another option is given, or if the run's
        command names code that is not named again
    """
    own = argparse.ArgumentParser(parser.prog, add_help=False, allow_abbrev=False)
    own.add_argument("--resume")
    own.add_argument("--gym-packages", nargs="+", default=[])
    own.add_argument("-conf", "--conf-file")
    own.add_argument("--trust-pickle", action="store_true")
    own.add_argument("-P", "--progress", action="store_true")
    own.add_argument("--verbose", type=int)
    own.add_argument("--device")
    given, more = own.parse_known_args(argv)
    if more:
        raise ValueError(
            f"--resume goes on with the command of the folder, and does not take {' '.join(more)}; "
            f"beside it there may be {', '.join(_TAKEN)}."
        )
    run = interrupted_run(given.resume)
    # Two words start the script
    args = parser.parse_args(shlex.split(run.command)[2:])
    _check_code(args, given, run)
    for name in ("progress", "verbose", "device"):
        value = getattr(given, name)
        if value not in (None, False):
            setattr(args, name, value)
    args.vec_env = run.notes.get("vec_env") or args.vec_env
    args.resume, args.command = given.resume, run.command
    return args, run


def _check_code(args: argparse.Namespace, given: argparse.Namespace, run: InterruptedRun) -> None:
    """Refuse code that only the folder names, since a folder may come from elsewhere."""
    needed = []
    if not set(args.gym_packages) <= set(given.gym_packages):
        needed.append(f"--gym-packages {' '.join(args.gym_packages)}")
    # A name in zoo/hyperparams is no code
    if args.conf_file != given.conf_file and not is_yaml(find_config(args.conf_file or args.algo)):
        needed.append(f"--conf-file {args.conf_file}")
    if args.trust_pickle and not given.trust_pickle:
        needed.append("--trust-pickle")
    if needed:
        raise ValueError(
            f"The command of {run.folder} runs code that it names, and the folder may come from "
            f"elsewhere. If you trust it, add: {' '.join(needed)}"
        )
    args.gym_packages = given.gym_packages


class ResumedExperimentManager(TeamExperimentManager):
    """
    Manager of a run that goes on in its folder, from the newest whole checkpoint.

    The hyperparameters are those in the folder, unless they come from a Python module.

    :param run: The run
    :param args: Arguments of :class:`~sb3_happo_zoo.exp_manager.TeamExperimentManager`
    :param config: File with the hyperparameters, or name of a module, in the run's command
    :param kwargs: Keyword arguments of it
    """

    continues_run = True

    def __init__(
        self, run: InterruptedRun, *args: Any, config: str | None = None, **kwargs: Any
    ) -> None:
        self._from_module = config is not None and not is_yaml(find_config(config))
        if not self._from_module:
            config = str(run.details / "config.yml")
        kwargs["config"] = config
        super().__init__(*args, **kwargs)
        self.run = run
        self.notes.update(run.notes)
        self.save_path, self.params_path = str(run.folder), str(run.details)

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :return: Hyperparameters of the run, twice
        """
        if self._from_module:
            return super().read_hyperparameters()
        hyperparams = read_yaml(self.run.details / "config.yml")
        saved = OrderedDict(sorted(hyperparams.items()))
        return self.checked_hyperparameters(hyperparams, saved)

    def create_log_folder(self) -> None:
        """Lock the folder, which exists."""
        self.lock = locked_folder(self.save_path)

    def _remove_log_folder(self) -> None:
        """Do nothing, since the folder holds an interrupted run."""

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        print(f"Log path: {self.save_path}")

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        :param n_envs: Number of environments
        :param eval_env: Whether they are for evaluation
        :param no_log: Whether to write no monitor files
        :return: Vectorised environment, whose monitors go on with the files of the run
        """
        start = monitor_start(self.save_path)
        before = self.monitor_kwargs
        single = os.path.isfile(os.path.join(self.save_path, f"0.{Monitor.EXT}"))
        if not eval_env and start is not None and single:
            self.monitor_kwargs = before | {"override_existing": False}
        try:
            env = super().create_envs(n_envs, eval_env, no_log)
        finally:
            self.monitor_kwargs = before
        if not eval_env and start is not None and single:
            # The times of the rows count from the file's beginning
            env.set_attr("t_start", start)
        return env

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        :return: The model in the state of the checkpoint, and the hyperparameters
        :raises ValueError: If there is no whole checkpoint, or if it does not fit
        """
        results = super().setup_experiment()
        assert results is not None
        model = results[0]
        assert isinstance(model, ResumableAlgorithm)
        model.restore_checkpoint(self.run.checkpoints)
        print(f"Resumed at {model.num_timesteps} timesteps: {self.run.folder}")
        folder = self.run.notes.get("tensorboard")
        if folder is not None:
            model.set_logger(_same_logger(folder, self.verbose, model.num_timesteps))
        return results


def _same_logger(folder: str, verbose: int, n_timesteps: int) -> Logger:
    """Logger that adds to a folder of TensorBoard, where later figures of before are hidden."""
    from torch.utils.tensorboard import SummaryWriter

    logger = configure(folder, ["stdout", "tensorboard"] if verbose >= 1 else ["tensorboard"])
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            output.writer.close()
            output.writer = SummaryWriter(log_dir=folder, purge_step=n_timesteps + 1)
    return logger
