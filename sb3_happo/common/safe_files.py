"""
Files that are written whole or not at all, checked when they are read, and never run.

A file is a zip archive without compression:

* ``manifest.json``: format, kind of content, class, algorithm and version that saved it, and the
  size and SHA-256 of every other member;
* ``data.json``: the content as plain data, see :mod:`~sb3_happo.common.plain_data`;
* ``tensors.safetensors``: the tensors of the content, in the format of the library safetensors.
"""

import errno
import glob
import hashlib
import io
import json
import os
import pathlib
import re
import secrets
import socket
import struct
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import IO, Any, NamedTuple, TypeAlias

import safetensors.torch
import torch as th

from sb3_happo.common.file_content import (
    FileContent,
    Piece,
    digest_of,
    size_of,
    tensor_pieces,
)
from sb3_happo.common.plain_data import PlainDataError, Unsaved, from_plain, to_plain
from sb3_happo.common.unwritten_files import Data, files_of_training
from sb3_happo.version import __version__

Location: TypeAlias = str | os.PathLike[str] | IO[bytes]

FORMAT = "sb3_happo"
#: Number of the format; a reader refuses files with a larger one
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
DATA = "data.json"
TENSORS = "tensors.safetensors"
MEMBERS = (MANIFEST, DATA, TENSORS)
#: Largest sizes in bytes of the members that are JSON, whose parsing takes many times of it
MAX_MANIFEST = 2**20
MAX_DATA = 2**26


#: Header before each member of a zip archive: checksum, sizes, lengths of the names that follow
_LOCAL_HEADER = struct.Struct("<14xLLLHH")
#: Size in it of a member that is larger than 4 GB
_IN_EXTRA_FIELD = 0xFFFFFFFF
#: Errors that the libraries raise for damaged files
_DAMAGE = (
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
    *(EOFError, OSError, MemoryError, struct.error, safetensors.SafetensorError),
)


class SafeFileError(ValueError):
    """
    File that is damaged, of another kind, or not of this format.

    :param name: Name of the file
    :param problem: Problem with it, a sentence with the remedy
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem


class Manifest(NamedTuple):
    """
    Description of a file.

    :param kind: Kind of content: "model", "team", "agent", "vec_normalize", "checkpoint",
        "replay_buffer" and the like
    :param saved_by: Name of the class that saved it
    :param algorithm: Algorithm of the package that this class is or extends; "" for no model
    :param version: Version of the package
    :param info: Further strings and lists of them for readers, such as the names of attributes
    """

    kind: str
    saved_by: str = ""
    algorithm: str = ""
    version: str = __version__
    info: Mapping[str, Any] = {}

    @property
    def words(self) -> str:
        """
        :return: Description for an error message
        """
        by = f" of {self.saved_by}" if self.saved_by else ""
        return f"a file of the kind {self.kind!r}{by}, written by sb3_happo {self.version}"


class SafeFile:
    """
    Content of a file that was read and checked. Values are made on demand.

    :param name: Name of the file, for errors
    :param manifest: Description of the file
    :param plain: Content as plain data, by the name of its parts
    :param tensors: Tensors by name, on the CPU
    """

    def __init__(
        self,
        name: str,
        manifest: Manifest,
        plain: dict[str, Any],
        tensors: dict[str, th.Tensor],
    ) -> None:
        self.name = name
        self.manifest = manifest
        self.plain = plain
        self.tensors = tensors

    def entries(self, part: str, needed: Collection[str] = ()) -> frozenset[str]:
        """
        :param part: Name of a part of the content that is a dict
        :param needed: Entries that it must have
        :return: Names of its entries
        :raises SafeFileError: If the part is no dict, or an entry is missing
        """
        plain = self.plain.get(part)
        if not isinstance(plain, dict) or not plain.keys() >= {*needed}:
            missing = sorted({*needed} - {*(plain if isinstance(plain, dict) else ())})
            raise SafeFileError(
                self.name,
                f"holds {self.manifest.words}, whose part {part!r} is not whole: "
                f"{', '.join(missing) or part} missing.",
            )
        return frozenset(plain)

    def value(
        self,
        part: str,
        custom_objects: Mapping[str, Any] | None = None,
        only: Collection[str] | None = None,
    ) -> Any:
        """
        :param part: Name of a part of the content
        :param custom_objects: Classes and functions by name, in addition to those that files may
            name. If the part is a dict, values that stand for its entries, too
        :param only: Entries to take, if the part is a dict; None for all
        :return: Value of the part; its tensors share memory with :attr:`tensors`
        :raises SafeFileError: If the part is missing, or a class in it is unknown
        """
        if part not in self.plain:
            raise SafeFileError(self.name, f"holds {self.manifest.words}, without {part!r}.")
        plain, given = self.plain[part], dict(custom_objects or {})
        replaced: dict[str, Any] = {}
        if isinstance(plain, dict):
            wanted = plain if only is None else only
            replaced = {key: given[key] for key in plain if key in given and key in wanted}
            plain = {key: plain[key] for key in wanted if key in plain and key not in replaced}
        try:
            value = from_plain(plain, self.tensors, part, given)
        except PlainDataError as error:
            raise SafeFileError(
                self.name, f"holds {self.manifest.words}, which cannot be loaded: {error}."
            ) from error
        if replaced:
            value |= replaced
        return value


# ---------------------------------------------------------------- writing


def write_safe_file(
    target: Location,
    kind: str,
    content: Mapping[str, Any],
    saved_by: str = "",
    algorithm: str = "",
    info: Mapping[str, Any] | None = None,
    keep: bool = True,
    check: Callable[[list[Unsaved]], None] | None = None,
) -> list[Unsaved]:
    """
    Write a file. An existing one is replaced when the new one is complete, and not before.

    :param target: Path, or an open file
    :param kind: Kind of content, see :class:`Manifest`
    :param content: Parts of the content by name, of the kinds that
        :mod:`~sb3_happo.common.plain_data` lists
    :param saved_by: Name of the class that saves it
    :param algorithm: Algorithm of the package that this class is or extends
    :param info: Further strings for readers
    :param keep: During ``learn`` keep the content in memory if the disk is full, see
        :func:`atomic_write`; False for an error
    :param check: Function of the values that the file will not hold, called before it is written
    :return: Values that the file does not hold, or whose class a reader must supply
    :raises OSError: If the file cannot be written, for example because the disk is full; an
        existing file is then as before
    """
    unsaved: list[Unsaved] = []
    plain = {}
    tensors: dict[str, th.Tensor] = {}
    for part, value in content.items():
        plain[part], own = to_plain(value, part, unsaved)
        tensors |= own
    if check is not None:
        check(unsaved)
    manifest = Manifest(kind, saved_by, algorithm, __version__, info or {})
    data = pack(manifest, plain, tensors)
    if not isinstance(target, (str, os.PathLike)):
        target.write(data.frozen())
    elif keep:
        atomic_write(target, data)
    else:
        write_or_fail(os.fspath(target), data)
    return unsaved


def pack(
    manifest: Manifest, plain: Mapping[str, Any], tensors: Mapping[str, th.Tensor]
) -> FileContent:
    """
    :param manifest: Description
    :param plain: Content as plain data
    :param tensors: Tensors by name
    :return: Content of a file, which shares memory with the tensors
    """
    text = json.dumps(plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > MAX_DATA:
        raise ValueError(
            f"The settings of this {manifest.saved_by or manifest.kind} take {len(data)} bytes as "
            f"JSON, more than the {MAX_DATA} that a file may hold. Leave large attributes out, or "
            "hold them as arrays."
        )
    members: dict[str, Sequence[Piece]] = {DATA: [data], TENSORS: tensor_pieces(tensors)}
    table = {}
    for name, own in members.items():
        table[name] = {"size": size_of(own), "sha256": digest_of(own)}
    described: dict[str, Any] = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **manifest._asdict(),
        "members": table,
    }
    described["sha256"] = _digest_of(described)
    return FileContent({MANIFEST: [json.dumps(described, indent=1).encode()], **members})


def _digest_of(described: Mapping[str, Any]) -> str:
    """Checksum of a manifest without its own entry."""
    rest = {key: own for key, own in described.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def atomic_write(path: str | os.PathLike[str], data: Data) -> None:
    """
    Write a file beside the given one, and put it into its place when it is complete and on the
    disk: a reader finds the old content or the new one, also after a crash.

    During ``learn`` a full disk is no error: the content is kept in memory, a line says so, and it
    is written with the next file.

    :param path: Path; missing folders are made. A device or a pipe is written to directly
    :param data: Content
    :raises OSError: If the file cannot be written; the old one is then as before
    """
    files = files_of_training()
    if files is None:
        write_or_fail(os.fspath(path), data)
    else:
        files.write(os.path.abspath(path), data)


def write_or_fail(path: str, data: Data) -> None:
    """
    :func:`atomic_write` without an exception for trainings.

    :param path: Path
    :param data: Content
    :raises OSError: If the file cannot be written; the old one is then as before
    """
    target = pathlib.Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        target.write_bytes(data.frozen() if isinstance(data, FileContent) else data)
        return
    if not target.parent.exists():
        warnings.warn(f"Path '{target.parent}' does not exist. Will create it.", stacklevel=2)
        target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_beside(target)
    try:
        with open(temporary, "xb") as file:
            if isinstance(data, FileContent):
                data.write_to(file)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            with suppress(OSError):
                os.chmod(temporary, target.stat().st_mode & 0o7777)
        os.replace(temporary, target)
    except OSError as error:
        raise _explained(error, path) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    _sync_folder(target.parent)


def _explained(error: OSError, path: str | os.PathLike[str]) -> OSError:
    """Error with the name of the file that was to be written."""
    state = "the disk is full" if error.errno == errno.ENOSPC else error.strerror or str(error)
    kept = "; the file of this name is as before" if os.path.exists(path) else ""
    return OSError(error.errno or errno.EIO, f"cannot write, {state}{kept}", os.fspath(path))


def _temporary_beside(target: pathlib.Path) -> pathlib.Path:
    """Name of a new file beside the target. Leftovers of processes that were killed are removed."""
    node = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:32]
    start = f".{target.name[:100]}.{node}-"
    with suppress(OSError):
        for other in target.parent.glob(f"{glob.escape(start)}*.tmp"):
            number = other.name[len(start) :].partition("-")[0]
            if number.isdigit() and not _is_running(int(number)):
                other.unlink()
    return target.with_name(f"{start}{os.getpid()}-{secrets.token_hex(4)}.tmp")


def _is_running(process: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _sync_folder(folder: pathlib.Path) -> None:
    """Put the names in a folder on the disk, where the system can."""
    if os.name != "posix":
        return
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ---------------------------------------------------------------- reading


def file_name(location: Location) -> str:
    """
    :param location: Path, or an open file
    :return: Name of the file, for errors
    """
    if isinstance(location, (str, os.PathLike)):
        return os.fspath(location)
    return str(getattr(location, "name", "this open file"))


def read_manifest(location: Location) -> Manifest | None:
    """
    :param location: Path, or an open file, whose position is kept
    :return: Description of the file; None if it is not of this format
    :raises SafeFileError: If the file is of this format, and damaged or of a newer version
    """
    return _with_archive(location, lambda archive, name: _manifest_of(archive, name)[0])


def read_safe_file(location: Location, kind: str | Collection[str] | None = None) -> SafeFile:
    """
    Read and check a whole file. Nothing in it is run, and no module is imported because of it.

    :param location: Path, or an open file
    :param kind: Kind of content that is expected, or several; None for any
    :return: Content
    :raises SafeFileError: If the file is damaged, not of this format, of a newer version, or of
        another kind
    """
    name = file_name(location)
    kinds = (kind,) if isinstance(kind, str) else kind

    def read(archive: zipfile.ZipFile, name: str) -> SafeFile:
        manifest, table = _manifest_of(archive, name)
        if kinds is not None and manifest.kind not in kinds:
            wanted = " or ".join(map(repr, kinds))
            raise SafeFileError(name, f"holds {manifest.words}, not one of the kind {wanted}.")
        members = _members_of(archive, table, name, manifest)
        return _unpack(name, manifest, members)

    found = _with_archive(location, read)
    if found is None:
        raise SafeFileError(
            name,
            f"is no file of this version of sb3_happo, or it is damaged: it has no {MANIFEST}.",
        )
    return found


def _with_archive(location: Location, use: Callable[[zipfile.ZipFile, str], Any]) -> Any:
    """Result for the archive; None for files without a manifest."""
    name = file_name(location)
    if isinstance(location, (str, os.PathLike)):
        with open(location, "rb") as file:
            return _use_archive(file, name, use)
    if not location.seekable():
        return _use_archive(io.BytesIO(location.read()), name, use)
    position = location.tell()
    try:
        return _use_archive(location, name, use)
    finally:
        location.seek(position)


def _use_archive(file: IO[bytes], name: str, use: Callable[[zipfile.ZipFile, str], Any]) -> Any:
    try:
        with zipfile.ZipFile(file) as archive:
            if MANIFEST not in archive.namelist():
                return None
            _check_archive(archive, name, file.seek(0, io.SEEK_END))
            _check_local_headers(archive, file, name)
            return use(archive, name)
    except SafeFileError:
        raise
    except zipfile.BadZipFile as error:
        raise SafeFileError(name, f"is damaged or no file of sb3_happo: {error}.") from error
    except _DAMAGE as error:
        raise SafeFileError(
            name, f"is damaged ({type(error).__name__}: {error}). Use another copy of it."
        ) from error


def _check_archive(archive: zipfile.ZipFile, name: str, size: int) -> None:
    """Refuse archives that are not as this module writes them, before anything is unpacked."""
    infos = archive.infolist()
    names = [info.filename for info in infos]
    if sorted(names) != sorted(MEMBERS):
        other = sorted(set(names) - set(MEMBERS)) or sorted(set(MEMBERS) - set(names)) or names
        raise SafeFileError(
            name,
            f"is no whole file of sb3_happo: its members are {sorted(names)[:6]}, not "
            f"{sorted(MEMBERS)} (see {other[:3]}).",
        )
    claimed = 0
    for info in infos:
        claimed += info.file_size
        is_stored = info.compress_type == zipfile.ZIP_STORED
        if not is_stored or info.file_size != info.compress_size or info.flag_bits & 1:
            raise SafeFileError(
                name,
                f"is damaged or was changed: its member {info.filename!r} is compressed or "
                f"encrypted, {info.compress_size} bytes for {info.file_size}.",
            )
    if claimed > size:
        raise SafeFileError(name, f"is damaged: it has {size} bytes and claims to hold {claimed}.")


def _check_local_headers(archive: zipfile.ZipFile, file: IO[bytes], name: str) -> None:
    """Refuse members whose own header does not agree with the directory at the end of the file."""
    for info in archive.infolist():
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER.size)
        if len(header) < _LOCAL_HEADER.size:
            raise SafeFileError(name, f"is cut off at its member {info.filename!r}.")
        checksum, compressed, size, _, _ = _LOCAL_HEADER.unpack(header)
        if checksum != info.CRC or {compressed, size} - {info.file_size, _IN_EXTRA_FIELD}:
            raise SafeFileError(
                name,
                f"is damaged, or made of two files: the header of its member {info.filename!r} "
                "does not agree with the directory of the archive. Use another copy.",
            )


def _manifest_of(archive: zipfile.ZipFile, name: str) -> tuple[Manifest, Mapping[str, Any]]:
    """Manifest, and its table of members."""
    if archive.getinfo(MANIFEST).file_size > MAX_MANIFEST:
        raise SafeFileError(name, f"is damaged: its {MANIFEST} is larger than {MAX_MANIFEST}.")
    described = json.loads(_bytes_of(archive, MANIFEST, name))
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise SafeFileError(name, f"is no file of sb3_happo: its {MANIFEST} is of another program.")
    number = described.get("format_version")
    if not isinstance(number, int) or number > FORMAT_VERSION:
        raise SafeFileError(
            name,
            f"was written by sb3_happo {described.get('version')} in format {number}; this is "
            f"sb3_happo {__version__}, which reads formats up to {FORMAT_VERSION}. Install the "
            "newer version.",
        )
    if described.get("sha256") != _digest_of(described):
        raise SafeFileError(
            name,
            f"is damaged: its {MANIFEST} (kind {described.get('kind')!r}, saved by "
            f"{described.get('saved_by')!r}) does not agree with its checksum. Use another copy.",
        )
    values = {field: described[field] for field in Manifest._fields}
    return Manifest(**values), described["members"]


def _bytes_of(archive: zipfile.ZipFile, member: str, name: str) -> bytes:
    try:
        return archive.read(member)
    except (zipfile.BadZipFile, *_DAMAGE) as error:
        raise SafeFileError(
            name, f"is damaged: its member {member!r} cannot be read ({error}). Use another copy."
        ) from error


def _members_of(
    archive: zipfile.ZipFile, table: Mapping[str, Any], name: str, manifest: Manifest
) -> dict[str, bytes]:
    """Members, after a check of their sizes and checksums."""
    if sorted(table) != sorted((DATA, TENSORS)):
        raise SafeFileError(name, f"is damaged: its {MANIFEST} lists {sorted(table)[:6]}.")
    for member, own in table.items():
        limit = MAX_DATA if member == DATA else own["size"]
        if archive.getinfo(member).file_size != own["size"] or own["size"] > limit:
            raise SafeFileError(
                name,
                f"holds {manifest.words}, but its member {member!r} has "
                f"{archive.getinfo(member).file_size} bytes, not {own['size']}: the file is "
                "damaged, or the member is that of another file. Use another copy.",
            )
    members = {}
    for member, own in table.items():
        content = _bytes_of(archive, member, name)
        if hashlib.sha256(content).hexdigest() != own["sha256"]:
            raise SafeFileError(
                name,
                f"holds {manifest.words}, but its member {member!r} does not agree with its "
                "checksum: the file is damaged, or the member is that of another file. Use "
                "another copy.",
            )
        members[member] = content
    return members


def _unpack(name: str, manifest: Manifest, members: Mapping[str, bytes]) -> SafeFile:
    try:
        plain = json.loads(members[DATA].decode("utf-8", "surrogatepass"))
        packed = safetensors.torch.load(members[TENSORS])
    except _DAMAGE as error:
        raise SafeFileError(
            name, f"holds {manifest.words}, which cannot be read: {error}."
        ) from error
    if not isinstance(plain, dict):
        raise SafeFileError(name, f"holds {manifest.words}, whose content is no table of parts.")
    tensors = {}
    for key, tensor in packed.items():
        own, is_complex = key.removesuffix("|complex"), key.endswith("|complex")
        tensors[own] = th.view_as_complex(tensor) if is_complex else tensor
    return SafeFile(name, manifest, plain, tensors)
