"""Settings and files that the off-policy family refuses before training, each with the remedy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise, VectorizedActionNoise
from stable_baselines3.common.save_util import save_to_pkl
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_happo import HATD3, JointEnv
from sb3_happo.common.joint_policy import JointPolicy
from tests.algorithms import alike_team
from tests.envs import RandomTeam
from tests.off_policy import ALGORITHMS, small

BOX = spaces.Box(-1, 1, (2,))
every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


def noise(size: int) -> NormalActionNoise:
    return NormalActionNoise(np.zeros(size), 0.1 * np.ones(size))


def mixed_team() -> JointEnv:
    return JointEnv(RandomTeam({"arm": BOX, "switch": spaces.Discrete(2)}))


@every_algorithm
@pytest.mark.parametrize("name", ["MlpLstmPolicy", "MlpGruPolicy"])
def test_recurrent_policies_by_name(algorithm: Any, name: str) -> None:
    with pytest.raises(ValueError, match=rf"no recurrent policies, such as '{name}'.*HAPPO"):
        algorithm(name, alike_team(2, BOX))


@pytest.mark.parametrize(
    "kwargs",
    [{"recurrent": "lstm"}, {"agent_kwargs": {"agent_1": {"recurrent": "gru"}}}],
)
def test_recurrent_networks_by_keyword(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"recurrent='(lstm|gru)' is not supported.*HAPPO"):
        small(HATD3, alike_team(2, BOX), kwargs)


def test_policies_of_the_on_policy_algorithms() -> None:
    with pytest.raises(ValueError, match=r"critics of actions, which JointPolicy does not have"):
        HATD3(JointPolicy, alike_team(2, BOX))


@every_algorithm
@pytest.mark.parametrize(
    ("buffer_class", "message"),
    [
        (HerReplayBuffer, r"HerReplayBuffer: hindsight experience replay needs.*Omit it"),
        (DictReplayBuffer, r"DictReplayBuffer cannot hold.*JointReplayBuffer"),
        ("JointReplayBuffer", r"must be a class, not 'JointReplayBuffer'"),
    ],
)
def test_replay_buffers_of_single_agents(algorithm: Any, buffer_class: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(algorithm, alike_team(2, BOX), replay_buffer_class=buffer_class)


def test_optimized_memory() -> None:
    with pytest.raises(ValueError, match=r"optimize_memory_usage=True is not supported"):
        small(HATD3, alike_team(2, BOX), optimize_memory_usage=True)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (noise(3), r"action_noise has the shape \(3,\).*all agents together.*shape \(4,\)"),
        ({"agent_1": noise(1)}, r"action_noise\['agent_1'\] has the shape \(1,\).*np\.zeros\(2\)"),
        ({"agent_7": noise(2)}, r"unknown agent 'agent_7'"),
        ({"agent1": noise(2)}, r"unknown agent 'agent1'.*Did you mean 'agent_1'"),
        ({"agent_1": 0.1}, r"action_noise\['agent_1'\] must be a noise.*not 0\.1"),
        ({"agent_1": VectorizedActionNoise(noise(2), 2)}, r"must be a noise"),
        (0.1, r"action_noise must be a noise.*NormalActionNoise"),
    ],
)
def test_action_noise(setting: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        small(HATD3, alike_team(2, BOX), action_noise=setting)


def test_action_noise_of_discrete_actions() -> None:
    with pytest.raises(ValueError, match=r"\['switch'\].*no continuous part"):
        small(HATD3, mixed_team(), action_noise={"switch": noise(1)})
    with pytest.raises(ValueError, match=r"no continuous part.*Omit it"):
        small(HATD3, alike_team(2, spaces.Discrete(3)), action_noise=noise(2))
    # The continuous part of a team is that of some agents
    small(HATD3, mixed_team(), action_noise=noise(2)).learn(40)


@every_algorithm
def test_more_than_the_memory(algorithm: Any) -> None:
    with pytest.raises(MemoryError, match=r"buffer_size=2000000000 takes.*Reduce `buffer_size`"):
        small(algorithm, alike_team(2, BOX), buffer_size=2_000_000_000)


@every_algorithm
@pytest.mark.parametrize("learning_starts", [100, 101])
def test_a_training_without_updates(algorithm: Any, learning_starts: int) -> None:
    model = small(algorithm, alike_team(2, BOX), learning_starts=learning_starts)
    with pytest.raises(ValueError, match=rf"{learning_starts} is not below total_timesteps=100"):
        model.learn(100)
    assert model.num_timesteps == 0


def test_learning_starts_in_a_continued_training() -> None:
    """Timesteps of earlier calls count."""
    model = small(HATD3, alike_team(2, BOX), learning_starts=50).learn(60)
    model.learn(30, reset_num_timesteps=False)
    with pytest.raises(ValueError, match=r"learning_starts=50 is not below total_timesteps=30"):
        model.learn(30)


def test_whole_episodes_of_several_environments() -> None:
    team = DummyVecEnv([lambda: alike_team(2, BOX)] * 2)
    with pytest.raises(ValueError, match=r"train_freq=\(1, 'episode'\) needs one environment"):
        small(HATD3, team, train_freq=(1, "episode"))


def team_of(names: list[str], n_envs: int = 1, action_space: Any = BOX, size: int = 3) -> Any:
    observed: dict[str, Any] = dict.fromkeys(names, spaces.Box(-1, 1, (size,)))

    def make() -> JointEnv:
        return JointEnv(RandomTeam(dict.fromkeys(names, action_space), observation_spaces=observed))

    return DummyVecEnv([make] * n_envs)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ((["a", "c"],), r"of the team \['a', 'b'\], and the model's team is \['a', 'c'\]"),
        ((["b", "a"],), r"of the team \['a', 'b'\], and the model's team is \['b', 'a'\]"),
        ((["a", "b"], 2), r"transitions of 1 environments, and the model has 2"),
        ((["a", "b"], 1, spaces.Box(-1, 1, (3,))), r"other action spaces"),
        ((["a", "b"], 1, BOX, 4), r"other observation spaces"),
    ],
)
def test_replay_buffers_of_other_teams(tmp_path: Path, other: Any, message: str) -> None:
    small(HATD3, team_of(["a", "b"])).learn(30).save_replay_buffer(tmp_path / "buffer")
    model = small(HATD3, team_of(*other))
    before = model.replay_buffer
    with pytest.raises(ValueError, match=message):
        model.load_replay_buffer(tmp_path / "buffer")
    assert model.replay_buffer is before


def test_files_that_hold_no_replay_buffer(tmp_path: Path) -> None:
    save_to_pkl(tmp_path / "other.pkl", {"no": "buffer"})
    model = small(HATD3, alike_team(2, BOX))
    with pytest.raises(ValueError, match=r"other\.pkl is a pickle.*trust_pickle=True"):
        model.load_replay_buffer(tmp_path / "other.pkl")
    with (
        pytest.warns(UserWarning, match="is a pickle"),
        pytest.raises(ValueError, match=r"holds a dict, not the replay buffer of a team"),
    ):
        model.load_replay_buffer(tmp_path / "other.pkl", trust_pickle=True)
