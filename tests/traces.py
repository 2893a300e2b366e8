"""
Traces: the parameters of small trainings, as hashes and norms, recorded in ``traces.json``.

They tell a pure move of code from a change of numbers. ``python -m tests.traces`` compares the code
with the record and prints what differs; ``python -m tests.traces --record`` writes the record anew.
"""

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_happo import JointEnv, make_joint_vec_env
from tests.algorithms import ALGORITHMS
from tests.envs import HeterogeneousTeam, MaskedGame, RandomTeam, TurnGame

RECORD = Path(__file__).with_name("traces.json")
N_UPDATES = 3
N_ENVS = 2
#: Largest relative difference of a norm that counts as rounding, between two kinds of processors
ROUNDING = 1e-3


class Case(NamedTuple):
    """
    One team and the settings of its networks.

    :param make_env: Factory of the environment
    :param policy: Policy alias
    :param policy_kwargs: Keyword arguments of the policy
    :param kwargs: Keyword arguments of the algorithm
    """

    make_env: Callable[[], Any]
    policy: str = "MlpPolicy"
    policy_kwargs: Mapping[str, Any] = MappingProxyType({})
    kwargs: Mapping[str, Any] = MappingProxyType({})


class Trace(NamedTuple):
    """
    The parameters of a training.

    :param hash: SHA-256 of all parameters and buffers, whatever their names and order
    :param norms: Euclidean norm of the parameters of each actor and of the critic
    """

    hash: str
    norms: dict[str, float]


def _alike(n_agents: int = 3) -> RandomTeam:
    agents = [f"agent_{index}" for index in range(n_agents)]
    return RandomTeam(dict.fromkeys(agents, spaces.Discrete(3)), length=7, truncate=True)


def _mixed() -> RandomTeam:
    box = spaces.Box(np.array([[-2, 0]], np.float32), np.array([[3, 0.5]], np.float32))
    action_spaces: dict[str, spaces.Space] = {
        "discrete": spaces.Discrete(3, start=2),
        "box": box,
        "multi_discrete": spaces.MultiDiscrete([2, 3]),
        "multi_binary": spaces.MultiBinary(3),
    }
    return RandomTeam(action_spaces, length=9)


def _images() -> RandomTeam:
    agents = ["left", "right"]
    image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    observation_spaces = dict.fromkeys(agents, image)
    return RandomTeam(dict.fromkeys(agents, spaces.Discrete(2)), 5, observation_spaces)


CASES: dict[str, Case] = {
    "plain": Case(_mixed, policy_kwargs=dict(layer_norm=True, activation_fn=th.nn.Tanh)),
    "recurrent": Case(_alike, policy="MlpLstmPolicy", policy_kwargs=dict(lstm_hidden_size=8)),
    "masked": Case(MaskedGame, kwargs=dict(huber_delta=1.0, ent_coef=0.01)),
    "dying": Case(
        lambda: JointEnv(TurnGame(drops_out={"player_1": 2}, truncate=True), state="agent"),
        policy_kwargs=dict(recurrent="gru", lstm_hidden_size=8),
    ),
    "hybrid": Case(HeterogeneousTeam, policy_kwargs=dict(log_std_form="sigmoid")),
    "shared": Case(_alike, policy_kwargs=dict(share_parameters=True, append_agent_id=True)),
    "images": Case(_images, kwargs=dict(normalize_advantage="rollout")),
}
NAMES = [f"{algorithm.__name__}/{case}" for algorithm in ALGORITHMS for case in CASES]


def machine() -> str:
    """
    :return: Versions and processor, which decide the last bits of a result
    """
    processor = platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].partition(":")[2].strip() if names else processor
    capability = th.backends.cpu.get_cpu_capability()
    return f"torch {th.__version__}, numpy {np.__version__}, {processor}, {capability}"


def _fingerprint(module: th.nn.Module) -> str:
    """Hash of a module's tensors as a set, so that renamed and moved tensors stay the same."""
    tensors = [value.detach().contiguous() for value in module.state_dict().values()]
    digests = sorted(hashlib.sha256(value.numpy().tobytes()).hexdigest() for value in tensors)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def trace(name: str) -> Trace:
    """
    Train one team for a few updates.

    :param name: ``"<algorithm>/<case>"``, one of ``NAMES``
    :return: Trace of its parameters
    """
    algorithm_name, _, case_name = name.partition("/")
    (algorithm,) = [one for one in ALGORITHMS if one.__name__ == algorithm_name]
    case = CASES[case_name]
    settings: dict[str, Any] = dict(n_steps=16, batch_size=16, n_epochs=2, seed=7, device="cpu")
    policy_kwargs = {"net_arch": [16], **case.policy_kwargs}
    env = make_joint_vec_env(case.make_env, N_ENVS, seed=7)
    model = algorithm(case.policy, env, policy_kwargs=policy_kwargs, **{**settings, **case.kwargs})
    model.learn(N_UPDATES * N_ENVS * settings["n_steps"])
    env.close()
    norms = {}
    for agent, policy in model.policies.items():
        norms[agent] = th.nn.utils.parameters_to_vector(policy.parameters()).norm().item()
    norms["critic"] = th.nn.utils.parameters_to_vector(model.critic.parameters()).norm().item()
    return Trace(_fingerprint(model.policy), norms)


def read() -> tuple[str, dict[str, Trace]]:
    """
    :return: Machine of the record, and its traces by name
    """
    data = json.loads(RECORD.read_text())
    traces = {name: Trace(one["hash"], one["norms"]) for name, one in data["traces"].items()}
    return data["machine"], traces


def difference(old: Trace, new: Trace) -> float:
    """
    :param old: Recorded trace
    :param new: Trace of the code
    :return: Largest relative difference of a norm; infinity if the teams differ
    """
    if old.norms.keys() != new.norms.keys():
        return float("inf")
    return max(abs(new.norms[key] - norm) / norm for key, norm in old.norms.items())


def _describe(old: Trace | None, new: Trace) -> str:
    if old is None:
        return "new"
    if old.hash == new.hash:
        return "equal"
    largest = difference(old, new)
    kind = "rounding" if largest <= ROUNDING else "CHANGED"
    return f"{kind}, norms differ by {largest:.1e}"


def main() -> int:
    """
    :return: Exit code: 1 if a trace differs from the record by more than rounding
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="write traces.json anew")
    parser.add_argument("names", nargs="*", help="traces to compare, for example HAPPO/plain")
    args = parser.parse_args()
    th.set_num_threads(1)
    recorded_on, old = read() if RECORD.exists() else ("nothing", {})
    here = machine()
    if recorded_on != here:
        print(f"recorded on {recorded_on}; this is {here}: last bits may differ")
    new = {}
    changed = 0
    for name in args.names or NAMES:
        new[name] = trace(name)
        words = _describe(old.get(name), new[name])
        changed += "CHANGED" in words
        print(f"{name:20} {words}", flush=True)
    if args.record:
        data = {name: one._asdict() for name, one in (old | new).items() if name in NAMES}
        record = {"machine": here, "traces": data}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    return int(changed > 0 and not args.record)


if __name__ == "__main__":
    sys.exit(main())
