"""Exported policies act as ``predict`` does; a folder needs ONNX Runtime and NumPy alone."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from torch import nn

from sb3_happo import HAPPO, JointEnv
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.export import ExportError, export
from sb3_happo.common.export.check import Arrays, Reference, check_export
from sb3_happo.common.export.formats import onnx_run, require_onnx, torch_run
from sb3_happo.common.export.network import ExportedPolicy
from sb3_happo.common.export.normalization import find_normalization
from sb3_happo.common.export.samples import draw_inputs
from sb3_happo.common.export.signature import Signature, signature_of
from sb3_happo.envs.encodings import encoded_space
from sb3_happo.vec_env.normalize import VecNormalizeTeam
from tests.algorithms import SMALL, same, small, snapshot
from tests.envs import RandomTeam

try:
    require_onnx()
    HAS_ONNX = True
except ImportError:
    HAS_ONNX = False
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="needs the extra 'export'")

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
BOX = spaces.Box(np.array([-2, 0], np.float32), np.array([3, 500], np.float32))
HYBRID = spaces.Dict(
    [
        ("turn", spaces.Discrete(3, start=5)),
        ("move", spaces.Tuple([spaces.Box(-1, 1, (2,), np.float32), spaces.MultiDiscrete([2, 3])])),
        ("lights", spaces.MultiBinary(2)),
        ("zoom", spaces.Box(0, 10, (1,), np.float64)),
    ]
)
CHOICES = spaces.Dict([("turn", spaces.Discrete(3, start=5)), ("lights", spaces.MultiBinary(2))])
#: Every kind of entry that a joint observation may have, with keys that are no Python names
DICT = spaces.Dict(
    [
        ("position", encoded_space(spaces.Box(-5, 5, (2,), np.float64))),
        ("arm/0", encoded_space(spaces.Discrete(4, start=3))),
        ("type", encoded_space(spaces.Box(-1, np.inf, (), np.float32))),
        ("bits", spaces.MultiBinary((2, 3))),
        (
            "grid",
            encoded_space(
                spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[1, 1], [1, 0]]))
            ),
        ),
        ("x.y", encoded_space(spaces.Box(0, 1, (0,)))),
        ("counts", spaces.Box(-3, 9, (2,), np.int32)),
    ]
)
IMAGE = spaces.Box(0, 255, (3, 40, 40), np.uint8)
SMALL_IMAGE = spaces.Box(0, 255, (3, 8, 8), np.uint8)
LSTM: dict[str, Any] = dict(recurrent="lstm", lstm_hidden_size=8)
GRU: dict[str, Any] = dict(recurrent="gru", lstm_hidden_size=8, n_lstm_layers=2)


def make_policy(
    space: spaces.Space, observation_space: spaces.Space = VECTOR, **kwargs: Any
) -> AgentPolicy:
    """An untrained policy whose actions differ from one observation to the next."""
    return AgentPolicy(
        observation_space, space, lambda _: 1e-3, **{"net_arch": [8], "output_gain": 1.0, **kwargs}
    )


def normalised_env(observation_spaces: dict[str, spaces.Space], **kwargs: Any) -> VecNormalizeTeam:
    """A team of drones behind ``VecNormalize``, whose statistics are far from 0 and 1."""

    def make() -> JointEnv:
        team = dict.fromkeys(observation_spaces, HYBRID)
        return JointEnv(RandomTeam(team, observation_spaces=observation_spaces))

    env = VecNormalizeTeam(DummyVecEnv([make] * 2), training=False, **kwargs)
    env.reset()
    for index, rms in enumerate(env.obs_rms.values()):
        rms.mean += 50.0 * index + np.arange(rms.mean.size, dtype=float).reshape(rms.mean.shape)
        rms.var *= 0.3 + index
    return env


# ---------------------------------------------------------------- every kind of agent

CASES: dict[str, Callable[[], AgentPolicy]] = {
    "discrete": lambda: make_policy(spaces.Discrete(3, start=2)),
    "one option": lambda: make_policy(spaces.Discrete(1), masked=True),
    "multi_discrete": lambda: make_policy(
        spaces.MultiDiscrete(np.array([[2, 3], [2, 2]]), start=np.array([[1, 0], [0, 5]])),
        masked=True,
    ),
    "multi_binary": lambda: make_policy(spaces.MultiBinary((2, 2))),
    "box": lambda: make_policy(BOX, layer_norm=True, input_layer_norm=True),
    "box of numbers": lambda: make_policy(spaces.Box(-1, 2, (), np.float32)),
    "box without bounds": lambda: make_policy(
        spaces.Box(-np.inf, np.inf, (2, 2), np.float32), rescale_actions=False
    ),
    "box of float64": lambda: make_policy(spaces.Box(-0.1, 0.7, (2,), np.float64)),
    "box of float16": lambda: make_policy(spaces.Box(-1, 1, (2,), np.float16)),
    "box of integers": lambda: make_policy(spaces.Box(-30, 90, (2,), np.int32)),
    "sigmoid deviations": lambda: make_policy(BOX, log_std_form="sigmoid"),
    "hybrid, masked": lambda: make_policy(HYBRID, masked=True),
    "squashed": lambda: make_policy(HYBRID, head="squashed"),
    "squashed, masked": lambda: make_policy(HYBRID, head="squashed", masked=True),
    "deterministic": lambda: make_policy(HYBRID, head="deterministic", masked=True),
    "greedy": lambda: make_policy(CHOICES, head="greedy", masked=True),
    "dict": lambda: make_policy(HYBRID, DICT),
    "dict, shared, lstm": lambda: make_policy(
        HYBRID, DICT, masked=True, agent_id=(1, 3), **LSTM, input_layer_norm=True
    ),
    "discrete observation": lambda: make_policy(BOX, encoded_space(spaces.Discrete(5, start=2))),
    "grid observation": lambda: make_policy(
        BOX, encoded_space(spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])))
    ),
    "bits observation": lambda: make_policy(BOX, spaces.MultiBinary((2, 3))),
    "nothing to observe": lambda: make_policy(BOX, encoded_space(spaces.Box(0, 1, (0,)))),
    "wide bounds": lambda: make_policy(BOX, spaces.Box(-3.4e38, 3.4e38, (4,), np.float32)),
    "uint16": lambda: make_policy(BOX, spaces.Box(0, 60_000, (4,), np.uint16)),
    "image": lambda: make_policy(BOX, IMAGE, net_arch=None),
    "image as it is": lambda: make_policy(BOX, IMAGE, normalize_images=False),
    "small image": lambda: make_policy(BOX, SMALL_IMAGE),
    "images in a dict": lambda: make_policy(
        BOX, spaces.Dict([("camera", IMAGE), ("map", SMALL_IMAGE), ("speed", VECTOR)])
    ),
    "shared": lambda: make_policy(BOX, agent_id=(2, 3)),
    "lstm": lambda: make_policy(BOX, **LSTM, n_lstm_layers=2, lstm_kwargs=dict(dropout=0.5)),
    "gru": lambda: make_policy(BOX, **GRU, agent_id=(0, 2), lstm_kwargs=dict(bias=False)),
    "tanh": lambda: make_policy(BOX, activation_fn=nn.Tanh, net_arch=[]),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Images of the shapes")
@pytest.mark.parametrize("format", [pytest.param("onnx", marks=needs_onnx), "torch"])
@pytest.mark.parametrize("case", CASES)
def test_every_kind_of_agent(case: str, format: Any, tmp_path: Path) -> None:
    th.manual_seed(0)
    result = export(CASES[case](), tmp_path / "agent", format)
    assert result.n_observations == 1000
    assert result.largest_difference <= 1e-5
    (path,) = tmp_path.iterdir()
    assert path.name == ("agent.onnx" if format == "onnx" else "agent.pt2")


def test_images(tmp_path: Path) -> None:
    """The policy itself stays as it is."""
    th.manual_seed(0)
    policy = CASES["image"]()
    policy.set_training_mode(True)
    before = snapshot(policy)
    assert export(policy, tmp_path / "agent", "torch").largest_difference <= 1e-5
    assert policy.training
    assert same(snapshot(policy), before)
    policy(th.zeros(2, *IMAGE.shape))[1].sum().backward()
    policy.optimizer.step()


@needs_onnx
def test_masks_and_memory_in_onnx(tmp_path: Path) -> None:
    """
    Hidden states are inputs and outputs, and an episode in batches is that of ``predict``. The file
    describes itself.
    """
    import onnx

    th.manual_seed(0)
    policy = make_policy(spaces.MultiDiscrete([2, 3]), masked=True, agent_id=(1, 3), **LSTM)
    policy.export_onnx(str(tmp_path / "agent"), agent="walker")
    model = onnx.load(tmp_path / "agent.onnx")
    sizes = [
        value.type.tensor_type.shape.dim for value in (*model.graph.input, *model.graph.output)
    ]
    assert [[dim.dim_param or dim.dim_value for dim in own] for own in sizes] == [
        *(["batch", 3], ["batch", 5], [1, "batch", 8], [1, "batch", 8]),
        *(["batch", 2], [1, "batch", 8], [1, "batch", 8]),
    ]
    card = json.loads(model.metadata_props[0].value)
    assert card["agent"] == "walker"
    assert card["outputs"][0]["space"]["nvec"] == [2, 3]
    run = onnx_run((tmp_path / "agent.onnx").read_bytes())
    rng = np.random.default_rng(0)
    for n in (1, 3):
        after: Any = None
        states = {name: np.zeros((1, n, 8), np.float32) for name in ("hidden_state", "cell_state")}
        for _ in range(4):
            obs = rng.normal(size=(n, 3)).astype(np.float32)
            masks = np.tile(np.array([1, 0, 0, 1, 1], np.int8), (n, 1))
            expected, after = policy.predict(obs, after, deterministic=True, action_masks=masks)
            outputs = run({"observation": obs, "action_mask": masks, **states})
            assert np.array_equal(outputs["action"], expected)
            for name, state in zip(states, after, strict=True):
                states[name] = outputs[f"next_{name}"]
                assert np.allclose(states[name], state, atol=1e-6)


# ---------------------------------------------------------------- a folder for a robot

ROBOT = """
import json, pathlib, sys
for name in ("torch", "sb3_happo", "stable_baselines3", "gymnasium", "onnx", "onnxscript"):
    sys.modules[name] = None  # importing it fails
sys.path.insert(0, sys.argv[1])
import numpy as np
from run import Agent
agent = Agent()
agent.check()
actions = []
for index, position in enumerate(json.loads(sys.argv[2])):
    if index == 3:
        agent.reset()
    action = agent.act({"position": position, "mode": 2 + index % 3})
    actions.append({key: value.tolist() for key, value in action.items()})
print(json.dumps(actions))
"""


@pytest.fixture(scope="module")
def team() -> HAPPO:
    """Recurrent agents with Dict observations and hybrid actions, behind ``VecNormalize``."""
    own = spaces.Dict(
        [("position", spaces.Box(-9, 9, (2,), np.float64)), ("mode", spaces.Discrete(3, start=2))]
    )
    env = normalised_env({"drone/1": own, "drone/2": own})
    return small(HAPPO, env, policy_kwargs=dict(**GRU, output_gain=1.0), seed=0)


@pytest.fixture(scope="module")
def robot(team: HAPPO, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the second drone."""
    folder = tmp_path_factory.mktemp("export") / "robot"
    folder.mkdir()
    (folder / "card.json").write_text("of an earlier export")
    policy = team.policies["drone/2"]
    policy.export_folder(folder, team.get_vec_normalize_env(), units={"action/zoom": "mm"})
    return folder


def run_robot(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *args], cwd=folder, env=environment, capture_output=True, text=True
    )


@needs_onnx
def test_the_robot_needs_onnx_runtime_and_numpy_alone(team: HAPPO, robot: Path) -> None:
    positions = np.random.default_rng(0).normal(50, 3, (6, 2)).astype(np.float32)
    done = run_robot(robot.parent, "-c", ROBOT, str(robot), json.dumps(positions.tolist()))
    assert done.returncode == 0, done.stderr
    normalizer, state = team.get_vec_normalize_env(), None
    assert normalizer is not None
    assert isinstance(team.observation_space, spaces.Dict)
    policy = team.policies["drone/2"]
    for index, action in enumerate(json.loads(done.stdout)):
        joint = {key: np.zeros(part.shape or ()) for key, part in team.observation_space.items()}
        joint["drone/2/position"] = positions[index]
        position = normalizer.normalize_obs(joint)["drone/2/position"]
        own = {"position": position, "mode": 2 + index % 3}
        state = None if index == 3 else state
        expected, state = policy.predict(own, state, deterministic=True)
        assert action["turn"] == expected["turn"]
        assert action["lights"] == expected["lights"].tolist()
        assert action["move/1"] == expected["move"][1].tolist()
        assert np.allclose(action["move/0"], expected["move"][0], atol=1e-5)
        assert np.allclose(action["zoom"], expected["zoom"], atol=1e-5)


@needs_onnx
def test_the_card(team: HAPPO, robot: Path) -> None:
    card = json.loads((robot / "card.json").read_text())
    assert card["agent"] == "drone/2"
    assert card["recurrent"] == "gru"
    assert [entry["name"] for entry in card["inputs"]] == [
        "observation/position",
        "observation/mode",
        "hidden_state",
    ]
    assert card["inputs"][1]["space"] == {
        "class": "Discrete",
        "dtype": "int64",
        "n": 3,
        "start": 2,
    }
    assert [entry["name"] for entry in card["outputs"]] == [
        "action/turn",
        "action/move/0",
        "action/move/1",
        "action/lights",
        "action/zoom",
        "next_hidden_state",
    ]
    zoom = card["outputs"][4]
    assert zoom["units"] == "mm"
    assert (zoom["space"]["low"], zoom["space"]["high"]) == (0.0, 10.0)
    normalization = card["normalization"]["inputs"]["observation/position"]
    statistics = team.get_vec_normalize_env().obs_rms["drone/2/position"]  # type: ignore
    assert normalization["mean"] == statistics.mean.tolist()
    assert card["versions"]["torch"] == th.__version__
    assert card["check"]["n_observations"] == 1000
    for name in ("policy.onnx", "run.py", "examples.npz"):
        assert card["sha256"][name] == hashlib.sha256((robot / name).read_bytes()).hexdigest()
    assert sorted(path.name for path in robot.parent.iterdir()) == ["robot"]


@needs_onnx
def test_the_script_is_short_and_finds_damage(robot: Path, tmp_path: Path) -> None:
    code = (robot / "run.py").read_text().split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) < 60
    copied = tmp_path / "copy"
    copied.mkdir()
    for path in robot.iterdir():
        (copied / path.name).write_bytes(path.read_bytes())
    done = run_robot(copied, "run.py")
    assert done.returncode == 0 and "the same" in done.stdout, done.stderr
    content = bytearray((copied / "policy.onnx").read_bytes())
    content[-1] ^= 1
    (copied / "policy.onnx").write_bytes(content)
    done = run_robot(copied, "run.py")
    assert done.returncode == 1 and "policy.onnx has changed since the export" in done.stderr


@needs_onnx
def test_a_folder_replaces_nothing_but_an_export(tmp_path: Path) -> None:
    policy = make_policy(spaces.Discrete(2))
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(FileExistsError, match=r"holds other files \(thesis.txt\)"):
        policy.export_folder(tmp_path)
    with pytest.raises(FileExistsError, match="is a file, not a folder"):
        policy.export_folder(tmp_path / "thesis.txt")


# ---------------------------------------------------------------- normalisation


def test_clipping_and_epsilon_of_the_normaliser(tmp_path: Path) -> None:
    env = normalised_env({"left": VECTOR, "right": VECTOR}, clip_obs=0.5, epsilon=0.1)
    policy = make_policy(BOX, VECTOR)
    export(policy, tmp_path / "agent", "torch", env, agent="right")
    joint = {key: np.zeros(part.shape or ()) for key, part in env.observation_space.items()}  # type: ignore
    joint["right"] = np.array([50.9, 51.1, 49.0], np.float32)
    normalised = env.normalize_obs(joint)["right"]
    assert set(np.abs(normalised) == 0.5) == {False, True}
    expected, _ = policy.predict(normalised, deterministic=True)
    run = torch_run((tmp_path / "agent.pt2").read_bytes(), signature_of(policy))
    assert np.allclose(run({"observation": joint["right"][None]})["action"], expected, rtol=1e-5)


def test_observations_that_are_not_normalised() -> None:
    policy = make_policy(BOX, VECTOR)
    env = normalised_env({"left": VECTOR, "right": VECTOR}, norm_obs_keys=["left"])
    assert find_normalization(policy, env, "right") is None
    found = find_normalization(policy, env, "left")
    assert found is not None and found.keys == {"": "left"}
    env.norm_obs = False
    assert find_normalization(policy, env, "left") is None
    assert find_normalization(policy, None) is None


def test_normalisation_of_large_means_is_exact(tmp_path: Path) -> None:
    """In float32 the mean would round by more than the deviation."""
    env = normalised_env({"right": spaces.Box(-np.inf, np.inf, (3,), np.float32)})
    env.obs_rms["right"].mean[:] = 1e6 + 0.01
    env.obs_rms["right"].var[:] = 0.01
    policy = make_policy(BOX, env.observation_space["right"])  # type: ignore[index]
    assert export(policy, tmp_path / "a", "torch", env).largest_difference < 1e-6


def test_statistics_are_found_by_the_agents_name(team: HAPPO, tmp_path: Path) -> None:
    """It is part of the agent's file. A wrapper around the normaliser will do."""
    team.policies["drone/1"].save(tmp_path / "agent.zip")
    loaded = AgentPolicy.load(tmp_path / "agent.zip", device="cpu")
    assert loaded.agent_name == "drone/1"
    found = find_normalization(loaded, VecMonitor(team.get_vec_normalize_env()))  # type: ignore[arg-type]
    assert found is not None and found.keys == {"position": "drone/1/position"}
    # As in an earlier file
    loaded.agent_name = None
    with pytest.raises(ValueError, match="pass `agent=`"):
        find_normalization(loaded, team.env)
    found = find_normalization(loaded, team.env, "drone/2")
    assert found is not None and found.keys == {"position": "drone/2/position"}


def test_normaliser_of_a_single_agent(tmp_path: Path) -> None:
    """The entries of a team of one do not bear the agent's name."""
    import gymnasium as gym

    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    model = HAPPO("MlpPolicy", env, **SMALL)
    (policy,) = model.policies.values()
    with pytest.raises(ValueError, match="made for observations in Box"):
        export(make_policy(BOX, DICT), tmp_path / "b", "torch", env)
    env.obs_rms.mean += 3.0  # type: ignore[attr-defined]
    normalizer = model.get_vec_normalize_env()
    assert export(policy, tmp_path / "a", "torch", normalizer).n_observations == 1000


def test_wrong_normalisers_are_named(tmp_path: Path) -> None:
    path = tmp_path / "agent"
    env = normalised_env({"left": VECTOR, "right": VECTOR, "up": BOX})
    policy = make_policy(BOX, env.observation_space["right"])  # type: ignore[index]
    with pytest.raises(ValueError, match=r"observations of \['left', 'right'\] .* pass `agent=`"):
        export(policy, path, "torch", env)
    with pytest.raises(ValueError, match=r"no observation of an agent 'rihgt'.*'right'"):
        export(policy, path, "torch", env, agent="rihgt")
    with pytest.raises(ValueError, match=r"have the shape \(2,\), .* observes the shape \(3,\)"):
        export(policy, path, "torch", env, agent="up")
    with pytest.raises(ValueError, match="No observation in the normaliser fits"):
        export(make_policy(BOX, DICT), path, "torch", env)
    for wrong in ("vecnormalize.pkl", env.venv):
        with pytest.raises(TypeError, match="not a VecNormalize"):
            export(policy, path, "torch", wrong)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- what is refused


class Stubborn(AgentPolicy):
    """A policy whose decision is not that of its network alone."""

    def step(self, *args: Any, **kwargs: Any) -> Any:
        step = super().step(*args, **kwargs)
        return step._replace(actions=-step.actions)


class Branching(nn.Module):
    """An activation that PyTorch cannot trace."""

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x if x.sum() > 0 else -x


def test_a_file_that_acts_otherwise_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "agent.pt2"
    path.write_text("before")
    policy = Stubborn(VECTOR, BOX, lambda _: 1e-3, net_arch=[8], output_gain=1.0)
    with pytest.raises(ExportError, match="was not written: its output 'action' differs"):
        export(policy, path, "torch")
    assert path.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_module_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    policy = make_policy(BOX, activation_fn=Branching)
    with pytest.raises(ExportError, match=r"cannot be exported: .*its activation .*Branching"):
        export(policy, tmp_path / "agent", "torch")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    policy = make_policy(BOX)
    nn.init.constant_(policy.head.weight, np.nan)
    with pytest.raises(ExportError, match=r"head\.weight"):
        export(policy, tmp_path / "agent", "torch")


def test_wrong_arguments_are_named(team: HAPPO, tmp_path: Path) -> None:
    policy, path = make_policy(BOX), tmp_path / "agent"
    with pytest.raises(ValueError, match=r"Unknown format 'onx'.*Did you mean 'onnx'"):
        export(policy, path, "onx")  # type: ignore[arg-type]
    for whole in (team, team.policy):
        with pytest.raises(TypeError, match=r"whole team.*pass `.policies\['drone/1'\]`"):
            export(whole, path)
    with pytest.raises(TypeError, match="Cannot export a str; pass the policy of one agent"):
        export("agent.zip", path)
    with pytest.raises(ValueError, match="tolerance must be positive"):
        export(policy, path, "torch", tolerance=0)
    with pytest.raises(ValueError, match=r"units knows no 'actoin'. Did you mean 'action'\?"):
        export(policy, path, "torch", units={"actoin": "m"})
    with pytest.raises(ValueError, match="has 3 units for 2 numbers"):
        export(policy, path, "torch", units={"action": ["m", "m", "m"]})
    with pytest.raises(IsADirectoryError, match='format="folder"'):
        export(policy, tmp_path / ".", "torch")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    policy = make_policy(BOX)
    for call in (policy.export_onnx, policy.export_folder):
        with pytest.raises(ImportError, match=r"pip install 'sb3_happo\[export\]'"):
            call(tmp_path / "agent")
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_policies_on_an_accelerator(tmp_path: Path) -> None:
    policy = make_policy(HYBRID, masked=True, agent_id=(1, 2), **LSTM).to("cuda")
    assert export(policy, tmp_path / "agent", "torch").largest_difference <= 1e-5
    assert policy.device.type == "cuda"


# ---------------------------------------------------------------- the comparison


def changed(
    policy: AgentPolicy, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> tuple[Callable[[Arrays], Arrays], Reference, Arrays]:
    """Arguments of ``check_export`` for a file whose output differs."""
    signature: Signature = ExportedPolicy(policy, {}).signature
    reference = Reference(policy, signature, None)

    def run(inputs: Arrays) -> Arrays:
        outputs = reference(inputs)
        return outputs | {name: change(outputs[name])}

    return run, reference, draw_inputs(policy, signature, {}, 100)


@pytest.mark.parametrize("space", [BOX, spaces.Box(-1, 1, (2,), np.float32)], ids=str)
def test_numbers_are_compared_relative_to_their_bounds(space: spaces.Box) -> None:
    policy = make_policy(space)
    scale = np.maximum(np.abs(space.low), np.abs(space.high))
    arguments = changed(policy, "action", lambda action: action + 0.8e-5 * scale)
    assert 0.5e-5 < check_export(*arguments, 1e-5, "file").largest_difference <= 1e-5
    arguments = changed(policy, "action", lambda action: action + np.float32(1.5e-5) * scale)
    with pytest.raises(ExportError, match="for 100 of 100 observations"):
        check_export(*arguments, 1e-5, "file")


def test_equal_options_are_a_tie_and_others_are_not() -> None:
    policy = make_policy(spaces.Discrete(3, start=2))
    nn.init.zeros_(policy.head.weight)
    with th.no_grad():
        policy.head.bias.copy_(th.tensor([1.0, 1.0 + 1e-6, 0.9]))
    arguments = changed(policy, "action", lambda action: action - 1)  # from 3 to 2
    assert check_export(*arguments, 1e-5, "file").n_ties == 100
    for step in (1, 5, -2):  # to the third option, and to none
        arguments = changed(policy, "action", partial(np.add, step))
        with pytest.raises(ExportError, match="differs from `predict`"):
            check_export(*arguments, 1e-5, "file")


def test_bits_are_a_tie_near_zero() -> None:
    policy = make_policy(spaces.MultiBinary(2))
    nn.init.zeros_(policy.head.weight)
    for bias, is_tie in ((1e-6, True), (1e-3, False)):
        nn.init.constant_(policy.head.bias, bias)
        arguments = changed(policy, "action", lambda action: 1 - action)
        if is_tie:
            assert check_export(*arguments, 1e-5, "file").n_ties == 200
        else:
            with pytest.raises(ExportError):
                check_export(*arguments, 1e-5, "file")


def test_an_illegal_option_is_no_tie() -> None:
    policy = make_policy(spaces.Discrete(2), masked=True)
    nn.init.zeros_(policy.head.weight)
    nn.init.zeros_(policy.head.bias)
    run, reference, inputs = changed(policy, "action", lambda action: 1 - action)
    inputs["action_mask"][:] = [1, 0]
    with pytest.raises(ExportError):
        check_export(run, reference, inputs, 1e-5, "file")


def test_recurrent_states_are_compared() -> None:
    arguments = changed(make_policy(BOX, **GRU), "next_hidden_state", lambda state: state + 1e-3)
    with pytest.raises(ExportError, match=r"'next_hidden_state' differs .* for 100 of 100"):
        check_export(*arguments, 1e-5, "file")


def test_random_masks_leave_a_choice() -> None:
    policy = make_policy(HYBRID, masked=True)
    masks = draw_inputs(policy, signature_of(policy), {}, 500)["action_mask"]
    assert not len(policy.masks.rows_without_choice(masks))
    assert 0.3 < masks.mean() < 0.9


# ---------------------------------------------------------------- command line


def test_command_line(team: HAPPO, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The statistics beside a model are found; those that are wanted and missing are an error."""
    main = pytest.importorskip("sb3_happo_zoo.export").main
    team.save(tmp_path / "model.zip")
    normalizer = team.get_vec_normalize_env()
    assert normalizer is not None
    normalizer.save(str(tmp_path / "vecnormalize.pkl"))
    model, out = str(tmp_path / "model.zip"), tmp_path / "out" / "agent.pt2"
    torch_file = ["--out", str(out), "--format", "torch"]
    main([model, "--agent", "drone/2", *torch_file])
    assert "that of" in capsys.readouterr().out
    card: dict[str, Any] = {"sb3_happo": ""}
    th.export.load(out, extra_files=card)
    assert json.loads(card["sb3_happo"])["normalization"]["inputs"]["observation/position"][
        "key"
    ] == ("drone/2/position")
    team.policies["drone/1"].save(tmp_path / "agent.zip")
    for arguments, error in (
        ([model], "agents 'drone/1', 'drone/2'; choose one with --agent"),
        ([model, "--agent", "drone/3"], "no agent 'drone/3'. Did you mean"),
        ([str(tmp_path / "no.zip")], "There is no file"),
        ([str(tmp_path / "vecnormalize.pkl")], "pass a model or an agent's policy"),
        ([str(tmp_path)], "is no folder of a run"),
        ([str(tmp_path / "agent.zip")], "pass the file of the model"),
        ([model, "--agent", "drone/1", "--normalizer", "no.pkl"], "There are no statistics no.pkl"),
    ):
        with pytest.raises(SystemExit):
            main([*arguments, *torch_file])
        assert error in capsys.readouterr().err
