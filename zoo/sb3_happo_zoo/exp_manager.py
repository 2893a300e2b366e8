"""
RL Zoo's experiment manager for teams: environments, hyperparameters and log folders of the zoo's
scripts.
"""

import argparse
import contextlib
import inspect
import os
import shlex
import shutil
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from gymnasium import spaces
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import get_latest_run_id
from stable_baselines3.common import callbacks
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecMonitor, VecNormalize

from sb3_happo import EvalCallback, ResumableCheckpointCallback, make_joint_vec_env
from sb3_happo.common.checkpoint_files import checkpoints_in
from sb3_happo.common.folder_lock import FolderLock, locked_folder
from sb3_happo.common.safe_files import atomic_write
from sb3_happo.envs.make import is_vectorised
from sb3_happo.suggestions import check_names
from sb3_happo.vec_env import JointDummyVecEnv, JointSubprocVecEnv, VecNormalizeTeam
from sb3_happo.vec_env.normalize import as_team_normalizer, is_quantity
from sb3_happo_zoo.algorithms import TEAM_ALGOS
from sb3_happo_zoo.allocator import keep_freed_memory
from sb3_happo_zoo.continuation import check_random_steps, load_trained, save_replay_buffer
from sb3_happo_zoo.entries import (
    as_numbers,
    check_entry_exists,
    check_keys,
    evaluate_expression,
    find_config,
    make_schedules,
    team_wrapper,
)
from sb3_happo_zoo.given_networks import compare_networks
from sb3_happo_zoo.named_code import check_named_code
from sb3_happo_zoo.noise import with_action_noise
from sb3_happo_zoo.paths import command_words
from sb3_happo_zoo.run_folder import (
    CHECKPOINTS,
    check_algorithm,
    find_statistics,
    write_notes,
    write_yaml,
)
from sb3_happo_zoo.vec_envs import FASTEST
from sb3_happo_zoo.versions import versions

EVAL_SEED = 1_000_000  # far from the training seeds
_NORMALIZE_KWARGS = {*inspect.signature(VecNormalize.__init__).parameters} - {"self", "venv"}
# Trainings of fewer timesteps end before worker processes have started
_TINY = 50_000
# By default each environment makes so many steps between two checkpoints, at which its episode ends
STEPS_BETWEEN_CHECKPOINTS = 10_000


class TeamExperimentManager(ExperimentManager):
    """
    RL Zoo's experiment manager, for teams. Differences from RL Zoo's:

    * Environments come from :func:`~sb3_happo.make_joint_vec_env`, from any id that it takes.
      Entries may have its ``joint_kwargs``, and ``wrappers`` of the PettingZoo environment; RL
      Zoo's ``env_wrapper`` wraps the joint one.
    * ``deterministic: false`` in an entry evaluates with sampled actions.
    * Evaluation uses seeds that training does not use, and the entry's ``env_kwargs``.
    * A model's file has its normalisation statistics, the best model's and checkpoints' too.
    * Files of a run hold no code, and are written whole or not at all.
    * ``normalize`` leaves out action masks, images, and the zeros of absent agents.
    * An unknown key is an error, and a run that could not start leaves no folder.
    * An interrupted run leaves a checkpoint, and does not end as a finished one.

    :param args: Parsed command line, written into the log folder
    :param algo: Name of the algorithm, a key of ``TEAM_ALGOS``
    :param env_id: Environment id of :func:`~sb3_happo.make_joint_vec_env`
    :param log_folder: Log folder; runs get the folders ``<log_folder>/<algo>/<env>_<run>/``
    :param vec_env_type: "dummy" for environments in this process, "subproc" for worker processes,
        "auto" for the faster way
    :param config: File with the hyperparameters, or name of a file in ``zoo/hyperparams``; by
        default ``<algo>``
    :param entry: Entry that replaces the file's
    :param checkpoint_freq: Number of timesteps between the checkpoints from which a run is resumed;
        0 for 10,000 steps of each environment, negative for no checkpoints
    :param kwargs: Further arguments of RL Zoo's manager
    """

    frame_stack: int | None  # type: ignore[assignment]
    #: Whether the run goes on in its folder
    continues_run = False

    def __init__(
        self,
        args: argparse.Namespace,
        algo: str,
        env_id: str,
        log_folder: str,
        vec_env_type: str = "auto",
        config: str | None = None,
        entry: dict[str, Any] | None = None,
        checkpoint_freq: int = -1,
        **kwargs: Any,
    ) -> None:
        keep_freed_memory()
        config = find_config(config or algo)
        super().__init__(
            args, algo, env_id, log_folder, vec_env_type="dummy", config=config, **kwargs
        )
        self.vec_env_type = vec_env_type
        self.entry = entry
        self.checkpoint_freq = checkpoint_freq
        #: Content of ``run.yml`` in the folder of the run
        self.notes: dict[str, Any] = {}
        #: Lock of the folder of the run, from its setup until the script releases it
        self.lock: FolderLock | None = None
        self.joint_kwargs: dict[str, Any] | None = None
        self.team_wrapper: Callable[[Any], Any] | None = None
        #: Hyperparameters of the entry that describe networks
        self._networks: list[str] = []
        self._uuid = kwargs.get("uuid_str", "")
        #: Whether files of earlier versions are loaded, which are pickles
        self.trust_pickle: bool = getattr(args, "trust_pickle", False)

    # RL Zoo looks ids up in Gymnasium's registry, which need not know ours

    @staticmethod
    def entry_point(env_id: str) -> str:
        """
        :param env_id: Environment id
        :return: Empty entry point: RL Zoo's special cases are single-agent environments
        """
        return ""

    is_atari = is_minigrid = is_bullet = is_robotics_env = is_panda_gym = staticmethod(
        lambda env_id: False
    )

    # ---------------------------------------------------------------- hyperparameters

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :return: Hyperparameters of the entry and the command line, and the same in the form that is
            saved
        :raises ValueError: If there is no such entry, or it has unknown keys
        """
        env_id = self.env_name.gym_id
        check_entry_exists(self.config, env_id)
        hyperparams, saved = super().read_hyperparameters()
        if self.entry is not None:
            hyperparams = self.entry | (self.custom_hyperparams or {})
            saved = OrderedDict(sorted(hyperparams.items()))
        return self.checked_hyperparameters(hyperparams, saved)

    def checked_hyperparameters(
        self, hyperparams: dict[str, Any], saved: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :param hyperparams: Hyperparameters; gets the number of timesteps
        :param saved: The same in the form that is saved
        :return: Both
        :raises ValueError: If there are unknown keys, or no number of timesteps
        """
        env_id = self.env_name.gym_id
        check_keys(hyperparams, self.algo, f"{env_id} in {self.config}")
        if "n_timesteps" not in hyperparams and self.n_timesteps <= 0:
            raise ValueError(f"{self.config} has no n_timesteps for {env_id}; pass --n-timesteps.")
        hyperparams.setdefault("n_timesteps", self.n_timesteps)
        return hyperparams, saved

    _preprocess_schedules = staticmethod(make_schedules)

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable | None, list[BaseCallback], Callable | None]:
        check_named_code(hyperparams)
        evaluated = {key: evaluate_expression(key, value) for key, value in hyperparams.items()}
        hyperparams = as_numbers(evaluated)
        self.deterministic_eval = hyperparams.pop("deterministic", True)
        self.joint_kwargs = hyperparams.pop("joint_kwargs", None)
        self.team_wrapper = team_wrapper(hyperparams.pop("wrappers", None))
        self._networks = [key for key in ("policy", "policy_kwargs") if key in hyperparams]
        hyperparams.setdefault("policy", "MlpPolicy")
        result = super()._preprocess_hyperparams(hyperparams)
        check_names(self.normalize_kwargs, _NORMALIZE_KWARGS, "normalize")
        if self._eval_env_kwargs_args is None:
            self.eval_env_kwargs = self.env_kwargs
        return result

    def configure(self, entry: dict[str, Any]) -> dict[str, Any]:
        """
        Use an entry without a file and without a log folder.

        :param entry: The entry, with values as in YAML
        :return: Arguments of the algorithm; :meth:`create_envs` makes the environments
        """
        hyperparams, self.env_wrapper, self.callbacks, self.vec_env_wrapper = (
            self._preprocess_hyperparams(dict(entry))
        )
        return hyperparams

    # ---------------------------------------------------------------- environments

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        :param n_envs: Number of environments
        :param eval_env: Whether they are for evaluation, with other seeds, fixed statistics and no
            monitor files
        :param no_log: Whether to write no monitor files in training either
        :return: Vectorised environment, with the wrappers and the normalisation of the entry
        """
        env_id = self.env_name.gym_id
        kwargs: dict[str, Any] = {}
        if not is_vectorised(env_id):
            kwargs["monitor_dir"] = None if eval_env or no_log else self.save_path
            kwargs["vec_env_cls"] = self._vec_env_cls(eval_env)
        limit = getattr(self.args, "step_timeout", None)
        if limit is not None:
            kwargs["step_timeout"] = limit
            if self.vec_env_type != "dummy":
                # An evaluation may hang too
                kwargs["vec_env_cls"] = None
        env = make_joint_vec_env(
            env_id,
            n_envs,
            self.seed + EVAL_SEED * eval_env,
            wrapper_class=self.env_wrapper,
            env_kwargs=self.eval_env_kwargs if eval_env else self.env_kwargs,
            monitor_kwargs=self.monitor_kwargs,
            joint_kwargs=self.joint_kwargs,
            wrappers=[self.team_wrapper] if self.team_wrapper else None,
            **kwargs,
        )
        # Simulators that run many environments at a time have no monitor of their own
        if not any(env.env_is_wrapped(Monitor)):
            env = VecMonitor(env)
        if self.vec_env_wrapper is not None:
            env = self.vec_env_wrapper(env)
        env = self._maybe_normalize(env, eval_env)
        if self.frame_stack is not None:
            env = VecFrameStack(env, self.frame_stack)
        # The algorithm would add its wrappers to the training environments only
        return TEAM_ALGOS[self.algo]._wrap_env(env)

    def _vec_env_cls(self, eval_env: bool) -> type[VecEnv] | Literal["auto"]:
        """
        :param eval_env: Whether the environments are for evaluation
        :return: Argument of ``make_joint_vec_env``
        """
        if self.vec_env_type == "auto" and not eval_env and self.n_timesteps >= _TINY:
            return FASTEST
        return JointSubprocVecEnv if self.vec_env_type == "subproc" else JointDummyVecEnv

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        if self.continue_training:
            statistics = find_statistics(Path(self.trained_agent), self.env_name)
            if statistics is not None:
                return _load_statistics(statistics, env, not eval_env, self.trust_pickle)
            if self.normalize:
                raise ValueError(
                    f"The normalisation statistics of {self.trained_agent} are missing beside it."
                )
        if self.normalize and self.normalize_kwargs.get("norm_obs", True):
            assert isinstance(env.observation_space, spaces.Dict)
            keys = [key for key, space in env.observation_space.items() if is_quantity(key, space)]
            self.normalize_kwargs = {"norm_obs_keys": keys} | self.normalize_kwargs
        env = super()._maybe_normalize(env, eval_env)
        as_team_normalizer(env)
        return env

    # ---------------------------------------------------------------- runs and their folders

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        :return: The model, ready to learn, and the hyperparameters that are saved
        :raises ValueError: If an argument or a hyperparameter is wrong
        """
        try:
            if self.continue_training:
                check_algorithm(Path(self.trained_agent), self.algo)
            results = super().setup_experiment()
            check_random_steps(results, self.n_timesteps)
            return results
        except BaseException:
            self._remove_log_folder()
            if self.lock is not None:
                self.lock.release()
            raise

    def _preprocess_action_noise(
        self, hyperparams: dict[str, Any], saved_hyperparams: dict[str, Any], env: VecEnv
    ) -> dict[str, Any]:
        return with_action_noise(hyperparams, env.action_space)

    def _remove_log_folder(self) -> None:
        """Remove the folder of a run that could not start, in which nothing was trained."""
        shutil.rmtree(self.save_path, ignore_errors=True)

    def _load_pretrained_agent(self, hyperparams: dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        given = {name: hyperparams[name] for name in self._networks if name in hyperparams}
        model = load_trained(self, hyperparams, env)
        chosen = self.entry is not None or getattr(self.args, "conf_file", None) is not None
        compare_networks(model, given, self.trained_agent, str(self.config), chosen)
        return model

    def create_log_folder(self) -> None:
        """Make the run's folder. Runs that start at the same time get different folders."""
        while True:
            try:
                os.makedirs(self.save_path)
                break
            except FileExistsError:
                run = get_latest_run_id(self.log_path, self.env_name) + 1
                self.save_path = os.path.join(self.log_path, f"{self.env_name}_{run}{self._uuid}")
        self.lock = locked_folder(self.save_path)
        self.params_path = f"{self.save_path}/{self.env_name}"
        super().create_log_folder()

    def create_callbacks(self) -> None:
        """
        Make RL Zoo's callbacks, and that of the checkpoints. Models have their normalisation
        statistics in their own files, and the evaluations are written whole or not at all.
        """
        super().create_callbacks()
        is_simulator = is_vectorised(self.env_name.gym_id)
        if is_simulator:
            self.callbacks.append(MonitorFile(self.save_path, append=self.continues_run))
        for callback in self.callbacks:
            if type(callback) is callbacks.EvalCallback:
                # It has no further attributes
                callback.__class__ = EvalCallback
                callback.callback_on_new_best = None
        self.callbacks.append(RunNotes(Path(self.params_path), self.notes))
        if self.checkpoint_freq >= 0:
            checkpoints = ResumableCheckpointCallback(
                self.checkpoint_freq or STEPS_BETWEEN_CHECKPOINTS * self.n_envs,
                Path(self.save_path) / CHECKPOINTS,
                unit="timesteps",
                monitor_dir=None if is_simulator else self.save_path,
            )
            self.callbacks.insert(0, checkpoints)

    def learn(self, model: BaseAlgorithm) -> None:
        """
        Train. An interruption is raised again, in contrast to RL Zoo.

        :param model: Model of :meth:`setup_experiment`
        """
        kwargs: dict[str, Any] = {}
        if self.log_interval != -1:
            kwargs["log_interval"] = self.log_interval if self.log_interval >= 0 else None
        # It is saved at the end
        model.check_savable()  # type: ignore[attr-defined]
        model.last_good_folder = self.save_path  # type: ignore[attr-defined]
        try:
            with warnings.catch_warnings():
                # Training may run in worker processes, while evaluation runs in this one
                warnings.filterwarnings("ignore", "Training and eval env are not of the same type")
                model.learn(self.n_timesteps, self.callbacks, **kwargs)
        except BaseException:
            _end_interrupted(self.callbacks, self.save_path)
            raise
        finally:
            # A worker that has died cannot answer
            with contextlib.suppress(EOFError):
                assert model.env is not None
                model.env.close()

    def mark_finished(self) -> None:
        """Write down that the training has come to its end."""
        self.notes["finished"] = True
        write_notes(Path(self.params_path), self.notes)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        :param model: Model to save in the run's folder, with its normalisation statistics
        """
        print(f"Saving to {self.save_path}")
        # SB3 adds no ending to names with a dot, such as pettingzoo.sisl/...
        model.save(f"{self.params_path}.zip")
        if self.save_replay_buffer:
            save_replay_buffer(model, self.save_path)

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        super()._save_config(saved_hyperparams)
        folder = Path(self.params_path)
        # In the place of RL Zoo's, which have Python's tags
        write_yaml(folder / "config.yml", saved_hyperparams)
        write_yaml(folder / "args.yml", dict(sorted(vars(self.args).items())))
        write_yaml(folder / "versions.yml", versions())
        command = getattr(self.args, "command", None)
        if command is not None:
            atomic_write(folder / "command.txt", command.encode())


def _end_interrupted(callbacks: list[BaseCallback], save_path: str) -> None:
    """Close the progress bar, and say how the run is resumed."""
    for callback in callbacks:
        if isinstance(callback, ProgressBarCallback) and hasattr(callback, "pbar"):
            callback.on_training_end()
    found = checkpoints_in(Path(save_path) / CHECKPOINTS)
    if found:
        command = shlex.join([*command_words("train"), "--resume", save_path])
        print(f"Interrupted. The checkpoint is {found[0][1]}; go on with: {command}")


def _load_statistics(path: Path, env: VecEnv, training: bool, trust_pickle: bool) -> VecNormalize:
    """
    :param path: Path of saved normalisation statistics, or of a model with them
    :param env: Environment to normalise
    :param training: Whether to update the statistics, and to normalise rewards if they were
        normalised
    :param trust_pickle: Whether files of earlier versions are loaded, which are pickles
    :return: The normalised environment
    """
    action_space = env.action_space
    normalized = VecNormalizeTeam.load(path, env, trust_pickle)
    # Not the file's space, so that the check of spaces notices another one
    normalized.action_space = action_space
    normalized.training = training
    normalized.norm_reward = normalized.norm_reward and training
    return normalized


class RunNotes(BaseCallback):
    """
    Writes down what resuming the run needs beside its command: the kind of the environments and
    the folder of TensorBoard's logs.

    :param details: Folder with the command of the run
    :param notes: Content of the file, which gets these
    """

    def __init__(self, details: Path, notes: dict[str, Any]) -> None:
        super().__init__()
        self.details = details
        self._notes = notes

    def state_dict(self) -> dict[str, Any]:
        """
        :return: Empty dict: the file is written at each start
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        :param state: Result of :meth:`state_dict`
        """

    def _on_training_start(self) -> None:
        inside = self.training_env.unwrapped
        for name, cls in (("subproc", JointSubprocVecEnv), ("dummy", JointDummyVecEnv)):
            if isinstance(inside, cls):
                self._notes["vec_env"] = name
        # Without TensorBoard the logger's folder is a temporary one
        folder = self.logger.dir if self.model.tensorboard_log else None
        self._notes["tensorboard"] = None if folder is None else os.path.abspath(folder)
        self._notes["finished"] = False
        write_notes(self.details, self._notes)

    def _on_step(self) -> bool:
        return True


class MonitorFile(BaseCallback):
    """
    Writes the file of SB3's ``Monitor`` for simulators that run many environments at a time.

    :param folder: Folder for ``monitor.csv``
    :param append: Whether to go on with a file that exists
    """

    def __init__(self, folder: str, append: bool = False) -> None:
        super().__init__()
        self.path = os.path.join(folder, Monitor.EXT)
        self.append = append

    def state_dict(self) -> dict[str, Any]:
        """
        :return: Size of the file, which has the rows up to the present step
        """
        return {"size": os.path.getsize(self.path)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Remove the rows of steps that are made again.

        :param state: Result of :meth:`state_dict`
        """
        if os.path.getsize(self.path) > state["size"]:
            os.truncate(self.path, state["size"])

    def _on_training_start(self) -> None:
        exists = self.append and os.path.isfile(self.path)
        header: dict[str, float | str] = {"t_start": time.time()}
        self._writer = ResultsWriter(self.path, header, override_existing=not exists)

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self._writer.write_row({key: info["episode"][key] for key in ("r", "l", "t")})
        return True

    def _on_training_end(self) -> None:
        self._writer.close()
