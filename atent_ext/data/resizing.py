"""Data sets with images of another shape: resized, so that eps applies to resized images, or without a channel."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from atent_ext.core import outputs
from atent_ext.core.around import Resizing
from atent_ext.core.errors import BadInput
from atent_ext.data.arrays import ONE_CHANNEL
from atent_ext.data.splits import DataSet, Split, Stored


def resized(images: DataSet, resizing: Resizing | None) -> DataSet:
    """The data set with resized images in both splits, and a name that says so; None changes nothing.

    Images are resized when they are read. Raises BadInput for images without height and width or that are too small.
    """
    if resizing is None:
        return images
    test, train = (_split(part, resizing) for part in (images.test, images.train))
    return replace(images, name=f"{images.name}, {resizing}", test=test, train=train)


def as_taken(network: nn.Module, images: DataSet) -> DataSet:
    """The images as the network takes them: arrays (N, H, W) become (N, C, T) if it takes only those."""
    if ONE_CHANNEL not in images.note or not len(images.test):
        return images
    turned = _without_channel(images)
    return turned if not _takes(network, images) and _takes(network, turned) else images


def _takes(network: nn.Module, images: DataSet) -> bool:
    try:
        outputs.adapted(network, images.test[:2].images)
    except BadInput as error:
        return error.field != "images"
    return True


def _without_channel(images: DataSet) -> DataSet:
    """The data set with inputs (C, T) where arrays of three axes were read as pictures (1, H, W)."""
    test, train = map(_first_channel, (images.test, images.train))
    note = images.note.replace(ONE_CHANNEL, "(N, C, T), as the network takes it")
    return replace(images, note=note, test=test, train=train)


def _first_channel(split: Split) -> Split:
    return Stored(lambda part: split[part.start : part.stop].images[:, 0], split.labels, split.shape[1:])


def _split(split: Split, resizing: Resizing) -> Split:
    plan, shape = resizing.plan(split.shape), resizing.shape(split.shape)
    each = split.each if isinstance(split, Stored) else None

    def read(positions: range) -> Tensor:
        if each is not None:
            return torch.stack([_resized(each(place), resizing, shape) for place in positions])
        return plan.of(split[positions.start : positions.stop].images).clamp(0, 1)

    return Stored(read, split.labels, shape)


def _resized(image: Tensor, resizing: Resizing, shape: tuple[int, ...]) -> Tensor:
    """An image (C, H, W) of any size, resized to the shape that the first one gets. Raises BadInput for another."""
    made = resizing.plan(image.shape).of(image[None])[0].clamp(0, 1)
    if made.shape != shape:
        message = f"images are {resizing}, and one of {tuple(image.shape)} becomes {tuple(made.shape)}, not {shape}; "
        raise BadInput(f"{message}cut them to a square, too (crop)", code="bad-shape", field="resize")
    return made
