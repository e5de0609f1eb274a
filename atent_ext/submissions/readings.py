"""Other readings of the images: normalised, with a normalisation undone, and scaled to 0-255."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_KNOWN = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10's": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "MNIST's": ((0.1307,), (0.3081,)),
    "mean 0.5 and std 0.5, a": ((0.5,), (0.5,)),
}


@dataclass(frozen=True)
class Reading:
    """Images (N, C, H, W) in [0, 1], changed by `of`.

    said: the change, in words. suspicion: the likely fault if it is better.
    """

    said: str
    suspicion: str
    of: Callable[[Tensor], Tensor]


def readings(images: Tensor) -> list[Reading]:
    """The readings for images of this many channels; only that of 0-255 unless images are (N, C, H, W)."""
    wide = Reading("times 255", "the network was trained on values of 0-255", lambda x: 255 * x)
    return [wide, *(one for name, mean, std in _scales(images) for one in _both(name, mean, std))]


def _scales(images: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    if images.dim() != 4:
        return []
    channels = images.shape[1]
    known = {name: pair for name, pair in _KNOWN.items() if len(pair[0]) in (1, channels)}
    scales = [(name, torch.tensor(mean), torch.tensor(std)) for name, (mean, std) in known.items()]
    scales.append(("the images' own", images.mean((0, 2, 3)), images.std((0, 2, 3)).clamp_min(1e-3)))
    return [(name, mean.view(-1, 1, 1), std.view(-1, 1, 1)) for name, mean, std in scales]


def _both(name: str, mean: Tensor, std: Tensor) -> tuple[Reading, Reading]:
    missing = "a normalisation is probably missing: state it with --normalisation"
    doubled = "they are probably normalised twice: leave out --normalisation, or that of the code"
    return (
        Reading(f"with {name} normalisation in front", missing, lambda x: (x - mean) / std),
        Reading(f"with {name} normalisation undone", doubled, lambda x: x * std + mean),
    )
