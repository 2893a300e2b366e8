"""
How fast training is beside the bare environment, and where the time goes: all in one run, since machines differ and are busy.

    python zoo/speed.py --env mpe2/simple_spread_v3
    python zoo/speed.py --env envpool/HalfCheetah-2x3-v1 --raw-env mamujoco/HalfCheetah-2x3-v1
    python zoo/speed.py --env mpe2/simple_spread_v3 --algo mappo -P n_epochs:10 --json speed.json
    python zoo/speed.py --inference 2 4 8 16
    taskset -c 0 python zoo/speed.py --env vmas/navigation

The settings are those with which HARL tuned its HAPPO, unless ``--settings`` names another file of ``zoo/hyperparams``. "All
cores" are those that the process may use. One step is a step of the whole team in one environment.
"""

import argparse
import json
import multiprocessing as mp
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
import psutil
import torch as th
from cli import StoreHyperparams, algorithm, command_line, usage_errors
from exp_manager import versions
from gymnasium import spaces
from records import evaluated, read_entry
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

import sb3_happo
from sb3_happo import make_joint_vec_env
from sb3_happo.common import on_policy_algorithm
from sb3_happo.common.batched_actors import BatchedActors
from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.common.threads import torch_threads
from sb3_happo.envs.make import is_vectorised, make_env
from sb3_happo.vec_env import EnvPoolVecEnv
from sb3_happo.vec_env.joint_subproc_vec_env import available_cores
from sb3_happo.vec_env.vmas_vec_env import VmasVecEnv

# What the environments get and not the algorithm
ENV_KEYS = (
    "n_envs",
    "n_timesteps",
    "env_kwargs",
    "joint_kwargs",
    "normalize",
    "deterministic",
    "wrappers",
)
MEGABYTE = 1e6


# ---------------------------------------------------------------- the environment alone


def step_alone(
    env_id: str, entry: dict[str, Any], seconds: float, start: Barrier, results: "mp.Queue[float]"
) -> None:
    """
    Step an environment as its author made it, without anything of this package, with random actions.

    :param env_id: Which
    :param entry: With its arguments and wrappers
    :param seconds: For how long
    :param start: To begin together with the other processes
    :param results: Where to put the steps per second
    """
    env = make_env(env_id, **entry.get("env_kwargs", {}))
    wrap = get_wrapper_class(entry, "wrappers")
    env = wrap(env) if wrap else env
    step = _turn_step(env) if hasattr(env, "agent_iter") else _team_step(env)
    step()
    start.wait()
    begin = time.perf_counter()
    n_steps = 0
    while (passed := time.perf_counter() - begin) < seconds:
        step()
        n_steps += 1
    results.put(n_steps / passed)
    env.close()


def _team_step(env: Any) -> Callable[[], None]:
    """A function that makes one step of a parallel or a Gymnasium environment."""
    parallel = callable(env.action_space)
    team = env.possible_agents if parallel else None
    many = [
        {agent: env.action_space(agent).sample() for agent in team}
        if team
        else env.action_space.sample()
        for _ in range(100)
    ]
    env.reset(seed=0)
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        action = many[count % 100]
        if team and len(env.agents) < len(team):
            action = {agent: action[agent] for agent in env.agents}
        _, _, terminated, truncated, _ = env.step(action)
        if (not env.agents) if team else np.all(terminated) or truncated:
            env.reset()

    return step


def _turn_step(env: Any) -> Callable[[], None]:
    """A function that makes one step of a turn-based environment."""
    env.reset(seed=0)

    def step() -> None:
        if not env.agents:
            env.reset()
        agent = env.agent_selection
        observation, _, terminated, truncated, info = env.last()
        mask = (
            observation.get("action_mask")
            if isinstance(observation, dict)
            else info.get("action_mask")
        )
        env.step(None if terminated or truncated else env.action_space(agent).sample(mask))

    return step


def raw_rate(env_id: str, entry: dict[str, Any], n_processes: int, seconds: float) -> float:
    """
    :param env_id: An environment
    :param entry: With its arguments and wrappers, and ``n_envs`` for a natively vectorised one
    :param n_processes: How many processes (or threads of a natively vectorised one) step it at the same time
    :param seconds: For how long
    :return: Steps per second of all of them together
    """
    if is_vectorised(env_id):
        return vectorised_raw_rate(env_id, entry, n_processes, seconds)
    context = mp.get_context("spawn")
    start, results = context.Barrier(n_processes), context.Queue()
    arguments = (env_id, entry, seconds, start, results)
    processes = [context.Process(target=step_alone, args=arguments) for _ in range(n_processes)]
    for process in processes:
        process.start()
    rate = sum(results.get() for _ in processes)
    for process in processes:
        process.join()
    return rate


def vectorised_raw_rate(
    env_id: str, entry: dict[str, Any], n_threads: int, seconds: float
) -> float:
    """
    :param env_id: An environment that is vectorised by itself
    :param entry: With its arguments and ``n_envs``
    :param n_threads: How many of the simulator's or of PyTorch's threads step it
    :param seconds: For how long
    :return: Steps per second of the simulator itself
    """
    n_envs = entry["n_envs"]
    threads = {"n_threads": n_threads} if env_id.startswith("envpool/") else {}
    venv = make_joint_vec_env(env_id, n_envs, 0, env_kwargs=entry.get("env_kwargs", {}) | threads)
    step: Callable[[int], Any]
    if isinstance(venv, VmasVecEnv):
        simulator = venv.env
        team = [simulator.get_random_actions() for _ in range(10)]
        step = lambda count: simulator.step(team[count % 10]) if count % 100 else simulator.reset()  # noqa: E731
    else:
        assert isinstance(venv, EnvPoolVecEnv)
        venv.reset()
        pool = venv.pool
        matrices = np.random.default_rng(0).uniform(
            -0.4, 0.4, (10, n_envs, *pool.action_space.shape)
        )
        step = lambda count: pool.step(matrices[count % 10])  # noqa: E731
    with torch_threads(n_threads), th.no_grad():
        step(0)
        begin = time.perf_counter()
        count = 0
        while (passed := time.perf_counter() - begin) < seconds:
            count += 1
            step(count)
    venv.close()
    return count * n_envs / passed


# ---------------------------------------------------------------- where the time goes


class Stopwatch:
    """Adds up the time that is spent in functions, without that of the timed functions inside them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    def timed(
        self, function: Callable[..., Any], name: str | Callable[..., str]
    ) -> Callable[..., Any]:
        """
        :param function: What to time
        :param name: Under which name, or a function of its arguments that gives it
        :return: The function with a stopwatch
        """

        @wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                passed = time.perf_counter() - begin
                self.seconds[name if isinstance(name, str) else name(*args)] += (
                    passed - self._inner.pop()
                )
                self._inner[-1] += passed

        return wrapper


def attach(stopwatch: Stopwatch, model: Any) -> None:
    """
    Time the parts of the training.

    :param stopwatch: What adds them up
    :param model: The algorithm
    """

    class TimedTeam(BatchedActors):
        __call__ = stopwatch.timed(BatchedActors.__call__, "inference")
        to_env_actions = stopwatch.timed(BatchedActors.to_env_actions, "actions to the environment")
        to_env_tensors = stopwatch.timed(BatchedActors.to_env_tensors, "actions to the environment")

    setattr(on_policy_algorithm, "BatchedActors", TimedTeam)  # noqa: B010 (a class is not assigned to)
    buffer, env = model.rollout_buffer, model.env
    for owner, method, name in (
        (env, "step_async", "environment"),
        (env, "step_wait", "environment"),
        (buffer, "add", "buffer"),
        (buffer, "compute_returns_and_advantage", "GAE"),
        (buffer, "agent_data", "batches"),
        (model, "_check_step", "checks"),
        (model, "_update_info_buffer", "episode statistics"),
        (model, "_bootstrap_time_limits", "time limits"),
        (model, "_next_factor", "factor"),
        (model, "_update_critic", "update of the critic"),
        (model, "_update_actors", lambda data: f"update of {' and '.join(data)}"),
        (model, "dump_logs", "logging"),
    ):
        setattr(owner, method, stopwatch.timed(getattr(owner, method), name))


class Laps(BaseCallback):
    """
    When each update began; the first ones are left out.

    :param stopwatch: Set to zero with the first update that counts
    :param n_warm_up: How many updates do not count
    """

    def __init__(self, stopwatch: Stopwatch, n_warm_up: int = 2) -> None:
        super().__init__()
        self.stopwatch = stopwatch
        self.n_warm_up = n_warm_up
        self.times: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) == self.n_warm_up + 1:
            self.stopwatch.seconds.clear()


@contextmanager
def peak_memory(interval: float = 0.2) -> Iterator[dict[str, float]]:
    """
    The largest memory of this process and its descendants.

    :param interval: Seconds between two looks
    :return: ``rss``: resident sizes summed over the processes, with shared pages in each; ``pss``: with every shared page
        once; ``processes``; filled in at the end. In megabytes
    """
    peak: dict[str, float] = {"rss": 0.0, "pss": 0.0, "processes": 0}
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(interval):
            tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
            try:
                rss = sum(process.memory_info().rss for process in tree) / MEGABYTE
                if rss > 1.01 * peak["rss"]:  # to find the shared pages takes milliseconds
                    pss = (
                        sum(
                            getattr(process.memory_full_info(), "pss", float("nan"))
                            for process in tree
                        )
                        / MEGABYTE
                    )
                    peak.update(rss=rss, pss=pss, processes=len(tree))
            except psutil.Error:
                continue  # one of them has just ended

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


# ---------------------------------------------------------------- one run


def make_training_env(env_id: str, entry: dict[str, Any]) -> VecEnv:
    """
    :param env_id: Which environment
    :param entry: Its hyperparameters
    :return: As it is trained on, by the faster way of running it
    """
    wrap = get_wrapper_class(entry, "wrappers")
    env = make_joint_vec_env(
        env_id,
        entry["n_envs"],
        seed=0,
        env_kwargs=entry.get("env_kwargs"),
        vec_env_cls="auto",
        joint_kwargs=entry.get("joint_kwargs"),
        wrappers=[wrap] if wrap else None,
    )
    return VecNormalize(env, norm_reward=False) if entry.get("normalize") else env


def measure(
    args: argparse.Namespace,
    entry: dict[str, Any],
    raw_entry: dict[str, Any],
    argv: Sequence[str] | None,
) -> dict[str, Any]:
    """
    :param args: Of the command line
    :param entry: Hyperparameters of the environment
    :param raw_entry: Those of the one whose raw stepping it is compared with
    :param argv: What ``args`` were read from; None for the process's arguments
    :return: What was measured
    """
    raw_id = args.raw_env or args.env
    n_cores = available_cores()
    raw: dict[int, list[float]] = {n: [] for n in dict.fromkeys([1, n_cores])}

    def measure_raw() -> None:
        for n, rates in raw.items():
            rates.append(raw_rate(raw_id, raw_entry, n, args.seconds))

    measure_raw()
    stopwatch = Stopwatch()
    laps = Laps(stopwatch)
    env = make_training_env(args.env, entry)
    hyperparams = {key: value for key, value in entry.items() if key not in ENV_KEYS}
    policy = hyperparams.pop("policy", "MlpPolicy")
    model = getattr(sb3_happo, args.algo.upper())(
        policy, env, seed=0, device=args.device, **hyperparams
    )
    attach(stopwatch, model)
    n_rows = model.n_steps * model.n_envs
    with peak_memory() as memory:
        model.learn((args.updates + laps.n_warm_up) * n_rows, callback=laps)
        laps.times.append(time.perf_counter())
    env.close()
    measure_raw()

    seconds = np.diff(laps.times[laps.n_warm_up :])
    total = float(seconds.sum())
    parts = {name: value / total for name, value in stopwatch.seconds.items()}
    rate = n_rows * len(seconds) / total
    raw_rates = {n: statistics.mean(rates) for n, rates in raw.items()}
    collecting = sum(
        value
        for name, value in parts.items()
        if not name.startswith(("update", "factor", "batches", "logging"))
    )
    found = versions()
    return {
        "env": args.env,
        "algo": args.algo,
        "settings": " ".join(
            [args.settings, *(f"{key}={value}" for key, value in args.overrides.items())]
        ),
        "n_envs": model.n_envs,
        "n_steps": model.n_steps,
        "vec_env": str(getattr(env.unwrapped, "choice", None) or type(env.unwrapped).__name__),
        "n_cores": n_cores,
        "raw_env": raw_id,
        "raw_steps_per_second": {str(n): round(value) for n, value in raw_rates.items()},
        "raw_before_and_after": {
            str(n): [round(value) for value in rates] for n, rates in raw.items()
        },
        "steps_per_second": round(rate),
        "ratio_to_raw": round(rate / raw_rates[n_cores], 3),
        "collection_ratio_to_raw": round(rate / collecting / raw_rates[n_cores], 3),
        "seconds_per_update": {
            "mean": round(total / len(seconds), 4),
            "median": round(float(np.median(seconds)), 4),
            "best": round(float(seconds.min()), 4),
        },
        "updates": len(seconds),
        # What all cores would need for the steps of the bare environment, of what is spent in the vectorised one
        "bare_stepping": round(rate / raw_rates[n_cores], 4),
        "parts": {
            name: round(value, 4)
            for name, value in sorted(parts.items(), key=lambda part: -part[1])
        }
        | {"the rest": round(1 - sum(parts.values()), 4)},
        "peak_memory_mb": {name: round(value) for name, value in memory.items()},
        "command": command_line("speed", argv),
        "commit": found.pop("commit"),
        "versions": found,
    }


def report(run: dict[str, Any]) -> str:
    """
    :param run: What was measured
    :return: To read
    """
    raw = run["raw_steps_per_second"]
    names = {name: "one process" if name == "1" else f"{name} processes" for name in raw}
    lines = [
        f"{run['algo']} on {run['env']}, {run['n_envs']} environments x {run['n_steps']} steps, settings {run['settings']}",
        f"environments in         {run['vec_env']}",
        *(
            f"raw {names[n]:<19} {rate:>8,} steps/s (before and after: {run['raw_before_and_after'][n]})"
            for n, rate in raw.items()
        ),
        f"training                {run['steps_per_second']:>8,} steps/s, mean of {run['updates']} updates; an update takes "
        f"{run['seconds_per_update']['median']} s (median), {run['seconds_per_update']['best']} s (best)",
        f"ratio to raw            {run['ratio_to_raw']:>8} on {run['n_cores']} cores; of collection alone "
        f"{run['collection_ratio_to_raw']}",
        f"peak memory             {run['peak_memory_mb']['rss']:>8,} MB over {run['peak_memory_mb']['processes']} processes "
        f"({run['peak_memory_mb']['pss']:,} MB with shared pages counted once)",
        "where the time goes (of the environment's share, the bare steps would take "
        f"{100 * run['bare_stepping']:.1f} %, the rest is transport and joining):",
        *(f"  {100 * share:5.1f} %  {name}" for name, share in run["parts"].items()),
    ]
    return "\n".join(lines)


# ---------------------------------------------------------------- inference alone


def measure_inference(
    counts: list[int], n_envs: int = 20, n_repeats: int = 300
) -> dict[int, float]:
    """
    What a decision of the team costs, with 18 observations and 5 actions each, as on simple_spread.

    :param counts: Numbers of equal agents
    :param n_envs: Environments that are answered at once
    :param n_repeats: Decisions of each team, taken in turns
    :return: Per number of agents, the median of the microseconds from observations to actions for the environments, the
        critic's values included
    """
    teams, times = {}, defaultdict(list)
    for n in counts:
        agents = [f"agent_{index}" for index in range(n)]
        box = spaces.Box(-1, 1, (18,), np.float32)
        observation_space = spaces.Dict([*((agent, box) for agent in agents), ("state", box)])
        action_space = spaces.Dict([(agent, spaces.Discrete(5)) for agent in agents])
        policy = JointPolicy(observation_space, action_space, lambda _: 1e-3)
        obs = {
            key: th.as_tensor(np.stack([space.sample()] * n_envs))
            for key, space in observation_space.spaces.items()
        }
        teams[n] = BatchedActors(policy), obs
    with torch_threads(1):
        for _ in range(n_repeats):
            for n, (team, obs) in teams.items():
                begin = time.perf_counter()
                step = team(obs)
                team.to_env_actions(step.actions)
                with th.inference_mode():
                    team.policy.critic.step(team.policy.critic_observation(obs, step.states))
                times[n].append(time.perf_counter() - begin)
    return {n: round(1e6 * statistics.median(values), 1) for n, values in times.items()}


def main(argv: Sequence[str] | None = None) -> None:
    """
    Command line.

    :param argv: Its arguments; by default the process's
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algo", default="happo", type=algorithm)
    parser.add_argument("--env", help="an entry of the settings")
    parser.add_argument("--raw-env", help="whose raw stepping to compare with; by default the same")
    parser.add_argument("--settings", default="happo_harl", help="file in zoo/hyperparams")
    parser.add_argument(
        "-P", dest="overrides", nargs="+", action=StoreHyperparams, default={}, metavar="NAME:VALUE"
    )
    parser.add_argument(
        "--updates", type=int, default=10, help="how many to time, after two that are not timed"
    )
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="of raw stepping, before and after, each way"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--inference",
        type=int,
        nargs="+",
        metavar="N",
        help="only time decisions of N equal agents",
    )
    parser.add_argument(
        "--json",
        help="also append what was measured to this file, as one line of JSON; - for the screen",
    )
    args = parser.parse_args(argv)
    run: dict[Any, Any]
    if args.inference:
        run = measure_inference(args.inference)
        print("\n".join(f"{n:4} agents {value:8.1f} us" for n, value in run.items()))
    elif args.env is None:
        parser.error("--env is needed")
    else:
        with usage_errors(parser, verbose=0):
            entry = read_entry(args.settings, args.env) | {
                name: evaluated(value) for name, value in args.overrides.items()
            }
            raw_entry = read_entry(args.settings, args.raw_env) if args.raw_env else entry
        run = measure(args, entry, raw_entry, argv)
        print(report(run))
    if args.json == "-":
        print(json.dumps(run))
    elif args.json:
        with open(args.json, "a") as file:
            file.write(json.dumps(run) + "\n")


if __name__ == "__main__":
    main()
