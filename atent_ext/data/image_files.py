"""Image files as images (3, H, W), read when they are needed, and folders of them with one folder per class."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atent_ext.core.errors import BadInput
from atent_ext.data.splits import DataSet, Split, Stored

PREFIX = "folder:"
_ORDER = "classes.txt"
Prepare = Callable[[Any], Any]
"""Turns an RGB image of PIL into the one that is used."""


def load(name: str) -> DataSet:
    """folder:PATH, as PATH/train/<class>/* and PATH/test/<class>/* or PATH/val/<class>/*, read as RGB.

    Classes are sorted by name, or are the lines of PATH/classes.txt, in the order of the labels. That file may also
    list classes that the network knows and the folder lacks. Images alternate between the classes (the first of each,
    the second of each, ...), so that the first n images are not all of one class. Without PATH/train the data set is
    for tests only. Only the names of the files and one image are read here.
    Raises BadInput for a folder of another form, for training and test classes that differ, and for classes whose names
    are numbers in another order than that of their names. Reading raises it for a file that is no image, and for an
    image of another size than the first.
    """
    path = Path(name.removeprefix(PREFIX)).expanduser()
    part = "val" if (path / "val").is_dir() and not (path / "test").exists() else "test"
    tests_only = (path / part).is_dir() and not (path / "train").exists()
    train, test = _listing(path / (part if tests_only else "train")), _listing(path / part)
    stated = _stated(path, sorted({*train.classes, *test.classes}))
    if stated is None and train.classes != test.classes:
        differing = sorted({*train.classes} ^ {*test.classes})
        message = f"{path}/train and {path}/{part} differ in their classes: {', '.join(differing)}"
        raise BadInput(message, code="conflict", field="name")
    classes = stated or tuple(train.classes)
    size = tuple(_pixels(train.samples[0][0]).shape)
    kinds = sorted({Path(file).suffix.lower() for file, _ in [*train.samples, *test.samples]})
    remarks = {"for tests only": tests_only, "its part val": part == "val", f"classes as in {_ORDER}": stated}
    note = ", ".join([f"image folder {path.resolve().name} ({', '.join(kinds)})", *filter(remarks.get, remarks)])
    images = _split(test, classes, size)
    rest = images[:0] if tests_only else _split(train, classes, size)
    return DataSet(name, classes, rest, images, note)


def stored(
    paths: Sequence[str], labels: Tensor, shape: tuple[int, ...], prepare: Prepare = lambda image: image
) -> Stored:
    """The images of these files, (3, H, W) of the given shape once they are prepared, and labels (N,)."""

    def read(positions: range) -> Tensor:
        return torch.stack([_sized(paths[place], shape, prepare) for place in positions]).float().div_(255)

    return Stored(read, labels, shape, lambda place: _pixels(paths[place], prepare).float().div_(255))


def _listing(folder: Path) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(folder)
    except OSError as error:
        message = f"{folder} is not an image folder <class>/<image>: {error}"
        raise BadInput(message, code="unreadable" if folder.exists() else "missing", field="name") from error


def _stated(path: Path, names: Sequence[str]) -> tuple[str, ...] | None:
    """The classes of PATH/classes.txt, which has all of `names`; None without it."""
    file = path / _ORDER
    if not file.is_file():
        _check_order(file, names)
        return None
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise BadInput(f"{file} cannot be read: {error}", code="unreadable", field="name") from error
    classes = tuple(line for line in lines if line)
    missing, twice = sorted({*names} - {*classes}), len({*classes}) < len(classes)
    if missing or twice:
        fault = f"lacks {', '.join(missing[:5])}" if missing else "names a class twice"
        message = f"{file} {fault}; list every class once, one a line, in the order of the labels"
        raise BadInput(message, code="conflict", field="name")
    return classes


def _check_order(file: Path, names: Sequence[str]) -> None:
    """Refuse names that are numbers and sort in another order than these: 10 comes before 2."""
    if not all(name.isdecimal() for name in names) or sorted(names, key=int) == list(names):
        return
    place = next(label for label, name in enumerate(sorted(names, key=int)) if names[label] != name)
    message = f"the classes of {file.parent} are numbers, and sorted by name {names[place]} is label {place}; "
    message += f"list the names in {file}, one a line, in the order of the labels"
    raise BadInput(message, code="conflict", field="name")


def _split(listing: Any, classes: Sequence[str], shape: tuple[int, ...]) -> Split:
    own = torch.tensor(listing.targets)
    rank_in_class = torch.cat([torch.arange(count) for count in own.bincount().tolist()])
    order = rank_in_class.argsort(stable=True)
    label_of = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([label_of[name] for name in listing.classes])[own]
    return stored([listing.samples[place][0] for place in order.tolist()], labels[order], shape)


def _sized(path: str, shape: tuple[int, ...], prepare: Prepare) -> Tensor:
    image = _pixels(path, prepare)
    if image.shape != shape:
        own, first = (f"{width}×{height}" for _, height, width in (image.shape, shape))
        message = f"{path} is {own}, but the first image is {first}; make them alike, or resize them (--resize)"
        raise BadInput(message, code="bad-shape", field="images")
    return image


def _pixels(path: str, prepare: Prepare = lambda image: image) -> Tensor:
    """An image file as a (3, H, W) uint8 tensor."""
    from torchvision.datasets.folder import default_loader
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        image: Tensor = pil_to_tensor(prepare(default_loader(path)))
    except (OSError, SyntaxError, ValueError) as error:
        message = f"{path} cannot be read as an image: {error}; remove or replace it"
        raise BadInput(message, code="unreadable", field="name") from error
    return image
