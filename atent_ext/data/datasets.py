"""Data sets by name, as tensors in memory: images (N, C, H, W) float32 in [0, 1], labels (N,) int64."""

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atent_ext.core import registry, seeds, validate
from atent_ext.core.errors import BadInput
from atent_ext.data import arrays

TEST, HELD_OUT = "test", "held out of training"
"""The part of a data set that was scored: claims are about test images; runs are selected on held-out images."""
_CACHE = "~/.cache/atent_ext"
_FOLDER = "folder:"
_NPZ = "npz:"


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set: `images` (N, C, H, W) float32 in [0, 1] and `labels` (N,) int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, n: int | None) -> "Split":
        """The first `n` examples in order, or all for None. Raises BadInput unless 1 <= n <= len(self)."""
        if n is None:
            return self
        validate.steps("n", n)
        if n > len(self):
            message = f"n is {n}, but there are only {len(self)} examples; ask for at most {len(self)}"
            raise BadInput(message, code="bad-value", field="n")
        return Split(self.images[:n], self.labels[:n])


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
        """Within it, the error for weights that do not fit says so if the classes were only counted."""
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
    sha256 = hashlib.sha256()
    for tensor in tensors:
        sha256.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def load(name: str, root: Path | str | None = None, download: bool = False, classes: int | None = None) -> DataSet:
    """Load a data set: a name of the registry, `folder:PATH` for an image folder, or `npz:FILE` for arrays.

    root: the folder of the data sets; default $ATENT_DATA, then ~/.cache/atent_ext. PATH and FILE do not depend on it;
    relative ones start at the current folder. download: let torchvision fetch missing files into `root`; otherwise
    nothing is written. classes: the number of classes, for arrays that may lack some; other data sets must have it.
    `arrays.read` says what arrays may be. Raises BadInput for an unknown name, missing data, a broken file, and labels
    that `classes` does not allow; the message names the folder or the file.
    """
    check_name(name)
    if classes is not None:
        validate.steps("classes", classes)
    if name.startswith(_NPZ):
        return _arrays(name, classes)
    loaded = _image_folder(name) if name.startswith(_FOLDER) else _registered(name, root, download)
    if classes not in (None, len(loaded.classes)):
        message = f"classes is {classes}, but {name} has {len(loaded.classes)}; give data of as many"
        raise BadInput(message, code="conflict", field="classes")
    return loaded


def check_name(name: str) -> None:
    """Raise BadInput, which names the nearest, unless `load` knows data sets of this name. No file is looked at."""
    known = registry.entries("data set")
    if name not in known and not name.startswith((_FOLDER, _NPZ)):
        raise registry.nearest("data set", name, [*known, f"{_FOLDER}PATH", f"{_NPZ}FILE"])


def _registered(name: str, root: Path | str | None, download: bool) -> DataSet:
    loaded: DataSet = registry.resolve("data set", name)(home(root), download)
    return loaded


def home(root: Path | str | None = None) -> Path:
    """The folder of the data sets: `root` if given, else $ATENT_DATA, else ~/.cache/atent_ext."""
    return Path(root or os.environ.get("ATENT_DATA") or _CACHE).expanduser()


def hold_out(split: Split, count: int, seed: int) -> tuple[Split, Split]:
    """Split off `count` random examples, the classes in proportion: (rest, held out), each in the order of `split`.

    The same seed gives the same examples; of a large one the last 32 bits count. Raises BadInput for what is no seed,
    and if scikit-learn cannot stratify: each part must have room for every class, and each class two examples.
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
    return Split(split.images[rest], split.labels[rest]), Split(split.images[held_out], split.labels[held_out])


def digits(root: Path, download: bool) -> DataSet:
    """scikit-learn's 1,797 handwritten digits, 8×8, values k/16: part of scikit-learn, so nothing is fetched."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float().unsqueeze(1) / 16
    train, test = hold_out(Split(images, torch.from_numpy(bunch.target).long()), 360, seed=0)
    note = "scikit-learn digits, 8×8; 360 of 1797 are the test set (train_test_split, stratified, random_state 0)"
    return DataSet("digits", tuple("0123456789"), train, test, note)


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


def _image_folder(name: str) -> DataSet:
    """PATH/train/<class>/* and PATH/test/<class>/*, read by torchvision's ImageFolder: RGB, classes sorted by name.

    Images alternate between the classes (the first of each, the second of each, ...), so that the first n images are
    not all of one class. Without PATH/train the data set is for tests only.
    """
    path = Path(name.removeprefix(_FOLDER)).expanduser()
    tests_only = (path / "test").is_dir() and not (path / "train").exists()
    train, test = _listing(path / ("test" if tests_only else "train")), _listing(path / "test")
    if train.classes != test.classes:
        differing = sorted({*train.classes} ^ {*test.classes})
        message = f"{path}/train and {path}/test differ in their classes: {', '.join(differing)}"
        raise BadInput(message, code="conflict", field="name")
    size = _pixels(train.samples[0][0]).shape
    kinds = sorted({Path(file).suffix.lower() for file, _ in [*train.samples, *test.samples]})
    note = f"image folder {path.resolve().name} ({', '.join(kinds)})" + (", for tests only" if tests_only else "")
    images = _read(test, size)
    rest = Split(images.images[:0], images.labels[:0]) if tests_only else _read(train, size)
    return DataSet(name, tuple(train.classes), rest, images, note)


def _arrays(name: str, classes: int | None) -> DataSet:
    """The arrays of a NumPy archive, as `arrays.read` reads them."""
    path = Path(name.removeprefix(_NPZ)).expanduser()
    found = arrays.read(path, classes)
    test = Split(*found.test)
    train = Split(*found.train) if found.train else Split(test.images[:0], test.labels[:0])
    counts = f"{len(train)} training and {len(test)} test images" if found.train else f"{len(test)} test images"
    note = "; ".join((f"arrays {path.name}, {counts}", *found.notes))
    return DataSet(name, tuple(map(str, range(found.classes))), train, test, note, found.counted)


def _listing(folder: Path) -> Any:
    from torchvision.datasets import ImageFolder

    try:
        return ImageFolder(folder)
    except OSError as error:
        message = f"{folder} is not an image folder <class>/<image>: {error}"
        raise BadInput(message, code="unreadable" if folder.exists() else "missing", field="name") from error


def _read(listing: Any, size: torch.Size) -> Split:
    labels = torch.tensor(listing.targets)
    rank_in_class = torch.cat([torch.arange(count) for count in labels.bincount().tolist()])
    order = rank_in_class.argsort(stable=True)
    images = [_sized(listing.samples[i][0], size) for i in order.tolist()]
    return _split(torch.stack(images), labels[order], len(listing.classes))


def _sized(path: str, size: torch.Size) -> Tensor:
    image = _pixels(path)
    if image.shape != size:
        own, first = (f"{width}×{height}" for _, height, width in (image.shape, size))
        message = f"{path} is {own}, but the first image is {first}; make them alike"
        raise BadInput(message, code="bad-shape", field="images")
    return image


def _pixels(path: str) -> Tensor:
    """An image file as a (3, H, W) uint8 tensor."""
    from torchvision.datasets.folder import default_loader
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        image: Tensor = pil_to_tensor(default_loader(path))
    except (OSError, SyntaxError, ValueError) as error:
        message = f"{path} cannot be read as an image: {error}; remove or replace it"
        raise BadInput(message, code="unreadable", field="name") from error
    return image
