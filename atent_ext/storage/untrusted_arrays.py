"""Arrays of a stranger's NumPy archive (.npz): names, shapes and types are checked before any data are unpacked."""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from atent_ext.core.errors import BadInput
from atent_ext.storage import untrusted

_MOST = 4 * 2**30
_MEMBERS = 20
_HEADER = 10_000
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class Header(NamedTuple):
    """What an archive says of one of its arrays."""

    shape: tuple[int, ...]
    dtype: Any  # a NumPy dtype
    fortran: bool

    @property
    def bytes(self) -> int:
        """How much memory the array takes."""
        return prod(self.shape) * int(self.dtype.itemsize)


def read(
    content: bytes, path: Path, known: Sequence[str], check: Callable[[Mapping[str, Header]], None]
) -> dict[str, Any]:
    """The arrays called `known` in the bytes of an .npz file; those that are not there are left out.

    check: called with the headers before any array is unpacked; it raises BadInput for what is not wanted. `path` names
    the file in errors. Raises BadInput for other files, arrays of Python objects or texts, and headers that do not
    agree with the sizes. No code of the file is run.
    """
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            members = _members(archive, path, known)
            headers = {name: _header(archive, path, member) for name, member in members.items()}
            check(headers)
            return {name: _array(archive, members[name], header) for name, header in headers.items()}
    except BadInput:
        raise
    except Exception as error:  # zipfile, zlib and NumPy fail in many ways on broken files
        raise _unreadable(path, untrusted.line(error)) from None


def _unreadable(path: Path, reason: str) -> BadInput:
    return BadInput(f"{path} is no whole .npz file ({reason}); write it by np.savez", code="unreadable", field="path")


def _members(archive: zipfile.ZipFile, path: Path, known: Sequence[str]) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > _MEMBERS or len({info.filename for info in infos}) < len(infos):
        raise _unreadable(path, f"it has {len(infos)} members; at most {_MEMBERS}, each of another name, are read")
    found = {info.filename.removesuffix(".npy"): info for info in infos}
    members = {name: found[name] for name in known if name in found}
    for name, info in members.items():
        if info.compress_type not in _PACKED:
            raise _unreadable(path, f"{name} is packed by another method than deflate")
        if info.file_size > _MOST:
            message = f"{path}: {name} has {info.file_size:,} bytes; at most {_MOST:,} are read"
            raise BadInput(message, code="too-large", field="path")
    return members


def _header(archive: zipfile.ZipFile, path: Path, member: zipfile.ZipInfo) -> Header:
    with archive.open(member) as file:
        header, start = _start(file)
    if header.dtype.hasobject or header.dtype.kind not in "biuf":
        message = f"{path}: {member.filename} is {header.dtype}; only numbers are read"
        raise BadInput(message, code="unsafe", field="path")
    if start + header.bytes != member.file_size:
        raise _unreadable(path, f"{member.filename} has {member.file_size:,} bytes, not {start + header.bytes:,}")
    return header


def _start(file: IO[bytes]) -> tuple[Header, int]:
    """The header of an array and where its data begin."""
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"version {version} of the format")
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(file, max_header_size=_HEADER)
    return Header(tuple(shape), dtype, fortran), file.tell()


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, header: Header) -> Any:
    with archive.open(member) as file:
        _start(file)
        flat = np.frombuffer(bytearray(file.read(header.bytes)), header.dtype)
    return flat.reshape(header.shape, order="F" if header.fortran else "C")
