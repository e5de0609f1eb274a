"""IBP: interval bound propagation (Gowal et al. 2018, "On the effectiveness of interval bound propagation")."""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from typing_extensions import Self

from atent_ext.certification.intervals import worst_cross_entropy
from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.types import Model
from atent_ext.objectives.base import SingleTerm, check_batch


@dataclass(frozen=True, kw_only=True)
class IBP(SingleTerm):
    """kappa mean_i CE(f(x_i), y_i) + (1 - kappa) mean_i CE(z_i, y_i) with the worst-case logits z_i in the ℓ∞ ball.

    z_i is `intervals.worst_margins`: upper bounds of logit_k - logit_y with the last layer elided; the cross-entropy is
    invariant to the shift. f(x_i) is computed in the caller's mode, z_i always in eval mode (no dropout, running
    statistics). eps: radius of the ball, >= 0, in units of x. kappa: in [0, 1]. kappa_start: from which kappa changes
    linearly while eps grows (section 3 of the paper: from 1 to 0.5), in [0, 1]; None keeps it constant, and so does an
    eps that does not grow. box: (lowest,
    highest) value of an input. Raises BadInput for other values and for networks that `intervals.sequence` refuses.
    """

    bounds: ClassVar[bool] = True

    norm: Literal["Linf"] = "Linf"
    eps: float
    kappa: float = 0.5
    kappa_start: float | None = None
    box: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm != "Linf":
            raise BadInput(f"norm is {self.norm!r}; interval bounds are for 'Linf'", code="bad-value", field="norm")
        validate.number("eps", self.eps)
        for name in ("kappa", "kappa_start"):
            value = getattr(self, name)
            if value is None:
                continue
            validate.number(name, value)
            if not 0 <= value <= 1:
                raise BadInput(f"{name} is {value}; it must lie in [0, 1]", code="bad-value", field=name)
        validate.box(self.box)

    def scaled(self, factor: float) -> Self:
        """The same with eps times `factor` >= 0, and kappa moved from `kappa_start` by that share, at most 1."""
        validate.number("factor", factor)
        start = self.kappa if self.kappa_start is None else self.kappa_start
        kappa = start + min(factor, 1.0) * (self.kappa - start)
        return replace(self, eps=self.eps * factor, kappa=kappa, kappa_start=None)

    def loss(self, model: Model, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss. Raises BadInput as `check_batch` does, and for a network without interval bounds."""
        y = check_batch(x, y, self.box)
        clean = cross_entropy(model(x), y).mean()  # first: it updates BatchNorm's running statistics in train mode
        worst = worst_cross_entropy(cast(nn.Module, model), x, y, self.eps, self.box)
        return self.kappa * clean + (1 - self.kappa) * worst.mean()
