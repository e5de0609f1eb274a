"""The batches of training, on the device; with several processes, each takes its share of every batch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atent_ext.core import seeds
from atent_ext.core.errors import BadInput
from atent_ext.data.datasets import Split
from atent_ext.training import augment as augmentation
from atent_ext.training.mixing import Mix, probabilities

_ROOM = 0.25
"""The share of a GPU's free memory that the images may use; the rest is for the network."""


@dataclass(frozen=True)
class Batch:
    """One process's share of a batch of `total` examples: its `rows`.

    images (N, C, H, W), labels (N,), or (N, classes) if they are probabilities, and index (N,), the positions in the
    split, those of extra images after all others; all on the device; N = len(rows).
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

    def parts(self, count: int) -> Iterator["Batch"]:
        """The batch in up to `count` parts, in order; their weights add up to that of the batch."""
        size = len(self.rows)
        for part in filter(None, (share(size, place, count) for place in range(count))):
            chosen = slice(part.start, part.stop)
            yield replace(
                self,
                images=self.images[chosen],
                labels=self.labels[chosen],
                index=self.index[chosen],
                rows=self.rows[chosen],
                weight=self.weight * (len(part) / size),
            )


@dataclass(frozen=True)
class Targets:
    """How labels become targets: mixed with those of other images by `mix`, smoothed by `smoothing`, for `classes`."""

    classes: int = 0
    mix: Mix | None = None
    smoothing: float = 0.0

    @property
    def soft(self) -> bool:
        """Whether the targets are probabilities (N, classes), not class numbers (N,)."""
        return self.mix is not None or self.smoothing > 0


class Batches:
    """Batches of `batch_size` examples of a split; process number `process` of `processes` gets its rows of each.

    augment: "crop-flip" crops at random from the image padded by 4 black pixels and mirrors it with probability 1/2;
    "shift" crops from the image padded by 2 black pixels; "affine" rotates by up to 15 degrees, stretches each side by
    up to 10 % and shifts by up to 2 pixels, with bilinear interpolation and black padding; "affine-sharp" changes two
    thirds of the images by up to 0.2 rad, 12 %, a shear of 0.15 and 2 pixels, bicubic, with contrasts times 1.25;
    "elastic" bends the image; "cutout" blackens a square half as wide as the image; "none" changes nothing; several are
    applied in turn. targets: see `Targets`. extra: images of which the share `extra_share` of each batch consists, in
    [0, 1); the others are those of the split, each once an epoch.
    device: where the batches are; the images are kept there, or in host memory if a GPU has too little.
    Raises BadInput for an unknown augmentation, for a batch_size below the number of processes, and for a share of
    extra images that leaves no room for others.
    """

    def __init__(
        self,
        split: Split,
        batch_size: int,
        augment: str | tuple[str, ...] = "none",
        device: torch.device | str = "cpu",
        process: int = 0,
        processes: int = 1,
        *,
        targets: Targets = Targets(),
        extra: Split | None = None,
        extra_share: float = 0.0,
    ) -> None:
        self.change = augmentation.change(augment)
        _check_images(split, augment, targets.mix)
        if batch_size < processes:
            remedy = f"make it at least {processes}, or start fewer processes"
            message = f"batch_size is {batch_size}, to be shared out among {processes} processes; {remedy}"
            raise BadInput(message, code="bad-value", field="batch_size")
        self.batch_size, self.process, self.processes = batch_size, process, processes
        self.device, self.targets, self.own = torch.device(device), targets, len(split)
        self.added = round(extra_share * batch_size) if extra else 0
        if extra is not None and not self.added:
            message = f"extra.share is {extra_share}, less than one image of {batch_size}; raise it, or batch_size"
            raise BadInput(message, code="bad-value", field="extra.share")
        if self.added >= batch_size:
            message = f"extra.share is {extra_share}, which leaves none of {batch_size} images to the data set"
            raise BadInput(message, code="bad-value", field="extra.share")
        images = split.images if extra is None else torch.cat([split.images, extra.images])
        labels = split.labels if extra is None else torch.cat([split.labels, extra.labels])
        self.resident = _fits(images, self.device)
        self.images = images.to(self.device) if self.resident else images
        self.labels = labels.to(self.device)

    def __len__(self) -> int:
        return math.ceil(self.own / (self.batch_size - self.added))

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Yield each example of the split once; the last batch may be smaller.

        The seed determines the order and, with an example's row in its batch, its augmentation. Neither depends on the
        number of processes.
        """
        generator = seeds.generator(seed)
        order = torch.randperm(self.own, generator=generator)
        for whole in self._with_extra(torch.split(order, self.batch_size - self.added), generator):
            yield self._share(whole, generator)

    def _with_extra(self, batches: tuple[Tensor, ...], generator: torch.Generator) -> Iterator[Tensor]:
        """The batches with as many extra examples, each used once before any is used again."""
        if not self.added:
            yield from batches
            return
        waiting = torch.zeros(0, dtype=torch.long)
        for batch in batches:
            needed = math.ceil(self.added * len(batch) / (self.batch_size - self.added))
            while len(waiting) < needed:
                count = len(self.labels) - self.own
                waiting = torch.cat([waiting, self.own + torch.randperm(count, generator=generator)])
            whole = torch.cat([batch, waiting[:needed]])
            waiting = waiting[needed:]
            yield whole[torch.randperm(len(whole), generator=generator)]

    def _share(self, whole: Tensor, generator: torch.Generator) -> Batch:
        total = len(whole)
        own = share(total, self.process, self.processes)
        rows = own or range(1)
        mix = self.targets.mix
        drawn = range(total) if mix else rows  # an image may be mixed with one of another process
        index = whole[drawn.start : drawn.stop]
        on_device = index.to(self.device)
        images = self.change(self._images(index, on_device), drawn, total, generator)
        labels = self.labels[on_device]
        if self.targets.soft:
            labels = probabilities(labels, self.targets.classes, self.targets.smoothing)
        if mix:
            images, labels = (part[rows.start : rows.stop] for part in mix(images, labels, generator))
            on_device = on_device[rows.start : rows.stop]
        return Batch(images, labels, on_device, rows, total, len(own) * self.processes / total)

    def _images(self, index: Tensor, on_device: Tensor) -> Tensor:
        if self.resident:
            return self.images[on_device]
        return self.images[index].pin_memory().to(self.device, non_blocking=True)


def _check_images(split: Split, augment: str | tuple[str, ...], mix: Mix | None) -> None:
    """Raise BadInput for inputs that are no images, (C, H, W), and a change or a mixture that needs images."""
    changes = [name for name in ([augment] if isinstance(augment, str) else augment) if name != "none"]
    needing = {"augment": ", ".join(changes), "mix": mix.name if mix and mix.name == "cutmix" else ""}
    for field, name in needing.items():
        if name and len(split.shape) != 3:
            message = f"{field} is {name}, which needs images (C, H, W), and the inputs are {split.shape}; remove it"
            raise BadInput(message, code="bad-shape", field=field)


def share(total: int, process: int, processes: int) -> range:
    """The rows of a batch of `total` examples that a process takes.

    The shares are contiguous, cover all rows, and differ by at most one row; the first process never has fewer rows
    than another.
    """
    first, end = (math.ceil(total * place / processes) for place in (process, process + 1))
    return range(first, end)


def _fits(images: Tensor, device: torch.device) -> bool:
    return device.type != "cuda" or images.nbytes <= _ROOM * torch.cuda.mem_get_info(device)[0]
