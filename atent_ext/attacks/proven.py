"""Images that are proven robust take no passes: a network whose answers around them are known.

Attacks that treat every image of a batch by itself find the same adversaries of the other images, up to the rounding of
smaller batches: the batch, and so every random draw, stays as it is.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROUNDING = 1e-5
"""By how much iterates may lie outside ball and box; the proof has to hold there, too."""
_PIXELS = 16
_SLOPE = 0.1


class Proven(nn.Module):
    """`network`, which is not run on inputs within eps of an image for which it is proven to answer `labels`.

    images (N, ...) in [0, 1] and labels (N,) of a batch, on the network's device; proven (N,) bool: for which images
    the prediction is the label everywhere in the ℓ∞ ball of radius eps + 2 `ROUNDING` in the box, which reaches
    `ROUNDING` further. There the logits are an affine function of the input with that prediction, whose gradient is not
    0. Proven images whose ball may meet that of an image without a proof are run as well.
    """

    def __init__(
        self, network: nn.Module, images: Tensor, labels: Tensor, proven: Tensor, eps: float, classes: int
    ) -> None:
        super().__init__()
        self.network, self.training = network, network.training
        flat, radius = images.flatten(1), eps + ROUNDING
        # The pixels that differ most between the images tell to which of them an input belongs.
        self.pixels = flat.float().std(0, unbiased=False).argsort(descending=True)[:_PIXELS]
        few = flat[:, self.pixels]
        apart = torch.cdist(few, few[~proven], p=float("inf")).gt(2 * radius).all(1)
        self.rows = (proven & apart).nonzero().squeeze(1)
        self.few, self.radius = few[self.rows], radius
        self.low, self.high = ((flat[self.rows] + sign * radius).clamp(-ROUNDING, 1 + ROUNDING) for sign in (-1, 1))
        self.base = F.one_hot(labels[self.rows], classes).to(flat)
        ramp = torch.linspace(0, _SLOPE, classes, dtype=flat.dtype, device=flat.device)
        self.slope = ramp.expand(flat.shape[1], -1) / flat.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes)."""
        known, image = self._belongs(x)
        run = (~known).nonzero().squeeze(1)
        if len(run) == len(x):
            logits: Tensor = self.network(x)
            return logits
        answers = torch.addmm(self.base[image], x.flatten(1), self.slope)
        return answers.index_copy(0, run, self.network(x[run]).to(answers)) if len(run) else answers

    def belongs(self, x: Tensor) -> Tensor:
        """The image to whose ball each input (n, ...) belongs, (n,); -1 where the network is run."""
        known, image = self._belongs(x)
        return torch.where(known, self.rows[image], -1) if len(self.rows) else torch.full((len(x),), -1)

    def settled(self, x: Tensor) -> bool:
        """Whether the network is run on no input (n, ...)."""
        return bool(self._belongs(x)[0].all())

    @torch.no_grad()
    def _belongs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each input lies in the ball of an image of `rows`, and the place of the nearest one there, (n,)."""
        flat = x.flatten(1)
        if not len(self.rows):
            return torch.zeros(len(x), dtype=torch.bool, device=x.device), self.rows
        image = torch.cdist(flat[:, self.pixels], self.few, p=float("inf")).argmin(1)
        return ((flat >= self.low[image]) & (flat <= self.high[image])).all(1), image
