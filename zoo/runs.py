"""One run of the zoo: train an entry with one seed, evaluate the team, write down what came out."""

import argparse
import hashlib
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import train
import yaml  # type: ignore[import-untyped]
from cli import prepare
from enjoy import Episode, play
from exp_manager import (
    EVAL_SEED,
    TeamExperimentManager,
    check_keys,
    is_expression,
    load_agent,
    versions,
)
from gymnasium import spaces
from huggingface_sb3 import EnvironmentName
from records import Record, canonical, evaluated, read_entries
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecEnv

from sb3_happo.vec_env.actions import sample_actions

N_EVAL_ENVS = 10
# As many episodes as have so many steps, within bounds: those of spread have 25 and vary much, those of MuJoCo 1,000
EVAL_STEPS = 100_000
EVAL_EPISODES = (50, 500)
N_CURVE_POINTS = 50
N_CURVE_EPISODES = 100  # for each point, as in SB3's logs


class Run(NamedTuple):
    """
    What to train.

    :param algo: Algorithm, or ``"random"`` for a team that acts at random
    :param env: Id of the environment
    :param settings: File of hyperparameters, with what was changed
    :param seed: Of the training
    :param hyperparams: As a YAML file has them
    :param command: What repeats it
    """

    algo: str
    env: str
    settings: str
    seed: int
    hyperparams: dict[str, Any]
    command: str

    @property
    def name(self) -> str:
        """For a folder. Other hyperparameters make another name."""
        digest = hashlib.sha1(canonical(self.hyperparams, self.algo).encode()).hexdigest()[:6]
        return f"{self.algo}-{EnvironmentName(self.env)}-{digest}-seed{self.seed}"

    def record_in(self, records: Sequence[Record], n_episodes: int | None = None) -> Record | None:
        """
        :param records: Of finished runs
        :param n_episodes: Of the evaluation at least; by default as many as :func:`evaluate` plays at least
        :return: The last of them that is this run, with the same hyperparameters
        """
        budget = 0 if self.algo == "random" else float(evaluated(self.hyperparams["n_timesteps"]))
        for run in reversed(records):
            if (
                (run["algo"], run["env"], run["settings"], run["seed"])
                == (self.algo, self.env, self.settings, self.seed)
                and run["n_timesteps"] >= budget
                and run["episodes"] >= (n_episodes or EVAL_EPISODES[0])
                and canonical(run["hyperparams"], self.algo)
                == canonical(self.hyperparams, self.algo)
            ):
                return run
        return None


class RandomTeam:
    """
    What a trained team is compared with: random legal actions.

    :param action_space: Of the joint environment
    :param seed: Of the actions
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
        return sample_actions(
            self.action_space, observation, len(next(iter(observation.values())))
        ), None


def make_run(
    algo: str,
    env: str,
    seed: int,
    settings: str | None = None,
    changes: dict[str, Any] | None = None,
    n_episodes: int | None = None,
) -> Run:
    """
    :param algo: Algorithm, or ``"random"``
    :param env: One of the settings' entries
    :param seed: Of the training
    :param settings: File of hyperparameters, as :func:`records.read_entries` takes it; by default the algorithm's own
    :param changes: What replaces hyperparameters of the entry
    :param n_episodes: Of the evaluation, for the command; None for the usual number
    :return: The run
    """
    settings, changes = settings or default_settings(algo), changes or {}
    words = ["python", "zoo/benchmark.py", "--algos", algo, "--envs", env]
    if settings != default_settings(algo):
        words += ["--settings", settings]
    if changes:
        words.append("--hyperparams")
        words += [
            f"{name}:{value if is_expression(value) else repr(value)}"
            for name, value in changes.items()
        ]
    if n_episodes is not None:
        words += ["--eval-episodes", str(n_episodes)]
    return Run(
        algo=algo,
        env=env,
        settings=" ".join([settings, *(f"{name}={value}" for name, value in changes.items())]),
        seed=seed,
        hyperparams=read_entries(settings)[env] | changes,
        command=shlex.join([*words, "--seeds", str(seed)]),
    )


def default_settings(algo: str) -> str:
    """
    :param algo: Algorithm, or ``"random"``
    :return: Its file of hyperparameters
    """
    return "happo" if algo == "random" else algo


def evaluate(
    model: Any, env: VecEnv, deterministic: bool, n_episodes: int | None = None
) -> list[Episode]:
    """
    :param model: Anything with SB3's ``predict``
    :param env: Not in training
    :param deterministic: Whether it takes its most likely actions
    :param n_episodes: How many; by default as many as have ``EVAL_STEPS`` steps, within the bounds ``EVAL_EPISODES``
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
    The mean return of recent training episodes at regular points of the training.

    :param folder: With the monitors' files
    :return: Joint steps and return
    """
    episodes = load_results(str(folder))
    if episodes.empty:  # none has ended
        return []
    steps = episodes["l"].cumsum().to_numpy()
    means = episodes["r"].rolling(N_CURVE_EPISODES, min_periods=1).mean().to_numpy()
    ends = np.searchsorted(steps, np.linspace(0, steps[-1], N_CURVE_POINTS + 1)[1:])
    return [(int(steps[end]), round(float(means[end]), 3)) for end in np.unique(ends)]


def train_and_evaluate(
    run: Run,
    folder: Path,
    n_episodes: int | None = None,
    n_threads: int = 1,
    vec_env: str = "auto",
    device: str = "cpu",
) -> Record:
    """
    Train a team as ``train.py`` does, load what it has saved, and evaluate it.

    :param run: What to train
    :param folder: Log folder, of this run alone
    :param n_episodes: Of the evaluation; by default see :func:`evaluate`
    :param n_threads: PyTorch's
    :param vec_env: As for ``train.py``
    :param device: As for ``train.py``; the teams of the zoo are small, and slower on an accelerator
    :return: What is written down of it
    :raises RuntimeError: If the training ended early
    """
    folder.mkdir(parents=True, exist_ok=True)
    prepare(argparse.Namespace(gym_packages=[], seed=run.seed, num_threads=n_threads))
    model: Any
    if run.algo == "random":
        manager = configured(run)
        env, deterministic = (
            manager.create_envs(N_EVAL_ENVS, eval_env=True),
            manager.deterministic_eval,
        )
        model, n_timesteps, wall, curve = RandomTeam(env.action_space, run.seed), 0, 0.0, []
    else:
        config = folder / "hyperparams.yml"
        config.write_text(yaml.safe_dump({run.env: run.hyperparams}, sort_keys=False))
        arguments = dict(
            algo=run.algo, env=run.env, seed=run.seed, conf_file=config, log_folder=folder, eval_freq=-1,
            num_threads=n_threads, vec_env=vec_env, device=device,
        )  # fmt: skip
        argv = [
            word
            for name, value in arguments.items()
            for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        start = time.time()
        trained = Path(train.main(argv).save_path)
        wall = time.time() - start
        model, make_env, deterministic, *_ = load_agent(trained, device)
        n_timesteps, curve = model.num_timesteps, learning_curve(trained)
        if n_timesteps < float(evaluated(run.hyperparams["n_timesteps"])):
            raise RuntimeError(
                f"The training ended after {n_timesteps} steps; it must be run again."
            )
        env = make_env(N_EVAL_ENVS, EVAL_SEED + run.seed)
    episodes = evaluate(model, env, deterministic, n_episodes)
    returns = [episode.team_return for episode in episodes]
    env.close()
    found = versions()
    return {
        "algo": run.algo,
        "env": run.env,
        "settings": run.settings,
        "seed": run.seed,
        "n_timesteps": n_timesteps,
        "return": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "sum_over_agents": float(np.mean([episode.agent_returns.sum() for episode in episodes])),
        "episodes": len(episodes),
        "episode_length": float(np.mean([episode.length for episode in episodes])),
        "learning_curve": curve,
        "wall_seconds": round(wall, 1),
        "steps_per_second": round(n_timesteps / wall) if wall else 0,
        "hyperparams": run.hyperparams,
        "command": run.command,
        "commit": found.pop("commit"),
        "versions": found,
    }


def configured(run: Run) -> TeamExperimentManager:
    """
    :param run: What to train
    :return: With its hyperparameters, without a log folder; a random team's as for HAPPO
    :raises ValueError: If the hyperparameters are wrong, as far as can be told without its environment
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
