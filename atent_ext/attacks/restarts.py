"""Restarts of a chain, their losses, and which iterate an attack returns. Examples with an adversary can be skipped.

Random numbers are always drawn for the whole batch. Skipping examples therefore reduces the cost and does not change
the result (up to the rounding of forward passes with fewer images).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from atent_ext.attacks import uphill
from atent_ext.attacks.langevin import Langevin, finite, last_iterate, scored_gradient, walk
from atent_ext.attacks.moves import Generator
from atent_ext.attacks.uphill import Climb, Flats, Target
from atent_ext.core import validate
from atent_ext.core.box import Box, inside, rows_of
from atent_ext.core.losses import cross_entropy, dlr, toward
from atent_ext.core.norms import Ball
from atent_ext.core.outputs import answers
from atent_ext.core.types import Loss, Model, Radius

Keep = Literal["last", "success"]
_ROUNDING, _STEPS = 1e-5, 4 * torch.finfo(torch.float32).eps
"""Tolerance for float32 rounding of distances: of images in [0, 1], and of larger values relative to them.

Half precision adds its own. Adversaries beyond it do not count."""


def allowed(norm: Ball, eps: Radius, x: Tensor, adversary: Tensor, box: Box = (0.0, 1.0)) -> Tensor:
    """Which adversaries (N, ...) lie in the eps ball around x and in the box, up to rounding: (N,) bool."""
    half = torch.finfo(x.dtype).eps if x.dtype in (torch.float16, torch.bfloat16) else 0.0
    rounding: float | Tensor = _ROUNDING + half
    slack, difference = rounding, adversary - x
    if _wide(box):
        own = (_STEPS + half) * x.abs()
        slack, difference = rounding + own, difference.sign() * (difference.abs() - own).clamp_min(0)
    return inside(adversary, box, slack).flatten(1).all(1) & (norm.size(difference) <= eps + rounding * _sum(norm, x))


def _wide(box: Box) -> bool:
    """Whether values may lie outside [-1, 1], where floats are coarser."""
    return any(isinstance(side, Tensor) or abs(side) > 1 for side in box)


def _sum(norm: Ball, x: Tensor) -> float:
    """How many roundings add up in a distance: of ℓ1, one of each pixel, which are as often up as down."""
    return math.sqrt(x[0].numel()) if norm.name == "L1" and len(x) else 1.0


def check(restarts: int, keep: str, batch_size: int | None) -> None:
    """Raise BadInput unless restarts and batch_size are whole numbers >= 1 and keep is "last" or "success"."""
    validate.steps("restarts", restarts)
    validate.choice("keep", keep, ("last", "success"))
    if batch_size is not None:
        validate.steps("batch_size", batch_size)


def adversaries(
    kernel: Langevin,
    model: Model,
    x: Tensor,
    y: Tensor,
    loss: Loss | Sequence[Climb],
    generator: Generator = None,
    *,
    restarts: int = 1,
    keep: Keep = "last",
    early_stop: bool = True,
    batch_size: int | None = None,
    rescue: bool = False,
) -> Tensor:
    """Attack x (N, ...) with labels or targets y (N,) in `restarts` restarts; return adversaries (N, ...), detached.

    loss: one loss, or several that the restarts take in turn; a `Target` needs an untargeted kernel, and the first
    costs one more pass of the images that are left. rescue: where the input gradient is exactly 0, step in a random
    direction and climb `losses.dlr` from then on, and warn with `GradientVanished`; climb it also where the
    cross-entropy was 0 once, since the gradient of the label's logit is rounded away there. keep: "last" returns the
    last iterate of the first restart that succeeds, else of the last restart. "success" also checks every intermediate
    iterate and returns the first that succeeds, else the last iterate of the last restart. An iterate succeeds if it
    lies in ball and box and the prediction is not y (for a targeted kernel: is y). early_stop: examples with an
    adversary are skipped from then on; the others form batches of `batch_size` (None: one batch). Raises BadInput if
    input gradients are NaN or missing.
    """
    check(restarts, keep, batch_size)
    climbs: Sequence[Climb] = [loss] if callable(loss) else loss
    if restarts == 1 and keep == "last" and batch_size is None and not rescue and not isinstance(climbs[0], Target):
        return finite(last_iterate(kernel, model, x, y, climbs[0], generator))
    search = _Search(kernel, model, x.detach(), y, keep == "success", early_stop, batch_size or len(x), rescue)
    for restart in range(restarts):
        search.climb(climbs[restart % len(climbs)])
        search.restart(generator)
        if restart + 1 < restarts:  # the last restart's iterates are returned in any case
            search.check_last()
    search.flats.warn()
    return search.best


@dataclass
class _Search:
    kernel: Langevin
    model: Model
    x: Tensor
    y: Tensor
    every_iterate: bool  # whether intermediate iterates count
    early_stop: bool
    batch_size: int
    rescue: bool
    loss: Loss = field(init=False)
    target: Tensor = field(init=False)  # what the loss takes beside the logits: y, or label and target (N, 2)
    ranking: Tensor | None = None  # (N, classes - 1): the wrong classes, nearest first
    flats: Flats = field(init=False)
    rounded: Tensor = field(init=False)  # (N,) bool: had a cross-entropy of 0, whose gradient lacks the label's part
    done: Tensor = field(init=False)  # (N,) bool: has an adversary
    best: Tensor = field(init=False)  # (N, ...): that adversary, or the last iterate of the last restart

    def __post_init__(self) -> None:
        self.done = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
        self.flats, self.rounded = Flats(len(self.x), self.x.device), torch.zeros_like(self.done)
        self.best = self.x

    @torch.no_grad()
    def climb(self, climb: Climb) -> None:
        """Take this loss in the next restart."""
        if not isinstance(climb, Target):
            self.loss, self.target = climb, self.y
            return
        if self.ranking is None:
            parts = [(rows, self.targets(rows, climb.nearest)) for rows in self.rows()]
            self.ranking = self.y[:, None].repeat(1, parts[0][1].shape[1] if parts else 1)
            for rows, ranking in parts:
                self.ranking[rows] = ranking
        self.loss, self.target = toward, uphill.to_target(self.y, self.ranking, climb.rank)

    def targets(self, rows: Tensor, nearest: bool) -> Tensor:
        """The wrong classes of the examples `rows`, the first target first."""
        if nearest:
            return uphill.nearest(self.model, self.x[rows], self.y[rows], self.kernel.norm)
        return uphill.ranked(self.model(self.x[rows]), self.y[rows])

    def restart(self, generator: Generator) -> None:
        """Run a chain per example from a new start."""
        last = self.run_chain(generator)
        wide = self.done.reshape(-1, *[1] * (self.x.dim() - 1))
        self.best = torch.where(wide, self.best, last)

    @torch.no_grad()
    def check_last(self) -> None:
        """Record which of the last iterates succeed."""
        for rows in self.rows():
            self.record(rows, self.best[rows], self.model(self.best[rows]))

    def run_chain(self, generator: Generator) -> Tensor:
        """x'_K of one chain per example."""
        for moving in walk(self.kernel, self.x, self.gradient, generator):  # noqa: B007 -- only the last is used
            pass
        return finite(moving)

    def gradient(self, moving: Tensor) -> Tensor:
        """The input gradient of the examples that are still attacked; zero for the others."""
        total = torch.zeros_like(moving)
        attacked = torch.ones_like(self.done) if not self.early_stop else ~self.done
        for rows in self.rows():
            point = moving[rows]
            total[rows], logits = scored_gradient(self.model, self.loss_of(rows), point, self.target[rows])
            if self.rescue and self.loss is cross_entropy:
                self.rounded[rows] |= cross_entropy(logits, self.target[rows]) == 0
            if self.every_iterate:
                self.record(rows, point, logits)
        return self.flats.leave(total, attacked) if self.rescue else total

    def loss_of(self, rows: Tensor) -> Loss:
        """The loss of the examples `rows`: `dlr` for those whose gradient vanished once, or was rounded."""
        gone = (self.flats.vanished | self.rounded)[rows]
        if self.loss is toward or not bool(gone.any()):
            return self.loss
        return lambda logits, y: torch.where(gone, dlr(logits, y), self.loss(logits, y))

    def rows(self) -> list[Tensor]:
        """Indices of the examples that are still attacked, in batches."""
        rows = (~self.done).nonzero().squeeze(1) if self.early_stop else torch.arange(len(self.x), device=self.x.device)
        return list(torch.split(rows, min(int(self.batch_size), len(rows)))) if len(rows) else []

    def record(self, rows: Tensor, point: Tensor, logits: Tensor) -> None:
        """Keep those points (n, ...) of the examples `rows` (n,) that are their first success."""
        validate.logits(logits, len(rows))
        hit = (answers(logits) == self.y[rows]) == self.kernel.targeted
        eps = (
            self.kernel.eps[rows] if isinstance(self.kernel.eps, Tensor) and self.kernel.eps.dim() else self.kernel.eps
        )
        box = rows_of(self.kernel.box, self.x, rows)
        new = hit & allowed(self.kernel.norm, eps, self.x[rows], point, box) & ~self.done[rows]
        self.best = self.best.index_copy(0, rows[new], point[new])
        self.done[rows[new]] = True
