"""The losses that restarts maximise in turn, and what replaces an input gradient that vanishes."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from atent_ext.attacks.langevin import answer
from atent_ext.core import seeds, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy, dlr, margin
from atent_ext.core.norms import LINF, Norm, gaussian
from atent_ext.core.types import Loss, Model

LossName = Literal["cross-entropy", "margin", "dlr", "targets"]


@dataclass(frozen=True)
class Target:
    """The logit of a wrong class minus the label's, fixed for a restart: the class of this rank on the clean image.

    nearest: by `nearest` rather than by `ranked`.
    """

    rank: int
    nearest: bool = False


Climb: TypeAlias = Loss | Target
"""A loss of (logits, y), or a target."""

_LOSSES: Mapping[str, Loss] = {"cross-entropy": cross_entropy, "margin": margin, "dlr": dlr}


IN_TURN: tuple[LossName, ...] = ("cross-entropy", "targets", "targets")
"""The losses of an untargeted attack's restarts, over and over."""

IN_TURN_TARGETED: tuple[LossName, ...] = ("cross-entropy", "margin")
"""Those of a targeted attack's restarts."""


class GradientVanished(UserWarning):
    """The input gradient was 0 somewhere, so that the attack went on with another loss or in random directions."""

    def __init__(self, count: int, total: int) -> None:
        super().__init__(
            f"the input gradient vanished for {count} of {total} images, a sign of masked gradients; from there the "
            "attack climbed a loss that does not vanish where a softmax saturates, or went in random directions"
        )
        self.count, self.total = count, total


def divided(passes: int) -> tuple[int, int]:
    """Restarts, and the steps of each, of an annealed attack that takes at most so many passes an image.

    The number of restarts grows as the square root: 3 of 32 steps for 100 passes, 10 of 98 for 1,000. Each takes a pass
    to check its last iterate; another one ranks the classes. Raises BadInput unless passes is a whole number >= 3.
    """
    validate.steps("passes", passes)
    if passes < 3:
        raise BadInput(f"passes is {passes}; an attack takes at least 3", code="bad-value", field="passes")
    restarts = max(1, round(math.sqrt(passes / 10)))
    return restarts, (passes - 1) // restarts - 1


def in_turn(names: Sequence[LossName], restarts: int) -> tuple[Climb, ...]:
    """The losses of `restarts` restarts: `names` over and over; each "targets" is the next nearest wrong class."""
    climbs: list[Climb] = []
    for restart in range(restarts):
        name = names[restart % len(names)]
        climbs.append(Target(sum(isinstance(c, Target) for c in climbs)) if name == "targets" else _LOSSES[name])
    return tuple(climbs)


def ranked(logits: Tensor, y: Tensor) -> Tensor:
    """The wrong classes of each image from the largest logit down, (N, classes - 1)."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.argsort(1, descending=True)[:, : max(1, logits.shape[1] - 1)]


def nearest(model: Model, x: Tensor, y: Tensor, ball: Norm, among: int = 9) -> Tensor:
    """The wrong classes of each image (N, ...) by their estimated distance, the nearest first: (N, at most `among`).

    The distance is the gap of the logits over the dual norm of its gradient (MALT, Melamed et al. 2024), for the
    `among` largest logits; it takes a backward pass for each.
    """
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        logits = answer(model, point)
        classes = ranked(logits.detach(), y)[:, :among]
        gaps = logits.gather(1, y[:, None]) - logits.gather(1, classes)
        slopes = [torch.autograd.grad(gap.sum(), point, retain_graph=True)[0].flatten(1) for gap in gaps.unbind(1)]
    order = 1 if ball == LINF else 2
    size = torch.stack([torch.linalg.vector_norm(slope, order, dim=1) for slope in slopes], 1)
    distance = torch.where(size > 0, gaps.detach() / size, torch.inf)
    return classes.gather(1, distance.argsort(dim=1, stable=True))


def to_target(y: Tensor, ranking: Tensor, rank: int) -> Tensor:
    """Label and target, (N, 2), for `losses.toward`; ranks beyond the last class start again."""
    return torch.stack([y, ranking[:, rank % ranking.shape[1]]], 1)


class Flats:
    """The examples of a batch of `count` whose input gradient was exactly 0 once, and the way off such points."""

    def __init__(self, count: int, device: torch.device | None = None) -> None:
        self.vanished = torch.zeros(count, dtype=torch.bool, device=device)
        self._step = 0

    def leave(self, gradient: Tensor, attacked: Tensor | None = None) -> Tensor:
        """The gradient (N, ...), with a random direction for every example, of those `attacked` (N,), where it is 0.

        The directions have a generator of their own, so that the other draws of an attack stay as they are.
        """
        self._step += 1
        flat = LINF.size(gradient) == 0
        flat = flat if attacked is None else flat & attacked
        if not bool(flat.any()):
            return gradient
        self.vanished |= flat
        directions = gaussian(gradient, seeds.generator(self._step))
        return torch.where(flat.reshape(-1, *[1] * (gradient.dim() - 1)), directions, gradient)

    def warn(self) -> None:
        """Warn with `GradientVanished` if there were any."""
        if count := int(self.vanished.sum()):
            warnings.warn(GradientVanished(count, len(self.vanished)), stacklevel=3)
