"""The batches of training: rows of tensors on the device, of which each process of a run takes its share."""

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
"""Black pixels on each side of an image that "crop-flip" crops from."""
SHIFT = 2
"""The same for "shift": digits lie up to so many pixels off their place."""
TURN, STRETCH = 15.0, 0.1
""""affine" turns an image by up to so many degrees, and makes each of its sides longer or shorter by such a share."""

_ROOM = 0.25
"""The share of a GPU's free memory that images may take; the rest is for the network."""


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch of `total` examples: those in `rows` of it.

    images (N, C, H, W), labels (N,) and index (N,), the positions in the split, all on the device; N is len(rows).
    weight: N * processes / total, so that the mean over the processes of weight times mean loss is the batch's mean
    loss. A process for which a small batch has no example has its first one with weight 0: all take part in a step.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    rows: range
    total: int
    weight: float


class Batches:
    """The batches of `batch_size` examples of a split, of which process number `process` of `processes` takes its rows.

    augment: "crop-flip" crops at random from the image padded by 4 black pixels and mirrors every second one on
    average; "shift" crops from 2 black pixels and never mirrors; "affine" turns by up to 15 degrees, stretches each
    side by up to 10 % and moves by up to 2 pixels, bilinearly between pixels, black from outside; "none" changes
    nothing. The images lie on `device`, or in host memory where a GPU has too little for them.
    Raises BadInput for an unknown augmentation, and for a batch_size below the number of processes.
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
            raise registry.nearest("augmentation", augment, _CHANGES)
        if batch_size < processes:
            raise BadInput(
                f"batch_size is {batch_size}, to be shared out among {processes} processes; "
                f"make it at least {processes}, or start fewer processes"
            )
        self.batch_size, self.process, self.processes = batch_size, process, processes
        self.device, self.change = torch.device(device), _CHANGES[augment]
        self.resident = _fits(split.images, self.device)
        self.images = split.images.to(self.device) if self.resident else split.images
        self.labels = split.labels.to(self.device)

    def __len__(self) -> int:
        return math.ceil(len(self.labels) / self.batch_size)

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Yield every example once; the last batch may be smaller.

        Order and augmentation follow from the seed and the example's place in the batch, whatever the processes.
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
    """The rows that a process takes of `total`: contiguous, their numbers differing by at most one, none lost.

    The first process has a row wherever there is one.
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
    """Each image (N, C, H, W) cropped and perhaps mirrored; drawn for the whole batch, so that all processes agree."""
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
    """Each image (N, C, H, W) turned, stretched and moved; drawn for the whole batch, so that all processes agree."""
    drawn = 2 * torch.rand(5, total, generator=generator)[:, rows.start : rows.stop].to(images.device) - 1
    height, width = images.shape[2:]
    angle, (wide, high) = math.radians(TURN) * drawn[0], 1 + STRETCH * drawn[1:3]
    x = [angle.cos() * wide, -angle.sin() * high * height / width, 2 * SHIFT * drawn[3] / width]
    y = [angle.sin() * wide * width / height, angle.cos() * high, 2 * SHIFT * drawn[4] / height]
    from_where = torch.stack([torch.stack(x, 1), torch.stack(y, 1)], 1)  # where each pixel's value is taken, in [-1, 1]
    grid = F.affine_grid(from_where, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).clamp(0, 1)


_CHANGES: Mapping[str, Callable[[Tensor, range, int, torch.Generator], Tensor]] = {
    "none": lambda images, rows, total, generator: images,
    "crop-flip": _crop_flip,
    "shift": _shift,
    "affine": _affine,
}
