"""
Trained agents: loading them with their environments, and the copies that come with the zoo in
``zoo/agents``.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch as th
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.common.multi_agent_algorithm import MultiAgentAlgorithm
from sb3_happo.vec_env.normalizer_files import PART, read_normalizer
from sb3_happo_zoo.algorithms import TEAM_ALGOS
from sb3_happo_zoo.exp_manager import EVAL_SEED, TeamExperimentManager
from sb3_happo_zoo.results import Record, canonical
from sb3_happo_zoo.run_folder import find_statistics, read_yaml, write_yaml

if TYPE_CHECKING:  # runs load agents
    from sb3_happo_zoo.runs import Run

# Attributes that are needed neither to act nor to continue the training
LEFT_OUT = (
    "_last_obs",
    "_last_original_obs",
    "_last_episode_starts",
    "ep_info_buffer",
    "ep_success_buffer",
)
RECORD = "record.json"


class TrainedTeam(NamedTuple):
    """
    Result of :func:`load_agent`.

    :param model: The trained model
    :param make_env: Function that makes its environments, ``make_env(n_envs=1, seed=0,
        **env_kwargs)``: observations are normalised as in training, rewards are not, and
        ``env_kwargs`` replace those of the training
    :param deterministic: Whether the entry evaluates with deterministic actions
    :param algo: Name of the algorithm
    :param env_id: Id of the environment
    :param config: The entry
    """

    model: MultiAgentAlgorithm
    make_env: Callable[..., VecEnv]
    deterministic: bool
    algo: str
    env_id: str
    config: dict[str, Any]


def load_agent(
    path: str | Path, device: th.device | str = "auto", trust_pickle: bool = False
) -> TrainedTeam:
    """
    Load trained agents with their environments, from a log folder or from those that come with the
    zoo.

    :param path: Folder of a run, such as ``logs/happo/mpe2-simple_spread_v3_1``, for its last
        model; or a model in it
    :param device: PyTorch's device
    :param trust_pickle: Whether files of earlier versions are loaded, which are pickles
    :return: The agents and their environments
    :raises ValueError: If there are none
    """
    path = Path(path)
    folder = path.parent if path.suffix == ".zip" else path
    details = _details_folder(folder)
    config, args = (read_yaml(details / name) for name in ("config.yml", "args.yml"))
    if path.suffix != ".zip":
        path = folder / f"{details.name}.zip"
    if not path.is_file():
        models = ", ".join(sorted(model.name for model in folder.glob("*.zip"))) or "none"
        raise ValueError(f"There is no model {path}; in its folder there are {models}.")
    manager = TeamExperimentManager(
        argparse.Namespace(trust_pickle=trust_pickle),
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

    model = TEAM_ALGOS[args["algo"]].load(path, device=device, trust_pickle=trust_pickle)
    return TrainedTeam(
        model, make_env, manager.deterministic_eval, args["algo"], args["env"], dict(config)
    )


def _details_folder(folder: Path) -> Path:
    """
    :param folder: Folder of a run
    :return: The folder in it that has the run's ``config.yml``
    :raises ValueError: If there is not exactly one
    """
    configs = list(folder.glob("*/config.yml"))
    if len(configs) != 1:
        raise ValueError(
            f"{folder} is no folder of a run: it has {len(configs)} folders with a config.yml, "
            "not one."
        )
    return configs[0].parent


def ship(
    runs: Sequence["Run"], records: Sequence[Record], log_folder: Path, agents: Path
) -> list[Path]:
    """
    Copy the final agents of the best seeds into the zoo. An agent that is there already stays if it
    was trained with the same hyperparameters and its return is not lower.

    :param runs: Runs among which the best of each algorithm and environment is chosen
    :param records: Records of finished runs
    :param log_folder: Parent of the runs' folders; a run without a folder there cannot be chosen
    :param agents: Target folder, in the layout of a log folder
    :return: The folders of new agents
    """
    best: dict[Path, tuple[Record, Path]] = {}
    for run in runs:
        record = run.record_in(records, n_episodes=1)
        if record is None:
            continue
        for trained in (log_folder / run.name / run.algo).glob("*_1"):
            folder = agents / run.algo / trained.name
            if folder not in best or record["return"] > best[folder][0]["return"]:
                best[folder] = record, trained
    new = []
    for folder, (record, trained) in best.items():
        if not _has_as_good(folder, record):
            copy_agent(trained, folder, record)
            new.append(folder)
    return new


def _has_as_good(folder: Path, record: Record) -> bool:
    """
    :param folder: Folder of an agent of the zoo, which need not exist
    :param record: Record of a run that may replace it
    :return: Whether the folder's agent has the same hyperparameters and a return that is not lower
    """
    if not (folder / RECORD).is_file():
        return False
    shipped = json.loads((folder / RECORD).read_text())
    same = canonical(shipped["hyperparams"], shipped["algo"]) == canonical(
        record["hyperparams"], record["algo"]
    )
    return same and bool(shipped["return"] >= record["return"])


def copy_agent(trained: Path, folder: Path, record: Record) -> None:
    """
    Copy the files that are needed to act, and to continue the training with fresh optimisers.

    :param trained: Folder of a run
    :param folder: Target folder; its content is replaced
    :param record: Record of the run
    """
    shutil.rmtree(folder, ignore_errors=True)
    model, *_ = load_agent(trained, "cpu")
    for module in model.policy.modules():
        optimizer = getattr(module, "optimizer", None)
        if isinstance(optimizer, th.optim.Optimizer):
            optimizer.state.clear()  # two thirds of the file
    source = _details_folder(trained)
    details = folder / source.name
    details.mkdir(parents=True)
    statistics = find_statistics(trained / f"{details.name}.zip", details.name)
    save_small(model, folder / f"{details.name}.zip", statistics)
    for name in ("config.yml", "versions.yml"):
        if (source / name).is_file():
            write_yaml(details / name, read_yaml(source / name))
    # RL Zoo's list of arguments, without the paths of the machine of the training
    arguments = {name: record[name] for name in ("algo", "env", "seed")}
    arguments |= {"env_kwargs": None, "eval_env_kwargs": None}
    write_yaml(details / "args.yml", arguments)
    (details / "command.txt").write_text(record["command"] + "\n")
    (folder / RECORD).write_text(json.dumps(record) + "\n")


def save_small(
    model: MultiAgentAlgorithm,
    path: Path,
    statistics: Path | None,
    trust_pickle: bool = False,
) -> None:
    """
    Save a model without what only a running training needs.

    :param model: The model
    :param path: Path of the file
    :param statistics: Path of its normalisation statistics; None if there are none
    :param trust_pickle: Whether statistics of earlier versions are loaded, which are pickles
    """
    content = model.saved_content(exclude=LEFT_OUT)
    if statistics is not None:
        content[PART] = read_normalizer(statistics, "VecNormalizeTeam", trust_pickle)
    # The system is that of the copying machine; versions.yml describes that of the training
    model.write_content(path, content, system="")
