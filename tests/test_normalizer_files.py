"""Statistics of VecNormalize: saved without pickles, with the model, and used without an env."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecNormalize

from sb3_happo import HAPPO
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.safe_files import read_manifest
from sb3_happo.vec_env import VecNormalizeTeam
from tests.algorithms import alike_team, random_team, same, small, snapshot


@pytest.fixture(scope="module")
def model() -> HAPPO:
    return small(HAPPO, VecNormalize(random_team(2)), seed=0).learn(64)


def statistics_of(model: HAPPO) -> VecNormalizeTeam:
    normalizer = model.get_vec_normalize_env()
    assert isinstance(normalizer, VecNormalizeTeam)
    return normalizer


def test_a_model_and_its_statistics_are_one_file(model: HAPPO, tmp_path: Path) -> None:
    model.save(tmp_path / "model.zip")
    own = statistics_of(model)
    again = VecNormalizeTeam.load(tmp_path / "model.zip", random_team(2))
    for key, statistics in own.obs_rms.items():
        np.testing.assert_array_equal(again.obs_rms[key].mean, statistics.mean)
    assert again.ret_rms.var == own.ret_rms.var
    loaded = HAPPO.load(tmp_path / "model.zip", env=again)
    assert loaded.get_vec_normalize_env() is again
    model.save(tmp_path / "without.zip", exclude=["vec_normalize"])
    with pytest.raises(ValueError, match=r"without\.zip holds a file .*HAPPO.*without statistics"):
        VecNormalizeTeam.load(tmp_path / "without.zip", random_team(2))
    manifest = read_manifest(tmp_path / "model.zip")
    assert manifest is not None and "vec_normalize" in manifest.info["parts"]


def test_statistics_without_an_environment(model: HAPPO, tmp_path: Path) -> None:
    own = statistics_of(model)
    own.save(tmp_path / "statistics.zip")
    model.save(tmp_path / "model.zip")
    joint: Any = own.observation_space
    obs = {key: space.sample()[None] for key, space in joint.spaces.items()}
    expected = own.normalize_obs(obs, active=np.ones((1, len(model.agents))))
    memory = io.BytesIO()
    own.save(memory)
    memory.seek(0)
    for location in (tmp_path / "statistics.zip", str(tmp_path / "model.zip"), memory):
        statistics = VecNormalizeTeam.load_statistics(location)
        found = statistics.normalize_obs(obs)
        for key, value in expected.items():
            np.testing.assert_array_equal(found[key], value)
    # One agent, whose observation may be a dict
    for agent, policy in model.policies.items():
        policy.save(tmp_path / "agent.zip")
        loaded = AgentPolicy.load(tmp_path / "agent.zip")
        assert same(snapshot(policy), snapshot(loaded))
        value = obs[agent][0] if agent in obs else None
        if value is None:
            continue
        single = statistics.normalize_agent_obs(agent, value)
        np.testing.assert_array_equal(single, expected[agent][0])


def test_other_files_are_refused(model: HAPPO, tmp_path: Path) -> None:
    model.policy.save(tmp_path / "team.zip")
    small(HAPPO, alike_team()).save(tmp_path / "plain.zip")
    for name, words in (("team", "'team' of JointPolicy"), ("plain", "'model' of HAPPO")):
        with pytest.raises(ValueError, match=rf"{name}\.zip holds a file of the kind {words}"):
            VecNormalizeTeam.load_statistics(tmp_path / f"{name}.zip")
    statistics_of(model).save(tmp_path / "statistics.zip")
    with pytest.raises(
        ValueError, match=r"statistics of a VecNormalizeTeam.*VecNormalizeTeam\.load"
    ):
        HAPPO.load(tmp_path / "statistics.zip")
    with pytest.raises(FileNotFoundError):
        VecNormalizeTeam.load_statistics(tmp_path / "missing")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="text holds nothing"):
        VecNormalizeTeam.load_statistics(tmp_path / "text")


def test_statistics_that_are_not_finite(tmp_path: Path) -> None:
    env = VecNormalize(random_team(1))
    model = small(HAPPO, env, seed=0)
    key = next(iter(env.obs_rms))
    env.obs_rms[key].mean[:] = np.nan
    for save in (statistics_of(model).save, model.save):
        with pytest.raises(ValueError, match=f"statistics of '{key}' are not finite"):
            save(tmp_path / "file.zip")
    assert not list(tmp_path.iterdir())
