"""Files of replay buffers: without pickles, checked, written without a copy."""

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.save_util import save_to_pkl

from sb3_happo import HASAC, HATD3, QMIX, JointEnv
from sb3_happo.common.off_policy_algorithm import MultiAgentOffPolicyAlgorithm
from sb3_happo.common.replay_buffer import JointReplayBuffer
from sb3_happo.common.safe_files import SafeFileError, read_manifest
from tests.algorithms import alike_team
from tests.envs import RandomTeam, TurnGame
from tests.off_policy import small

BOX = spaces.Box(-1.0, 1.0, (2,))


def buffer_of(model: MultiAgentOffPolicyAlgorithm) -> JointReplayBuffer:
    assert model.replay_buffer is not None
    return model.replay_buffer


def check_equal(first: JointReplayBuffer, second: JointReplayBuffer, cut_off: bool = True) -> None:
    """Equal content; the running episode is cut off by loading."""
    assert (first.pos, first.full, first.n_added) == (second.pos, second.full, second.n_added)
    if cut_off:
        first.end_episodes()
    others = second.arrays()
    assert first.arrays().keys() == others.keys()
    for name, array in first.arrays().items():
        assert np.array_equal(array, others[name], equal_nan=True), name


@pytest.mark.parametrize("buffer_size", [1000, 37])
@pytest.mark.parametrize("team", ["boxes", "turns"])
def test_round_trip(team: str, buffer_size: int, tmp_path: Path) -> None:
    def make() -> MultiAgentOffPolicyAlgorithm:
        if team == "turns":
            return small(QMIX, JointEnv(TurnGame()), buffer_size=buffer_size, seed=0)
        return small(HASAC, alike_team(2, BOX), buffer_size=buffer_size, seed=0)

    model = make().learn(60)
    model.save_replay_buffer(tmp_path / "buffer")
    manifest = read_manifest(tmp_path / "buffer.pkl")
    assert manifest is not None and manifest.kind == "replay_buffer"
    loaded = make()
    loaded.load_replay_buffer(tmp_path / "buffer")
    check_equal(buffer_of(model), buffer_of(loaded))
    loaded.learn(60)
    # An open file, and a path with another suffix
    memory = io.BytesIO()
    model.save_replay_buffer(memory)
    memory.seek(0)
    loaded.load_replay_buffer(memory)
    model.save_replay_buffer(str(tmp_path / "buffer.replay"))
    loaded.load_replay_buffer(tmp_path / "buffer.replay")
    check_equal(buffer_of(model), buffer_of(loaded))


def test_size_of_the_file_is_kept(tmp_path: Path) -> None:
    """As in SB3, the loaded buffer takes the place of the model's."""
    model = small(HASAC, alike_team(2, BOX), buffer_size=500).learn(60)
    model.save_replay_buffer(tmp_path / "buffer")
    loaded = small(HASAC, alike_team(2, BOX), buffer_size=50, n_steps=3, gamma=0.5)
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert buffer_of(loaded).buffer_size == 500
    assert (buffer_of(loaded).n_steps, buffer_of(loaded).gamma) == (3, 0.5)


def test_pickles_need_trust(tmp_path: Path) -> None:
    model = small(HATD3, alike_team(2, BOX), buffer_size=40).learn(60)
    save_to_pkl(tmp_path / "old.pkl", buffer_of(model))
    loaded = small(HATD3, alike_team(2, BOX))
    with pytest.raises(SafeFileError, match=r"old\.pkl is a pickle.*trust_pickle=True"):
        loaded.load_replay_buffer(tmp_path / "old.pkl")
    with pytest.warns(UserWarning, match="trust_pickle=True"):
        loaded.load_replay_buffer(tmp_path / "old.pkl", trust_pickle=True)
    check_equal(buffer_of(model), buffer_of(loaded))
    loaded.learn(60)


def test_other_files_are_named(tmp_path: Path) -> None:
    model = small(HATD3, alike_team(2, BOX)).learn(30)
    model.save(tmp_path / "model.zip")
    with pytest.raises(
        SafeFileError, match=r"model\.zip holds a file of the kind 'model' of HATD3"
    ):
        model.load_replay_buffer(tmp_path / "model.zip")
    model.save_replay_buffer(tmp_path / "buffer")
    other = small(HATD3, alike_team(3, BOX))
    with pytest.raises(SafeFileError, match=r"buffer\.pkl does not fit this model.*of the team"):
        other.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(ValueError, match="replay buffer"):
        HATD3.load(tmp_path / "buffer.pkl")
    data = bytearray((tmp_path / "buffer.pkl").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "buffer.pkl").write_bytes(bytes(data))
    with pytest.raises(SafeFileError, match=r"buffer\.pkl"):
        model.load_replay_buffer(tmp_path / "buffer")
    with pytest.raises(FileNotFoundError):
        model.load_replay_buffer(tmp_path / "none")


def test_no_buffer_to_save(tmp_path: Path) -> None:
    small(HATD3, alike_team(2, BOX)).save(tmp_path / "model")
    with pytest.raises(ValueError, match="no replay buffer"):
        HATD3.load(tmp_path / "model").save_replay_buffer(tmp_path / "buffer")


def test_the_callback_of_sb3(tmp_path: Path) -> None:
    model = small(HATD3, alike_team(2, BOX))
    model.learn(60, CheckpointCallback(50, str(tmp_path), "team", save_replay_buffer=True))
    model.load_replay_buffer(tmp_path / "team_replay_buffer_50_steps.pkl")
    assert buffer_of(model).n_added == 49


def test_a_large_buffer_is_not_copied(tmp_path: Path) -> None:
    wide = dict.fromkeys(("a", "b"), spaces.Box(-1.0, 1.0, (2000,)))
    team = RandomTeam(dict.fromkeys(("a", "b"), BOX), observation_spaces=wide)
    model = small(HATD3, JointEnv(team), buffer_size=400, learning_starts=390)
    model.learn(400)
    n_bytes = sum(array.nbytes for array in buffer_of(model).arrays().values())
    assert n_bytes > 10e6
    tracemalloc.start()
    model.save_replay_buffer(tmp_path / "buffer")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n_bytes / 5
    # A custom loader of the same class fills the arrays again
    content: Any = small(HATD3, JointEnv(team), buffer_size=10)
    content.load_replay_buffer(tmp_path / "buffer")
    check_equal(buffer_of(model), buffer_of(content))
