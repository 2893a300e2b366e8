"""Folders of runs and settings that were made to run code: nothing in them is run."""

import importlib
import os
import pickle
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from stable_baselines3.common.utils import LinearSchedule
from torch import nn, optim

pytest.importorskip("rl_zoo3")
pytest.importorskip("mpe2")

from sb3_happo.common.safe_files import read_manifest
from sb3_happo_zoo.convert import convert_folder, main
from sb3_happo_zoo.expressions import evaluate_safely
from sb3_happo_zoo.run_folder import read_yaml, write_yaml
from sb3_happo_zoo.trained_agents import load_agent

SHIPPED = Path(__file__).parents[1] / "zoo" / "agents" / "happo"
SPREAD = "mpe2-simple_spread_v3"


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def train() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.train")


@pytest.fixture
def enjoy() -> ModuleType:
    return importlib.import_module("sb3_happo_zoo.enjoy")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a shipped run, in a folder from which a module would be imported."""
    monkeypatch.chdir(tmp_path)
    mark = tmp_path / "mark"
    Path("evil_module.py").write_text(
        f"import os\nos.mkdir({str(mark)!r})\ndef wrap(env): return env\n"
    )
    folder = tmp_path / "logs" / "happo" / f"{SPREAD}_1"
    shutil.copytree(SHIPPED / f"{SPREAD}_1", folder)
    return folder


EXPRESSIONS = (
    "__import__('os').mkdir({mark!r})",
    "(lambda: __import__('os').mkdir({mark!r}))()",
    "[x for x in ().__class__.__base__.__subclasses__() if x.__name__ == 'Popen']",
    "dict(a=exec('import os; os.mkdir({mark!r})'))",
    "th.load({mark!r})",
    "nn.Module.__init__.__globals__['os'].mkdir({mark!r})",
    "partial(open, {mark!r}, 'w')()",
    "th.hub.load({mark!r}, 'x')",
    "f'{{__import__(\"os\").mkdir({mark!r})}}'",
    "(9**9**9)",
    "dict(a=[0] * 10**12)",
    "(" * 5000 + ")" * 5000,
)


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=range(len(EXPRESSIONS)))
def test_expressions_are_not_run(
    expression: str, run: Path, tmp_path: Path, train: ModuleType, capsys: Any
) -> None:
    mark = tmp_path / "mark"
    text = expression.replace("{mark!r}", repr(str(mark))).replace("{{", "{").replace("}}", "}")
    with pytest.raises(ValueError):
        evaluate_safely(text)
    config = run / SPREAD / "config.yml"
    entry = read_yaml(config)
    for key in ("policy_kwargs", "learning_rate", "normalize", "joint_kwargs"):
        write_yaml(config, entry | {key: text})
        with pytest.raises(ValueError, match=key):
            load_agent(run)
    Path("settings.yml").write_text(
        yaml.safe_dump({"mpe2/simple_spread_v3": entry | {"gamma": text}})
    )
    with pytest.raises(SystemExit):
        train.main(["--env", "mpe2/simple_spread_v3", "-conf", "settings.yml", "-n", "100"])
    assert "gamma" in capsys.readouterr().err
    assert not mark.exists()


def test_expressions_of_settings() -> None:
    value = evaluate_safely(
        "dict(net_arch=[64, 2 * 32], activation_fn=nn.ReLU, optimizer_class=th.optim.SGD, "
        "log_std_init=-0.5, a=(1, None, True), **{'b': 'x'})"
    )
    assert value == {
        "net_arch": [64, 64],
        "activation_fn": nn.ReLU,
        "optimizer_class": optim.SGD,
        "log_std_init": -0.5,
        "a": (1, None, True),
        "b": "x",
    }
    schedule = evaluate_safely("LinearSchedule(7e-4, 7e-5, 1.0)")
    assert isinstance(schedule, LinearSchedule) and schedule(1.0) == 7e-4
    assert evaluate_safely("partial(nn.LeakyReLU, negative_slope=0.1)")().negative_slope == 0.1
    with pytest.raises(ValueError, match=r"not run as code, and 'nn\.Linear\(3, 4\)'.*LinearSched"):
        evaluate_safely("nn.Linear(3, 4)")


YAMLS = (
    "!!python/object/apply:os.mkdir ['{mark}']",
    "!!python/object/new:subprocess.Popen [['mkdir', '{mark}']]",
    "!!python/name:os.mkdir",
    "!!python/module:evil_module",
    "gamma: !!python/object/apply:os.mkdir ['{mark}']",
    "!!python/object/apply:collections.OrderedDict [[[a, !!python/object/apply:os.mkdir ['{mark}']"
    "]]]",
    "!!python/object/apply:pathlib.PosixPath [!!python/object/apply:os.mkdir ['{mark}']]",
    "&a [*a, *a]",
    "a: &a [x,x,x]\n" + "\n".join(f"k{i}: &k{i} [*a,*a,*a]" for i in range(20)),
)


@pytest.mark.parametrize("text", YAMLS, ids=range(len(YAMLS)))
@pytest.mark.parametrize("name", ["config.yml", "args.yml"])
def test_yaml_is_not_run(
    text: str, name: str, run: Path, tmp_path: Path, enjoy: ModuleType
) -> None:
    mark = tmp_path / "mark"
    (run / SPREAD / name).write_text(text.replace("{mark}", str(mark)))
    with pytest.raises((ValueError, KeyError, TypeError)):
        load_agent(run)
    arguments = ["--env", "mpe2/simple_spread_v3", "-f", "logs", "-n", "1", "--no-render"]
    with pytest.raises((SystemExit, ValueError, KeyError, TypeError)):
        enjoy.main(arguments)
    assert not mark.exists() and "evil_module" not in sys.modules


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("wrappers", "evil_module.wrap"),
        ("wrappers", [{"evil_module.wrap": {}}]),
        ("env_wrapper", "subprocess.Popen"),
        ("env_wrapper", ["gymnasium.wrappers.ClipReward", "os.mkdir"]),
        ("vec_env_wrapper", "evil_module.wrap"),
        ("callback", "evil_module.wrap"),
        ("policy", "evil_module.wrap"),
        ("policy", "stable_baselines3.common.save_util.load_from_pkl"),
        ("env_wrapper", "stable_baselines3.common.utils.th"),
    ],
)
def test_settings_import_no_modules(key: str, value: Any, run: Path, tmp_path: Path) -> None:
    config = run / SPREAD / "config.yml"
    write_yaml(config, read_yaml(config) | {key: value})
    with pytest.raises(ValueError, match=rf"{key}: .*(--gym-packages|neither a wrapper)"):
        load_agent(run)
    assert not (tmp_path / "mark").exists() and "evil_module" not in sys.modules


def test_pickles_in_a_run(run: Path, tmp_path: Path, enjoy: ModuleType, train: ModuleType) -> None:
    mark = tmp_path / "mark"
    model = run / f"{SPREAD}.zip"
    whole = model.read_bytes()
    env = ["--env", "mpe2/simple_spread_v3"]
    commands: tuple[Any, ...] = (
        lambda: load_agent(run),
        lambda: enjoy.main([*env, "-f", "logs", "-n", "1", "--no-render"]),
        lambda: train.main([*env, "-i", str(model), "-f", "new", "-n", "100", "--eval-freq", "-1"]),
    )
    payload = pickle.dumps(Payload(mark))
    for change in ("model", "statistics"):
        if change == "statistics":
            model.write_bytes(whole)
            (run / SPREAD / "vecnormalize.pkl").write_bytes(payload)
        else:
            model.write_bytes(payload)
        for command in commands:
            if change == "statistics" and command is commands[0]:
                with pytest.raises(ValueError, match=r"vecnormalize\.pkl"):
                    load_agent(run).make_env()
                continue
            with pytest.raises((SystemExit, ValueError)):
                command()
            assert not mark.exists()


def test_a_run_of_an_earlier_version_is_converted(run: Path, tmp_path: Path, capsys: Any) -> None:
    team = load_agent(run, "cpu")
    from stable_baselines3.common.base_class import BaseAlgorithm

    BaseAlgorithm.save(team.model, run / f"{SPREAD}.zip")
    config = run / SPREAD / "config.yml"
    pairs = [[key, value] for key, value in read_yaml(config).items()]
    tag = "!!python/object/apply:collections.OrderedDict\n"
    config.write_text(tag + yaml.safe_dump([pairs]))
    with pytest.raises(ValueError, match="pickle"):
        load_agent(run)
    with pytest.warns(UserWarning, match="is a pickle"):
        old = load_agent(run, "cpu", trust_pickle=True)
    (model,) = convert_folder(run, tmp_path / "converted")
    new = load_agent(tmp_path / "converted", "cpu")
    assert new.config == old.config and read_manifest(model) is not None
    for name, own in old.model.policy.state_dict().items():
        assert (new.model.policy.state_dict()[name] == own).all()
    main([str(run / f"{SPREAD}.zip"), "one.zip", "--algo", "happo"])
    assert "one.zip: a model of HAPPO" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["missing.zip", "one.zip"])
