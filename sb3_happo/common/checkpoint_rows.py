"""
Replay buffers of checkpoints. A buffer is too large to be written at each checkpoint, and most of
it does not change: files beside the checkpoints hold the rows that were new at each of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sb3_happo.common.replay_rows import NumberedRows
from sb3_happo.common.safe_files import SafeFile, read_manifest, read_safe_file, write_safe_file

#: Kind of the files
KIND = "replay_rows"
#: Ending of the files' names
ENDING = ".replay"


class RowFile(NamedTuple):
    """
    File with rows of a replay buffer.

    :param name: Name of the file, in the folder of the checkpoint
    :param n_timesteps: Timesteps at the checkpoint for which it was written
    :param start: Number of its first row
    :param stop: Number behind its last row
    """

    name: str
    n_timesteps: int
    start: int
    stop: int


class RowsLostError(ValueError):
    """Rows of a checkpoint that the replay buffer does not hold any more."""


class RowWriter:
    """
    Writes the rows of a replay buffer that are new since the checkpoint before. The last row of a
    file is in the next one again, since a reset marks it as the end of its episodes.

    :param folder: Folder of the checkpoints
    :param prefix: Beginning of the files' names
    """

    def __init__(self, folder: str | Path, prefix: str) -> None:
        self._folder = Path(folder)
        self._prefix = prefix
        self._files: list[RowFile] = []
        self._of: tuple[NumberedRows, int] | None = None

    def continue_after(self, checkpoint: str | Path, buffer: NumberedRows) -> None:
        """
        Go on after a checkpoint in the same folder; without such a file, begin with all rows.

        :param checkpoint: Path of the file from which the training continues
        :param buffer: Buffer, with the rows of that checkpoint
        """
        self._files, self._of = files_of(checkpoint), (buffer, buffer.origin)

    def write(
        self, buffer: NumberedRows, n_timesteps: int, progress: Mapping[str, int]
    ) -> list[RowFile]:
        """
        :param buffer: Buffer
        :param n_timesteps: Timesteps at the checkpoint
        :param progress: Result of :func:`row_progress` at the checkpoint
        :return: Files that hold all rows of the checkpoint
        :raises OSError: If the file cannot be written
        :raises RowsLostError: If newer rows have taken the places of some
        """
        origin, stop = progress["origin"], progress["n_added"]
        first = max(origin, stop - buffer.buffer_size)
        known = []
        if self._of is not None and self._of[0] is buffer and self._of[1] == origin:
            known = [own for own in self._files if own.n_timesteps < n_timesteps]
        known = [own for own in known if own.stop > first]
        start = max(known[-1].stop - 1, first) if known else first
        if start < buffer.first_row:
            raise RowsLostError(
                f"{buffer.first_row - start} of its transitions in each environment are in no file "
                "and not in the replay buffer any more, where newer ones have taken their places. "
                "Make checkpoints more often than the replay buffer fills"
            )
        name = f"{self._prefix}_{n_timesteps}_steps{ENDING}"
        new = RowFile(name, n_timesteps, start, stop)
        write_safe_file(self._folder / name, KIND, row_content(buffer, start, stop), keep=False)
        self._files, self._of = [*known, new], (buffer, origin)
        return self._files


class RowSource:
    """
    Rows of a checkpoint.

    :param folder: Folder of the checkpoint
    :param part: Part "rows" of its content
    """

    def __init__(self, folder: str | Path, part: Mapping[str, Any]) -> None:
        self._folder = Path(folder)
        self._files = _row_files(part["files"])
        self._own: Mapping[str, Any] | None = part["own"]

    def check(self) -> None:
        """
        :raises ValueError: If a file is damaged, or is that of another checkpoint
        :raises OSError: If a file is missing
        """
        for own in self._files:
            self._read(own)

    def restore(self, buffer: NumberedRows, progress: Mapping[str, int]) -> None:
        """
        Replace the content of a buffer.

        :param buffer: Buffer
        :param progress: Result of :func:`row_progress` at the checkpoint
        :raises ValueError: If the buffer has another size, or a file is damaged
        """
        for name in ("buffer_size", "n_envs"):
            if getattr(buffer, name) != progress[name]:
                raise ValueError(
                    f"The replay buffer of the checkpoint has {name}={progress[name]}, and that of "
                    f"the model {getattr(buffer, name)} (buffer_size per environment); make the "
                    "model with the same arguments."
                )
        buffer.forget(progress["origin"])
        if self._own is not None:
            restore_rows(buffer, self._own)
        for own in self._files:
            restore_rows(buffer, self._read(own).value("rows"))

    def _read(self, own: RowFile) -> SafeFile:
        file = read_safe_file(self._folder / own.name, KIND)
        found = file.plain.get("rows", {})
        if [found.get("start"), found.get("stop")] != [own.start, own.stop]:
            raise ValueError(
                f"{file.name} holds the rows {found.get('start')} to {found.get('stop')}, and the "
                f"checkpoint needs {own.start} to {own.stop}: it is the file of another training."
            )
        return file


def row_progress(buffer: NumberedRows) -> dict[str, int]:
    """
    :param buffer: Buffer
    :return: Numbers that say which rows it holds, plain data
    """
    return {
        "buffer_size": buffer.buffer_size,
        "n_envs": buffer.n_envs,
        "origin": buffer.origin,
        "n_added": buffer.n_added,
    }


def row_content(buffer: NumberedRows, start: int, stop: int) -> dict[str, Any]:
    """
    :param buffer: Buffer
    :param start: Number of the first row
    :param stop: Number behind the last row
    :return: Content of a file, which shares memory with the buffer
    :raises ValueError: If the buffer does not hold these rows
    """
    return {"rows": {"start": start, "stop": stop, "arrays": buffer.rows(start, stop)}}


def restore_rows(buffer: NumberedRows, rows: Mapping[str, Any]) -> None:
    """
    :param buffer: Buffer, whose rows are replaced
    :param rows: Part "rows" of the content of a file
    :raises ValueError: If they are not those of such a buffer
    """
    arrays: Mapping[str, Sequence[np.ndarray]] = rows["arrays"]
    number = rows["start"]
    for parts in zip(*arrays.values(), strict=True):
        part = dict(zip(arrays, parts, strict=True))
        buffer.set_rows(number, part)
        number += len(parts[0])


def files_of(checkpoint: str | Path) -> list[RowFile]:
    """
    :param checkpoint: Path of a checkpoint
    :return: Files with its rows; none if there is no such checkpoint, or it has none
    :raises ValueError: If the checkpoint is damaged
    """
    if not Path(checkpoint).is_file():
        return []
    manifest = read_manifest(checkpoint)
    return [] if manifest is None else _row_files(manifest.info.get("rows", []))


def _row_files(listed: Any) -> list[RowFile]:
    """
    :param listed: Files as a checkpoint lists them
    :return: The same
    :raises ValueError: If they are no names of files in its folder
    """
    try:
        files = [RowFile(*own) for own in listed]
        foreign = [own.name for own in files if Path(own.name).name != own.name]
    except TypeError as error:
        raise ValueError(f"It does not list files with rows, but {listed}.") from error
    if foreign:
        raise ValueError(f"It names the files {foreign}, which are not in its folder.")
    return files


def remove_unneeded(folder: str | Path, prefix: str, checkpoints: Sequence[Path]) -> None:
    """
    Remove the files that no checkpoint needs.

    :param folder: Folder of the checkpoints
    :param prefix: Beginning of the files' names
    :param checkpoints: Paths of the checkpoints that stay
    """
    needed: set[str] = set()
    for checkpoint in checkpoints:
        try:
            needed.update(own.name for own in files_of(checkpoint))
        except (ValueError, OSError):
            return  # a damaged checkpoint: which files it needs is not known
    for path in row_files_in(folder, prefix):
        if path.name not in needed:
            path.unlink(missing_ok=True)


def row_files_in(folder: str | Path, prefix: str) -> Iterator[Path]:
    """
    :param folder: Folder of the checkpoints
    :param prefix: Beginning of the files' names
    :return: Paths of all files with rows
    """
    for path in Path(folder).glob(f"*_steps{ENDING}"):
        stem = path.name.removesuffix(f"_steps{ENDING}")
        own, _, number = stem.rpartition("_")
        if own == prefix and number.isdigit():
            yield path
