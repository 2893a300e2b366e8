"""Plain data: every kind of value comes back as it was, and nothing is run or imported."""

import json
import random
from collections import OrderedDict, deque
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.noise import (
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import NatureCNN
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import nn

from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.common.plain_classes import allow_in_files
from sb3_happo.common.plain_data import PlainDataError, Unsaved, from_plain, to_plain
from sb3_happo.common.type_aliases import RNNStates
from sb3_happo.envs.encodings import EncodedBox, EncodedDiscrete, EncodedMultiDiscrete


def round_trip(value: Any, custom_objects: dict[str, Any] | None = None) -> Any:
    plain, tensors = to_plain(value, "value")
    text = json.dumps(plain, allow_nan=False)
    return from_plain(json.loads(text), tensors, "value", custom_objects)


def check_equal(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, np.ndarray):
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)
    elif isinstance(first, th.Tensor):
        assert first.dtype == second.dtype and first.requires_grad == second.requires_grad
        assert th.equal(first.nan_to_num(7), second.nan_to_num(7))
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key, own in first.items():
            check_equal(own, second[key])
    elif isinstance(first, (list, tuple, deque)):
        assert len(first) == len(second)
        for mine, theirs in zip(first, second, strict=True):
            check_equal(mine, theirs)
    elif isinstance(first, float):
        assert repr(first) == repr(second)
    else:
        assert first == second


STRUCTURED = np.array([(1, [2.0, 3.0])], dtype=[("a", np.int64), ("b", np.float32, (2,))])

VALUES: dict[str, Any] = {
    "nothing": None,
    "numbers": [True, 0, -3, 2**70, 0.1, 1e-300, -0.0],
    "infinite": [float("inf"), float("-inf"), float("nan")],
    "complex": 1.5 - 2j,
    "text": "ä \u2028 \x00 $",
    "bytes": b"\x00\xff",
    "tuple": (1, (2, [3, ()])),
    "dict": {"a": 1, "": 2, "a.b": {"c": None}},
    "marker": {"$": "class", "name": "os:system"},
    "keys": {1: "a", (2, 3): "b", None: "c", "1": "d"},
    "ordered": OrderedDict(b=1, a=2),
    "deque": deque([{"r": 1.5, "l": 3}], maxlen=100),
    "unbounded": deque([1]),
    "set": {1, 2},
    "frozen": frozenset(("a",)),
    "slice": slice(1, None, 2),
    "range": range(1, 7, 2),
    "path": Path("a/b"),
    "scalars": [np.float32(0.1), np.float64("nan"), np.int8(-3), np.bool_(True), np.str_("x")],
    "arrays": [np.arange(6.0).reshape(2, 3), np.zeros((0, 3)), np.array(3, np.uint16)],
    "views": [np.arange(10)[::2], np.ones((3, 4), order="F").T, np.arange(4, dtype=">i4") + 1],
    "booleans": np.array([True, False]),
    "half": np.array([1, 2], np.float16),
    "complex array": np.array([1 + 2j, 3]),
    "texts": np.array([["a", "bcd"]]),
    "structured": STRUCTURED,
    "tensors": [th.arange(3), th.tensor(0.5), th.zeros(0, 2), th.ones(2, dtype=th.bfloat16)],
    "complex tensor": th.tensor([1 + 2j]),
    "gradients": th.ones(2, requires_grad=True),
    "bool tensor": th.tensor([[True], [False]]),
    "torch": [th.float64, th.device("cpu"), th.device("cuda", 1)],
    "dtype": np.dtype(np.float32),
    "classes": [nn.ReLU, nn.Tanh, th.optim.Adam, NatureCNN, JointPolicy, np.float32, dict],
    "frequency": TrainFreq(4, TrainFrequencyUnit.STEP),
    "own tuple": RNNStates({"a": th.ones(1)}, None),
}


@pytest.mark.parametrize("name", VALUES)
def test_values_come_back(name: str) -> None:
    value = VALUES[name]
    expected = value
    if name == "views":
        # In the byte order of the machine
        expected = [own.astype(own.dtype.newbyteorder("=")) for own in value]
    check_equal(expected, round_trip(value))


OWN = spaces.Discrete(3, start=2)
SPACES: list[spaces.Space] = [
    spaces.Box(-np.inf, np.inf, (3,)),
    spaces.Box(0, 255, (4, 4, 3), np.uint8),
    spaces.Box(np.array([-1.0, -2.0]), np.array([1.0, np.inf]), dtype=np.float64),
    spaces.Box(-1, 1, ()),
    spaces.Box(0, 1, (0,)),
    spaces.Discrete(5, start=-2),
    spaces.MultiDiscrete(np.array([3, 2]), start=np.array([1, 0])),
    spaces.MultiDiscrete(np.array([[3, 2], [4, 5]])),
    spaces.MultiBinary(4),
    spaces.MultiBinary([2, 3]),
    spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (2,)))),
    spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.Dict(c=spaces.MultiBinary(1)))]),
    spaces.Dict([("agent_10", OWN), ("agent_2", OWN)]),
    spaces.Dict(),
    EncodedBox(spaces.Box(0, 2, ())),
    EncodedBox(spaces.Dict()),
    EncodedDiscrete(OWN),
    EncodedMultiDiscrete(spaces.MultiDiscrete(np.array([[2, 3]]))),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_spaces_come_back(space: Any) -> None:
    again: Any = round_trip(space)
    assert type(again) is type(space) and again == space
    assert again.dtype == space.dtype and again.shape == space.shape
    if isinstance(space, spaces.Dict):
        assert list(again.spaces) == list(space.spaces)
    if isinstance(space, (EncodedBox, EncodedDiscrete, EncodedMultiDiscrete)):
        assert again.own_space == space.own_space


def test_spaces_sample_on() -> None:
    space = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(9))
    space.seed(3)
    space.sample()
    again = round_trip(space)
    for _ in range(3):
        check_equal(space.sample(), again.sample())


def test_other_spaces_are_refused() -> None:
    with pytest.raises(PlainDataError, match=r"value: the space Text.* cannot be saved"):
        to_plain(spaces.Text(3), "value")


def test_schedules_noise_and_statistics() -> None:
    schedule = round_trip(FloatSchedule(LinearSchedule(1e-3, 0.0, 0.5)))
    assert isinstance(schedule.value_schedule, LinearSchedule) and schedule(0.75) == 5e-4
    assert round_trip(ConstantSchedule(0.2))(0.3) == 0.2
    noise = NormalActionNoise(np.zeros(2), np.ones(2))
    for own in (
        noise,
        OrnsteinUhlenbeckActionNoise(np.zeros(2), np.ones(2)),
        VectorizedActionNoise(noise, 3),
    ):
        again = round_trip(own)
        np.random.seed(1)
        expected = own()
        np.random.seed(1)
        check_equal(expected, again())
    statistics = RunningMeanStd(shape=(2,))
    statistics.update(np.arange(6.0).reshape(3, 2))
    again = round_trip(statistics)
    check_equal(vars(statistics), vars(again))


def test_generators_go_on() -> None:
    generator = np.random.default_rng(3)
    old = np.random.RandomState(4)
    python = random.Random(5)
    of_torch = th.Generator()
    of_torch.manual_seed(6)
    for own in (generator, old, python):
        own.random()
        again = round_trip(own)
        assert type(again) is type(own) and again.random() == own.random()
    again = round_trip(of_torch)
    assert th.equal(th.rand(3, generator=again), th.rand(3, generator=of_torch))
    for kind in (np.random.MT19937, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM):
        generator = np.random.Generator(kind(1))
        assert round_trip(generator).random() == generator.random()
    state = round_trip(np.random.get_state())
    expected = np.random.random()
    np.random.set_state(state)
    assert np.random.random() == expected


def test_tensors_are_named_by_their_place_and_stored_once() -> None:
    weight = th.ones(3)
    value = {"policy": {"a.w": weight, "b": [weight, np.zeros(2)]}, "policy.a": {"w": th.ones(1)}}
    plain, tensors = to_plain(value, "m")
    assert set(tensors) == {"m.policy.a.w", "m.policy.b.1", "m.policy.a.w#2"}
    again = from_plain(plain, tensors, "m")
    check_equal(value, again)
    again["policy"]["a.w"][0] = 5.0
    assert again["policy"]["b"][0][0] == 1.0, "values of their own"


class Extractor(nn.Module):
    pass


def schedule_of_user(progress: float) -> float:
    return 0.1 * progress


class ScheduleOfUser:
    def __init__(self, start: float) -> None:
        self.start = start

    def __call__(self, progress: float) -> float:
        return self.start * progress


@dataclass
class Settings:
    size: int


def test_own_classes_are_named_and_never_imported() -> None:
    unsaved: list[Unsaved] = []
    plain, _ = to_plain({"extractor": Extractor, "rate": schedule_of_user}, "kwargs", unsaved)
    name = f"{__name__}:Extractor"
    assert plain["extractor"] == {"$": "class", "name": name}
    assert unsaved == [
        Unsaved("kwargs.extractor", f"the class {name}", named=True),
        Unsaved("kwargs.rate", f"the function {__name__}:schedule_of_user", named=True),
    ]
    with pytest.raises(PlainDataError, match=r"kwargs\.extractor.*custom_objects=\{'Extractor'"):
        from_plain(plain, {}, "kwargs")
    for key in (name, "Extractor"):
        given = {key: Extractor, "schedule_of_user": schedule_of_user}
        assert from_plain(plain, {}, "kwargs", given)["extractor"] is Extractor
    evil = {"$": "class", "name": "this.module.does.not:Exist"}
    with pytest.raises(PlainDataError, match=r"does\.not:Exist"):
        from_plain(evil, {})


def test_allowed_classes_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_happo.common.plain_classes._ADDED", {})
    with pytest.raises(PlainDataError, match=r"an object of the class .*ScheduleOfUser"):
        to_plain(ScheduleOfUser(0.5), "rate")
    assert allow_in_files(ScheduleOfUser, schedule_of_user, Settings) is ScheduleOfUser
    assert round_trip(ScheduleOfUser(0.5))(0.5) == 0.25
    assert round_trip(schedule_of_user) is schedule_of_user
    assert round_trip(Settings(3)) == Settings(3)
    with pytest.raises(TypeError, match="takes classes and functions"):
        allow_in_files("os:system")


def test_what_cannot_be_saved_is_named() -> None:
    class Local(nn.Module):
        pass

    value = {"a": {"rate": lambda progress: 1.0}, "o": object(), "local": Local, "f": max}
    for key, words in (("a", "v.a.rate: the function .*lambda"), ("o", "v.o: an object of")):
        with pytest.raises(PlainDataError, match=words):
            to_plain({key: value[key]}, "v")
    unsaved: list[Unsaved] = []
    plain, _ = to_plain(value, "v", unsaved)
    assert [own.path for own in unsaved] == ["v.a.rate", "v.o", "v.local", "v.f"]
    assert [own.named for own in unsaved] == [False, False, True, False]
    with pytest.raises(PlainDataError, match=r"v\.a\.rate: the file does not hold the function"):
        from_plain(plain, {}, "v")
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(PlainDataError, match="nested more than"):
        to_plain(nested, "v")


CRAFTED: dict[str, Any] = {
    "unknown kind": {"$": "reduce", "name": "os:system"},
    "private method": {"$": "inside", "name": "x"},
    "no kind": {"$": ["class"]},
    "function of Python": {"$": "function", "name": "os:system"},
    "builtin": {"$": "function", "name": "builtins:eval"},
    "class of Python": {"$": "class", "name": "subprocess:Popen"},
    "object": {"$": "object", "class": "subprocess:Popen", "state": {}},
    "object of a class": {"$": "object", "class": "torch.nn.modules.activation:ReLU", "state": {}},
    "module of the package": {"$": "class", "name": "sb3_happo.envs.joint_env:JointEnv"},
    "function of the package": {"$": "function", "name": "sb3_happo.envs.make:make_joint_env"},
    "imported by the package": {"$": "class", "name": "sb3_happo.common.joint_policy:Any"},
    "missing part": {"$": "tuple"},
    "tuple of nothing": {"$": "tuple", "items": 5},
    "missing tensor": {"$": "tensor", "name": "x"},
    "huge box": {
        "$": "space",
        "type": "Box",
        "low": 0,
        "high": 1,
        "shape": [10**6, 10**6],
        "dtype": "f4",
    },
    "huge bits": {"$": "space", "type": "MultiBinary", "n": 10**12},
    "other space": {"$": "space", "type": "Space"},
    "no space": {"$": "space", "type": "Dict", "spaces": [["a", 3]]},
    "objects": {"$": "scalar", "dtype": "object", "value": 3},
    "generator": {"$": "generator", "state": {"bit_generator": "__dir__"}},
    "torch": {"$": "torch_dtype", "name": "load"},
    "unhashable key": {"$": "dict", "ordered": False, "items": [[[1], 2]]},
    "arguments": {
        "$": "namedtuple",
        "class": "sb3_happo.common.type_aliases:RNNStates",
        "fields": {"x": 1},
    },
}


@pytest.mark.parametrize("name", CRAFTED)
def test_crafted_data_is_refused(name: str) -> None:
    with pytest.raises(PlainDataError, match=r"^place"):
        from_plain(CRAFTED[name], {}, "place")


def test_read_only_mappings() -> None:
    assert round_trip(MappingProxyType({"a": 1})) == {"a": 1}


def test_deep_data_is_refused() -> None:
    plain: Any = []
    for _ in range(500):
        plain = [plain]
    with pytest.raises(PlainDataError, match="nested"):
        from_plain(plain, {}, "place")
