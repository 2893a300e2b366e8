"""Files of replay buffers: what is read of them, and what is not."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from sb3_happo import HATD3, JointEnv
from sb3_happo.common.replay_buffer import JointReplayBuffer
from tests.algorithms import PLAIN_SPACES
from tests.envs import MaskedGame, RandomTeam
from tests.off_policy import small


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


class OwnBuffer(JointReplayBuffer):
    """Buffer class of a user."""


@pytest.mark.parametrize("team", [lambda: RandomTeam(PLAIN_SPACES), MaskedGame])
def test_all_kinds_of_spaces_are_read(team: Any, tmp_path: Path) -> None:
    model = small(HATD3, JointEnv(team()), seed=0).learn(30)
    before: Any = model.replay_buffer
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    after: Any = model.replay_buffer
    assert after is not before and after.size() == before.size() == 30
    np.testing.assert_array_equal(after.actions, before.actions)
    np.testing.assert_array_equal(after.rewards, before.rewards)
    model.learn(30, reset_num_timesteps=False)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    model = small(HATD3, JointEnv(RandomTeam({"a": spaces.Box(-1, 1, (2,))})), seed=0).learn(30)
    before: Any = model.replay_buffer
    before.more = Malicious(tmp_path / "made")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    with pytest.raises(ValueError, match=r"without running code: it holds posix.mkdir.*trust_pick"):
        model.load_replay_buffer(tmp_path / "buffer.pkl")
    assert not (tmp_path / "made").exists() and model.replay_buffer is before
    model.load_replay_buffer(tmp_path / "buffer.pkl", trust_pickle=True)
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("gymnasium.spaces", "Box.__init__.__globals__"),
        ("gymnasium.vector", "Box"),
        ("gymnasium.spaces.space", "Iterable"),
        ("numpy", "load"),
        ("numpy.dtypes", "Float64DType.__new__"),
        ("builtins", "eval"),
        ("sb3_happo.common.replay_buffer", "window"),
    ],
)
def test_names_that_no_buffer_holds(module: str, name: str, tmp_path: Path) -> None:
    frames = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    (tmp_path / "buffer.pkl").write_bytes(b"\x80\x04" + frames + b"\x93.")
    model = small(HATD3, JointEnv(RandomTeam({"a": spaces.Box(-1, 1, (2,))})), seed=0)
    with pytest.raises(ValueError, match="without running code"):
        model.load_replay_buffer(tmp_path / "buffer.pkl")


def test_a_class_of_ones_own_must_be_trusted(tmp_path: Path) -> None:
    env = JointEnv(RandomTeam({"a": spaces.Box(-1, 1, (2,))}))
    model = small(HATD3, env, seed=0, replay_buffer_class=OwnBuffer).learn(30)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    with pytest.raises(ValueError, match=r"OwnBuffer.*trust_pickle=True"):
        model.load_replay_buffer(tmp_path / "buffer.pkl")
    model.load_replay_buffer(tmp_path / "buffer.pkl", trust_pickle=True)
    assert isinstance(model.replay_buffer, OwnBuffer)


def test_a_file_that_is_no_pickle(tmp_path: Path) -> None:
    (tmp_path / "buffer.pkl").write_bytes(pickle.dumps([1])[:-1])
    model = small(HATD3, JointEnv(RandomTeam({"a": spaces.Box(-1, 1, (2,))})), seed=0)
    with pytest.raises(ValueError, match="no replay buffer of a team"):
        model.load_replay_buffer(tmp_path / "buffer.pkl")
