"""Content of a file in pieces, which large arrays are written from without a copy."""

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from typing import IO, Any, TypeAlias

import torch as th

Piece: TypeAlias = bytes | memoryview
#: Pieces of a member that are together smaller are joined, since a call for each takes longer
_SMALL = 2**22
#: Names of the types in the format of safetensors
_TYPE_NAMES: dict[th.dtype, str] = {
    th.float64: "F64",
    th.float32: "F32",
    th.float16: "F16",
    th.bfloat16: "BF16",
    th.float8_e4m3fn: "F8_E4M3",
    th.float8_e5m2: "F8_E5M2",
    th.int64: "I64",
    th.int32: "I32",
    th.int16: "I16",
    th.int8: "I8",
    th.uint64: "U64",
    th.uint32: "U32",
    th.uint16: "U16",
    th.uint8: "U8",
    th.bool: "BOOL",
}


class FileContent:
    """
    Members of a zip archive without compression. The pieces may share memory with arrays, which
    must not change before the content is written or frozen.

    :param members: Pieces of each member, by its name
    """

    def __init__(self, members: Mapping[str, Sequence[Piece]]) -> None:
        self.members = dict(members)

    @property
    def n_bytes(self) -> int:
        """
        :return: Size of all members
        """
        return sum(map(size_of, self.members.values()))

    def write_to(self, file: IO[bytes]) -> None:
        """
        :param file: Open file that can seek
        """
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, pieces in self.members.items():
                is_large = size_of(pieces) >= zipfile.ZIP64_LIMIT
                with archive.open(name, "w", force_zip64=is_large) as member:
                    for piece in pieces:
                        member.write(piece)

    def frozen(self) -> memoryview:
        """
        :return: Bytes of the file, which share no memory
        """
        memory = io.BytesIO()
        self.write_to(memory)
        return memory.getbuffer()


def size_of(pieces: Sequence[Piece]) -> int:
    """
    :param pieces: Pieces of bytes
    :return: Size of all of them
    """
    return sum(map(len, pieces))


def digest_of(pieces: Sequence[Piece]) -> str:
    """
    :param pieces: Pieces of bytes
    :return: SHA-256 of all of them in their order
    """
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def tensor_pieces(tensors: Mapping[str, th.Tensor]) -> list[Piece]:
    """
    Tensors in the format of safetensors: the length of a JSON header, the header, and the numbers.

    :param tensors: Tensors by name
    :return: Pieces, which share memory with tensors on the CPU
    :raises ValueError: If the format has no name for the type of a tensor
    """
    header: dict[str, Any] = {}
    pieces: list[Piece] = []
    end = 0
    # Large types first, so that each number is at a multiple of its size
    ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    for name, tensor in ordered:
        tensor = tensor.detach().cpu().contiguous()
        if tensor.is_complex():
            tensor, name = th.view_as_real(tensor), f"{name}|complex"
        if tensor.dtype not in _TYPE_NAMES:
            raise ValueError(
                f"The tensor {name!r} has the type {tensor.dtype}, which no file holds."
            )
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _TYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        if end > start:
            pieces.append(tensor.reshape(-1).view(th.uint8).numpy().data)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (math.ceil(len(text) / 8) * 8 - len(text))
    pieces = [len(text).to_bytes(8, "little"), text, *pieces]
    return pieces if end > _SMALL else [b"".join(pieces)]
