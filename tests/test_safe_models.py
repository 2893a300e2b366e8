"""Models and policies in files without pickles: own classes, numbers that are not finite, kinds."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

import sb3_happo.common.plain_classes
from sb3_happo import HAPPO, allow_in_files
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.joint_policy import JointPolicy
from sb3_happo.common.safe_files import read_safe_file
from tests.algorithms import ALGORITHMS, alike_team, every_algorithm, random_team, small


class Extractor(BaseFeaturesExtractor):
    """A user's features extractor."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 4) -> None:
        super().__init__(observation_space, features_dim)
        self.layer = th.nn.Linear(observation_space.shape[0], features_dim)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations)


def own_schedule(progress: float) -> float:
    return 1e-3 * progress


def load_in_another_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the classes that this program has used."""
    monkeypatch.setattr(sb3_happo.common.plain_classes, "_ADDED", {})
    monkeypatch.setattr(sb3_happo.common.plain_classes, "_USED", {})


def test_own_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_in_another_program(monkeypatch)
    kwargs: dict[str, Any] = dict(features_extractor_class=Extractor)
    model = small(HAPPO, alike_team(), policy_kwargs=kwargs, learning_rate=own_schedule)
    with pytest.warns(UserWarning, match=r"features_extractor_class is the class .*Extractor.*"):
        model.save(tmp_path / "model.zip")
    with pytest.warns(UserWarning, match=r"allow_in_files\(Extractor\)"):
        model.policies["agent_0"].save(tmp_path / "agent.zip")
    # In this program, which has given the classes to the model, they are known
    assert HAPPO.load(tmp_path / "model.zip").learning_rate is own_schedule
    load_in_another_program(monkeypatch)
    words = r"agent\.zip holds .*features_extractor_class: .*Extractor.*custom_objects"
    with pytest.raises(ValueError, match=words):
        AgentPolicy.load(tmp_path / "agent.zip")
    given: dict[str, Any] = {"Extractor": Extractor, "own_schedule": own_schedule}
    AgentPolicy.load(tmp_path / "agent.zip", custom_objects=given)
    for custom_objects in (
        given,
        {"policy_kwargs": model.policy_kwargs, "learning_rate": own_schedule},
    ):
        loaded = HAPPO.load(tmp_path / "model.zip", custom_objects=custom_objects)
        assert loaded.policy_kwargs["features_extractor_class"] is Extractor
    allow_in_files(Extractor, own_schedule)
    assert HAPPO.load(tmp_path / "model.zip").learning_rate is own_schedule


@every_algorithm
def test_models_that_are_not_finite(algorithm: type[HAPPO], tmp_path: Path) -> None:
    model = small(algorithm, random_team(1), seed=0)
    model.save(tmp_path / "good.zip")
    agent = model.agents[-1]
    with th.no_grad():
        next(model.policies[agent].parameters()).view(-1)[0] = np.nan
    policy = model.policies[agent]
    for save in (model.save, model.policy.save, policy.save):
        with pytest.raises(ValueError, match=r"cannot be saved: .*is not finite, it holds nan"):
            save(tmp_path / "good.zip")
    with pytest.raises(ValueError, match=f"agent '{agent}'"):
        model.save(io.BytesIO())
    assert algorithm.load(tmp_path / "good.zip").agents == model.agents
    # A file of a program without the check
    monkey = "sb3_happo.common.saved_algorithm.check_finite_parameters"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monkey, lambda *args: None)
        model.save(tmp_path / "bad.zip")
    with pytest.raises(ValueError, match=rf"bad\.zip holds .*agent '{agent}'.*not finite"):
        algorithm.load(tmp_path / "bad.zip")
    with pytest.raises(ValueError, match=r"bad\.zip holds .*not finite"):
        small(algorithm, random_team(1)).set_parameters(tmp_path / "bad.zip")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_file_is_plain_and_the_same_each_time(algorithm: type[HAPPO], tmp_path: Path) -> None:
    model = small(algorithm, random_team(2), seed=0).learn(32)
    for name in ("a.zip", "b.zip"):
        model.save(tmp_path / name)
    first, second = (read_safe_file(tmp_path / name) for name in ("a.zip", "b.zip"))
    assert first.plain == second.plain
    model.policy.save(tmp_path / "team.zip")
    assert JointPolicy.load(tmp_path / "team.zip").agents == model.agents


def test_excluded_included_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = small(HAPPO, alike_team(), seed=0).learn(32)
    model.save(tmp_path / "model", exclude=["ep_info_buffer", "num_timesteps"])
    loaded = HAPPO.load(tmp_path / "model", print_system_info=True)
    assert loaded.num_timesteps == 0 and loaded.ep_info_buffer is None
    out = capsys.readouterr().out
    assert "== CURRENT SYSTEM INFO ==" in out and "== SAVED MODEL SYSTEM INFO ==" in out
    assert out.count("Stable-Baselines3:") == 2
    model.save(tmp_path / "with", include=["lr_schedule"])
    assert "lr_schedule" in read_safe_file(tmp_path / "with.zip").plain["attributes"]


def test_other_policy_kwargs_are_refused(tmp_path: Path) -> None:
    model = small(HAPPO, alike_team(), policy_kwargs=dict(net_arch=[8]))
    model.save(tmp_path / "model")
    HAPPO.load(tmp_path / "model", policy_kwargs=dict(net_arch=[8]))
    with pytest.raises(ValueError, match="policy kwargs do not equal the stored"):
        HAPPO.load(tmp_path / "model", policy_kwargs=dict(net_arch=[9]))


def test_open_files_that_cannot_be_read_twice(tmp_path: Path) -> None:
    model = small(HAPPO, alike_team(), seed=0)
    model.save(tmp_path / "model.zip")
    command = "import sys, shutil; shutil.copyfileobj(open(sys.argv[1], 'rb'), sys.stdout.buffer)"
    arguments = [sys.executable, "-c", command, str(tmp_path / "model.zip")]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert HAPPO.load(process.stdout).agents == model.agents
