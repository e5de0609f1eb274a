"""Data sets with resized images: the threat model is then one of the resized images."""

from dataclasses import replace

from torch import Tensor

from atent_ext.core.around import Resizing
from atent_ext.data.splits import DataSet, Split, Stored


def resized(images: DataSet, resizing: Resizing | None) -> DataSet:
    """The data set with the images of both splits resized, in name and, when they are read, images; itself for None.

    Raises BadInput for images without height and width, and for images that are too small.
    """
    if resizing is None:
        return images
    test, train = (_split(part, resizing) for part in (images.test, images.train))
    return replace(images, name=f"{images.name}, {resizing}", test=test, train=train)


def _split(split: Split, resizing: Resizing) -> Split:
    plan = resizing.plan(split.shape)

    def read(positions: range) -> Tensor:
        return plan.of(split[positions.start : positions.stop].images).clamp(0, 1)

    return Stored(read, split.labels, resizing.shape(split.shape))
