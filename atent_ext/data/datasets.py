"""Data sets by name: images (N, C, H, W) float32 in [0, 1], in memory or read as needed; labels (N,) int64."""

import gzip
import math
import os
import zlib
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atent_ext.core import registry, seeds, validate
from atent_ext.core.errors import BadInput
from atent_ext.data import arrays, hugging_face, image_files
from atent_ext.data.splits import DataSet as DataSet
from atent_ext.data.splits import Split as Split
from atent_ext.data.splits import digest as digest
from atent_ext.data.splits import digests as digests

TEST, HELD_OUT = "test", "held out of training"
"""The part of a data set that was scored: claims are about test images; runs are selected on held-out images."""
_CACHE = "~/.cache/atent_ext"
_NPZ, _NPY = "npz:", "npy:"
_FILES = {
    image_files.PREFIX: "PATH",
    _NPZ: "FILE",
    _NPY: "PATH",
    hugging_face.PREFIX: "PATH",
}
"""Prefixes of names that mean the user's files, and what follows each."""
NAMED = (image_files.PREFIX, hugging_face.PREFIX)
"""Prefixes of files that name their classes, so that the meaning of each label is known."""


def load(name: str, root: Path | str | None = None, download: bool = False, classes: int | None = None) -> DataSet:
    """Load a data set: a name of the registry, or files. Images in files are read as they are needed (`splits.Stored`).

    `folder:PATH` is an image folder (`image_files.load`), `npz:FILE` an archive of arrays, `npy:PATH` a folder with
    x_test.npy, y_test.npy and so on (`arrays.read`), `hf-dataset:PATH` a data set of the library datasets
    (`hugging_face.load`).

    root: the folder of the data sets; default $ATENT_DATA, then ~/.cache/atent_ext. PATH and FILE do not depend on it;
    relative ones start at the current folder. download: let torchvision fetch missing files into `root`; otherwise
    nothing is written. classes: the number of classes, for arrays that may lack some; other data sets must have it.
    `arrays.read` says what arrays may be. Raises BadInput for an unknown name, missing data, a broken file, and labels
    that `classes` does not allow; the message names the folder or the file.
    """
    check_name(name)
    if classes is not None:
        validate.steps("classes", classes)
    if name.startswith((_NPZ, _NPY)):
        return _arrays(name, classes)
    if name.startswith(image_files.PREFIX):
        loaded = image_files.load(name)
    elif name.startswith(hugging_face.PREFIX):
        loaded = hugging_face.load(name)
    else:
        loaded = _registered(name, root, download)
    if loaded.counted and classes is not None:
        return _of_classes(loaded, classes)
    if classes not in (None, len(loaded.classes)):
        message = f"classes is {classes}, but {name} has {len(loaded.classes)}; give data with as many"
        raise BadInput(message, code="conflict", field="classes")
    return loaded


def check_name(name: str) -> None:
    """Raise BadInput, which names the nearest, unless `load` knows data sets of this name. No file is looked at."""
    known = registry.entries("data set")
    if name not in known and not name.startswith(tuple(_FILES)):
        raise registry.nearest("data set", name, [*known, *(prefix + rest for prefix, rest in _FILES.items())])


def _registered(name: str, root: Path | str | None, download: bool) -> DataSet:
    loaded: DataSet = registry.resolve("data set", name)(home(root), download)
    return loaded


def home(root: Path | str | None = None) -> Path:
    """The folder of the data sets: `root` if given, else $ATENT_DATA, else ~/.cache/atent_ext."""
    return Path(root or os.environ.get("ATENT_DATA") or _CACHE).expanduser()


def hold_out(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Split off `count` random examples, the classes in proportion: (rest, held out), each in the order of `split`.

    The same seed gives the same examples; only its last 32 bits count. Raises BadInput for an invalid seed, and if
    scikit-learn cannot stratify: each part must have room for every class, and each class needs two examples.
    """
    from sklearn.model_selection import train_test_split

    validate.steps("count", count)
    validate.seed(seed)
    if not len(split):
        message = "there are no training images: the data set is for tests only; name one with a training part"
        raise BadInput(message, code="missing", field="train")
    positions, labels = torch.arange(len(split)).numpy(), split.labels.numpy()
    try:
        parts = train_test_split(positions, test_size=count, stratify=labels, random_state=seeds.derived(seed, 32))
    except ValueError as error:
        message = f"cannot hold out {count} of {len(split)} examples with seed {seed}: {error}"
        raise BadInput(message, code="bad-value", field="count") from error
    rest, held_out = (torch.from_numpy(part).sort().values for part in parts)
    return split.pick(rest), split.pick(held_out)


def digits(root: Path, download: bool) -> DataSet:
    """scikit-learn's 1,797 handwritten digits, 8×8, values k/16: part of scikit-learn, so nothing is fetched."""
    images, labels = _digits()
    train, test = hold_out(Split(images, labels), 360, seed=0)
    note = "scikit-learn digits, 8×8; 360 of 1797 are the test set (train_test_split, stratified, random_state 0)"
    return DataSet("digits", tuple("0123456789"), train, test, note)


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.from_numpy(bunch.images).float().unsqueeze(1) / 16, torch.from_numpy(bunch.target).long()


def mnist(root: Path, download: bool) -> DataSet:
    """MNIST (LeCun et al. 1998), 60,000 + 10,000, 28×28, from `root`/MNIST/raw, unpacked or gzipped."""
    from torchvision.datasets import MNIST

    train, test = _idx("mnist", MNIST, root, download)
    return DataSet("mnist", tuple("0123456789"), train, test)


def fashion_mnist(root: Path, download: bool) -> DataSet:
    """Fashion-MNIST (Xiao et al. 2017), 60,000 + 10,000, 28×28, from `root`/FashionMNIST/raw, unpacked or gzipped."""
    from torchvision.datasets import FashionMNIST

    train, test = _idx("fashion-mnist", FashionMNIST, root, download)
    return DataSet("fashion-mnist", tuple(FashionMNIST.classes), train, test)


def cifar10(root: Path, download: bool) -> DataSet:
    """CIFAR-10 (Krizhevsky 2009), 50,000 + 10,000, 3×32×32, from `root`/cifar-10-batches-py."""
    from torchvision.datasets import CIFAR10

    return _cifar("cifar10", CIFAR10, root, download)


def cifar100(root: Path, download: bool) -> DataSet:
    """CIFAR-100 (Krizhevsky 2009), 50,000 + 10,000, 3×32×32, fine labels, from `root`/cifar-100-python."""
    from torchvision.datasets import CIFAR100

    return _cifar("cifar100", CIFAR100, root, download)


def _split(images: Tensor, labels: Tensor, classes: int) -> Split:
    validate.labels(labels, len(images), classes)
    return Split(images.float().div_(255), labels)


def _missing(name: str, folder: Path) -> BadInput:
    remedy = "name the folder that holds it with --data-root or ATENT_DATA, or fetch it with --download"
    return BadInput(f"data set {name!r} is not in {folder}; {remedy}", code="missing", field="root")


def _both(name: str, kind: Any, root: Path, download: bool) -> tuple[Any, Any]:
    """torchvision's training and test set of class `kind`. Raises BadInput if torchvision cannot load them."""
    try:
        return kind(root, train=True, download=download), kind(root, train=False, download=download)
    except (RuntimeError, OSError) as error:
        message = f"cannot {'fetch' if download else 'read'} data set {name!r} in {root}: {error}"
        raise BadInput(message, code="missing" if download else "unreadable", field="root") from error


def _idx(name: str, kind: Any, root: Path, download: bool) -> list[Split]:
    """Training and test split from the IDX files, unpacked or gzipped, of torchvision's class `kind`."""
    folder = root / kind.__name__ / "raw"
    packed = [folder / Path(url).name for url, _ in kind.resources]
    plain = [path.with_suffix("") for path in packed]
    files = next((paths for paths in (plain, packed) if all(path.is_file() for path in paths)), None)
    if files is None and not download:
        raise _missing(name, folder)
    if files is None:
        _both(name, kind, root, download)
    parts = [_idx_values(path) for path in files or plain]
    return [_split(images.unsqueeze(1), labels.long(), len(kind.classes)) for images, labels in (parts[:2], parts[2:])]


def _idx_values(path: Path) -> Tensor:
    """The uint8 values of an IDX file, gzipped or not, after a check of the gzip checksum, the header and the length.

    IDX: bytes 0, 0, 8 (unsigned bytes), rank; then `rank` sizes as big-endian int32; then the values.
    """
    remedy = "fetch it anew with --download"
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise BadInput(f"{path} is broken: {error}; delete it and {remedy}", code="unreadable", field="root") from error
    rank = 3 if "idx3" in path.name else 1
    sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    if content[:4] != bytes([0, 0, 8, rank]) or len(content) != 4 + 4 * rank + math.prod(sizes):
        message = f"{path} is not a whole IDX file of rank {rank}; delete it and {remedy}"
        raise BadInput(message, code="unreadable", field="root")
    return torch.tensor(np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(sizes))


def _cifar(name: str, kind: Any, root: Path, download: bool) -> DataSet:
    if not download:
        _check_cifar(name, kind, root / kind.base_folder)
    both = _both(name, kind, root, download)
    classes = tuple(both[0].classes)
    pixels = [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous() for part in both]
    train, test = (_split(x, torch.tensor(part.targets), len(classes)) for x, part in zip(pixels, both, strict=True))
    return DataSet(name, classes, train, test)


def _check_cifar(name: str, kind: Any, folder: Path) -> None:
    """Raise BadInput that names the missing or broken file; torchvision's own error does not name it."""
    from torchvision.datasets.utils import check_integrity

    for file, md5 in [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]:
        if not (folder / file).is_file():
            raise _missing(name, folder)
        if not check_integrity(folder / file, md5):
            message = f"{folder / file} is broken: its MD5 is not {md5}; delete it and fetch it with --download"
            raise BadInput(message, code="unreadable", field="root")


def _of_classes(loaded: DataSet, classes: int) -> DataSet:
    """The data set, whose classes were only counted, with a stated number of classes. Raises BadInput for fewer."""
    if classes < len(loaded.classes):
        message = f"classes is {classes}, but {loaded.name} has labels up to {len(loaded.classes) - 1}"
        raise BadInput(message, code="bad-value", field="labels")
    return replace(loaded, classes=tuple(map(str, range(classes))), counted=False)


def _arrays(name: str, classes: int | None) -> DataSet:
    """The arrays of a NumPy archive, as `arrays.read` reads them."""
    path = Path(name.partition(":")[2]).expanduser()
    if path.exists() and path.is_dir() is not name.startswith(_NPY):
        what = "is not a NumPy archive but a folder: npy:" if path.is_dir() else "is not a folder of .npy files: npz:"
        message = f"{path} {what}PATH reads it"
        raise BadInput(message, code="unreadable", field="name")
    found = arrays.read(path, classes)
    test = found.test
    train = found.train or test[:0]
    counts = f"{len(train)} training and {len(test)} test images" if found.train else f"{len(test)} test images"
    note = "; ".join((f"arrays {path.name}, {counts}", *found.notes))
    return DataSet(name, tuple(map(str, range(found.classes))), train, test, note, found.counted)
