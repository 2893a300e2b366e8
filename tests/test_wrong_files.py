"""Files of another algorithm or of another kind are refused with an error that names both."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.ppo import MlpPolicy

from sb3_happo import HAA2C, HAPPO, HATRPO, IPPO, MAPPO
from sb3_happo.common.agent_policy import AgentPolicy
from sb3_happo.common.joint_policy import JointPolicy, LstmJointPolicy
from tests.algorithms import ALGORITHMS, LstmHAPPO, alike_team, random_team, small
from tests.envs import MatrixGame

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of every kind."""
    folder = tmp_path_factory.mktemp("files")
    for algorithm in ALGORITHMS:
        small(algorithm, alike_team()).save(folder / algorithm.__name__)
    model = small(LstmHAPPO, alike_team())
    model.save(folder / "LstmHAPPO")
    model.policy.save(str(folder / "team.zip"))
    model.policies["agent_0"].save(str(folder / "agent.zip"))
    for single in (PPO, A2C, DQN):
        single("MlpPolicy", "CartPole-v1").save(folder / f"SB3_{single.__name__}")
    PPO("MlpPolicy", "CartPole-v1").policy.save(str(folder / "sb3_policy.zip"))
    statistics = VecNormalize(random_team(1))
    statistics.save(str(folder / "statistics.pkl"))
    buffer = ReplayBuffer(10, statistics.action_space["box"], statistics.action_space["box"])  # type: ignore[index]
    (folder / "buffer.pkl").write_bytes(pickle.dumps(buffer))
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        archive.writestr("photo.jpg", "")
    with zipfile.ZipFile(folder / "other_data.zip", "w") as archive:
        archive.writestr("data", "1, 2, 3")
    th.save({"a": th.zeros(1)}, folder / "tensors.pt")
    (folder / "notes.txt").write_text("notes")
    return folder


def as_before(saver: type[HAPPO], target: Path) -> Path:
    """A model's file as earlier versions wrote it: by SB3, and without the name of its class."""
    BaseAlgorithm.save(small(saver, alike_team()), target.with_name("with_name.zip"))
    source = target.with_name("with_name.zip")
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "data":
                data = json.loads(content)
                data.pop("saved_by", None)
                content = json.dumps(data).encode()
            new.writestr(name, content)
    return target


@pytest.mark.parametrize("saver", ALGORITHMS)
def test_models_of_other_algorithms(saver: type[HAPPO], folder: Path) -> None:
    path = folder / f"{saver.__name__}.zip"
    for loader in ALGORITHMS:
        if loader is saver:
            assert type(loader.load(path)) is loader
            continue
        for env in (None, alike_team()):
            words = f"saved by {saver.__name__} and cannot be loaded by {loader.__name__}"
            with pytest.raises(ValueError, match=words):
                loader.load(path, env=env)


@pytest.mark.parametrize("saver", ALGORITHMS)
def test_old_models_of_other_algorithms(saver: type[HAPPO], tmp_path: Path) -> None:
    """Without the entry, what the settings tell is enough, as a rule."""
    path = as_before(saver, tmp_path / "old.zip")
    allowed = {
        HAPPO: {HAPPO, HAA2C},
        HAA2C: {HAPPO, HAA2C},
        MAPPO: {HAPPO, HAA2C, MAPPO},
    }.get(saver, {saver})
    for loader in ALGORITHMS:
        if loader in allowed:
            with pytest.warns(UserWarning, match="is a pickle"):
                loader.load(path, trust_pickle=True)
            with pytest.raises(ValueError, match="trust_pickle"):
                loader.load(path)
            continue
        with pytest.raises(ValueError, match=f"saved by .*{saver.__name__}.*{loader.__name__}"):
            loader.load(path)


def test_the_check_can_be_switched_off(folder: Path) -> None:
    model = HAA2C.load(folder / "HAPPO.zip", env=alike_team(), check_class=False)
    model.learn(32)
    assert type(model) is HAA2C


class Mine(HAPPO):
    """A user's subclass."""


class MineToo(Mine):
    """A subclass of it."""


class Other(HAPPO):
    """Another one."""


class Different(MAPPO):
    """One of another algorithm."""


def test_subclasses(tmp_path: Path, folder: Path) -> None:
    path = tmp_path / "mine.zip"
    small(Mine, alike_team()).save(path)
    assert type(Mine.load(path)) is Mine
    assert type(MineToo.load(path)) is MineToo
    assert type(Mine.load(folder / "HAPPO.zip")) is Mine
    for loader in (HAPPO, Other, Different, HAA2C):
        with pytest.raises(ValueError, match=f"saved by Mine .*{loader.__name__}"):
            loader.load(path)
    assert type(HAPPO.load(path, check_class=False)) is HAPPO
    # A model that was loaded and saved again is one of the class that has saved it
    Mine.load(folder / "HAPPO.zip").save(path)
    with pytest.raises(ValueError, match="saved by Mine"):
        HAPPO.load(path)


LOADERS: dict[str, Callable[..., Any]] = {
    "HAPPO": HAPPO.load,
    "IPPO": IPPO.load,
    "HATRPO": HATRPO.load,
    "JointPolicy": JointPolicy.load,
    "LstmJointPolicy": LstmJointPolicy.load,
    "AgentPolicy": AgentPolicy.load,
}
CONTENTS = {
    "HAPPO.zip": ("model", r"HAPPO.*HAPPO\.load\(path\)"),
    "LstmHAPPO.zip": ("model", r"LstmHAPPO.*LstmHAPPO\.load\(path\)"),
    "team.zip": ("team", r"whole team \(JointPolicy\).*JointPolicy\.load"),
    "agent.zip": ("agent", r"single agent \(AgentPolicy\).*AgentPolicy\.load"),
    "SB3_PPO.zip": ("", r"PPO model of Stable-Baselines3.*PPO\.load"),
    "SB3_A2C.zip": ("", r"A2C model of Stable-Baselines3"),
    "SB3_DQN.zip": ("", r"DQN model of Stable-Baselines3"),
    "sb3_policy.zip": ("", "a policy of Stable-Baselines3"),
    "statistics.pkl": ("", r"VecNormalize.*VecNormalize\.load"),
    "buffer.pkl": ("", r"ReplayBuffer.*load_replay_buffer"),
    "photos.zip": ("", "nothing that sb3_happo"),
    "other_data.zip": ("", "nothing that sb3_happo"),
    "tensors.pt": ("", "nothing that sb3_happo"),
    "notes.txt": ("", "nothing that sb3_happo"),
}
KINDS = {"JointPolicy": "team", "LstmJointPolicy": "team", "AgentPolicy": "agent"}


@pytest.mark.parametrize("name", CONTENTS)
def test_other_kinds(name: str, folder: Path) -> None:
    kind, words = CONTENTS[name]
    for loader, load in LOADERS.items():
        if KINDS.get(loader, "model") == kind:
            continue
        for location in (str(folder / name), io.BytesIO((folder / name).read_bytes())):
            with pytest.raises(ValueError, match=f"(?s){loader}.*{words}"):
                load(location)
    if kind != "model":
        with pytest.raises(ValueError, match=words):
            small(HAPPO, alike_team()).set_parameters(str(folder / name))


def test_an_open_file_is_read_from_its_position(folder: Path) -> None:
    with (folder / "LstmHAPPO.zip").open("rb") as file:
        assert LstmHAPPO.load(file, env=alike_team()).agents == ("agent_0", "agent_1", "agent_2")
    with (folder / "team.zip").open("rb") as file:
        assert len(JointPolicy.load(file).agents) == 3


@pytest.mark.filterwarnings("ignore")
def test_a_missing_file(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HAPPO.load(folder / "missing")


def test_parameters_of_another_model(folder: Path) -> None:
    model = small(HAPPO, alike_team())
    model.set_parameters(folder / "HAA2C.zip")
    with pytest.raises(ValueError, match="a model of IPPO, whose networks are not those of this"):
        model.set_parameters(folder / "IPPO.zip")


class MyAgent(AgentPolicy):
    """A user's policy of an agent."""


class MyTeam(JointPolicy):
    """A user's team."""

    agent_class = MyAgent


def test_subclasses_of_policies(tmp_path: Path) -> None:
    model = HAPPO(MyTeam, alike_team())
    model.policy.save(str(tmp_path / "team.zip"))
    model.policies["agent_0"].save(str(tmp_path / "agent.zip"))
    assert type(MyTeam.load(str(tmp_path / "team.zip"))) is MyTeam
    assert type(MyAgent.load(str(tmp_path / "agent.zip"))) is MyAgent
    with pytest.raises(ValueError, match=r"saved by MyTeam .* by JointPolicy"):
        JointPolicy.load(str(tmp_path / "team.zip"))
    with pytest.raises(ValueError, match=r"saved by MyAgent .* by AgentPolicy"):
        AgentPolicy.load(str(tmp_path / "agent.zip"))
    assert type(AgentPolicy.load(str(tmp_path / "agent.zip"), check_class=False)) is AgentPolicy


def test_old_policies(folder: Path, tmp_path: Path) -> None:
    for name, loader in (("team", JointPolicy), ("agent", AgentPolicy)):
        policy: Any = loader.load(folder / f"{name}.zip")
        BasePolicy.save(policy, str(tmp_path / name))
        with pytest.warns(UserWarning, match="is a pickle"):
            assert isinstance(loader.load(tmp_path / name, trust_pickle=True), loader)
        with pytest.raises(ValueError, match="holds the policy of a"):
            HAPPO.load(tmp_path / name)
    with pytest.raises(ValueError, match="single agent"):
        JointPolicy.load(tmp_path / "agent")
    with pytest.raises(ValueError, match="AgentPolicy"):
        AgentPolicy.load(DATA / "happo_lstm.zip", trust_pickle=True)


def test_misspelt_attributes(folder: Path) -> None:
    for name, nearest in {
        "learning_rat": "learning_rate",
        "n_step": "n_steps",
        "critic_lerning_rate": "critic_learning_rate",
        "stats_window": "stats_window_size",
    }.items():
        wrong: dict[str, Any] = {name: 1}
        with pytest.raises(ValueError, match=f"HAPPO.load knows no '{name}'.*'{nearest}'"):
            HAPPO.load(folder / "HAPPO.zip", env=alike_team(), **wrong)
    with pytest.raises(ValueError, match=r"knows no 'x'\. There are .*batch_size"):
        HAPPO.load(folder / "HAPPO.zip", x=1)
    model = HAPPO.load(
        folder / "HAPPO.zip",
        env=alike_team(),
        verbose=0,
        n_steps=8,
        tensorboard_log=None,
        stats_window_size=3,
        seed=1,
    )
    model.learn(16)
    assert model.num_timesteps == 16 and model.n_steps == 8
    assert model.ep_info_buffer is not None and model.ep_info_buffer.maxlen == 3


def test_learning_needs_an_environment(folder: Path) -> None:
    model = HAPPO.load(folder / "HAPPO.zip")
    with pytest.raises(ValueError, match=r"no environment.*HAPPO\.load\(path, env=.*set_env"):
        model.learn(16)
    model.set_env(alike_team())
    assert model.learn(16).num_timesteps == 32


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_policies_that_are_no_teams(algorithm: type[HAPPO]) -> None:
    class Own(ActorCriticPolicy):
        pass

    for policy in (MlpPolicy, Own, AgentPolicy):
        for arguments in ((policy, MatrixGame()), (policy,)):
            with pytest.raises(ValueError, match=rf'{policy.__name__}.*"MlpPolicy".*JointPolicy'):
                algorithm(*arguments)
    with pytest.raises(ValueError, match="MatrixGame is a class; an environment is passed as an"):
        algorithm(MatrixGame)
    made = small(HAPPO, MatrixGame())
    with pytest.raises(ValueError, match="takes no policy that exists already"):
        algorithm(made.policy, MatrixGame())


def test_a_policy_acts_as_before(folder: Path) -> None:
    """The entry changes nothing in what a loaded policy does."""
    obs = {agent: np.ones(3, np.float32) for agent in ("agent_0", "agent_1", "agent_2")}
    model = HAPPO.load(folder / "HAPPO.zip")
    model.policy.save(folder / "alone.zip")
    again = JointPolicy.load(folder / "alone.zip")
    assert model.predict(obs, deterministic=True)[0] == again.predict(obs, deterministic=True)[0]
