"""Images and labels in NumPy files: the order of axes, value ranges and label formats are recognised.

Unambiguous data is converted, and a note says so. Ambiguous data is refused, and the error names both readings.
"""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atent_ext.core.errors import BadInput, Code
from atent_ext.core.layouts import Layout, described, layout
from atent_ext.data import rows
from atent_ext.data.rows import Rows
from atent_ext.data.splits import Split, Stored

_TRAIN = (("x_train", "y_train"), ("train_images", "train_labels"))
_TEST = (("x_test", "y_test"), ("test_images", "test_labels"), ("images", "labels"))
_POOL = (*_TRAIN, *_TEST, ("image", "label"))
ONE_CHANNEL = "(N, H, W) read as one channel"
"""The note on arrays of three axes, which are (N, C, T) for some networks."""
_ROUNDING = 1e-3
"""Images in [0, 1] may lie this far outside, as in `core.validate`."""
_FEW = 1000
"""More classes than this, and than there are images, have to be stated: otherwise labels may not be class numbers."""


@dataclass(frozen=True, eq=False)
class Arrays:
    """The parts of an archive. Images are read when they are needed; `train` may be missing.

    classes: as given, the width of one-hot labels, or the largest label plus one. counted: whether it is the latter.
    notes: what was converted.
    """

    train: Split | None
    test: Split
    classes: int
    counted: bool
    notes: tuple[str, ...]


def read(path: Path, classes: int | None = None) -> Arrays:
    """Read a NumPy archive, or a folder of .npy files, of x_test and y_test and, unless it is for tests only, x_train
    and y_train. All images are read once for their range, and again when they are used.

    Images: (N, C, H, W), (N, H, W, C) or (N, H, W), or features (N, F); whole numbers 0-255, or floats of 0-1 or
    0-255. Labels: class numbers from 0, (N,) or (N, 1), or one-hot (N, classes). The names train_images, test_images,
    images and so on are accepted as well. classes: the number of classes if labels may lack some; None counts them.
    Raises BadInput for a file that is missing or no such archive, for shapes and values that are none of these or are
    ambiguous, and for labels outside the classes.
    """
    members = _members(path, _of_both_parts)
    names, notes = [*members], dict[str, None]()
    pictures = _pictures(path, {name: members[name] for name in names[::2]}, notes)
    numbers = _numbers(path, {name: members[name][:] for name in names[1::2]}, list(map(len, pictures)), notes)
    labels = [torch.from_numpy(part) for part, _ in numbers]
    counts = {count for _, count in numbers if count}
    stated = classes or max(counts, default=None)
    count = stated or 1 + max(int(part.max()) for part in labels)
    _check_range(path, names[1::2], labels, count, bool(stated))
    *train, test = [Stored(part.read, own, part.shape) for part, own in zip(pictures, labels, strict=True)]
    return Arrays(train[0] if train else None, test, count, not stated, tuple(notes))


def pool(path: Path, classes: int, labelled: bool = True) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) and labels (N,) to train on: the training part of an archive, or the only part that it has.

    The names image and label, of generated images (Rebuffi et al. 2021), are accepted as well. labelled: False reads
    only the images, and gives all of them the label 0. Raises BadInput as `read`.
    """
    members = _members(path, _of_a_pool if labelled else lambda files: _of_a_pool(files)[:1])
    name, *label = members
    (pictures,) = _pictures(path, {name: members[name]}, {})
    images = pictures.read(range(len(pictures)))
    if not label:
        return images, torch.zeros(len(images), dtype=torch.long)
    ((numbers, _),) = _numbers(path, {label[0]: members[label[0]][:]}, [len(images)], {})
    labels = torch.from_numpy(numbers)
    _check_range(path, label, [labels], classes, stated=True)
    return images, labels


def _members(path: Path, chosen: Callable[[Sequence[str]], Sequence[str]]) -> dict[str, Rows]:
    """The arrays of an archive or a folder that `chosen` selects, in its order."""
    try:
        if path.is_dir():
            files = sorted(file.stem for file in path.glob("*.npy"))
            return {name: rows.of_file(path / f"{name}.npy") for name in chosen(files)}
        with zipfile.ZipFile(path) as archive:
            files = [name.removesuffix(".npy") for name in archive.namelist()]
        return {name: rows.of_archive(path, name) for name in chosen(files)}
    except Exception as error:  # a broken archive fails in many ways, also with MemoryError or TokenError
        message = f"{path} is not a NumPy archive of x_train, y_train, x_test, y_test: {error}"
        raise BadInput(message, code="unreadable" if path.exists() else "missing", field="name") from error


def _of_both_parts(files: Sequence[str]) -> tuple[str, ...]:
    """Names of images and labels in turn; the training part, if there is one, comes first."""
    return (*_pair(files, _TRAIN, False), *_pair(files, _TEST, True))


def _of_a_pool(files: Sequence[str]) -> tuple[str, ...]:
    """Names of images and labels; only of images if there are no labels, which matters only if labels are read."""
    found = next((pair for pair in _POOL if pair[0] in files), None)
    return _pair(files, _POOL, True) if found is None else found


def _pair(files: Sequence[str], known: Sequence[tuple[str, str]], needed: bool) -> tuple[str, ...]:
    for pair in known:
        absent = [name for name in pair if name not in files]
        if len(absent) == 1:
            raise ValueError(f"there is no {absent[0]} in it; it holds {', '.join(files)}")
        if not absent:
            return pair
    if needed:
        raise ValueError(f"it holds {', '.join(files) or 'nothing'}; x_test and y_test are needed")
    return ()


# ---- images


@dataclass(frozen=True, eq=False)
class _Pictures:
    """The images of an array in a file, which are converted as they are read. shape: (C, H, W)."""

    rows: Rows
    order: Layout
    divisor: int

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        sizes = self.rows.shape[1:]
        return (1, *sizes) if len(sizes) == 2 else sizes if self.order == "CHW" else (sizes[2], *sizes[:2])

    def read(self, positions: range) -> Tensor:
        array = self.rows[positions.start : positions.stop]
        array = array.reshape(len(array), *self.shape) if self.order == "CHW" else array.transpose(0, 3, 1, 2)
        native = np.uint8 if self.divisor > 1 and array.dtype.kind in "iu" else np.float32
        return torch.from_numpy(np.array(array, native, order="C")).float().div_(self.divisor)


def _pictures(path: Path, arrays: Mapping[str, Rows], notes: dict[str, None]) -> list[_Pictures]:
    divisors = {name: _divisor(path, name, array) for name, array in arrays.items()}
    _check_alike(path, arrays, divisors)
    images = []
    for name, array in arrays.items():
        order = _order(path, name, array, notes)
        if divisors[name] > 1 and array.dtype.kind == "f":
            notes["floats of 0-255, divided by 255"] = None
        if array.dtype.kind in "iu" and array.dtype.itemsize > 1:
            notes[f"{array.dtype} of 0-{int(array.extent[1])}, divided by 255"] = None
        images.append(_Pictures(array, order, divisors[name]))
    shapes = [part.shape for part in images]
    if len(set(shapes)) > 1:
        message = f"{path}: images are {shapes[0]} in training and {shapes[1]} in test; C, H and W alike are needed"
        raise BadInput(message, code="bad-shape", field="images")
    return images


def _divisor(path: Path, name: str, array: Rows) -> int:
    """What brings the values of an array to [0, 1]: 1 or 255. Raises BadInput for values of another range."""
    if array.dtype.kind not in "biuf":
        message = f"{path}: {name} is {array.dtype}; images are whole numbers 0-255 or floats of 0-1"
        raise BadInput(message, code="bad-type", field="images")
    if not array.size:
        message = f"{path}: {name} is {array.dtype} {array.shape}; at least one image is needed"
        raise BadInput(message, code="bad-shape", field="images")
    least, most = map(float, array.extent)
    if array.dtype.kind == "b":
        return 1
    if array.dtype.kind == "f" and least >= -_ROUNDING and most <= 1 + _ROUNDING:
        return 1
    if least >= 0 and most <= 255 and (array.dtype.kind in "iu" or most > 2):
        return 255
    guess = "they look normalised: store the images without it, and put it into the model; " if least < 0 else ""
    message = f"{path}: {name} spans [{least:.4g}, {most:.4g}] as {array.dtype}; {guess}0-255 or floats of 0-1 are read"
    raise BadInput(message, code="bad-value", field="images")


def _check_alike(path: Path, arrays: Mapping[str, Rows], divisors: Mapping[str, int]) -> None:
    """Refuse floats of 0-1 beside floats of 0-255, and whole numbers that are all 0 and 1."""
    floats = {divisors[name] for name, array in arrays.items() if array.dtype.kind == "f"}
    if len(floats) > 1:
        ranges = " and ".join(f"{name} up to {float(array.extent[1]):.4g}" for name, array in arrays.items())
        message = f"{path}: {ranges}: floats of 0-1 beside floats of 0-255, or one of them is dark; give both one range"
        raise BadInput(message, code="conflict", field="images")
    whole = [array for array in arrays.values() if array.dtype.kind in "iu"]
    if whole and max(int(array.extent[1]) for array in whole) <= 1:
        message = f"{path}: images are {whole[0].dtype} 0 and 1 only: black and white, or nearly black of 0-255; "
        message += "store them as floats of 0-1, or times 255"
        raise BadInput(message, code="bad-value", field="images")


def _order(path: Path, name: str, array: Rows, notes: dict[str, None]) -> Layout:
    """The order of the axes; (N, H, W) is of one channel, (N, F) of features. Raises BadInput for other ranks and for
    two readings."""
    sizes = array.shape[1:]
    if array.ndim == 2 and all(sizes):
        notes[f"(N, F) read as {sizes[0]} features"] = None
        return "CHW"
    if array.ndim == 3 and all(sizes):
        notes[ONE_CHANNEL] = None
        return "CHW"
    if array.ndim != 4 or not all(sizes):
        message = f"{path}: {name} is {array.dtype} {array.shape}; (N, C, H, W), (N, H, W, C) or (N, H, W) is needed"
        raise BadInput(message, code="bad-shape", field="images")
    order = layout(sizes)
    if order is None:
        message = f"{path}: {name} is {array.shape}, either {described(sizes, 'CHW')}, or {described(sizes, 'HWC')}; "
        message += "make one of them plain: (N, C, H, W) with fewer channels than pixels, or square pictures"
        raise BadInput(message, code="bad-shape", field="images")
    if order == "HWC":
        notes[f"{described(sizes, 'HWC')}, read as (N, C, H, W)"] = None
    return order


# ---- labels


def _numbers(
    path: Path, arrays: Mapping[str, Any], counts: Sequence[int], notes: dict[str, None]
) -> list[tuple[Any, int | None]]:
    """For each part class numbers (N,) int64, and the number of classes if the labels are one-hot."""
    parts: list[tuple[Any, int | None]] = []
    for (name, array), count in zip(arrays.items(), counts, strict=True):
        if array.ndim == 2 and array.shape[1] > 1 and len(array) == count and _one_hot(array):
            notes[f"one-hot labels of {array.shape[1]} classes"] = None
            parts.append((array.argmax(1).astype(np.int64), array.shape[1]))
            continue
        column = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
        _check_numbers(path, name, column, count)
        parts.append((column.astype(np.int64), None))
    return parts


def _one_hot(array: Any) -> bool:
    if array.dtype.kind not in "biuf":
        return False
    return bool(((array == 0) | (array == 1)).all() and (array.sum(1) == 1).all())


def _check_numbers(path: Path, name: str, labels: Any, count: int) -> None:
    whole, fits = labels.dtype.kind in "iu", labels.shape == (count,)
    if not (whole and fits and labels.min() >= 0 and labels.max() < 2**63):
        code: Code = "bad-value" if whole and fits else "bad-shape" if whole else "bad-type"
        needed = f"one class number per image is needed, integers >= 0 of shape ({count},), or one-hot rows of 0 and 1"
        message = f"{path}: labels {name} are {labels.dtype} {labels.shape}; {needed}"
        raise BadInput(message, code=code, field="labels")


def _check_range(path: Path, names: Sequence[str], labels: Sequence[Tensor], classes: int, stated: bool) -> None:
    """Refuse labels outside the stated classes, and numbers that are too large for class numbers if none are stated."""
    least, most = min(int(part.min()) for part in labels), max(int(part.max()) for part in labels)
    if stated and most >= classes:
        start = "; number classes from 0" if least == 1 else ""
        message = f"{path}: labels span [{least}, {most}]; of {classes} classes they are 0 to {classes - 1}{start}"
        raise BadInput(message, code="bad-value", field="labels")
    images = sum(map(len, labels))
    if not stated and classes > max(images, _FEW):
        message = f"{path}: labels reach {most} with {images} images in {' and '.join(names)}; number classes from 0, "
        message += "or state how many there are with --classes"
        raise BadInput(message, code="bad-value", field="labels")
