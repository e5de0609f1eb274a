"""hf-dataset:PATH: a local data set of the library `datasets`, or Parquet files. Images are read when needed."""

import importlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atent_ext.core.errors import BadInput, MissingExtra
from atent_ext.data.splits import DataSet, Split, Stored

PREFIX = "hf-dataset:"
_TRAIN, _TEST = ("train",), ("test", "validation", "val")
_PLAIN = {"Value", "ClassLabel", "Array2D", "Array3D"}
"""The library's kinds of columns by which no file is opened."""
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_IMAGES, _LABELS = ("image", "img", "images"), ("label", "labels", "fine_label")


def load(name: str) -> DataSet:
    """hf-dataset:PATH: a folder of `save_to_disk`, a Parquet file, or a folder of Parquet files, on this machine.

    Test images are the part "test", else "validation", else "val", else the only one. A column of images (Image, or
    arrays (H, W) or (H, W, C) of whole numbers 0-255) and one of class numbers are needed. Rows keep their order.
    Parquet files named train-*, test-* or validation-* are one part each; the library copies them to its cache.
    Raises MissingExtra without the library, and BadInput for a path, parts, columns or labels of another form. Reading
    raises it for an image of another size than the first.
    """
    path = Path(name.removeprefix(PREFIX)).expanduser()
    if not path.exists():
        raise BadInput(f"there is no {path}; name a folder or a Parquet file", code="missing", field="name")
    parts = _parts(path)
    test_part = next((part for part in _TEST if part in parts), next(iter(parts)) if len(parts) == 1 else None)
    if test_part is None:
        message = f"{path} has the parts {', '.join(parts)}, and none is called test or validation; rename one"
        raise BadInput(message, code="missing", field="name")
    columns = _columns(path, parts[test_part])
    parts = {name: _undecoded(path, part, columns) for name, part in parts.items() if {*columns} <= {*part.features}}
    classes, counted = _classes(path, parts, columns[1])
    test = _split(path, parts[test_part], columns, len(classes))
    own = next((part for part in _TRAIN if part in parts and part != test_part), None)
    train = test[:0] if own is None else _split(path, parts[own], columns, len(classes))
    note = f"data set {path.resolve().name}, part {test_part}, column {columns[0]}" + (
        ", for tests only" if own is None else ""
    )
    return DataSet(name, classes, train, test, note, counted)


def _parts(path: Path) -> Mapping[str, Any]:
    try:
        library = importlib.import_module("datasets")
    except ImportError:
        raise MissingExtra("hf-dataset: needs the library datasets; pip install datasets", field="name") from None
    try:
        if path.suffix == ".parquet" or (path.is_dir() and any(path.rglob("*.parquet"))):
            found = library.load_dataset("parquet", data_files=_parquet(path))
        else:
            found = library.load_from_disk(str(path))
    except Exception as error:  # the library may raise any exception
        message = (
            f"{path} is no data set of `save_to_disk` and holds no Parquet files: {' '.join(str(error).split())[:200]}"
        )
        raise BadInput(message, code="unreadable", field="name") from error
    return found if isinstance(found, Mapping) else {"test": found}


def _parquet(path: Path) -> dict[str, list[str]]:
    """The Parquet files of each part, by the beginnings of their names; of one part, whatever they are called."""
    if path.is_file():
        return {"test": [str(path)]}
    files = sorted(path.rglob("*.parquet"))
    parts = {name: [str(file) for file in files if file.name.startswith(name)] for name in (*_TRAIN, *_TEST)}
    named = {name: own for name, own in parts.items() if own}
    if "validation" in named:  # whose files begin with "val", too
        named.pop("val", None)
    return named or {"test": [*map(str, files)]}


def _columns(path: Path, part: Any) -> tuple[str, str]:
    names = list(part.features)
    found = [next((name for name in known if name in names), None) for known in (_IMAGES, _LABELS)]
    if None in found:
        kind, known = ("images", _IMAGES) if found[0] is None else ("labels", _LABELS)
        message = f"{path} has the columns {', '.join(names)}, and none of {kind}: rename it to {known[0]}"
        raise BadInput(message, code="missing", field=kind)
    return str(found[0]), str(found[1])


def _undecoded(path: Path, part: Any, columns: tuple[str, str]) -> Any:
    """The two columns, the images as they are stored: the library opens whatever file or address a row names."""
    encoded: Any = importlib.import_module("datasets").Image
    part = part.select_columns([*columns])
    if isinstance(part.features[columns[0]], encoded):
        part = part.cast_column(columns[0], encoded(decode=False))
    for kind, column in zip(("images", "labels"), columns, strict=True):
        feature = part.features[column]
        if not (kind == "images" and isinstance(feature, encoded)) and not _plain(feature):
            message = f"{path}: the column {column} is {' '.join(str(feature).split())[:100]}, which could name files; "
            raise BadInput(f"{message}make it Image or arrays, and labels numbers", code="unsafe", field=kind)
    return part


def _plain(feature: Any) -> bool:
    """Whether a column holds numbers, texts and bytes alone, at every depth."""
    if isinstance(feature, Mapping | list | tuple):
        return all(map(_plain, feature.values() if isinstance(feature, Mapping) else feature))
    inner = getattr(feature, "feature", None)
    return type(feature).__name__ in _PLAIN if inner is None else _plain(inner)


def _labels(path: Path, part: Any, column: str) -> Tensor:
    labels = np.asarray(part[column][:])
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not len(labels) or labels.min() < 0:
        message = f"{path}: labels {column} are {labels.dtype} {labels.shape}; one class number >= 0 a row is needed"
        raise BadInput(message, code="bad-type" if labels.dtype.kind not in "iu" else "bad-value", field="labels")
    return torch.from_numpy(labels.astype(np.int64))


def _classes(path: Path, parts: Mapping[str, Any], column: str) -> tuple[tuple[str, ...], bool]:
    """The names that the data set states, or numbers up to the largest label; and whether they were counted."""
    features = [part.features[column] for part in parts.values() if column in part.features]
    names = getattr(features[0], "names", None)
    if any(getattr(feature, "names", None) != names for feature in features):
        message = f"{path}: the parts differ in the classes of {column}, or in their order; make them alike"
        raise BadInput(message, code="conflict", field="labels")
    if names is not None:
        return tuple(names), False
    most = max(int(_labels(path, part, column).max()) for part in parts.values() if column in part.features)
    return tuple(map(str, range(most + 1))), True


def _split(path: Path, part: Any, columns: tuple[str, str], classes: int) -> Split:
    labels = _labels(path, part, columns[1])
    if int(labels.max()) >= classes:
        message = f"{path}: labels reach {int(labels.max())}; of {classes} classes they are 0 to {classes - 1}"
        raise BadInput(message, code="bad-value", field="labels")
    shape = tuple(_pixels(path, part[0][columns[0]]).shape)

    def read(positions: range) -> Tensor:
        values = part[positions.start : positions.stop][columns[0]]
        return torch.stack([_sized(path, value, shape) for value in values]).float().div_(255)

    return Stored(read, labels, shape)


def _sized(path: Path, value: Any, shape: Sequence[int]) -> Tensor:
    image = _pixels(path, value)
    if tuple(image.shape) != tuple(shape):
        own, first = (f"{one[2]}×{one[1]}" for one in (image.shape, shape))
        message = f"{path}: an image is {own}, but the first is {first}; make them alike"
        raise BadInput(message, code="bad-shape", field="images")
    return image


def _pixels(path: Path, value: Any) -> Tensor:
    """An image file as RGB, or gray as one channel, or an array of whole numbers, as (C, H, W) uint8."""
    if isinstance(value, Mapping):
        value = _decoded(path, value)
        value = value.convert("L" if value.mode in ("1", "L", "I;16") else "RGB")
    array = np.asarray(value)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] > 4 or array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        message = (
            f"{path}: an image is {array.dtype} {array.shape}; (H, W) or (H, W, C) of whole numbers 0-255 is needed"
        )
        raise BadInput(message, code="bad-value", field="images")
    return torch.from_numpy(np.array(array.transpose(2, 0, 1), np.uint8, order="C"))


def _decoded(path: Path, row: Mapping[str, Any]) -> Any:
    """The image of PIL in a row {"bytes": ..., "path": ...}, turned as its file says."""
    from PIL import Image, ImageOps

    content = row.get("bytes")
    if content is None:
        content = _below(path, row.get("path")).read_bytes()
    try:
        return ImageOps.exif_transpose(Image.open(BytesIO(content), formats=_FORMATS))
    except Exception as error:  # PIL fails in many ways on a broken file
        message = f"{path}: an image cannot be read ({' '.join(str(error).split())[:200]}); store it as PNG or JPEG"
        raise BadInput(message, code="unreadable", field="images") from None


def _below(path: Path, named: Any) -> Path:
    """The file that a row names. Raises BadInput unless it lies below the folder of the data set, links resolved."""
    if not isinstance(named, str):
        message = f"{path}: a row has neither the bytes of its image nor its path; store the bytes"
        raise BadInput(message, code="missing", field="images")
    folder = (path if path.is_dir() else path.parent).resolve()
    try:
        file = (folder / named).resolve()
        if file.is_relative_to(folder) and file.is_file():
            return file
    except (OSError, ValueError):  # a name that no file can have
        pass
    message = f"{path}: a row names the image {named[:100]!a}, and no file below {folder} is called so; store its bytes"
    raise BadInput(message, code="unsafe", field="images")
