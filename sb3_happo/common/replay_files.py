"""Files of replay buffers, without pickles."""

import io
import os
import pathlib
import warnings
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.save_util import load_from_pkl

from sb3_happo.common.checkpoint_rows import restore_rows, row_content, row_progress
from sb3_happo.common.replay_buffer import JointReplayBuffer
from sb3_happo.common.replay_checks import TeamOfBuffer, check_team_of_buffer
from sb3_happo.common.safe_files import (
    SafeFile,
    SafeFileError,
    file_name,
    read_safe_file,
    write_safe_file,
)
from sb3_happo.common.saved_files import Location, inspect_file

#: Kind of the files
KIND = "replay_buffer"
#: SB3's ending of the files' names
SUFFIX = ".pkl"


def write_replay_buffer(path: Location, buffer: JointReplayBuffer) -> Location:
    """
    :param path: Path of the file, or an open file
    :param buffer: Buffer
    :return: Path of the file, with a suffix
    :raises OSError: If the file cannot be written
    """
    if isinstance(path, (str, os.PathLike)) and not pathlib.PurePath(path).suffix:
        path = f"{os.fspath(path)}{SUFFIX}"
    team = TeamOfBuffer(buffer.observation_space, buffer.team_action_space, buffer.n_envs)
    content = {
        "team": team._asdict(),
        "buffer": row_progress(buffer) | {"keys": buffer.keys},
        **row_content(buffer, buffer.first_row, buffer.n_added),
    }
    write_safe_file(path, KIND, content, type(buffer).__name__)
    return path


def read_replay_buffer(path: Location, trust_pickle: bool) -> Any:
    """
    :param path: Path of the file, or an open file
    :param trust_pickle: Whether a pickle is loaded
    :return: File without pickles, or the object of a pickle
    :raises ValueError: If it is a pickle that is not trusted, or is damaged, or holds something
        else
    """
    path = _existing(path)
    content = inspect_file(path)
    name = file_name(path)
    if content is not None and content.kind == "pickle":
        _accept(name, trust_pickle)
        buffer = load_from_pkl(path)  # type: ignore[arg-type]
        if isinstance(buffer, JointReplayBuffer):
            # Rows had no numbers
            buffer.origin, buffer.n_added = 0, buffer.pos + buffer.full * buffer.buffer_size
        return buffer
    if content is not None and not content.is_safe:
        raise SafeFileError(name, f"holds {content.words}, not a replay buffer.")
    return read_safe_file(path, KIND)


def _existing(path: Location) -> Location:
    """Path with SB3's suffix if only such a file exists; a copy of what cannot be read twice."""
    if not isinstance(path, (str, os.PathLike)):
        return path if path.seekable() else io.BytesIO(path.read())
    with_suffix = pathlib.Path(f"{os.fspath(path)}{SUFFIX}")
    return path if os.path.exists(path) or not with_suffix.exists() else with_suffix


def _accept(name: str, trust_pickle: bool) -> None:
    if not trust_pickle:
        raise SafeFileError(
            name,
            "is a pickle, as earlier versions of sb3_happo and SB3 save replay buffers. Loading it "
            "can run any code that its author has put into it. If you trust the file: "
            "model.load_replay_buffer(path, trust_pickle=True); saving the buffer again makes it a "
            "file without pickles.",
        )
    warnings.warn(
        f"{name} is a pickle, loaded because of trust_pickle=True. Save the replay buffer again to "
        "have a file that is checked and runs nothing.",
        stacklevel=4,
    )


def check_saved_team(
    file: SafeFile, observation_space: spaces.Space, action_space: spaces.Space, n_envs: int
) -> None:
    """
    :param file: File of a replay buffer
    :param observation_space: Observation space of the model
    :param action_space: Action space of the model
    :param n_envs: Number of environments of the model
    :raises SafeFileError: If it is no buffer of this team in this number of environments
    """
    file.entries("team", TeamOfBuffer._fields)
    file.entries("buffer", ("buffer_size", "origin", "keys"))
    file.entries("rows", ("start", "arrays"))
    team = TeamOfBuffer(**file.value("team", only=TeamOfBuffer._fields))
    try:
        check_team_of_buffer(team, TeamOfBuffer(observation_space, action_space, n_envs))
    except ValueError as error:
        raise SafeFileError(file.name, f"does not fit this model. {error}") from error


def fill_replay_buffer(buffer: JointReplayBuffer, file: SafeFile) -> None:
    """
    :param buffer: Buffer of the size in the file
    :param file: File, after :func:`check_saved_team`
    :raises SafeFileError: If its arrays are not those of such a buffer
    """
    progress = file.value("buffer")
    if progress["keys"] != buffer.keys:
        raise SafeFileError(
            file.name,
            f"holds the entries {progress['keys']} of the joint observation, and the model reads "
            f"{buffer.keys}; load the buffer of a model with the same actors and critic.",
        )
    buffer.forget(progress["origin"])
    try:
        restore_rows(buffer, file.value("rows"))
    except ValueError as error:
        raise SafeFileError(file.name, f"is not that of such a replay buffer: {error}") from error
