"""
Run of the benchmark: training of an entry with one seed, evaluation of the team, and the record.
"""

import argparse
import hashlib
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml  # type: ignore[import-untyped]
from gymnasium import spaces
from huggingface_sb3 import EnvironmentName
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.vec_env.actions import sample_actions
from sb3_happo_zoo import train
from sb3_happo_zoo.cli import prepare
from sb3_happo_zoo.enjoy import Episode, play
from sb3_happo_zoo.entries import check_keys, evaluated, is_expression, read_settings
from sb3_happo_zoo.exp_manager import EVAL_SEED, TeamExperimentManager
from sb3_happo_zoo.paths import command_words
from sb3_happo_zoo.results import Record, canonical
from sb3_happo_zoo.trained_agents import load_agent
from sb3_happo_zoo.versions import versions

N_EVAL_ENVS = 10
# The evaluation has so many steps, with at least and at most so many episodes: episodes of spread
# have 25 steps and returns of high variance, those of MuJoCo 1,000 steps
EVAL_STEPS = 100_000
EVAL_EPISODES = (50, 500)
N_CURVE_POINTS = 50
N_CURVE_EPISODES = 100  # episodes per point, as in SB3's logs


class Run(NamedTuple):
    """
    Training of one entry with one seed.

    :param algo: Name of the algorithm, or ``"random"`` for a team that acts at random
    :param env: Id of the environment
    :param settings: File of hyperparameters, followed by the changes of the command line
    :param seed: Seed of the training
    :param hyperparams: Hyperparameters, in the form of a YAML file
    :param command: Shell command that repeats the run
    """

    algo: str
    env: str
    settings: str
    seed: int
    hyperparams: dict[str, Any]
    command: str

    @property
    def name(self) -> str:
        """Name of the run's folder, which contains a hash of the hyperparameters."""
        digest = hashlib.sha1(canonical(self.hyperparams, self.algo).encode()).hexdigest()[:6]
        return f"{self.algo}-{EnvironmentName(self.env)}-{digest}-seed{self.seed}"

    def record_in(self, records: Sequence[Record], n_episodes: int | None = None) -> Record | None:
        """
        :param records: Records of finished runs
        :param n_episodes: Minimum number of evaluation episodes; by default the minimum of
            :func:`evaluate`
        :return: The last record of this run with the same hyperparameters, None if there is none
        """
        for record in reversed(records):
            if self._has_record(record, n_episodes or EVAL_EPISODES[0]):
                return record
        return None

    def _has_record(self, record: Record, n_episodes: int) -> bool:
        """
        :param record: Record of a finished run
        :param n_episodes: Minimum number of evaluation episodes
        :return: Whether it is of this run
        """
        key = record["algo"], record["env"], record["settings"], record["seed"]
        if key != (self.algo, self.env, self.settings, self.seed):
            return False
        budget = 0 if self.algo == "random" else float(evaluated(self.hyperparams["n_timesteps"]))
        if record["n_timesteps"] < budget or record["episodes"] < n_episodes:
            return False
        own, recorded = (
            canonical(hyperparams, self.algo)
            for hyperparams in (self.hyperparams, record["hyperparams"])
        )
        return own == recorded


class RandomTeam:
    """
    Baseline that samples uniform legal actions.

    :param action_space: Action space of the joint environment
    :param seed: Seed for the actions
    """

    def __init__(self, action_space: spaces.Space, seed: int) -> None:
        assert isinstance(action_space, spaces.Dict)
        self.action_space = action_space
        self.action_space.seed(seed)

    def predict(
        self, observation: dict[str, np.ndarray], **_: Any
    ) -> tuple[list[dict[str, Any]], None]:
        """
        :param observation: Joint observation, each entry ``(n_envs, ...)``
        :return: ``{agent: action}`` for each environment, and no state
        """
        n_envs = len(next(iter(observation.values())))
        return sample_actions(self.action_space, observation, n_envs), None


def make_run(
    algo: str,
    env: str,
    seed: int,
    settings: str | None = None,
    changes: dict[str, Any] | None = None,
    n_episodes: int | None = None,
) -> Run:
    """
    :param algo: Name of the algorithm, or ``"random"``
    :param env: Environment id of the entry
    :param seed: Seed of the training
    :param settings: File of hyperparameters, see :func:`~sb3_happo_zoo.entries.read_settings`; by
        default the algorithm's own
    :param changes: Hyperparameters that replace those of the entry
    :param n_episodes: Number of evaluation episodes in the command; None for the default
    :return: The run
    """
    settings, changes = settings or default_settings(algo), changes or {}
    words = [*command_words("benchmark"), "--algos", algo, "--envs", env]
    if settings != default_settings(algo):
        words += ["--settings", settings]
    if changes:
        words.append("--hyperparams")
    for name, value in changes.items():
        words.append(f"{name}:{value if is_expression(value) else repr(value)}")
    if n_episodes is not None:
        words += ["--eval-episodes", str(n_episodes)]
    return Run(
        algo=algo,
        env=env,
        settings=" ".join([settings, *(f"{name}={value}" for name, value in changes.items())]),
        seed=seed,
        hyperparams=read_settings(settings)[env] | changes,
        command=shlex.join([*words, "--seeds", str(seed)]),
    )


def default_settings(algo: str) -> str:
    """
    :param algo: Name of the algorithm, or ``"random"``
    :return: Name of its file of hyperparameters
    """
    return "happo" if algo == "random" else algo


def evaluate(
    model: Any, env: VecEnv, deterministic: bool, n_episodes: int | None = None
) -> list[Episode]:
    """
    :param model: Object with SB3's ``predict``
    :param env: Environments of the evaluation
    :param deterministic: Whether to take the most likely actions
    :param n_episodes: Number of episodes; by default those of ``EVAL_STEPS`` steps, within the
        bounds ``EVAL_EPISODES``
    :return: The episodes
    """
    low, high = EVAL_EPISODES
    episodes = list(play(model, env, n_episodes=n_episodes or low, deterministic=deterministic))
    if n_episodes is None:
        wanted = min(high, int(EVAL_STEPS / np.mean([episode.length for episode in episodes])))
        episodes += play(model, env, n_episodes=max(0, wanted - low), deterministic=deterministic)
    return episodes


def learning_curve(folder: Path) -> list[tuple[int, float]]:
    """
    Mean return of recent training episodes at regular points of the training.

    :param folder: Folder of the run, with the monitor files
    :return: Joint steps and mean return of each point; empty if no episode has ended
    """
    episodes = load_results(str(folder))
    if episodes.empty:
        return []
    steps = episodes["l"].cumsum().to_numpy()
    means = episodes["r"].rolling(N_CURVE_EPISODES, min_periods=1).mean().to_numpy()
    ends = np.searchsorted(steps, np.linspace(0, steps[-1], N_CURVE_POINTS + 1)[1:])
    return [(int(steps[end]), round(float(means[end]), 3)) for end in np.unique(ends)]


class Trained(NamedTuple):
    """
    Team that a run has trained, or a random one.

    :param model: Object with SB3's ``predict``
    :param env: Environments of the evaluation
    :param deterministic: Whether the entry evaluates with deterministic actions
    :param n_timesteps: Number of joint steps of the training
    :param wall_seconds: Duration of the training
    :param learning_curve: Points of the learning curve
    """

    model: Any
    env: VecEnv
    deterministic: bool
    n_timesteps: int
    wall_seconds: float
    learning_curve: list[tuple[int, float]]


def train_and_evaluate(
    run: Run,
    folder: Path,
    n_episodes: int | None = None,
    n_threads: int = 1,
    vec_env: str = "auto",
    device: str = "cpu",
) -> Record:
    """
    Train a team as ``train.py`` does, load the saved model and evaluate it.

    :param run: The run
    :param folder: Log folder of this run only
    :param n_episodes: Number of evaluation episodes; by default see :func:`evaluate`
    :param n_threads: Number of PyTorch's threads
    :param vec_env: Argument ``--vec-env`` of ``train.py``
    :param device: PyTorch's device; the teams of the zoo are small, and slower on an accelerator
    :return: Record of the run
    :raises RuntimeError: If the training ended before its number of timesteps
    """
    folder.mkdir(parents=True, exist_ok=True)
    prepare(argparse.Namespace(gym_packages=[], seed=run.seed, num_threads=n_threads))
    if run.algo == "random":
        team = _random_team(run)
    else:
        team = _train(run, folder, num_threads=n_threads, vec_env=vec_env, device=device)
    episodes = evaluate(team.model, team.env, team.deterministic, n_episodes)
    team.env.close()
    returns = [episode.team_return for episode in episodes]
    sums = [episode.agent_returns.sum() for episode in episodes]
    n_timesteps, wall = team.n_timesteps, team.wall_seconds
    found = versions()
    return {
        "algo": run.algo,
        "env": run.env,
        "settings": run.settings,
        "seed": run.seed,
        "n_timesteps": n_timesteps,
        "return": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "sum_over_agents": float(np.mean(sums)),
        "episodes": len(episodes),
        "episode_length": float(np.mean([episode.length for episode in episodes])),
        "learning_curve": team.learning_curve,
        "wall_seconds": round(wall, 1),
        "steps_per_second": round(n_timesteps / wall) if wall else 0,
        "hyperparams": run.hyperparams,
        "command": run.command,
        "commit": found.pop("commit"),
        "versions": found,
    }


def _random_team(run: Run) -> Trained:
    """
    :param run: Run of the algorithm ``"random"``
    :return: Random team with its environments
    """
    manager = configured(run)
    env = manager.create_envs(N_EVAL_ENVS, eval_env=True)
    return Trained(
        RandomTeam(env.action_space, run.seed), env, manager.deterministic_eval, 0, 0.0, []
    )


def _train(run: Run, folder: Path, **options: Any) -> Trained:
    """
    :param run: The run
    :param folder: Log folder of this run only
    :param options: Further arguments of ``train.py``
    :return: The trained team with its environments
    :raises RuntimeError: If the training ended before its number of timesteps
    """
    config = folder / "hyperparams.yml"
    config.write_text(yaml.safe_dump({run.env: run.hyperparams}, sort_keys=False))
    arguments = {
        "algo": run.algo,
        "env": run.env,
        "seed": run.seed,
        "conf_file": config,
        "log_folder": folder,
        "eval_freq": -1,
        # Environments are reset at checkpoints, which the recorded results were not
        "checkpoint_freq": -1,
        **options,
    }
    argv: list[str] = []
    for name, value in arguments.items():
        argv += [f"--{name.replace('_', '-')}", str(value)]
    start = time.time()
    trained = Path(train.main(argv).save_path)
    wall = time.time() - start
    model, make_env, deterministic, *_ = load_agent(trained, options["device"])
    n_timesteps = model.num_timesteps
    if n_timesteps < float(evaluated(run.hyperparams["n_timesteps"])):
        raise RuntimeError(f"The training ended after {n_timesteps} steps; it must be run again.")
    env = make_env(N_EVAL_ENVS, EVAL_SEED + run.seed)
    return Trained(model, env, deterministic, n_timesteps, wall, learning_curve(trained))


def configured(run: Run) -> TeamExperimentManager:
    """
    :param run: The run
    :return: Manager with its hyperparameters, without a log folder; a random team has HAPPO's
    :raises ValueError: If the hyperparameters are wrong; those that depend on the environment are
        not checked
    """
    algo = "happo" if run.algo == "random" else run.algo
    where = f"{run.env} in {run.settings}"
    check_keys(run.hyperparams, algo, where)
    if "n_timesteps" not in run.hyperparams:
        raise ValueError(f"There is no n_timesteps for {where}; pass --n-timesteps.")
    manager = TeamExperimentManager(
        argparse.Namespace(), algo, run.env, log_folder="", seed=run.seed, verbose=0
    )
    manager.configure(run.hyperparams)
    return manager
