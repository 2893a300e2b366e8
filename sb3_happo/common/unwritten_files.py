"""Files that a training could not write, kept in memory until there is room again."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TypeAlias

from sb3_happo.common.file_content import FileContent

#: Errors of a disk that may go away: it is full, over its quota, or not answering
_PASSING = {
    getattr(errno, name, errno.ENOSPC)
    for name in ("ENOSPC", "EDQUOT", "EIO", "ETIMEDOUT", "ESTALE")
}
#: Bytes that are kept at most; the oldest files are given up first
_MAX_BYTES = 2**30

Data: TypeAlias = bytes | memoryview | FileContent
Write = Callable[[str, Data], None]


class UnwrittenFiles:
    """
    Content of files that could not be written.

    :param write: Function that writes a file whole or not at all, ``(path, data)``
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._content: dict[str, Data] = {}

    @property
    def paths(self) -> list[str]:
        """
        :return: Paths of the files that are not written
        """
        return list(self._content)

    def write(self, path: str, data: Data) -> None:
        """
        Write a file, and those that could not be written before. If the disk is full, keep the
        content, and say so.

        :param path: Path
        :param data: Content
        :raises OSError: If it can never be written, for lack of rights for example
        """
        self._content.pop(path, None)
        self._content[path] = data
        self.try_again(self._explain)
        if path in self._content and isinstance(data, FileContent):
            self._freeze(path, data)

    def _freeze(self, path: str, data: FileContent) -> None:
        """Keep a copy of content that shares memory with the model."""
        if data.n_bytes <= _MAX_BYTES:
            self._content[path] = data.frozen()
            return
        del self._content[path]
        _say(f"{path} is given up, since its {data.n_bytes / 1e9:.1f} GB are not kept in memory.")

    def try_again(self, explain: Callable[[str, OSError], None] | None = None) -> None:
        """
        :param explain: Function that is called for each file that still cannot be written
        :raises OSError: If a file can never be written
        """
        for path, data in list(self._content.items()):
            try:
                self._write(path, data)
            except OSError as error:
                if error.errno not in _PASSING:
                    del self._content[path]
                    raise
                if explain is not None:
                    explain(path, error)
                continue
            del self._content[path]
        self._give_up_oldest()

    def _explain(self, path: str, error: OSError) -> None:
        _say(
            f"{path} was not written: {error.strerror}. Its content is kept in memory and is "
            "written with the next file; the training goes on."
        )

    def _n_bytes(self) -> int:
        return sum(
            own.n_bytes if isinstance(own, FileContent) else len(own)
            for own in self._content.values()
        )

    def _give_up_oldest(self) -> None:
        while len(self._content) > 1 and self._n_bytes() > _MAX_BYTES:
            path = next(iter(self._content))
            del self._content[path]
            _say(f"{path} is given up, since the files that wait for the disk fill the memory.")


def _say(text: str) -> None:
    # Not a warning, which may be an error, or be shown once. The output may be on the full disk
    with suppress(OSError):
        print(f"sb3_happo: {text}", file=sys.stderr, flush=True)


_FILES: ContextVar[UnwrittenFiles | None] = ContextVar("unwritten files", default=None)


def files_of_training() -> UnwrittenFiles | None:
    """
    :return: Files that the running training could not write; None without a training
    """
    return _FILES.get()


@contextmanager
def keep_unwritten_files(write: Write) -> Iterator[UnwrittenFiles]:
    """
    Keep files in memory that cannot be written inside, because the disk is full for example, and
    try again with each later file and at the end.

    :param write: Function that writes a file whole or not at all, ``(path, data)``
    :return: The files that are not written
    """
    outer = _FILES.get()
    if outer is not None:
        yield outer
        return
    files = UnwrittenFiles(write)
    token = _FILES.set(files)
    try:
        yield files
    finally:
        _FILES.reset(token)
        try:
            files.try_again()
        except OSError as error:
            _say(str(error))
        for path in files.paths:
            _say(f"{os.fspath(path)} was not written, and is lost with the memory of this program.")
