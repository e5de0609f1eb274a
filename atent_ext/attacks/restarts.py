"""Several runs of a chain, and which of its points an attack returns: where only success counts, the rest is spared.

The draws are always made for the whole batch, so that leaving out the examples that are done changes the cost and never
the result (up to the rounding of passes with fewer images).
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from atent_ext.attacks.langevin import Generator, Langevin, finite, last_iterate, scored_gradient, walk
from atent_ext.core import validate
from atent_ext.core.norms import Norm
from atent_ext.core.types import Loss, Model, Radius

Keep = Literal["last", "success"]
_ROUNDING = 1e-5
"""What float32 may add to a radius (half precision: its own); an attack that leaves ball or box by more has failed."""


def allowed(norm: Norm, eps: Radius, x: Tensor, adversary: Tensor, box: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Which adversaries keep to the eps ball and the box up to rounding, (N,) bool: only those can count."""
    low, high = box
    rounding = _ROUNDING + (torch.finfo(x.dtype).eps if x.dtype in (torch.float16, torch.bfloat16) else 0.0)
    in_box = ((adversary >= low - rounding) & (adversary <= high + rounding)).flatten(1).all(1)
    return in_box & (norm.size(adversary - x) <= eps + rounding)


def check(restarts: int, keep: str, batch_size: int | None) -> None:
    """Raise BadInput for values that make no sense."""
    validate.steps("restarts", restarts)
    validate.choice("keep", keep, ("last", "success"))
    if batch_size is not None:
        validate.steps("batch_size", batch_size)


def adversaries(
    kernel: Langevin,
    model: Model,
    x: Tensor,
    y: Tensor,
    loss: Loss,
    generator: Generator = None,
    *,
    restarts: int = 1,
    keep: Keep = "last",
    early_stop: bool = True,
    batch_size: int | None = None,
) -> Tensor:
    """What an attack of `restarts` runs returns for x (N, ...) and y (N,) labels (or targets): (N, ...), detached.

    keep: "last" is a run's last iterate, of the first run where that succeeds, else of the last run; "success" is the
    first iterate of all that succeeds, else the last of all. Success is a prediction other than y (for a targeted
    kernel: y) inside ball and box. early_stop: examples that are done are attacked no further; the others are gathered
    into batches of `batch_size` (None: one batch). Raises BadInput where input gradients are NaN.
    """
    check(restarts, keep, batch_size)
    if restarts == 1 and keep == "last" and batch_size is None:
        return finite(last_iterate(kernel, model, x, y, loss, generator))
    search = _Search(kernel, model, x.detach(), y, loss, keep == "success", early_stop, batch_size or len(x))
    if restarts == 1 and keep == "last":
        return search.walked(generator)
    for left in reversed(range(restarts)):
        search.run(generator)
        if left:  # after the last run there is nothing to choose
            search.judge()
    return search.best


@dataclass
class _Search:
    kernel: Langevin
    model: Model
    x: Tensor
    y: Tensor
    loss: Loss
    everywhere: bool  # whether iterates on the way count
    early_stop: bool
    batch_size: int
    done: Tensor = field(init=False)  # (N,) bool: an adversary was found
    best: Tensor = field(init=False)  # (N, ...): that adversary, or the last iterate of the last run

    def __post_init__(self) -> None:
        self.done = torch.zeros(len(self.x), dtype=torch.bool, device=self.x.device)
        self.best = self.x

    def run(self, generator: Generator) -> None:
        """One run: a chain from a new start."""
        last = self.walked(generator)
        wide = self.done.reshape(-1, *[1] * (self.x.dim() - 1))
        self.best = torch.where(wide, self.best, last)

    @torch.no_grad()
    def judge(self) -> None:
        """Find out which of the last iterates succeed."""
        for rows in self.rows():
            self.record(rows, self.best[rows], self.model(self.best[rows]))

    def walked(self, generator: Generator) -> Tensor:
        """x'_K of one chain per example."""
        for moving in walk(self.kernel, self.x, self.gradient, generator):  # noqa: B007 -- the last one is wanted
            pass
        return finite(moving)

    def gradient(self, moving: Tensor) -> Tensor:
        """The input gradient of the examples that are still sought for; zero for the others."""
        total = torch.zeros_like(moving)
        for rows in self.rows():
            point = moving[rows]
            total[rows], logits = scored_gradient(self.model, self.loss, point, self.y[rows])
            if self.everywhere:
                self.record(rows, point, logits)
        return total

    def rows(self) -> list[Tensor]:
        """The examples to be attacked, in batches."""
        left = (~self.done).nonzero().squeeze(1) if self.early_stop else torch.arange(len(self.x), device=self.x.device)
        return list(torch.split(left, min(int(self.batch_size), len(left)))) if len(left) else []

    def record(self, rows: Tensor, point: Tensor, logits: Tensor) -> None:
        """Keep the points among (n, ...) that succeed, of the examples `rows` (n,) that had not."""
        validate.logits(logits, len(rows))
        hit = (logits.argmax(1) == self.y[rows]) == self.kernel.targeted
        eps = (
            self.kernel.eps[rows] if isinstance(self.kernel.eps, Tensor) and self.kernel.eps.dim() else self.kernel.eps
        )
        new = hit & allowed(self.kernel.norm, eps, self.x[rows], point, self.kernel.box) & ~self.done[rows]
        self.best = self.best.index_copy(0, rows[new], point[new])
        self.done[rows[new]] = True
