"""
Train an entry of ``zoo/hyperparams`` with several seeds and write down what came out, with all that is needed to repeat it.

    python zoo/figures.py --env mpe2/simple_spread_v3 --seeds 0 1 2
    python zoo/figures.py --env mpe2/simple_spread_v3 --settings happo_harl --seeds 0 1 2
    python zoo/figures.py --env mpe2/simple_spread_v3 -P 'agent_order:"fixed"' --seeds 0 1 2
    python zoo/figures.py --env mpe2/simple_spread_v3 --algo random
    python zoo/figures.py --table

One line of JSON per run goes to ``zoo/results.jsonl``; ``--table`` turns them into ``zoo/results.md``.
"""

import argparse
import importlib
import json
import platform
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import yaml  # type: ignore[import-untyped]
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization
from torch import nn

import sb3_happo
from sb3_happo import make_joint_vec_env
from sb3_happo.vec_env import JointDummyVecEnv
from sb3_happo.vec_env.actions import sample_actions

ZOO = Path(__file__).resolve().parent
RESULTS = ZOO / "results.jsonl"
PACKAGES = ("torch", "stable-baselines3", "gymnasium", "pettingzoo", "numpy", "mpe2", "gymnasium-robotics", "mujoco")
EVAL_SEED = 1_000_000  # far from the training seeds


def read_entry(settings: str, env_id: str) -> dict[str, Any]:
    """
    An entry of a YAML file of hyperparameters.

    :param settings: The file's name without its ending
    :param env_id: The entry
    :return: Its hyperparameters, with expressions such as ``dict(net_arch=[64])`` evaluated, as RL Zoo does
    """
    entries = yaml.safe_load((ZOO / "hyperparams" / f"{settings}.yml").read_text())
    if env_id not in entries:
        sys.exit(f"zoo/hyperparams/{settings}.yml has no entry {env_id!r}; it has {', '.join(entries)}")
    scope = {"nn": nn, "th": th, "partial": partial}
    return {
        key: eval(value, scope) if isinstance(value, str) and "(" in value else value  # the project's own files
        for key, value in entries[env_id].items()
    }


def make_wrapper(wrapper: str | dict[str, dict[str, Any]]) -> Callable[[Any], Any]:
    """
    A wrapper of the PettingZoo environment, in RL Zoo's form.

    :param wrapper: ``"<module>.<function>"``, or that and its keyword arguments, ``{"<module>.<function>": {...}}``
    :return: The function of the environment
    """
    name, kwargs = (wrapper, {}) if isinstance(wrapper, str) else next(iter(wrapper.items()))
    module, _, function = name.rpartition(".")
    return partial(getattr(importlib.import_module(module), function), **kwargs)


class RandomTeam:
    """
    What a trained team is compared with: random legal actions.

    :param action_space: Of the joint environment
    :param seed: Of the actions
    """

    num_timesteps = 0

    def __init__(self, action_space: spaces.Space, seed: int) -> None:
        assert isinstance(action_space, spaces.Dict)
        self.action_space = action_space
        self.action_space.seed(seed)

    def predict(self, observation: dict[str, np.ndarray], **_: Any) -> tuple[list[dict[str, Any]], None]:
        """
        :param observation: Joint observation, each entry ``(n_envs, ...)``
        :return: ``{agent: action}`` for each environment, and no state
        """
        return sample_actions(self.action_space, observation, len(next(iter(observation.values())))), None


class LearningCurve(BaseCallback):
    """
    The mean return of recent training episodes at regular points of the training.

    :param n_points: How many points
    """

    def __init__(self, n_points: int = 50) -> None:
        super().__init__()
        self.n_points = n_points
        self.points: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        """Add a point when the next fiftieth of the training is over."""
        episodes = self.model.ep_info_buffer
        if episodes and self.num_timesteps * self.n_points >= (len(self.points) + 1) * self.model._total_timesteps:
            self.points.append((self.num_timesteps, round(float(np.mean([episode["r"] for episode in episodes])), 3)))


def make_env(env_id: str, entry: dict[str, Any], n_envs: int, seed: int, training: bool) -> VecEnv:
    """
    The environments of an entry.

    :param env_id: Their id
    :param entry: Its hyperparameters
    :param n_envs: How many
    :param seed: Of the first one
    :param training: Whether normalisation statistics are collected
    :return: Vectorised, and normalised where the entry says so
    """
    env = make_joint_vec_env(
        env_id,
        n_envs,
        seed,
        env_kwargs=entry.get("env_kwargs"),
        joint_kwargs=entry.get("joint_kwargs"),
        wrappers=[make_wrapper(wrapper) for wrapper in entry.get("wrappers", [])],
        vec_env_cls=JointDummyVecEnv,  # seeds side by side use the cores better than workers of one run
    )
    if entry.get("normalize"):
        kwargs: dict[str, Any] = {"norm_reward": False} | (entry["normalize"] if isinstance(entry["normalize"], dict) else {})
        env = VecNormalize(env, training=training, **kwargs)
    return env


def train_and_evaluate(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """
    One run.

    :param args: Of the command line
    :param seed: Its seed
    :return: What is written down of it
    """
    entry = read_entry(args.settings, args.env) | dict(args.overrides)
    n_timesteps = int(args.n_timesteps or entry["n_timesteps"])
    special = ("n_envs", "n_timesteps", "env_kwargs", "joint_kwargs", "normalize", "deterministic", "wrappers")
    hyperparams = {key: value for key, value in entry.items() if key not in special}
    env = make_env(args.env, entry, entry["n_envs"], seed, training=True)
    curve = LearningCurve()
    start = time.time()
    model: Any
    if args.algo == "random":
        model = RandomTeam(env.action_space, seed)
    else:
        model = getattr(sb3_happo, args.algo.upper())(env, seed=seed, device="cpu", **hyperparams)
        model.learn(n_timesteps, callback=curve, progress_bar=args.progress)
    wall = time.time() - start

    eval_env = make_env(args.env, entry, args.n_eval_envs, EVAL_SEED + seed, training=False)
    if isinstance(env, VecNormalize):
        sync_envs_normalization(env, eval_env)
    sums: dict[int, float] = defaultdict(float)
    agent_sums: list[float] = []

    def add_up(local: dict[str, Any], _: dict[str, Any]) -> None:
        index = local["i"]
        sums[index] += float(np.sum(local["info"]["agent_rewards"]))
        if local["done"]:
            agent_sums.append(sums.pop(index))

    deterministic = entry.get("deterministic", True)
    returns, lengths = evaluate_policy(
        model, eval_env, args.eval_episodes, deterministic, callback=add_up, return_episode_rewards=True
    )
    if args.save:
        path = ZOO / "agents" / args.algo / f"{args.env.replace('/', '_')}_seed{seed}"
        model.save(path)
        if isinstance(env, VecNormalize):
            env.save(f"{path}_vecnormalize.pkl")
    return {
        "algo": args.algo,
        "env": args.env,
        "settings": " ".join([args.settings, *(f"{key}={value}" for key, value in args.overrides)]),
        "seed": seed,
        "n_timesteps": model.num_timesteps,
        "return": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "sum_over_agents": float(np.mean(agent_sums)),
        "episodes": len(agent_sums),
        "episode_length": float(np.mean(lengths)),
        "learning_curve": curve.points,
        "wall_seconds": round(wall, 1),
        "steps_per_second": round(model.num_timesteps / wall),
        "hyperparams": {key: str(value) for key, value in entry.items()},
        "command": f"python zoo/figures.py {shlex.join(sys.argv[1:])}",
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
    }


def override(text: str) -> tuple[str, Any]:
    """
    :param text: ``name:expression``, as RL Zoo's ``-P`` has it
    :return: The name and the value of the expression
    """
    name, _, expression = text.partition(":")
    return name, eval(expression, {"nn": nn, "th": th})  # the user's own command line


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    try:
        commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ZOO, text=True).strip()
        # What earlier runs wrote down does not change what this one does
        changed = subprocess.run(
            ["git", "diff", "--quiet", "HEAD", "--", "..", ":!results.*"], cwd=ZOO, check=False
        ).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def write_table() -> None:
    """Turn the recorded runs into ``zoo/results.md``."""
    runs: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in RESULTS.read_text().splitlines():
        run = json.loads(line)
        runs[run["env"], run["algo"], run["settings"], run["n_timesteps"]].append(run)
    lines = [
        "# Figures",
        "",
        "Episodes after training, deterministic unless the entry says otherwise; mean over seeds, and each seed's own.",
        "`S` is the return summed over the agents (of MuJoCo, where all agents get the same reward, read the return).",
        "Made by `python zoo/figures.py --table` from `zoo/results.jsonl`, where every run stands with its hyperparameters.",
        "",
        "| environment | algorithm | settings | steps | seeds | return | S | each seed's S | steps/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (env, algo, settings, n_timesteps), group in sorted(runs.items()):
        group.sort(key=lambda run: run["seed"])
        sums = [run["sum_over_agents"] for run in group]
        mean_return = np.mean([run["return"] for run in group])
        speed = np.median([run["steps_per_second"] for run in group])
        lines.append(
            f"| `{env}` | {algo} | {settings} | {n_timesteps:,} | {', '.join(str(run['seed']) for run in group)} "
            f"| {mean_return:.1f} | {np.mean(sums):.1f} | {', '.join(f'{value:.1f}' for value in sums)} | {speed:,.0f} |"
        )
    lines += ["", "## Commands and versions", ""]
    seen = {(run["command"], run["commit"], json.dumps(run["versions"])) for group in runs.values() for run in group}
    lines += [f"* `{command}` at {commit} ({', '.join(' '.join(pair) for pair in json.loads(versions).items())})"
              for command, commit, versions in sorted(seen)]  # fmt: skip
    (ZOO / "results.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", default="happo", choices=["happo", "hatrpo", "haa2c", "mappo", "ippo", "random"])
    parser.add_argument("--env", help="an entry of the settings")
    parser.add_argument("--settings", help="file in zoo/hyperparams; by default the algorithm's own")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "-P", dest="overrides", type=override, nargs="+", default=[], metavar="NAME:VALUE", help="other hyperparameters"
    )
    parser.add_argument("-n", "--n-timesteps", type=float, help="instead of the entry's")
    parser.add_argument("--eval-episodes", type=int, default=500)
    parser.add_argument("--n-eval-envs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, help="PyTorch's threads")
    parser.add_argument("--save", action="store_true", help="keep the trained agents in zoo/agents")
    parser.add_argument("--progress", action="store_true", help="show a progress bar")
    parser.add_argument("--table", action="store_true", help="only write zoo/results.md")
    args = parser.parse_args()
    args.settings = args.settings or ("happo" if args.algo == "random" else args.algo)
    if args.table:
        write_table()
        return
    if args.env is None:
        parser.error("--env is needed")
    th.set_num_threads(args.threads)
    for seed in args.seeds:
        run = train_and_evaluate(args, seed)
        with RESULTS.open("a") as file:
            file.write(json.dumps(run) + "\n")
        keys = ("algo", "env", "settings", "seed", "n_timesteps", "return", "sum_over_agents", "steps_per_second")
        print({key: run[key] for key in keys}, flush=True)


if __name__ == "__main__":
    main()
