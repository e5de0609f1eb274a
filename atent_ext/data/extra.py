"""Images to train on beside those of a data set: generated ones, or more of the same kind."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.data.datasets import DataSet, Split

_NAMES = (("x_train", "y_train"), ("image", "label"), ("images", "labels"))
"""Names of the arrays in a file: those of data sets, and those of generated images (Rebuffi et al. 2021)."""


def load(source: str, like: DataSet, labelled: bool = True) -> Split:
    """The images and labels in `npz:FILE`, for the classes and image size of the data set `like`.

    The file holds x_train and y_train, or image and label: images uint8 (N, C, H, W) or (N, H, W, C), labels (N,)
    class numbers. labelled: False does not read the labels, and returns 0 for all. Raises BadInput for a file without
    them, for images of another size, and for labels that are no classes of `like`.
    """
    path = Path(source.removeprefix("npz:")).expanduser()
    images, labels = _arrays(path, labelled)
    shape = tuple(like.train.images.shape[1:])
    if images.ndim == 4 and images.shape[1:] == (*shape[1:], shape[0]) != shape:
        images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    if images.dtype != np.uint8 or not len(images) or images.shape[1:] != shape:
        message = f"{path}: images are {images.dtype} {images.shape}; uint8 (N, {', '.join(map(str, shape))}) is needed"
        raise BadInput(message, code="bad-shape" if images.dtype == np.uint8 else "bad-type", field="extra.source")
    y = torch.zeros(len(images), dtype=torch.long) if labels is None else _classes(labels)
    validate.labels(y, len(images), len(like.classes))
    return Split(torch.from_numpy(images).float().div_(255), y)


def _classes(labels: np.ndarray) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64) if labels.dtype.kind in "iu" else labels)


def _arrays(path: Path, labelled: bool) -> tuple[np.ndarray, np.ndarray | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            for images, labels in _NAMES:
                if images in archive and (labels in archive or not labelled):
                    return archive[images], archive[labels] if labelled else None
    except Exception as error:  # a broken archive fails in many ways, also with MemoryError or TokenError
        message = f"{path} is not a NumPy archive: {error}"
        raise BadInput(message, code="unreadable" if path.exists() else "missing", field="extra.source") from error
    wanted = " or ".join(f"{images} and {labels}" if labelled else images for images, labels in _NAMES)
    raise BadInput(f"{path} holds no {wanted}", code="missing", field="extra.source")
