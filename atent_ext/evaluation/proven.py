"""Which images of a chunk interval bounds prove robust, for networks that they cover."""

import torch
from torch import Tensor, nn

from atent_ext.attacks.proven import ROUNDING, Proven
from atent_ext.certification.intervals import exact, worst_margins
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import margin
from atent_ext.core.model_state import device_of, evaluating
from atent_ext.core.schema import Threat
from atent_ext.data.datasets import Split

_SLACK = 1e-3
"""Share of the largest bound by which a proof must hold, since the bounds are rounded."""


def proven(model: nn.Module, split: Split, threat: Threat, batch_size: int = 250) -> tuple[Tensor, int] | None:
    """Which images are proven to keep their label in the ball, (N,) bool, and the number of classes.

    None for a network without interval bounds, for another norm than ℓ∞, and where no image is proven.
    """
    if threat.norm != "Linf" or not 0 < threat.eps < 1 or not exact(model):
        return None
    device, box = device_of(model), (-ROUNDING, 1 + ROUNDING)
    found = []
    try:
        with torch.no_grad(), evaluating(model):
            for x, y in zip(*(torch.split(part, batch_size) for part in (split.images, split.labels)), strict=True):
                bounds = worst_margins(model, x.to(device), y.to(device), threat.eps + 2 * ROUNDING, box)
                worst = margin(bounds, y.to(device))
                found.append((worst < -_SLACK * bounds.abs().amax(1).clamp(min=1)).cpu())
    except (BadInput, RuntimeError, ValueError, TypeError):  # a network that the bounds do not cover, or its labels
        return None
    flags = torch.cat(found)
    return (flags, bounds.shape[1]) if bool(flags.any()) else None


def around(model: nn.Module, split: Split, threat: Threat, flags: Tensor, classes: int) -> Proven:
    """The network, which is not run around the images that are proven."""
    device = device_of(model)
    return Proven(model, split.images.to(device), split.labels.to(device), flags.to(device), float(threat.eps), classes)
