"""Locks of folders, so that two trainings do not write the same files."""

import contextlib
import json
import os
import platform
import time
import warnings
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

#: Name of the file that is locked
LOCK = ".lock"
# Locks of an operating system do not hold against the process that has them
_held: WeakValueDictionary[str, "FolderLock"] = WeakValueDictionary()
# Windows locks bytes for reading, too: one behind the text
_PLACE = 1 << 20


class FolderInUseError(RuntimeError):
    """Folder that another training writes into at this moment."""


class FolderLock:
    """
    Lock of a folder. It ends with its process, however that ends, and is not inherited by child
    processes::

        with FolderLock("run"):
            ...

    File systems without locks are used without one, with a warning.

    :param folder: Folder, which is made if it does not exist
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._file: int | None = None
        self._pid = 0
        self._key = ""

    @property
    def is_held(self) -> bool:
        """
        :return: True between :meth:`acquire` and :meth:`release` in the same process
        """
        return self._pid == os.getpid()

    def acquire(self) -> None:
        """
        Take the lock, unless this object has it.

        :raises FolderInUseError: If another process, or another training of this one, has it
        """
        if self.is_held:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        key = os.path.realpath(self.folder)
        other = _held.get(key)
        # Opening and closing the file would end a lock of this process
        if other is not None and other.is_held:
            raise self._in_use("another training of this process")
        self._file = self._locked_file()
        self._pid, self._key = os.getpid(), key
        _held[key] = self

    def release(self) -> None:
        """Give the lock back, and remove its file. A lock that is not held is left as it is."""
        if not self.is_held:
            return
        self._pid = 0
        _held.pop(self._key, None)
        if self._file is None:
            return
        # Before the lock ends, so that no process has locked the file meanwhile. Windows cannot
        # remove an open file, which is then left
        with contextlib.suppress(OSError):
            (self.folder / LOCK).unlink()
        os.close(self._file)
        self._file = None

    def __enter__(self) -> "FolderLock":
        self.acquire()
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def __del__(self) -> None:
        self.release()

    def _locked_file(self) -> int | None:
        """Open file with the lock; None if the file system has no locks."""
        path = self.folder / LOCK
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                _lock(file)
            except (BlockingIOError, PermissionError) as error:
                holder = _holder(file)
                os.close(file)
                raise self._in_use(holder) from error
            except OSError as error:
                os.close(file)
                warnings.warn(
                    f"{self.folder} cannot be locked ({error}); do not let two trainings write "
                    "into it.",
                    stacklevel=4,
                )
                return None
            if _is_at(file, path):
                _write_holder(file)
                return file
            # Its holder has removed it since it was opened
            os.close(file)

    def _in_use(self, holder: str) -> FolderInUseError:
        return FolderInUseError(
            f"{self.folder} is in use by {holder}. Wait for its end, end it, or choose another "
            "folder."
        )


def locked_folder(folder: str | Path) -> FolderLock:
    """
    :param folder: Folder, which is made if it does not exist
    :return: Lock that is held
    :raises FolderInUseError: If another training has it
    """
    lock = FolderLock(folder)
    lock.acquire()
    return lock


def _lock(file: int) -> None:
    """Lock an open file, or raise BlockingIOError or PermissionError if it is locked."""
    try:
        import fcntl
    except ImportError:
        import msvcrt

        os.lseek(file, _PLACE, os.SEEK_SET)
        msvcrt.locking(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return
    # In contrast to `flock`, forked processes do not keep it when this one has ended
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(file: int, path: Path) -> bool:
    """
    :param file: Open file
    :param path: Path
    :return: True if it is the file at the path
    """
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _write_holder(file: int) -> None:
    """Write the process into the file, for the error of others. A full disk does not matter."""
    holder = {"pid": os.getpid(), "host": platform.node(), "since": time.ctime()}
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.lseek(file, 0, os.SEEK_SET)
        os.write(file, json.dumps(holder).encode())


def _holder(file: int) -> str:
    """Text with the process that has locked a file."""
    try:
        os.lseek(file, 0, os.SEEK_SET)
        found = json.loads(os.read(file, 1000))
        return f"process {found['pid']} on {found['host']} (since {found['since']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
