"""Targets of training as probabilities: label smoothing, mixup and CutMix."""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atent_ext.core.schema import Positive, Section, Share


class Mix(Section):
    """Mixes each image of a batch, and its target, with another image of the batch.

    mixup: l x_i + (1 - l) x_j (Zhang et al. 2018). cutmix: a box of x_j of the area 1 - l is pasted into x_i (Yun et
    al. 2019). l is drawn from Beta(alpha, alpha) for a batch, alpha > 0. share: of the batches that are mixed.
    """

    name: Literal["mixup", "cutmix"]
    alpha: Positive = 1.0
    share: Share = 1.0

    def __call__(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mix whole batches: images (N, C, H, W), targets (N, classes)."""
        seed, order = torch.randint(2**62, (), generator=generator), torch.randperm(len(images), generator=generator)
        draw = np.random.default_rng(int(seed))
        if draw.random() >= self.share:
            return images, targets
        kept, order = float(draw.beta(self.alpha, self.alpha)), order.to(images.device)
        if self.name == "mixup":
            return kept * images + (1 - kept) * images[order], kept * targets + (1 - kept) * targets[order]
        rows, columns = _box(images.shape[2], images.shape[3], kept, draw)
        pasted = images.clone()
        pasted[:, :, rows, columns] = images[order][:, :, rows, columns]
        kept = 1 - len(range(images.shape[2])[rows]) * len(range(images.shape[3])[columns]) / images[0, 0].numel()
        return pasted, kept * targets + (1 - kept) * targets[order]


def _box(height: int, width: int, kept: float, draw: np.random.Generator) -> tuple[slice, slice]:
    """A box of the share 1 - `kept` of the image around a random pixel, cut off at the edges."""
    sides = []
    for size in (height, width):
        half, centre = int(size * (1 - kept) ** 0.5) // 2, int(draw.integers(size))
        sides.append(slice(max(centre - half, 0), min(centre + half, size)))
    return sides[0], sides[1]


def probabilities(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """One-hot targets (N, classes), the share `smoothing` of each spread over all classes (Szegedy et al. 2016)."""
    return (1 - smoothing) * F.one_hot(labels, classes).float() + smoothing / classes
