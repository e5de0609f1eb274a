"""Parts of data sets: images with labels, in memory or read from files as they are needed."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from atent_ext.core import validate
from atent_ext.core.errors import BadInput

Read = Callable[[range], Tensor]
"""Reads the images at consecutive positions: (len, C, H, W) float32 in [0, 1]."""
ReadOne = Callable[[int], Tensor]
"""Reads the image at a position, (C, H, W) float32 in [0, 1]."""
_PART = 64
"""Images to read at a time when all are needed once and none is kept."""


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set: `images` (N, C, H, W) float32 in [0, 1] and `labels` (N,) int64.

    `split[a:b]` is a part of it. Code that may get large data uses parts, and `shape` instead of `images.shape`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> "Split":
        return Split(self.images[part], self.labels[part])

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image, (C, H, W)."""
        return tuple(self.images.shape[1:])

    def take(self, n: int | None) -> "Split":
        """The first `n` examples in order, or all for None. Raises BadInput unless 1 <= n <= len(self)."""
        if n is None:
            return self
        validate.steps("n", n)
        if n > len(self):
            message = f"n is {n}, but there are only {len(self)} examples; ask for at most {len(self)}"
            raise BadInput(message, code="bad-value", field="n")
        return self._first(n)

    def _first(self, n: int) -> "Split":
        return self[:n]

    def pick(self, rows: Tensor) -> "Split":
        """The examples at these positions, (n,) int64, in this order; stored ones are read as they are needed."""
        return Split(self.images[rows], self.labels[rows])

    def parts(self, size: int = _PART) -> Iterator["Split"]:
        """All examples in order, in parts of `size`; each part of stored ones is read when it is needed."""
        return (self[start : start + size] for start in range(0, len(self), size))


class Stored(Split):
    """A part of a data set whose images lie in files. `stored[a:b]` reads images and does not keep them.

    `images` reads all images once and keeps them, for training and other code that needs them together. `each` reads
    one image in its own size, where sizes may differ; it is None where they are alike.
    """

    def __init__(self, read: Read, labels: Tensor, shape: tuple[int, ...], each: ReadOne | None = None) -> None:
        for name, value in (("_read", read), ("labels", labels), ("_shape", shape), ("each", each)):
            object.__setattr__(self, name, value)

    _read: Read
    _shape: tuple[int, ...]
    each: ReadOne | None

    @cached_property
    def images(self) -> Tensor:
        """All images, (N, C, H, W)."""
        images = torch.empty(len(self), *self.shape)
        for start in range(0, len(self), _PART):
            images[start : start + _PART] = self[start : start + _PART].images
        return images

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an image, (C, H, W); no image is read."""
        return self._shape

    def __getitem__(self, part: slice) -> Split:
        positions = range(len(self))[part]
        runs = [positions] if positions.step == 1 else [range(place, place + 1) for place in positions]
        read = [self._read(run) for run in runs if run]
        return Split(torch.cat(read) if read else torch.empty(0, *self.shape), self.labels[part])

    def __repr__(self) -> str:
        return f"Stored({len(self)} images {self.shape})"

    def _first(self, n: int) -> Split:
        return Stored(self._read, self.labels[:n], self.shape, self.each)

    def pick(self, rows: Tensor) -> Split:
        """The examples at these positions, (n,) int64, in this order, stored as well."""

        def read(positions: range) -> Tensor:
            chosen, order = rows[positions.start : positions.stop].sort()  # a compressed file is read from its front
            return torch.cat([self._read(range(row, row + 1)) for row in chosen.tolist()])[order.argsort()]

        each = self.each
        one = None if each is None else lambda place: each(int(rows[place]))
        return Stored(read, self.labels[rows], self.shape, one)


@dataclass(frozen=True, eq=False)
class DataSet:
    """A training and a test split. `classes[k]` is the name of label k. `note` is repeated with every result on it.

    train: empty if the data set is for tests only. counted: whether the number of classes is only the largest label
    plus one, so that a network may have more.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    test: Split
    note: str = ""
    counted: bool = False

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Add to errors about weights that do not fit that the classes were only counted, if they were."""
        try:
            yield
        except BadInput as error:
            if error.code != "bad-shape" or not self.counted:
                raise
            count = len(self.classes)
            message = f"{error}; {self.name} has labels up to {count - 1}, which count as {count} classes: "
            message += "if the network has more, state them with --classes (in a recipe: classes)"
            raise BadInput(message, code=error.code, field=error.field) from None


def digest(*tensors: Tensor) -> str:
    """The SHA-256 of the concatenated bytes of the tensors, in hexadecimal; independent of their device."""
    return _hashed(hashlib.sha256(), *tensors).hexdigest()


def digests(split: Split, *before: Tensor) -> tuple[str, str]:
    """`digest(images, labels)` of a split, and that with the tensors `before` in front; the images are read once."""
    alone, behind = hashlib.sha256(), _hashed(hashlib.sha256(), *before)
    for part in split.parts():
        _hashed(alone, part.images)
        _hashed(behind, part.images)
    return _hashed(alone, split.labels).hexdigest(), _hashed(behind, split.labels).hexdigest()


def _hashed(sha256: "hashlib._Hash", *tensors: Tensor) -> "hashlib._Hash":
    for tensor in tensors:
        sha256.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256
