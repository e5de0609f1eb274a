"""Whether a batch of images has its channels first, (N, C, H, W), or last, (N, H, W, C), by its shape."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from atent_ext.core.errors import BadInput

Layout = Literal["CHW", "HWC"]
_CHANNELS = 4
"""Most channels of a picture: gray, colour, each with transparency."""


def layout(shape: Sequence[int]) -> Layout | None:
    """The layout of images of this shape (three sizes, without N); None if both are as likely.

    Two things count: few channels and many pixels, and pictures that are square. Those of few pixels may be features.
    """
    first, middle, last = shape
    few = (first <= _CHANNELS) - (last <= _CHANNELS)
    square = (middle == last != first) - (_CHANNELS < first == middle != last)
    if few + square == 0:
        return "CHW" if first == last == 1 else None
    return "CHW" if few + square > 0 else "HWC"


def described(shape: Sequence[int], order: Layout) -> str:
    """The reading of a shape in words: (N, H, W, C), 32×32 pixels of 3 channels."""
    channels, height, width = shape if order == "CHW" else (shape[2], shape[0], shape[1])
    names = ", ".join(("N", *order))
    return f"({names}), {height}×{width} pixels of {channels} channel{'s' if channels > 1 else ''}"


def channels_first(images: Tensor) -> None:
    """Refuse a batch (N, H, W, C). Batches of another rank, and those that could be either, pass."""
    if images.dim() == 4 and layout(images.shape[1:]) == "HWC":
        sizes = ", ".join(map(str, images.shape[1:]))
        reading = described(images.shape[1:], "HWC")
        message = f"images are (N, {sizes}), which is {reading}; (N, C, H, W) is needed: images.permute(0, 3, 1, 2)"
        raise BadInput(message, code="bad-shape", field="images")
