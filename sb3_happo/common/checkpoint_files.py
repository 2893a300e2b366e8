"""Files of checkpoints: names, writing, reading, the newest whole one of a folder."""

import io
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from sb3_happo.common.checkpoint_rows import ENDING as ROWS_ENDING
from sb3_happo.common.checkpoint_rows import RowSource, remove_unneeded
from sb3_happo.common.plain_data import Unsaved
from sb3_happo.common.safe_files import SafeFile, read_safe_file, write_safe_file
from sb3_happo.common.saved_algorithm import SavedAlgorithm, model_info
from sb3_happo.common.saved_files import lineage

#: Version of the content of checkpoints
VERSION = 2
#: Kind of the files
KIND = "checkpoint"
#: Ending of the files' names
ENDING = ".ckpt"
_NAME = re.compile(r"^(?P<prefix>.+)_(?P<steps>\d+)_steps\.ckpt$")


class CheckpointError(ValueError):
    """File that is no whole checkpoint, or a folder without one."""


def checkpoint_path(folder: str | Path, prefix: str, n_timesteps: int) -> Path:
    """
    :param folder: Folder of the checkpoints
    :param prefix: Beginning of the file's name
    :param n_timesteps: Timesteps at the checkpoint
    :return: Path of the file
    """
    return Path(folder) / f"{prefix}_{n_timesteps}_steps{ENDING}"


def checkpoints_in(folder: str | Path, prefix: str | None = None) -> list[tuple[int, Path]]:
    """
    :param folder: Folder
    :param prefix: Beginning of the files' names; None for any
    :return: Timesteps and path of each checkpoint, whole or not, from the newest to the oldest
    """
    found = []
    for path in Path(folder).glob(f"*{ENDING}"):
        match = _NAME.match(path.name)
        if match is not None and prefix in (None, match["prefix"]):
            found.append((int(match["steps"]), path))
    return sorted(found, reverse=True)


class Checkpoint(NamedTuple):
    """
    Content of a checkpoint.

    :param state: State of the training, plain data
    :param model: File with the parts of a saved model
    :param rows: Replay buffer; None for algorithms without one
    """

    state: dict[str, Any]
    model: SafeFile
    rows: RowSource | None


def write_checkpoint(path: str | Path, content: dict[str, Any], cls: type) -> list[Unsaved]:
    """
    Write a checkpoint. An existing file is replaced when the new one is whole.

    :param path: Path of the file
    :param content: Parts of a saved model; "state", plain data; and for a replay buffer "rows"
    :param cls: Class of the algorithm
    :return: Settings of the model that the file does not hold, or whose class a reader must supply
    :raises OSError: If the file cannot be written
    :raises CheckpointError: If a value of the state is no plain data, such as a part of a
        callback's ``state_dict()``
    """
    name, algorithm = lineage(cls, SavedAlgorithm)
    info = model_info(cls, content)
    files = content.get("rows", {}).get("files", [])
    if files:
        info["rows"] = [list(own) for own in files]
    # A later checkpoint is worth more than this one, kept in memory until the disk has room
    unsaved = write_safe_file(path, KIND, content, name, algorithm, info, keep=False)
    of_state = [value for value in unsaved if value.path.partition(".")[0] in ("state", "rows")]
    if of_state:
        Path(path).unlink(missing_ok=True)
        named = "; ".join(f"{value.path} is {value.text}" for value in of_state)
        raise CheckpointError(f"A checkpoint holds plain data only: {named}.")
    return unsaved


def read_checkpoint(path: str | Path) -> Checkpoint:
    """
    :param path: Path of a checkpoint, or of a folder with checkpoints, of which the newest whole
        one is read
    :return: Content of the checkpoint
    :raises CheckpointError: If there is none, or the file, or one with its replay buffer, is torn
        or something else
    """
    path = Path(path)
    if path.is_dir():
        return read_newest(path)
    if not path.is_file():
        raise CheckpointError(f"There is no checkpoint {path}.")
    try:
        file = read_safe_file(path, KIND)
        state = file.value("state")
        model, version = file, state.get("version")
        if version == 1:
            # The model was a file within the file
            model = read_safe_file(io.BytesIO(file.value("model").tobytes()), "model")
        rows = None
        if "rows" in file.plain:
            rows = RowSource(path.parent, file.value("rows"))
            rows.check()
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is no whole checkpoint: {error}") from error
    if version not in range(1, VERSION + 1):
        raise CheckpointError(
            f"{path} is a checkpoint of version {version}, and this version of sb3_happo reads "
            f"those up to {VERSION}. Install the newer version."
        )
    return Checkpoint(state, model, rows)


def read_newest(folder: str | Path, prefix: str | None = None) -> Checkpoint:
    """
    :param folder: Folder with checkpoints
    :param prefix: Beginning of the files' names; None for any
    :return: Content of the newest whole checkpoint; a warning names those that are not whole
    :raises CheckpointError: If there is none
    """
    problems = []
    for _, path in checkpoints_in(folder, prefix):
        try:
            content = read_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            warnings.warn(f"{problem} The one before it is used.", stacklevel=2)
        return content
    text = " ".join(["The folder", str(folder), "has no whole checkpoint.", *problems])
    raise CheckpointError(text)


def remove_leftovers(folder: str | Path, prefix: str) -> None:
    """
    Remove unfinished files that processes have left which were killed.

    :param folder: Folder of the checkpoints of one training
    :param prefix: Beginning of the files' names
    """
    for ending in (ENDING, ROWS_ENDING):
        for path in Path(folder).glob(f".{prefix}_*{ending}.*.tmp"):
            path.unlink(missing_ok=True)


def remove_old(folder: str | Path, prefix: str, keep: int) -> None:
    """
    :param folder: Folder of the checkpoints
    :param prefix: Beginning of the files' names
    :param keep: Number of the newest ones that stay
    """
    paths = [path for _, path in checkpoints_in(folder, prefix)]
    for path in paths[keep:]:
        path.unlink(missing_ok=True)
    remove_unneeded(folder, prefix, paths[:keep])
