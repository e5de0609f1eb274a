"""Which images of a chunk interval bounds prove robust, for networks that they cover."""

import copy

import torch
from torch import Tensor, nn

from atent_ext.attacks.proven import ROUNDING, Proven
from atent_ext.certification.intervals import exact, worst_margins
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import margin
from atent_ext.core.model_state import device_of
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split

_UNIT = {"cpu": 2.0**-22, "cuda": 2.0**-9}
"""Relative error of one operation, with a margin: of float32 on a CPU, and of the convolutions of a GPU."""


def proven(model: nn.Module, split: Split, threat: Threat, batch_size: int = 250) -> tuple[Tensor, int] | None:
    """Which images are proven to keep their label in the ball, (N,) bool, and the number of classes.

    The bounds are computed in float64 and allow for the rounding of the network that is run. None for a network without
    interval bounds or of another precision than float32, for another norm than ℓ∞, and where no image is proven.
    """
    device = device_of(model)
    if threat.norm != "Linf" or not 0 < threat.eps < 1 or not _covered(model) or device.type not in _UNIT:
        return None
    box = (-ROUNDING, 1 + ROUNDING)
    found = []
    try:
        network = copy.deepcopy(model).double().eval()
        with torch.no_grad():
            for x, y in zip(*(torch.split(part, batch_size) for part in (split.images, split.labels)), strict=True):
                bounds = worst_margins(
                    network, x.to(device).double(), y.to(device), threat.eps + 2 * ROUNDING, box, _UNIT[device.type]
                )
                found.append((margin(bounds, y.to(device)) < 0).cpu())
    except (BadInput, RuntimeError, ValueError, TypeError):  # a network that the bounds do not cover, or its labels
        return None
    flags = torch.cat(found)
    return (flags, bounds.shape[1]) if bool(flags.any()) else None


def _covered(model: nn.Module) -> bool:
    numbers = (value for value in (*model.parameters(), *model.buffers()) if value.is_floating_point())
    return exact(model) and all(value.dtype is torch.float32 for value in numbers)


def around(model: nn.Module, split: Split, threat: Threat, flags: Tensor, classes: int) -> Proven:
    """The network, which is not run around the images that are proven."""
    device = device_of(model)
    return Proven(model, split.images.to(device), split.labels.to(device), flags.to(device), float(threat.eps), classes)
