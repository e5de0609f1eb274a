"""Arrays in files that are read in parts: `rows[a:b]`. Nothing is unpickled or kept in memory."""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from atent_ext.core.errors import BadInput

_PART = 2**22
"""Bytes that are read at a time to find the smallest and the largest value."""


@dataclass(frozen=True, eq=False)
class Rows:
    """An array (N, ...) in a file. `rows[a:b]` reads these rows as an ndarray; an empty slice `rows[:]` all of them."""

    dtype: Any
    shape: tuple[int, ...]
    read: Callable[[int, int], Any]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, part: slice) -> Any:
        chosen = range(len(self))[part]
        return self.read(chosen.start, chosen.stop)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of values."""
        return int(np.prod(self.shape, dtype=object))

    def parts(self) -> Iterator[Any]:
        """All rows in order, a few megabytes at a time."""
        row = max(1, self.size // max(1, len(self)) * self.dtype.itemsize)
        step = max(1, _PART // row)
        return (self[start : start + step] for start in range(0, len(self), step))

    @cached_property
    def extent(self) -> tuple[float, float]:
        """The smallest and the largest value; NaN if there is one. Reads everything, once."""
        parts = [(part.min(), part.max()) for part in self.parts()]
        least, most = (np.array(values) for values in zip(*parts, strict=True))
        return least.min().item(), most.max().item()


def in_memory(array: Any) -> Rows:
    """An array in memory with the interface of one in a file."""
    return Rows(array.dtype, array.shape, lambda start, stop: array[start:stop])


def of_file(path: Path) -> Rows:
    """The array of a .npy file. Raises ValueError or OSError for another file."""
    with path.open("rb") as file:
        shape, fortran, dtype = _header(file)
        offset, length = file.tell(), path.stat().st_size
    if fortran and len(shape) > 1:
        return in_memory(np.load(path, allow_pickle=False))
    _check_length(shape, dtype, length - offset)
    width = _width(shape, dtype)

    def read(start: int, stop: int) -> Any:
        with path.open("rb") as opened:
            opened.seek(offset + start * width)
            content = opened.read((stop - start) * width)
        return _rows(path, content, dtype, (stop - start, *shape[1:]))

    return Rows(dtype, shape, read)


def of_archive(path: Path, member: str) -> Rows:
    """The array `member` of a .npz file, compressed or not. Raises ValueError or OSError for another file.

    Only reading rows in order is fast: for an earlier row, a compressed member is read again from its start.
    """
    place = _Place(path, f"{member}.npy")
    with place.opened() as file:
        shape, fortran, dtype = _header(file)
        offset, length = file.tell(), place.length
    if fortran and len(shape) > 1:
        with np.load(path, allow_pickle=False) as archive:
            return in_memory(archive[member])
    _check_length(shape, dtype, length - offset)
    width = _width(shape, dtype)

    def read(start: int, stop: int) -> Any:
        content = place.bytes(offset + start * width, (stop - start) * width)
        return _rows(path, content, dtype, (stop - start, *shape[1:]))

    return Rows(dtype, shape, read)


class _Place:
    """A member of a zip file, which stays open between reads: a compressed one can only be read from its front."""

    def __init__(self, path: Path, member: str) -> None:
        self.path, self.member = path, member
        self.length = 0
        self._file: IO[bytes] | None = None

    def opened(self) -> IO[bytes]:
        with zipfile.ZipFile(self.path) as archive:  # closing it leaves the member open
            self.length = archive.getinfo(self.member).file_size
            return archive.open(self.member)

    def bytes(self, start: int, count: int) -> bytes:
        """`count` bytes from `start` on; fewer at the end. The checksum is compared where the end is reached."""
        try:
            if self._file is None or self._file.tell() > start:
                self.close()
                self._file = self.opened()
            self._file.seek(start)
            content = self._file.read(count)
            if start + count >= self.length:
                self.close()
        except (OSError, EOFError, zipfile.BadZipFile, ValueError) as error:
            raise _unreadable(self.path, str(error)) from error
        return content

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __del__(self) -> None:
        self.close()


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, Any]:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"the array format {version} is not read")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded, since they are pickled")
    if not shape:
        raise ValueError("a single number is neither images nor labels")
    return shape, fortran, dtype


def _check_length(shape: tuple[int, ...], dtype: Any, length: int) -> None:
    needed = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if min(shape) < 0 or needed > length:
        raise ValueError(f"an array {shape} of {dtype} has {needed} bytes, and {length} are there")


def _width(shape: tuple[int, ...], dtype: Any) -> int:
    """Bytes of a row."""
    return int(np.prod(shape[1:], dtype=object)) * int(dtype.itemsize)


def _rows(path: Path, content: bytes, dtype: Any, shape: tuple[int, ...]) -> Any:
    if len(content) != _width((1, *shape), dtype):
        raise _unreadable(path, "it ends too early")
    return np.frombuffer(content, dtype).reshape(shape)


def _unreadable(path: Path, why: str) -> BadInput:
    return BadInput(f"{path} cannot be read: {why}; make it anew", code="unreadable", field="name")
