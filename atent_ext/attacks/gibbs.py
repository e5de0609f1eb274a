"""Draws from the Gibbs law of the loss in the eps ball, and the share of the ball's mass that is adversarial.

The law has the density exp((L(x') - gamma / 2 |x' - x|^2) / temperature) in the intersection of ball and box. Chains
are those of the Langevin kernel with raw gradients, reflected at the borders; their bias is of the order of the step.
At a high temperature every point weighs the same, and the share is the volume that is classified wrongly; the lower
the temperature, the more the points of large loss weigh.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from atent_ext.attacks import mixing
from atent_ext.attacks.langevin import Langevin, finite, scored_gradient, walk
from atent_ext.attacks.moves import Generator
from atent_ext.core import validate
from atent_ext.core.box import Box
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import LINF, Norm
from atent_ext.core.outputs import answers
from atent_ext.core.statistics import interval
from atent_ext.core.types import Loss, Model, Radius

STRIDE = 0.1
"""Standard deviation of the noise of one step along a coordinate, as a share of the width of the ball there."""
MIXED = 1.05
"""Chains with a larger split R-hat have not mixed."""


@dataclass(frozen=True)
class Draws:
    """What chains of N images drew. losses: (chains, draws, N). adversarial: the same, bool: a wrong prediction.

    points: (chains, draws, N, ...), or None where they were not kept. worst: the point of largest loss among those that
    are predicted wrongly, or among all where none is, (N, ...).
    """

    losses: Tensor
    adversarial: Tensor
    worst: Tensor
    points: Tensor | None

    @property
    def share(self) -> Tensor:
        """The share of adversarial mass of each image, (N,) in [0, 1]."""
        return self.adversarial.double().mean((0, 1))

    @property
    def rhat(self) -> Tensor:
        """Split R-hat of the loss of each image, (N,)."""
        return mixing.split_rhat(self.losses)

    @property
    def effective(self) -> Tensor:
        """The effective sample size of each image, (N,): the smaller of those of the loss and of `adversarial`."""
        sizes = mixing.effective_size(self.losses), mixing.effective_size(self.adversarial.double())
        return torch.minimum(*sizes).clamp(1, self.losses.shape[0] * self.losses.shape[1])

    @property
    def interval(self) -> Tensor:
        """95 % Wilson intervals of the shares for that many independent draws, (N, 2)."""
        sizes = self.effective.round().long().tolist()
        return torch.tensor([interval(round(p * n), n) for p, n in zip(self.share.tolist(), sizes, strict=True)])


def kernel(
    norm: Norm,
    eps: Radius,
    steps: int,
    temperature: float,
    shape: torch.Size,
    *,
    step_size: Radius | None = None,
    gamma: float = 0.0,
    box: Box = (0.0, 1.0),
) -> Langevin:
    """The chain whose stationary law is the Gibbs law, for examples of `shape`.

    step_size: None is the one whose noise has the standard deviation `STRIDE` times eps (ℓ2: eps / sqrt(dimensions)).
    Raises BadInput unless temperature > 0.
    """
    validate.number("temperature", temperature)
    if temperature <= 0:
        raise BadInput(f"temperature is {temperature!r}; it must be above 0", code="bad-value", field="temperature")
    width = eps if norm == LINF else eps / math.sqrt(shape.numel())
    return Langevin(
        norm=norm,
        eps=eps,
        steps=steps,
        step_size=(STRIDE * width) ** 2 / (2 * temperature) if step_size is None else step_size,
        direction="raw",
        noise=math.sqrt(temperature),
        gamma=gamma,
        pull="paper",
        project="reflect",
        start=norm.start,
        box=box,
    )


def draw(
    chain: Langevin,
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    chains: int = 4,
    burn_in: int | None = None,
    thin: int = 1,
    keep_points: bool = True,
    loss: Loss = cross_entropy,
    generator: Generator = None,
) -> Draws:
    """Run `chains` chains an image of x (N, ...) with labels y (N,), and take every `thin`-th iterate after `burn_in`.

    burn_in: None is half of the steps. Raises BadInput if a chain has fewer than 4 draws, and for gradients that are
    NaN or missing.
    """
    for name, value in (("chains", chains), ("thin", thin)):
        validate.steps(name, value)
    first = chain.steps // 2 if burn_in is None else burn_in
    if (chain.steps - first) // thin < 4:
        message = (
            f"{chain.steps} steps with a burn-in of {first} and thin {thin} leave fewer than 4 draws; take more steps"
        )
        raise BadInput(message, code="bad-value", field="steps")
    many, labels = x.detach().repeat(chains, *[1] * (x.dim() - 1)), y.repeat(chains)
    chain = _of_all_chains(chain, x, chains)
    record = _Record(model, loss, labels, chains, keep_points)
    for k, moving in enumerate(walk(chain, many, lambda moving: record.slope, generator)):
        if k < chain.steps:
            record.visit(moving, counts=k >= first and (k - first) % thin == 0)
    return record.draws()


def _of_all_chains(kernel: Langevin, x: Tensor, chains: int) -> Langevin:
    """The kernel with its settings of single examples of x (N, ...) repeated for each chain."""

    def repeated(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim() or len(value) != len(x) or value.dim() not in (1, x.dim()):
            return value
        return value.repeat(chains, *[1] * (value.dim() - 1))

    low, high = (repeated(side) if isinstance(side, Tensor) and side.dim() == x.dim() else side for side in kernel.box)
    radii = {name: repeated(getattr(kernel, name)) for name in ("eps", "step_size", "noise")}
    return replace(kernel, box=(low, high), **radii)


class _Record:
    """What is kept of the iterates of all chains, which are (chains * N, ...)."""

    def __init__(self, model: Model, loss: Loss, labels: Tensor, chains: int, keep_points: bool) -> None:
        self.model, self.loss, self.labels, self.chains, self.keep_points = model, loss, labels, chains, keep_points
        self.slope = torch.empty(0)
        self.losses: list[Tensor] = []
        self.wrong: list[Tensor] = []
        self.points: list[Tensor] = []
        self.highest = torch.full(labels.shape, -torch.inf)
        self.fell = torch.zeros(labels.shape, dtype=torch.bool)
        self.worst = torch.empty(0)

    def visit(self, moving: Tensor, counts: bool) -> None:
        """The gradient at these iterates; with `counts` they are stored as draws."""
        slope, logits = scored_gradient(self.model, self.loss, moving, self.labels)
        self.slope = finite(slope)
        if not counts:
            return
        losses = self.loss(logits, self.labels)
        self.losses.append(losses)
        wrong = answers(logits) != self.labels
        self.wrong.append(wrong)
        if self.keep_points:
            self.points.append(moving)
        fell = self.fell.to(wrong.device)
        higher = (wrong & ~fell) | ((wrong == fell) & (losses > self.highest.to(losses)))
        self.fell = fell | wrong
        self.highest = torch.where(higher, losses, self.highest.to(losses))
        wide = higher.reshape(-1, *[1] * (moving.dim() - 1))
        self.worst = torch.where(wide, moving, self.worst) if self.worst.shape == moving.shape else moving

    def draws(self) -> Draws:
        """By chain, draw and image."""
        highest, fell = self.highest.reshape(self.chains, -1), self.fell.reshape(self.chains, -1)
        each = torch.where(fell.any(0) & ~fell, -torch.inf, highest).argmax(0)
        by_chain = self.worst.reshape(self.chains, len(each), *self.worst.shape[1:])
        worst = by_chain[each, torch.arange(len(each), device=each.device)]
        points = self._stacked(self.points) if self.keep_points else None
        return Draws(self._stacked(self.losses).cpu(), self._stacked(self.wrong).cpu(), worst, points)

    def _stacked(self, values: list[Tensor]) -> Tensor:
        draws = torch.stack(values)
        return draws.reshape(len(draws), self.chains, -1, *draws.shape[2:]).transpose(0, 1)
