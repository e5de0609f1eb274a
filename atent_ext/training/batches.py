"""The batches of training, on the device; with several processes, each takes its share of every batch."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atent_ext.core import registry, seeds
from atent_ext.core.errors import BadInput
from atent_ext.data.datasets import Split

PADDING = 4
"""Black pixels that "crop-flip" pads each side of an image with before it crops."""
SHIFT = 2
"""The same for "shift": the largest shift in pixels."""
TURN, STRETCH = 15.0, 0.1
""""affine": largest rotation in degrees, largest relative change of the length of a side."""

_ROOM = 0.25
"""The share of a GPU's free memory that the images may use; the rest is for the network."""


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch of `total` examples: its `rows`.

    images (N, C, H, W), labels (N,) and index (N,), the positions in the split, all on the device; N = len(rows).
    weight: N * processes / total. With it the mean over the processes of weight times mean loss is the mean loss of the
    batch. If a small batch has no example for a process, the process gets the first example with weight 0, because all
    processes take part in each step.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    rows: range
    total: int
    weight: float


class Batches:
    """Batches of `batch_size` examples of a split; process number `process` of `processes` gets its rows of each.

    augment: "crop-flip" crops at random from the image padded by 4 black pixels and mirrors it with probability 1/2;
    "shift" crops from the image padded by 2 black pixels; "affine" rotates by up to 15 degrees, stretches each side by
    up to 10 % and shifts by up to 2 pixels, with bilinear interpolation and black padding; "none" changes nothing.
    device: where the batches are; the images are kept there, or in host memory if a GPU has too little.
    Raises BadInput for an unknown augmentation and for a batch_size below the number of processes.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        augment: str = "none",
        device: torch.device | str = "cpu",
        process: int = 0,
        processes: int = 1,
    ) -> None:
        if augment not in _CHANGES:
            message = str(registry.nearest("augmentation", augment, _CHANGES))
            raise BadInput(message, code="unknown-name", field="augment")
        if batch_size < processes:
            remedy = f"make it at least {processes}, or start fewer processes"
            message = f"batch_size is {batch_size}, to be shared out among {processes} processes; {remedy}"
            raise BadInput(message, code="bad-value", field="batch_size")
        self.batch_size, self.process, self.processes = batch_size, process, processes
        self.device, self.change = torch.device(device), _CHANGES[augment]
        self.resident = _fits(split.images, self.device)
        self.images = split.images.to(self.device) if self.resident else split.images
        self.labels = split.labels.to(self.device)

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Yield each example once; the last batch may be smaller.

        The seed determines the order and, with an example's row in its batch, its augmentation. Neither depends on the
        number of processes.
        """
        generator = seeds.generator(seed)
        order = torch.randperm(len(self.labels), generator=generator)
        for whole in torch.split(order, self.batch_size):
            yield self._share(whole, generator)

    def _share(self, whole: Tensor, generator: torch.Generator) -> Batch:
        total = len(whole)
        own = share(total, self.process, self.processes)
        rows = own or range(1)
        index = whole[rows.start : rows.stop]
        on_device = index.to(self.device)
        images = self.change(self._images(index, on_device), rows, total, generator)
        return Batch(images, self.labels[on_device], on_device, rows, total, len(own) * self.processes / total)

    def _images(self, index: Tensor, on_device: Tensor) -> Tensor:
        if self.resident:
            return self.images[on_device]
        return self.images[index].pin_memory().to(self.device, non_blocking=True)


def share(total: int, process: int, processes: int) -> range:
    """The rows of a batch of `total` examples that a process takes.

    The shares are contiguous, cover all rows, and differ by at most one row; the first process never has fewer rows
    than another.
    """
    first, end = (math.ceil(total * place / processes) for place in (process, process + 1))
    return range(first, end)


def _fits(images: Tensor, device: torch.device) -> bool:
    return device.type != "cuda" or images.nbytes <= _ROOM * torch.cuda.mem_get_info(device)[0]


def _crop_flip(images: Tensor, rows: range, total: int, generator: torch.Generator) -> Tensor:
    return _moved(images, rows, total, generator, PADDING, mirrored=True)


def _shift(images: Tensor, rows: range, total: int, generator: torch.Generator) -> Tensor:
    return _moved(images, rows, total, generator, SHIFT, mirrored=False)


def _moved(images: Tensor, rows: range, total: int, generator: torch.Generator, padding: int, mirrored: bool) -> Tensor:
    """Images (N, C, H, W) cropped and perhaps mirrored; drawn for the whole batch, the same in all processes."""
    places = torch.randint(2 * padding + 1, (2, total), generator=generator)
    mirrors = torch.randint(2, (1, total), generator=generator) if mirrored else torch.zeros_like(places[:1])
    drawn = torch.cat([places, mirrors])[:, rows.start : rows.stop].to(images.device)
    top, left, mirror = drawn.unsqueeze(-1)
    count, channels, height, width = (torch.arange(size, device=images.device) for size in images.shape)
    y = top + height
    x = left + torch.where(mirror.bool(), width.flip(0), width)
    padded = F.pad(images, [padding] * 4)
    return padded[count[:, None, None, None], channels[:, None, None], y[:, None, :, None], x[:, None, None, :]]


def _affine(images: Tensor, rows: range, total: int, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W) rotated, stretched and shifted; drawn for the whole batch, the same in all processes."""
    drawn = 2 * torch.rand(5, total, generator=generator)[:, rows.start : rows.stop].to(images.device) - 1
    height, width = images.shape[2:]
    angle, (wide, high) = math.radians(TURN) * drawn[0], 1 + STRETCH * drawn[1:3]
    x = [angle.cos() * wide, -angle.sin() * high * height / width, 2 * SHIFT * drawn[3] / width]
    y = [angle.sin() * wide * width / height, angle.cos() * high, 2 * SHIFT * drawn[4] / height]
    matrices = torch.stack([torch.stack(x, 1), torch.stack(y, 1)], 1)  # to the source of each pixel, in [-1, 1]
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)


_CHANGES: Mapping[str, Callable[[Tensor, range, int, torch.Generator], Tensor]] = {
    "none": lambda images, rows, total, generator: images,
    "crop-flip": _crop_flip,
    "shift": _shift,
    "affine": _affine,
}
