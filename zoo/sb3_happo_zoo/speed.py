"""
Measure the speed of training beside that of the bare environment, and where the time goes. All is
measured in one run, since the speed of a machine changes with its load.

    python zoo/speed.py --env mpe2/simple_spread_v3
    python zoo/speed.py --env envpool/HalfCheetah-2x3-v1 --raw-env mamujoco/HalfCheetah-2x3-v1
    python zoo/speed.py --env mpe2/simple_spread_v3 --algo mappo -P n_epochs:10 --json speed.json
    python zoo/speed.py --inference 2 4 8 16
    python zoo/speed.py --agents 16 64 256 1024
    taskset -c 0 python zoo/speed.py --env vmas/navigation

The settings are those with which HARL tuned its HAPPO, unless ``--settings`` names another file of
``zoo/hyperparams``. "All cores" are those that the process may use. One step is a step of the whole
team in one environment.
"""

import argparse
import itertools
import json
import multiprocessing as mp
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.synchronize import Barrier
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch as th
from gymnasium import spaces
from rl_zoo3.utils import get_wrapper_class
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_happo import make_joint_vec_env
from sb3_happo.common.batched_actors import BatchedActors
from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.common.on_policy_algorithm import MultiAgentOnPolicyAlgorithm
from sb3_happo.common.rollout_buffer import MultiAgentRolloutBuffer
from sb3_happo.common.threads import torch_threads
from sb3_happo.envs.make import is_vectorised, make_env
from sb3_happo.vec_env import EnvPoolVecEnv
from sb3_happo.vec_env.joint_subproc_vec_env import available_cores
from sb3_happo.vec_env.vmas_vec_env import VmasVecEnv
from sb3_happo_zoo.algorithms import ON_POLICY
from sb3_happo_zoo.allocator import keep_freed_memory
from sb3_happo_zoo.cli import StoreHyperparams, algorithm, command_line, usage_errors
from sb3_happo_zoo.entries import evaluated, read_entry
from sb3_happo_zoo.large_teams import measure_large_teams, table
from sb3_happo_zoo.vec_envs import FASTEST
from sb3_happo_zoo.versions import versions

# Keys of an entry that are not arguments of the algorithm
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
# Phases of an update; the others collect the rollout
UPDATE_PHASES = ("update", "batches", "logging")
N_SAMPLES = 100  # random actions that are sampled before the measurement


# ---------------------------------------------------------------- the environment alone


def step_alone(
    env_id: str, entry: dict[str, Any], seconds: float, start: Barrier, results: "mp.Queue[float]"
) -> None:
    """
    Step an environment with random actions, without the code of this package.

    :param env_id: Id of the environment
    :param entry: Entry with the environment's arguments and wrappers
    :param seconds: Duration of the measurement
    :param start: Barrier at which all processes start
    :param results: Queue for the steps per second
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
    """
    :param env: PettingZoo ``ParallelEnv`` or Gymnasium environment
    :return: Function that makes one step
    """
    return _parallel_step(env) if callable(env.action_space) else _gymnasium_step(env)


def _parallel_step(env: Any) -> Callable[[], None]:
    """
    :param env: PettingZoo ``ParallelEnv``
    :return: Function that makes one step
    """
    team = env.possible_agents
    samples = []
    for _ in range(N_SAMPLES):
        samples.append({agent: env.action_space(agent).sample() for agent in team})
    joint_actions = itertools.cycle(samples)
    env.reset(seed=0)

    def step() -> None:
        actions = next(joint_actions)
        if len(env.agents) < len(team):
            actions = {agent: actions[agent] for agent in env.agents}
        env.step(actions)
        if not env.agents:
            env.reset()

    return step


def _gymnasium_step(env: Any) -> Callable[[], None]:
    """
    :param env: Gymnasium environment
    :return: Function that makes one step
    """
    actions = itertools.cycle([env.action_space.sample() for _ in range(N_SAMPLES)])
    env.reset(seed=0)

    def step() -> None:
        _, _, terminated, truncated, _ = env.step(next(actions))
        if np.all(terminated) or truncated:
            env.reset()

    return step


def _turn_step(env: Any) -> Callable[[], None]:
    """
    :param env: PettingZoo ``AECEnv``
    :return: Function that makes one step
    """
    env.reset(seed=0)

    def step() -> None:
        if not env.agents:
            env.reset()
        agent = env.agent_selection
        observation, _, terminated, truncated, info = env.last()
        masked = observation if isinstance(observation, dict) else info
        if terminated or truncated:
            env.step(None)
        else:
            env.step(env.action_space(agent).sample(masked.get("action_mask")))

    return step


def raw_rate(env_id: str, entry: dict[str, Any], n_processes: int, seconds: float) -> float:
    """
    :param env_id: Id of the environment
    :param entry: Entry with the environment's arguments and wrappers, and ``n_envs`` for a
        simulator of many environments
    :param n_processes: Number of processes (or threads of such a simulator) that step it at the
        same time
    :param seconds: Duration of the measurement
    :return: Steps per second, summed over the processes
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
    :param env_id: Id of a simulator of many environments
    :param entry: Entry with the environment's arguments and ``n_envs``
    :param n_threads: Number of the simulator's or of PyTorch's threads
    :param seconds: Duration of the measurement
    :return: Steps per second of the simulator
    """
    n_envs = entry["n_envs"]
    threads = {"n_threads": n_threads} if env_id.startswith("envpool/") else {}
    venv = make_joint_vec_env(env_id, n_envs, 0, env_kwargs=entry.get("env_kwargs", {}) | threads)
    step = _simulator_step(venv, n_envs)
    with torch_threads(n_threads), th.no_grad():
        step(0)
        begin = time.perf_counter()
        count = 0
        while (passed := time.perf_counter() - begin) < seconds:
            count += 1
            step(count)
    venv.close()
    return count * n_envs / passed


def _simulator_step(venv: VecEnv, n_envs: int) -> Callable[[int], Any]:
    """
    :param venv: Vectorised environment of a simulator
    :param n_envs: Number of environments
    :return: Function of the number of the step that steps the simulator itself
    """
    if isinstance(venv, VmasVecEnv):
        simulator = venv.env
        samples = [simulator.get_random_actions() for _ in range(10)]

        def step(count: int) -> Any:
            return simulator.step(samples[count % 10]) if count % 100 else simulator.reset()

        return step
    assert isinstance(venv, EnvPoolVecEnv)
    venv.reset()
    pool = venv.pool
    shape = (10, n_envs, *pool.action_space.shape)
    matrices = np.random.default_rng(0).uniform(-0.4, 0.4, shape)
    return lambda count: pool.step(matrices[count % 10])


# ---------------------------------------------------------------- where the time goes


class PhaseClock:
    """Adds up the time of the phases of training, one of which runs at any time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._phase = "the rest"
        self._begin = time.perf_counter()

    def enter(self, phase: str) -> None:
        """
        End the present phase.

        :param phase: Name of the phase that begins
        """
        now = time.perf_counter()
        self.seconds[self._phase] += now - self._begin
        self._phase, self._begin = phase, now

    def restart(self) -> None:
        """Forget the time until now."""
        self.seconds.clear()
        self._begin = time.perf_counter()


class TimedVecEnv(VecEnvWrapper):
    """
    Marks the phases of a step: "environment" while environments are stepped, then "bookkeeping"
    (checks, statistics of episodes, time limits).

    :param venv: Environment of the training
    :param clock: Clock to mark the phases on
    """

    def __init__(self, venv: VecEnv, clock: PhaseClock) -> None:
        super().__init__(venv)
        self.clock = clock

    @property
    def unwrapped(self) -> VecEnv:
        """
        This wrapper, if there is no other one: algorithms exchange tensors with unwrapped
        simulators.
        """
        return self if self.venv is self.venv.unwrapped else self.venv.unwrapped

    def reset(self) -> VecEnvObs:
        """
        :return: Observations
        """
        obs = self.venv.reset()
        self.reset_infos = self.venv.reset_infos
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        """
        :param actions: Joint actions
        """
        self.clock.enter("environment")
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """
        :return: Observations, rewards, dones and infos
        """
        result = self.venv.step_wait()
        self.reset_infos = self.venv.reset_infos
        self.clock.enter("bookkeeping")
        return result


def timed_buffer(clock: PhaseClock) -> type[MultiAgentRolloutBuffer]:
    """
    :param clock: Clock to mark the phases on
    :return: Class of a rollout buffer that marks the phases around its methods. An update is timed
        from the moment when its data are ready to the next request for data; agents that share
        parameters have one phase
    """

    class TimedBuffer(MultiAgentRolloutBuffer):
        def __init__(self, n_steps: int, policy: JointPolicy, *args: Any, **kwargs: Any) -> None:
            super().__init__(n_steps, policy, *args, **kwargs)
            self.phases: dict[str, str] = {}
            for group in policy.groups:
                self.phases |= dict.fromkeys(group, f"update of {' and '.join(group)}")

        def add(self, *args: Any, **kwargs: Any) -> None:
            clock.enter("buffer")
            super().add(*args, **kwargs)
            clock.enter("inference")

        def compute_returns_and_advantage(self, *args: Any, **kwargs: Any) -> None:
            clock.enter("GAE")
            super().compute_returns_and_advantage(*args, **kwargs)
            clock.enter("logging")

        def agent_data(self, agent: str, *args: Any, **kwargs: Any) -> Any:
            clock.enter("batches")
            data = super().agent_data(agent, *args, **kwargs)
            clock.enter(self.phases[agent])
            return data

        def critic_data(self, *args: Any, **kwargs: Any) -> Any:
            clock.enter("batches")
            data = super().critic_data(*args, **kwargs)
            clock.enter("update of the critic")
            return data

    return TimedBuffer


class Laps(BaseCallback):
    """
    Records the time at which each update begins; the first updates do not count.

    :param clock: Clock that is restarted with the first update that counts
    :param n_warm_up: Number of updates that do not count
    """

    def __init__(self, clock: PhaseClock, n_warm_up: int = 2) -> None:
        super().__init__()
        self.clock = clock
        self.n_warm_up = n_warm_up
        self.times: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.clock.enter("inference")
        self.times.append(time.perf_counter())
        if len(self.times) == self.n_warm_up + 1:
            self.clock.restart()

    def _on_training_end(self) -> None:
        self.clock.enter("the rest")
        self.times.append(time.perf_counter())

    def durations(self) -> np.ndarray:
        """
        :return: Seconds of each update that counts, with its rollout
        """
        return np.diff(self.times[self.n_warm_up :])


def _measure_memory(peak: dict[str, float]) -> None:
    """
    :param peak: Peak memory, see :func:`peak_memory`; updated
    """
    tree = [psutil.Process(), *psutil.Process().children(recursive=True)]
    rss = sum(process.memory_info().rss for process in tree) / MEGABYTE
    if rss <= 1.01 * peak["rss"]:  # to count shared pages takes milliseconds
        return
    infos = [process.memory_full_info() for process in tree]
    pss = sum(getattr(info, "pss", float("nan")) for info in infos) / MEGABYTE
    peak.update(rss=rss, pss=pss, processes=len(tree))


@contextmanager
def peak_memory(interval: float = 0.2) -> Iterator[dict[str, float]]:
    """
    Measure the peak memory of this process and its descendants.

    :param interval: Seconds between two measurements
    :return: Dict that is filled in the meantime: ``rss``, the sum of the processes' resident memory
        in megabytes, with shared pages in each; ``pss``, the same with shared pages counted once;
        ``processes``, the number of processes
    """
    peak: dict[str, float] = {"rss": 0.0, "pss": 0.0, "processes": 0}
    stop = threading.Event()

    def measure_until_stopped() -> None:
        while not stop.wait(interval):
            try:
                _measure_memory(peak)
            except psutil.Error:
                continue  # a process has just ended

    thread = threading.Thread(target=measure_until_stopped, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


# ---------------------------------------------------------------- one run


def make_training_env(env_id: str, entry: dict[str, Any]) -> VecEnv:
    """
    :param env_id: Id of the environment
    :param entry: Entry of hyperparameters
    :return: Environments of the training, in this process or in worker processes, whichever is
        faster
    """
    wrap = get_wrapper_class(entry, "wrappers")
    kwargs: dict[str, Any] = {} if is_vectorised(env_id) else {"vec_env_cls": FASTEST}
    env = make_joint_vec_env(
        env_id,
        entry["n_envs"],
        seed=0,
        env_kwargs=entry.get("env_kwargs"),
        joint_kwargs=entry.get("joint_kwargs"),
        wrappers=[wrap] if wrap else None,
        **kwargs,
    )
    return VecNormalize(env, norm_reward=False) if entry.get("normalize") else env


class Training(NamedTuple):
    """
    Measured training.

    :param model: The algorithm
    :param vec_env: Description of the vectorised environment
    :param durations: Seconds of each update with its rollout, ``(n_updates,)``
    :param seconds: Seconds of each phase
    :param memory: Peak memory, see :func:`peak_memory`
    """

    model: MultiAgentOnPolicyAlgorithm
    vec_env: str
    durations: np.ndarray
    seconds: dict[str, float]
    memory: dict[str, float]


def train(args: argparse.Namespace, entry: dict[str, Any]) -> Training:
    """
    :param args: Parsed command line
    :param entry: Entry of hyperparameters
    :return: The measured training
    """
    clock = PhaseClock()
    laps = Laps(clock)
    env = make_training_env(args.env, entry)
    hyperparams = {key: value for key, value in entry.items() if key not in ENV_KEYS}
    policy = hyperparams.pop("policy", "MlpPolicy")
    model = ON_POLICY[args.algo](
        policy,
        TimedVecEnv(env, clock),
        seed=0,
        device=args.device,
        rollout_buffer_class=timed_buffer(clock),
        **hyperparams,
    )
    n_rows = model.n_steps * model.n_envs
    with peak_memory() as memory:
        model.learn((args.updates + laps.n_warm_up) * n_rows, callback=laps)
    vec_env = str(getattr(env.unwrapped, "choice", None) or type(env.unwrapped).__name__)
    env.close()
    return Training(model, vec_env, laps.durations(), clock.seconds, memory)


def measure(
    args: argparse.Namespace,
    entry: dict[str, Any],
    raw_entry: dict[str, Any],
    argv: Sequence[str] | None,
) -> dict[str, Any]:
    """
    :param args: Parsed command line
    :param entry: Entry of hyperparameters
    :param raw_entry: Entry of the environment whose raw stepping is measured
    :param argv: Arguments of the command line, None for those of the process
    :return: Measurements
    """
    raw_id = args.raw_env or args.env
    n_cores = available_cores()
    raw: dict[int, list[float]] = {n: [] for n in dict.fromkeys([1, n_cores])}

    def measure_raw() -> None:
        for n, rates in raw.items():
            rates.append(raw_rate(raw_id, raw_entry, n, args.seconds))

    measure_raw()
    training = train(args, entry)
    measure_raw()
    found = versions()
    changes = [f"{key}={value}" for key, value in args.overrides.items()]
    return {
        "env": args.env,
        "algo": args.algo,
        "settings": " ".join([args.settings, *changes]),
        "n_envs": training.model.n_envs,
        "n_steps": training.model.n_steps,
        "vec_env": training.vec_env,
        "n_cores": n_cores,
        "raw_env": raw_id,
        "raw_steps_per_second": {str(n): round(statistics.mean(raw[n])) for n in raw},
        "raw_before_and_after": {str(n): [round(rate) for rate in raw[n]] for n in raw},
        **training_figures(training, statistics.mean(raw[n_cores])),
        "command": command_line("speed", argv),
        "commit": found.pop("commit"),
        "versions": found,
    }


def training_figures(training: Training, raw: float) -> dict[str, Any]:
    """
    :param training: Measured training
    :param raw: Steps per second of the bare environment on all cores
    :return: Figures of the training
    """
    total = float(training.durations.sum())
    n_updates = len(training.durations)
    rate = training.model.n_steps * training.model.n_envs * n_updates / total
    parts = {name: value / total for name, value in training.seconds.items()}
    parts["the rest"] = 1 - sum(value for name, value in parts.items() if name != "the rest")
    collecting = sum(value for name, value in parts.items() if not name.startswith(UPDATE_PHASES))
    return {
        "steps_per_second": round(rate),
        "ratio_to_raw": round(rate / raw, 3),
        "collection_ratio_to_raw": round(rate / collecting / raw, 3),
        "seconds_per_update": {
            "mean": round(total / n_updates, 4),
            "median": round(float(np.median(training.durations)), 4),
            "best": round(float(training.durations.min()), 4),
        },
        "updates": n_updates,
        # Time of the bare environment's steps on all cores, as a share of the whole time
        "bare_stepping": round(rate / raw, 4),
        "parts": {name: round(parts[name], 4) for name in sorted(parts, key=_by_share(parts))},
        "peak_memory_mb": {name: round(value) for name, value in training.memory.items()},
    }


def _by_share(parts: dict[str, float]) -> Callable[[str], tuple[bool, float]]:
    """
    :param parts: Share of each phase
    :return: Key for sorting the phases by decreasing share, with "the rest" at the end
    """
    return lambda name: (name == "the rest", -parts[name])


def report(run: dict[str, Any]) -> str:
    """
    :param run: Measurements
    :return: Text
    """
    memory, seconds = run["peak_memory_mb"], run["seconds_per_update"]
    lines = [
        f"{run['algo']} on {run['env']}, {run['n_envs']} environments x {run['n_steps']} steps, "
        f"settings {run['settings']}",
        f"environments in         {run['vec_env']}",
    ]
    for n, rate in run["raw_steps_per_second"].items():
        name = "one process" if n == "1" else f"{n} processes"
        both = run["raw_before_and_after"][n]
        lines.append(f"raw {name:<19} {rate:>8,} steps/s (before and after: {both})")
    lines += [
        f"training                {run['steps_per_second']:>8,} steps/s, mean of {run['updates']} "
        f"updates; an update takes {seconds['median']} s (median), {seconds['best']} s (best)",
        f"ratio to raw            {run['ratio_to_raw']:>8} on {run['n_cores']} cores; of "
        f"collection alone {run['collection_ratio_to_raw']}",
        f"peak memory             {memory['rss']:>8,} MB over {memory['processes']} processes "
        f"({memory['pss']:,} MB with shared pages counted once)",
        "where the time goes (of the environment's share, the bare steps would take "
        f"{100 * run['bare_stepping']:.1f} %, the rest is transport and joining):",
    ]
    lines += [f"  {100 * share:5.1f} %  {name}" for name, share in run["parts"].items()]
    return "\n".join(lines)


# ---------------------------------------------------------------- inference alone


def make_actors(n_agents: int, n_envs: int) -> tuple[BatchedActors, dict[str, th.Tensor]]:
    """
    :param n_agents: Number of equal agents
    :param n_envs: Number of environments
    :return: Untrained team with 18 observations and 5 actions per agent, as on simple_spread, and
        joint observations
    """
    agents = [f"agent_{index}" for index in range(n_agents)]
    box = spaces.Box(-1, 1, (18,), np.float32)
    observation_space = spaces.Dict([*((agent, box) for agent in agents), ("state", box)])
    action_space = spaces.Dict([(agent, spaces.Discrete(5)) for agent in agents])
    policy = JointPolicy(observation_space, action_space, lambda _: 1e-3)
    obs = {}
    for key, space in observation_space.spaces.items():
        obs[key] = th.as_tensor(np.stack([space.sample()] * n_envs))
    return BatchedActors(policy), obs


def measure_inference(
    counts: list[int], n_envs: int = 20, n_repeats: int = 300
) -> dict[int, float]:
    """
    Measure the time of a decision of the team, including the critic's values.

    :param counts: Numbers of equal agents
    :param n_envs: Number of environments
    :param n_repeats: Number of decisions per team; the teams take turns
    :return: Median of the microseconds from observations to actions, by number of agents
    """
    teams = {n: make_actors(n, n_envs) for n in counts}
    times = defaultdict(list)
    with torch_threads(1):
        for _ in range(n_repeats):
            for n, (actors, obs) in teams.items():
                begin = time.perf_counter()
                step = actors(obs)
                actors.to_env_actions(step.actions)
                with th.inference_mode():
                    critic_obs = actors.policy.critic_observation(obs, step.states)
                    actors.policy.critic.step(critic_obs)
                times[n].append(time.perf_counter() - begin)
    return {n: round(1e6 * statistics.median(values), 1) for n, values in times.items()}


def make_parser() -> argparse.ArgumentParser:
    """
    :return: Parser of the command line
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--algo", default="happo", type=algorithm, help="name of the algorithm")
    parser.add_argument("--env", help="environment id of an entry of the settings")
    parser.add_argument(
        "--raw-env", help="environment whose raw stepping is measured; by default the same"
    )
    parser.add_argument(
        "--settings", default="happo_harl", help="name of a file in zoo/hyperparams"
    )
    parser.add_argument(
        "-P",
        dest="overrides",
        nargs="+",
        action=StoreHyperparams,
        default={},
        metavar="NAME:VALUE",
        help="hyperparameters that replace the entry's",
    )
    parser.add_argument(
        "--updates", type=int, default=10, help="number of timed updates, after two untimed ones"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=4.0,
        help="seconds of each measurement of raw stepping, before and after the training",
    )
    parser.add_argument("--device", default="cpu", help="PyTorch's device")
    parser.add_argument(
        "--inference",
        type=int,
        nargs="+",
        metavar="N",
        help="only measure decisions of N equal agents",
    )
    parser.add_argument(
        "--agents",
        type=int,
        nargs="+",
        metavar="N",
        help="only measure the cost of large teams of N equal agents",
    )
    parser.add_argument(
        "--json",
        help="file to which the measurements are appended as one line of JSON; - prints the line",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """
    Command line.

    :param argv: Arguments, by default those of the process
    """
    parser = make_parser()
    args = parser.parse_args(argv)
    keep_freed_memory()
    run: dict[Any, Any]
    if args.inference:
        run = measure_inference(args.inference)
        print("\n".join(f"{n:4} agents {value:8.1f} us" for n, value in run.items()))
    elif args.agents:
        run = measure_large_teams(args.agents)
        print(table(run))
    elif args.env is None:
        parser.error("--env is needed")
    else:
        with usage_errors(parser, verbose=0):
            if args.algo not in ON_POLICY:
                raise ValueError(
                    f"--algo: {args.algo} has no rollouts, whose phases are measured here; choose "
                    f"one of {', '.join(ON_POLICY)}."
                )
            entry = read_entry(args.settings, args.env)
            entry |= {name: evaluated(value) for name, value in args.overrides.items()}
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
