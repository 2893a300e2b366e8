"""RL Zoo's experiment manager for teams: environments, hyperparameters and log folders of the zoo's scripts."""

import argparse
import contextlib
import difflib
import importlib.util
import inspect
import os
import platform
import shutil
import subprocess
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch as th
import yaml  # type: ignore[import-untyped]
from gymnasium import spaces
from huggingface_sb3 import EnvironmentName
from rl_zoo3.exp_manager import ExperimentManager
from rl_zoo3.utils import ALGOS, get_latest_run_id, get_wrapper_class
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecMonitor, VecNormalize
from torch import nn

import sb3_happo
from sb3_happo import HAA2C, HAPPO, HATRPO, IPPO, MAPPO, make_joint_vec_env
from sb3_happo.common.on_policy_algorithm import MultiAgentOnPolicyAlgorithm
from sb3_happo.envs.make import is_vectorised
from sb3_happo.envs.spaces import is_flag
from sb3_happo.suggestions import check_names
from sb3_happo.vec_env import JointDummyVecEnv, JointSubprocVecEnv

ZOO = Path(__file__).resolve().parent
HYPERPARAMS = ZOO / "hyperparams"
#: Trained agents that come with the zoo, each in the layout of an experiment's log folder
AGENTS = ZOO / "agents"
TEAM_ALGOS: dict[str, type[MultiAgentOnPolicyAlgorithm]] = {
    "happo": HAPPO,
    "hatrpo": HATRPO,
    "haa2c": HAA2C,
    "mappo": MAPPO,
    "ippo": IPPO,
}
ALGOS.update(TEAM_ALGOS)

PACKAGES = (
    *("torch", "stable-baselines3", "sb3-contrib", "rl-zoo3", "gymnasium", "pettingzoo", "numpy"),
    *(
        "mpe2",
        "gymnasium-robotics",
        "mujoco",
        "lbforaging",
        "rware",
        "supersuit",
        "vmas",
        "envpool",
    ),
)
EVAL_SEED = 1_000_000  # far from the training seeds

# Keys of an entry that are not the algorithm's: RL Zoo's, and those that only teams have
_ZOO_KEYS = {
    *(
        "n_envs",
        "n_timesteps",
        "normalize",
        "frame_stack",
        "env_kwargs",
        "monitor_kwargs",
        "callback",
        "env_wrapper",
    ),
    *("vec_env_wrapper", "joint_kwargs", "wrappers", "deterministic"),
}
_NORMALIZE_KWARGS = {*inspect.signature(VecNormalize.__init__).parameters} - {"self", "venv"}
# What the algorithms take, but the command line sets
_SET_ELSEWHERE = {
    "self",
    "args",
    "kwargs",
    "env",
    "seed",
    "device",
    "verbose",
    "tensorboard_log",
    "_init_setup_model",
}
_SCHEDULES = ("learning_rate", "critic_learning_rate", "clip_range", "clip_range_vf", "ent_coef")
# What the expressions of entries may use
_EXPRESSION_NAMES = {"nn": nn, "th": th, "partial": partial, "LinearSchedule": LinearSchedule}
# Fewer timesteps than this are over before worker processes have started
_TINY = 50_000


class TeamExperimentManager(ExperimentManager):
    """
    RL Zoo's experiment manager, for teams. Different from it:

    * Environments come from :func:`~sb3_happo.make_joint_vec_env`, from any id that it takes. Entries may have its
      ``joint_kwargs``, and ``wrappers`` of the PettingZoo environment; RL Zoo's ``env_wrapper`` wraps the joint one.
    * ``deterministic: false`` in an entry evaluates with sampled actions.
    * Evaluation has seeds of its own, and the entry's ``env_kwargs``.
    * Checkpoints and the best model keep the normalisation statistics of their time beside them.
    * Action masks and images are left out of ``normalize``.
    * A wrong key is an error, and a run that could not start leaves no folder.

    :param args: Of the command line, written into the log folder
    :param algo: A key of ``TEAM_ALGOS``
    :param env_id: An id of :func:`~sb3_happo.make_joint_vec_env`
    :param log_folder: Runs go to ``<log_folder>/<algo>/<env>_<run>/``
    :param vec_env_type: "dummy" for environments in this process, "subproc" for worker processes, "auto" for what is faster
    :param config: File with the hyperparameters, or the name of one in ``zoo/hyperparams``; by default ``<algo>``
    :param entry: What stands in for the file's entry
    :param kwargs: As for RL Zoo's
    """

    frame_stack: int | None  # type: ignore[assignment]

    def __init__(
        self,
        args: argparse.Namespace,
        algo: str,
        env_id: str,
        log_folder: str,
        vec_env_type: str = "auto",
        config: str | None = None,
        entry: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # A file of the zoo's, by its name; otherwise RL Zoo's: a YAML file's path, or a Python module
        own = HYPERPARAMS / f"{config or algo}.yml"
        config = str(own) if own.is_file() or not config else config
        if not config.endswith((".yml", ".yaml")) and not is_module(config):
            near = nearest(config, [path.stem for path in HYPERPARAMS.glob("*.yml")])
            raise ValueError(
                f"{config} is neither a YAML file (.yml), nor one of {HYPERPARAMS}, nor a Python module."
                + (f" Did you mean {near!r}?" if near else "")
            )
        super().__init__(
            args, algo, env_id, log_folder, vec_env_type="dummy", config=config, **kwargs
        )
        self.vec_env_type = vec_env_type
        self.entry = entry
        self.joint_kwargs: dict[str, Any] | None = None
        self.team_wrapper: Callable[[Any], Any] | None = None
        self._uuid = kwargs.get("uuid_str", "")

    # What RL Zoo asks Gymnasium's registry about ids, which ours need not be in

    @staticmethod
    def entry_point(env_id: str) -> str:
        """
        :param env_id: Any id
        :return: Nothing: no single-agent environment that RL Zoo treats specially
        """
        return ""

    is_atari = is_minigrid = is_bullet = is_robotics_env = is_panda_gym = staticmethod(
        lambda env_id: False
    )

    # ---------------------------------------------------------------- hyperparameters

    def read_hyperparameters(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """
        :return: The hyperparameters of the entry with those of the command line, and the same to be saved
        :raises ValueError: If there is no such entry, or it has keys that mean nothing
        """
        env_id = self.env_name.gym_id
        if self.config.endswith((".yml", ".yaml")):
            entries = read_entries(self.config)
            if env_id not in entries and "default" not in entries:
                near = nearest(env_id, entries)
                hint = f"Did you mean {near!r}?" if near else f"It has {', '.join(entries)}."
                raise ValueError(
                    f"{self.config} has neither an entry {env_id!r} nor a 'default'. {hint}"
                )
        hyperparams, saved = super().read_hyperparameters()
        if self.entry is not None:
            hyperparams = self.entry | (self.custom_hyperparams or {})
            saved = OrderedDict(sorted(hyperparams.items()))
        check_keys(hyperparams, self.algo, f"{env_id} in {self.config}")
        if "n_timesteps" not in hyperparams and self.n_timesteps <= 0:
            raise ValueError(f"{self.config} has no n_timesteps for {env_id}; pass --n-timesteps.")
        hyperparams.setdefault("n_timesteps", self.n_timesteps)
        return hyperparams, saved

    @staticmethod
    def _preprocess_schedules(hyperparams: dict[str, Any]) -> dict[str, Any]:
        """
        :param hyperparams: In which ``lin_<value>`` stands for a linear schedule from the value to zero
        :return: The same dict, with schedules and numbers
        """
        for key in _SCHEDULES:
            value = hyperparams.get(key)
            if isinstance(value, str):  # YAML reads 3e-4, without a dot, as a string too
                try:
                    start = float(value.removeprefix("lin_"))
                except ValueError as error:
                    raise ValueError(
                        f"{key}: {value!r} is neither a number nor lin_<number>"
                    ) from error
                # SB3's own, so that saved agents load where there is no RL Zoo
                hyperparams[key] = (
                    LinearSchedule(start, 0.0, 1.0) if value.startswith("lin_") else start
                )
        return hyperparams

    def _preprocess_hyperparams(
        self, hyperparams: dict[str, Any]
    ) -> tuple[dict[str, Any], Callable | None, list[BaseCallback], Callable | None]:
        hyperparams = {key: evaluate_expression(key, value) for key, value in hyperparams.items()}
        for key, value in hyperparams.items():
            if isinstance(value, str):  # YAML reads 1e6, without a dot, as text
                with contextlib.suppress(ValueError):
                    number = float(value)
                    hyperparams[key] = int(number) if number.is_integer() else number
        for key in hyperparams.keys() & {"n_timesteps", "n_envs"}:
            value = hyperparams[key]
            if not isinstance(value, (int, float)) or value < 1 or int(value) != value:
                raise ValueError(f"{key} must be a whole number, at least 1, not {value!r}")
            hyperparams[key] = int(value)
        self.deterministic_eval = hyperparams.pop("deterministic", True)
        self.joint_kwargs = hyperparams.pop("joint_kwargs", None)
        self.team_wrapper = team_wrapper(hyperparams.pop("wrappers", None))
        hyperparams.setdefault("policy", "MlpPolicy")
        result = super()._preprocess_hyperparams(hyperparams)
        check_names(self.normalize_kwargs, _NORMALIZE_KWARGS, "normalize")
        if self._eval_env_kwargs_args is None:
            self.eval_env_kwargs = self.env_kwargs
        return result

    def configure(self, entry: dict[str, Any]) -> dict[str, Any]:
        """
        Take an entry as it is, without a file and without a log folder.

        :param entry: Its keys and values as in YAML
        :return: Arguments of the algorithm; :meth:`create_envs` makes the environments
        """
        hyperparams, self.env_wrapper, self.callbacks, self.vec_env_wrapper = (
            self._preprocess_hyperparams(dict(entry))
        )
        return hyperparams

    # ---------------------------------------------------------------- environments

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> VecEnv:
        """
        :param n_envs: How many
        :param eval_env: Whether they are for evaluation: seeds of their own, no training of the statistics, no monitor's files
        :param no_log: Whether to write no monitor's files in any case
        :return: Vectorised, with the wrappers and the normalisation of the entry
        """
        env_id = self.env_name.gym_id
        kwargs: dict[str, Any] = {}
        if not is_vectorised(env_id):
            kwargs["monitor_dir"] = None if eval_env or no_log else self.save_path
            kwargs["vec_env_cls"] = self._vec_env_cls(eval_env)
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
        if not any(
            env.env_is_wrapped(Monitor)
        ):  # a simulator that runs many at a time without counting itself
            env = VecMonitor(env)
        if self.vec_env_wrapper is not None:
            env = self.vec_env_wrapper(env)
        env = self._maybe_normalize(env, eval_env)
        if self.frame_stack is not None:
            env = VecFrameStack(env, self.frame_stack)
        # What the algorithm would add: evaluation needs the same
        return ALGOS[self.algo]._wrap_env(env)

    def _vec_env_cls(self, eval_env: bool) -> type[VecEnv] | str:
        """Argument of ``make_joint_vec_env``: a class, or "auto" for the measured choice."""
        if self.vec_env_type == "auto" and not eval_env and self.n_timesteps >= _TINY:
            return "auto"
        return JointSubprocVecEnv if self.vec_env_type == "subproc" else JointDummyVecEnv

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        if self.continue_training:
            statistics = find_statistics(Path(self.trained_agent), self.env_name)
            if statistics is not None:
                action_space = env.action_space
                env = VecNormalize.load(str(statistics), env)
                env.action_space = (
                    action_space  # not that of its file, so that another one is noticed
                )
                env.training = not eval_env
                env.norm_reward = env.norm_reward and not eval_env
                return env
            if self.normalize:
                raise ValueError(
                    f"The normalisation statistics of {self.trained_agent} are missing beside it."
                )
        if self.normalize and self.normalize_kwargs.get("norm_obs", True):
            assert isinstance(env.observation_space, spaces.Dict)
            quantities = [
                key
                for key, space in env.observation_space.spaces.items()
                if isinstance(space, spaces.Box) and not is_image_space(space) and not is_flag(key)
            ]
            self.normalize_kwargs = {"norm_obs_keys": quantities} | self.normalize_kwargs
        return super()._maybe_normalize(env, eval_env)

    # ---------------------------------------------------------------- runs and their folders

    def setup_experiment(self) -> tuple[BaseAlgorithm, dict[str, Any]] | None:
        """
        :return: The model, ready to learn, and the hyperparameters to be saved
        :raises ValueError: If something cannot work
        """
        try:
            if self.continue_training:
                check_algorithm(Path(self.trained_agent), self.algo)
            return super().setup_experiment()
        except BaseException:
            shutil.rmtree(self.save_path, ignore_errors=True)  # nothing was trained
            raise

    def create_log_folder(self) -> None:
        """Make the run's folder, which no other run that starts at the same time gets too."""
        while True:
            try:
                os.makedirs(self.save_path)
                break
            except FileExistsError:
                run = get_latest_run_id(self.log_path, self.env_name) + 1
                self.save_path = os.path.join(self.log_path, f"{self.env_name}_{run}{self._uuid}")
        self.params_path = f"{self.save_path}/{self.env_name}"
        super().create_log_folder()

    def create_callbacks(self) -> None:
        """RL Zoo's, with the normalisation statistics of each checkpoint and of the best model beside them."""
        super().create_callbacks()
        if is_vectorised(self.env_name.gym_id):
            self.callbacks.append(MonitorFile(self.save_path))
        for callback in self.callbacks:
            if isinstance(callback, CheckpointCallback):
                callback.save_vecnormalize = True
            elif isinstance(callback, EvalCallback) and callback.callback_on_new_best is not None:
                callback.callback_on_new_best.save_path = os.path.join(self.save_path, "best_model")  # type: ignore[attr-defined]

    def learn(self, model: BaseAlgorithm) -> None:
        """
        :param model: Of :meth:`setup_experiment`
        """
        with warnings.catch_warnings():
            # Training in worker processes and evaluation in this one are both wanted
            warnings.filterwarnings("ignore", "Training and eval env are not of the same type")
            super().learn(model)

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """
        :param model: Goes to the run's folder, with its normalisation statistics
        """
        print(f"Saving to {self.save_path}")
        model.save(
            f"{self.params_path}.zip"
        )  # the ending given: an id such as pettingzoo.sisl/... has a dot too
        statistics = model.get_vec_normalize_env()
        if statistics is not None:
            statistics.save(os.path.join(self.params_path, "vecnormalize.pkl"))

    def _save_config(self, saved_hyperparams: dict[str, Any]) -> None:
        super()._save_config(saved_hyperparams)
        folder = Path(self.params_path)
        (folder / "versions.yml").write_text(yaml.safe_dump(versions(), sort_keys=False))
        command = getattr(self.args, "command", None)
        if command is not None:
            (folder / "command.txt").write_text(command)


class MonitorFile(BaseCallback):
    """
    Writes the file of SB3's ``Monitor`` for simulators that count the episodes of their many environments themselves.

    :param folder: Gets ``monitor.csv``
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def _on_training_start(self) -> None:
        self._writer = ResultsWriter(self.folder, {"t_start": time.time()})

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:
                self._writer.write_row({key: info["episode"][key] for key in ("r", "l", "t")})
        return True

    def _on_training_end(self) -> None:
        self._writer.close()


class TrainedTeam(NamedTuple):
    """
    What :func:`load_agent` found.

    :param model: The agents
    :param make_env: Makes what they were trained for: ``make_env(n_envs=1, seed=0, **env_kwargs)``, normalised as in training
        (rewards are not), and ``env_kwargs`` on top of those of the training
    :param deterministic: Whether their entry evaluates with deterministic actions
    :param algo: Name of the algorithm
    :param env_id: Id of the environment
    :param config: The entry
    """

    model: MultiAgentOnPolicyAlgorithm
    make_env: Callable[..., VecEnv]
    deterministic: bool
    algo: str
    env_id: str
    config: dict[str, Any]


def load_agent(path: str | Path, device: th.device | str = "auto") -> TrainedTeam:
    """
    Load trained agents with their environments, from a log folder or from those that come with the zoo.

    :param path: Folder of a run, such as ``logs/happo/mpe2-simple_spread_v3_1``, for its last model, or a model in it
    :param device: Device on which the model shall run
    :return: The agents and their environments
    :raises ValueError: If there are none
    """
    path = Path(path)
    folder = path.parent if path.suffix == ".zip" else path
    configs = list(folder.glob("*/config.yml"))
    if len(configs) != 1:
        raise ValueError(
            f"{folder} is no folder of a run: it has {len(configs)} folders with a config.yml, not one."
        )
    config, args = (
        yaml.load(
            configs[0].with_name(name).read_text(), yaml.UnsafeLoader
        )  # RL Zoo writes Python objects
        for name in ("config.yml", "args.yml")
    )
    if path.suffix != ".zip":
        path = folder / f"{configs[0].parent.name}.zip"
    if not path.is_file():
        models = ", ".join(sorted(model.name for model in folder.glob("*.zip"))) or "none"
        raise ValueError(f"There is no model {path}; in its folder there are {models}.")
    manager = TeamExperimentManager(
        argparse.Namespace(),
        args["algo"],
        args["env"],
        log_folder="",
        env_kwargs=args["env_kwargs"],
        eval_env_kwargs=args["eval_env_kwargs"],
        trained_agent=str(path),
        n_timesteps=int(config.get("n_timesteps", 1)),
        verbose=0,
    )
    manager.configure(config)
    env_kwargs = manager.eval_env_kwargs

    def make_env(n_envs: int = 1, seed: int = 0, **more: Any) -> VecEnv:
        manager.seed, manager.eval_env_kwargs = seed - EVAL_SEED, env_kwargs | more
        return manager.create_envs(n_envs, eval_env=True)

    model = TEAM_ALGOS[args["algo"]].load(path, device=device)
    return TrainedTeam(
        model, make_env, manager.deterministic_eval, args["algo"], args["env"], dict(config)
    )


def find_statistics(model: Path, env_name: EnvironmentName) -> Path | None:
    """
    :param model: Path of a saved model
    :param env_name: Its environment
    :return: The normalisation statistics that belong to it, None if there are none
    """
    name, folder = model.stem, model.parent
    candidates = [
        folder / name / "vecnormalize.pkl",
        folder / f"{name.replace('rl_model_', 'rl_model_vecnormalize_')}.pkl",
        folder / env_name / "vecnormalize.pkl",
    ]
    return next((path for path in candidates if path.is_file()), None)


def read_entries(path: str | Path) -> dict[str, dict[str, Any]]:
    """
    :param path: YAML file of hyperparameters
    :return: Its entries, per environment id (or "default")
    :raises ValueError: If there is no such file, or something else is in it
    """
    path = Path(path)
    if not path.is_file():
        near = nearest(path.name, [other.name for other in HYPERPARAMS.glob("*.yml")])
        raise ValueError(
            f"There is no file {path}." + (f" Did you mean {HYPERPARAMS / near}?" if near else "")
        )
    try:
        entries = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(entries, dict) or not all(
        isinstance(entry, dict) for entry in entries.values()
    ):
        raise ValueError(f"{path} must have a mapping of hyperparameters for every environment id.")
    return entries


def check_algorithm(model: Path, algo: str) -> None:
    """
    :param model: Path of a saved model, with or without the folder of its run
    :param algo: That is to load it
    :raises ValueError: If the folder says that another one has trained it
    """
    for path in model.parent.glob("*/args.yml"):
        trained = yaml.load(path.read_text(), yaml.UnsafeLoader)["algo"]
        if trained != algo:
            raise ValueError(
                f"{model} was trained by {trained}, not by {algo}; pass --algo {trained}."
            )


def check_keys(entry: Iterable[str], algo: str, where: str) -> None:
    """
    :param entry: Names of its hyperparameters
    :param algo: A key of ``TEAM_ALGOS``
    :param where: Where the entry stands, for the error
    :raises ValueError: If the entry has keys that mean nothing
    """
    known = _ZOO_KEYS | hyperparameter_names(ALGOS[algo])
    for key in entry:
        if key not in known:
            near = nearest(key, known)
            raise ValueError(
                f"{key!r} is no hyperparameter of {algo} (for {where})."
                + (
                    f" Did you mean {near!r}?"
                    if near
                    else f" There are {', '.join(sorted(known))}."
                )
            )


def hyperparameter_names(algorithm: type) -> set[str]:
    """
    :param algorithm: Of the family
    :return: What an entry may set of its constructor's parameters, those that it hands on to its parents' included
    """
    names: set[str] = set()
    for cls in algorithm.__mro__:
        if "__init__" not in vars(cls):
            continue
        parameters = inspect.signature(vars(cls)["__init__"]).parameters
        names |= parameters.keys()
        if "kwargs" not in parameters:
            break
    return names - _SET_ELSEWHERE


def is_expression(value: Any) -> bool:
    """
    :param value: Of a hyperparameter
    :return: Whether it is the text of an expression such as ``"dict(net_arch=[64])"``, as far as can be told without a try
    """
    return isinstance(value, str) and "(" in value


def is_module(name: str) -> bool:
    """
    :param name: With dots
    :return: Whether Python finds such a module
    """
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def team_wrapper(wrappers: Any) -> Callable[[Any], Any] | None:
    """
    :param wrappers: As an entry has them: names with their modules, or a list of such and of ``{name: arguments}``
    :return: What wraps a PettingZoo environment in them, None if there are none
    :raises ImportError: If one does not exist; the error names the nearest
    """
    try:
        return get_wrapper_class({"wrappers": wrappers}, "wrappers")
    except ImportError as error:
        for wrapper in wrappers if isinstance(wrappers, list) else [wrappers]:
            module, _, name = (
                wrapper if isinstance(wrapper, str) else next(iter(wrapper))
            ).rpartition(".")
            names = dir(importlib.import_module(module)) if is_module(module) else []
            if name not in names and (near := nearest(name, names)):
                raise ImportError(
                    f"wrappers: there is no {module}.{name}. Did you mean {module}.{near}?"
                ) from error
        raise


def evaluate(key: str, expression: str) -> Any:
    """
    :param key: What it is the value of
    :param expression: Python's, with the names that entries may use
    :return: Its value
    :raises ValueError: If it is wrong
    """
    try:
        return eval(expression, dict(_EXPRESSION_NAMES))  # RL Zoo's form; the user's own file
    except Exception as error:
        raise ValueError(f"{key}: {expression} is no valid expression: {error}") from error


def evaluate_expression(key: str, value: Any) -> Any:
    """
    :param key: Of an entry
    :param value: Its value
    :return: The same, but for strings such as ``dict(net_arch=[64], activation_fn=nn.ReLU)`` what they say
    :raises ValueError: If an expression is wrong
    """
    return evaluate(key, value) if is_expression(value) else value


def nearest(name: str, names: Iterable[str]) -> str:
    """
    :param name: A wrong name
    :param names: The right ones
    :return: The nearest of them, empty if none is near
    """
    return next(iter(difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)), "")


def versions() -> dict[str, str]:
    """
    :return: Versions of Python and of the packages that matter, where installed, and the commit of the working copy
    """
    found = {"python": platform.python_version(), "sb3_happo": sb3_happo.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found | {"commit": commit()}


def commit() -> str:
    """
    :return: Of the working copy, with "-dirty" if its code was changed since, or "unknown"
    """
    try:
        head = subprocess.check_output(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ZOO, text=True, stderr=subprocess.DEVNULL
        )
        # What runs write down, and agents that were shipped, change nothing
        outputs = (":!results.jsonl", ":!benchmark.md", ":!curves", ":!agents", ":!../docs/gallery")
        changed = subprocess.run(
            ["git", "diff", "--quiet", "HEAD", "--", "..", *outputs], cwd=ZOO, check=False
        ).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head.strip()}-dirty" if changed else head.strip()
