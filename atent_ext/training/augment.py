"""Random changes of training images, by name. Draws are made for the whole batch, the same in all processes.

A change maps images (N, C, H, W) in [0, 1], their `rows` in a batch of `total`, and a generator to images.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from atent_ext.core import registry
from atent_ext.core.errors import BadInput

Name = Literal["none", "crop-flip", "shift", "affine", "affine-sharp", "elastic", "cutout"]
Change: TypeAlias = Callable[[Tensor, range, int, torch.Generator], Tensor]

PADDING = 4
"""Black pixels that "crop-flip" pads each side of an image with before it crops."""
SHIFT = 2
"""The same for "shift": the largest shift in pixels."""
TURN, STRETCH = 15.0, 0.1
""""affine": largest rotation in degrees, largest relative change of the length of a side."""
SHARP_TURN, SHARP_STRETCH, SHEAR = 0.2, 0.12, 0.15
""""affine-sharp": largest rotation in radians, relative change of a side, and shear."""
CONTRAST = 1.25
""""affine-sharp": contrasts are multiplied by this, since interpolation blurs."""
NODE, BEND = 7, 0.7
""""elastic": pixels between two nodes of the grid that is bent, and the standard deviation of their shifts."""


def change(names: str | tuple[str, ...]) -> Change:
    """The change with this name, or several in this order. Raises BadInput for an unknown name."""
    changes = [_known(name) for name in ([names] if isinstance(names, str) else names)]

    def apply(images: Tensor, rows: range, total: int, generator: torch.Generator) -> Tensor:
        for one in changes:
            images = one(images, rows, total, generator)
        return images

    return apply


def check(names: Any) -> Any:
    """What a recipe names, unchanged. Raises BadInput, which names the nearest, for a text that is no name."""
    for name in [names] if isinstance(names, str) else names if isinstance(names, list | tuple) else ():
        if isinstance(name, str):
            _known(name)
    return names


def _known(name: str) -> Change:
    known: dict[str, Change] = {str(key): change for key, change in CHANGES.items()}
    if name not in known:
        message = str(registry.nearest("augmentation", name, known))
        raise BadInput(message, code="unknown-name", field="augment")
    return known[name]


def _crop_flip(images: Tensor, rows: range, total: int, generator: torch.Generator) -> Tensor:
    return _moved(images, rows, total, generator, PADDING, mirrored=True)


def _shift(images: Tensor, rows: range, total: int, generator: torch.Generator) -> Tensor:
    return _moved(images, rows, total, generator, SHIFT, mirrored=False)


def _moved(images: Tensor, rows: range, total: int, generator: torch.Generator, padding: int, mirrored: bool) -> Tensor:
    """Images cropped and perhaps mirrored."""
    places = torch.randint(2 * padding + 1, (2, total), generator=generator)
    mirrors = torch.randint(2, (1, total), generator=generator) if mirrored else torch.zeros_like(places[:1])
    drawn = torch.cat([places, mirrors])[:, rows.start : rows.stop].to(images.device)
    top, left, mirror = drawn.unsqueeze(-1)
    count, channels, height, width = (torch.arange(size, device=images.device) for size in images.shape)
    y = top + height
    x = left + torch.where(mirror.bool(), width.flip(0), width)
    padded = F.pad(images, [padding] * 4)
    return padded[count[:, None, None, None], channels[:, None, None], y[:, None, :, None], x[:, None, None, :]]


def _uniform(count: int, images: Tensor, rows: range, total: int, generator: torch.Generator) -> Tensor:
    """`count` uniform numbers in [-1, 1] for each image, (count, N)."""
    return 2 * torch.rand(count, total, generator=generator)[:, rows.start : rows.stop].to(images.device) - 1


def _affine(images: Tensor, rows: range, total: int, generator: torch.Generator) -> Tensor:
    """Images rotated, stretched and shifted."""
    drawn = _uniform(5, images, rows, total, generator)
    height, width = images.shape[2:]
    angle, (wide, high) = math.radians(TURN) * drawn[0], 1 + STRETCH * drawn[1:3]
    x = [angle.cos() * wide, -angle.sin() * high * height / width, 2 * SHIFT * drawn[3] / width]
    y = [angle.sin() * wide * width / height, angle.cos() * high, 2 * SHIFT * drawn[4] / height]
    return _sampled(images, _lattice(images, x, y)).clamp(0, 1)


def _affine_sharp(images: Tensor, rows: range, total: int, generator: torch.Generator) -> Tensor:
    """Two thirds of the images rotated, stretched, sheared and shifted; bicubic, with the contrast restored."""
    drawn = _uniform(7, images, rows, total, generator)
    height, width = images.shape[2:]
    angle, (wide, high) = SHARP_TURN * drawn[0], 1 + SHARP_STRETCH * drawn[1:3]
    sine, cosine, shear = angle.sin(), angle.cos(), SHEAR * drawn[3]
    x = [cosine * wide, (cosine * shear - sine * high) * height / width, 2 * SHIFT * drawn[4] / width]
    y = [sine * wide * width / height, sine * shear + cosine * high, 2 * SHIFT * drawn[5] / height]
    moved = _sampled(images, _lattice(images, x, y), "bicubic")
    sharp = (CONTRAST * (moved - 0.5) + 0.5).clamp(0, 1)
    return torch.where((drawn[6] < -1 / 3)[:, None, None, None], images, sharp)


def _elastic(images: Tensor, rows: range, total: int, generator: torch.Generator) -> Tensor:
    """Images bent: nodes of a grid are shifted at random, pixels between them smoothly (after Simard et al. 2003)."""
    height, width = images.shape[2:]
    nodes = [max(2, round(size / NODE) + 1) for size in (height, width)]
    shifts = BEND * torch.randn(total, 2, *nodes, generator=generator)[rows.start : rows.stop].to(images)
    smooth = F.interpolate(shifts, (height, width), mode="bicubic", align_corners=True)
    ones, zeros = (torch.full((len(images),), value).to(images) for value in (1.0, 0.0))
    straight = _lattice(images, [ones, zeros, zeros], [zeros, ones, zeros])
    bent = straight + 2 * smooth.permute(0, 2, 3, 1) / torch.tensor([width, height]).to(images)
    return _sampled(images, bent).clamp(0, 1)


def _lattice(images: Tensor, x: list[Tensor], y: list[Tensor]) -> Tensor:
    """The place in [-1, 1] from which each pixel is read, (N, H, W, 2), for rows x and y of affine matrices."""
    matrices = torch.stack([torch.stack(x, 1), torch.stack(y, 1)], 1)
    return F.affine_grid(matrices, list(images.shape), align_corners=False)


def _sampled(images: Tensor, lattice: Tensor, mode: str = "bilinear") -> Tensor:
    return F.grid_sample(images, lattice.to(images), mode=mode, align_corners=False)


def _cutout(images: Tensor, rows: range, total: int, generator: torch.Generator) -> Tensor:
    """A black square, half as wide as the image, around a random pixel (DeVries and Taylor 2017)."""
    height, width = images.shape[2:]
    side = min(height, width) // 2
    drawn = torch.rand(2, total, generator=generator)[:, rows.start : rows.stop].to(images.device)
    inside = []
    for share, size in zip(drawn, (height, width), strict=True):
        first = (share * size).long() - side // 2
        place = torch.arange(size, device=images.device) - first[:, None]
        inside.append((place >= 0) & (place < side))
    return images.masked_fill(inside[0][:, None, :, None] & inside[1][:, None, None, :], 0)


CHANGES: Mapping[Name, Change] = {
    "none": lambda images, rows, total, generator: images,
    "crop-flip": _crop_flip,
    "shift": _shift,
    "affine": _affine,
    "affine-sharp": _affine_sharp,
    "elastic": _elastic,
    "cutout": _cutout,
}
