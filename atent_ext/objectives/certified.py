"""A certified part of the loss: interval bounds beside any objective.

With the box of all of eps it is MTL-IBP (De Palma et al. 2024, "Expressive Losses for Verified Robustness via Convex
Combinations"), with a small box around an adversary the loss of SABR (Müller et al. 2023, "Certified Training: Small
Boxes are All You Need").
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from atent_ext.attacks.langevin import last_iterate, pgd
from atent_ext.certification.intervals import worst_cross_entropy
from atent_ext.core.losses import cross_entropy
from atent_ext.core.model_state import evaluating
from atent_ext.core.norms import LINF
from atent_ext.core.schema import Section
from atent_ext.core.types import Model, Objective
from atent_ext.objectives.base import Terms, check_batch

_STATE = ("state_dict", "load_state_dict", "merge")


class Certified(Section):
    """(1 - weight) the objective + weight mean_i CE(z_i, y_i), with the worst-case logits z_i in a box.

    weight: in (0, 1). share: half the width of the box relative to eps, in (0, 1]. steps: of the PGD attack, inside the
    ball of radius (1 - share) eps, that finds its centre; 0 takes the image. eps is the objective's, and that of the
    threat model for an objective without one; it grows with `eps_ramp`.
    """

    weight: Annotated[float, Field(gt=0, lt=1)]
    share: Annotated[float, Field(gt=0, le=1)] = 1.0
    steps: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class WithCertified:
    """An objective with the certified part `part`, whose box is relative to the radius `eps` >= 0."""

    bounds: ClassVar[bool] = True

    objective: Objective
    part: Certified
    eps: float

    @property
    def terms(self) -> int:
        """How many terms a call yields."""
        return self.objective.terms + 1

    def scaled(self, factor: float) -> "WithCertified":
        """The same with the eps of both parts multiplied by `factor`."""
        return replace(self, objective=self.objective.scaled(factor), eps=self.eps * factor)

    def __getattr__(self, name: str) -> Any:
        # The state of the objective, if it has any.
        if name in _STATE:
            return getattr(self.objective, name)
        raise AttributeError(name)

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Yield the certified part, then the terms of the objective. Raises BadInput as both of them do."""
        # In this order, since processes exchange gradients in the last term, for which the model has to be called.
        yield self.part.weight * self._bound(cast(nn.Module, model), x, y, generator).mean()
        for term in self.objective(model, x, y, index, generator=generator):
            yield (1 - self.part.weight) * term

    def _bound(self, model: nn.Module, x: Tensor, y: Tensor, generator: torch.Generator | None) -> Tensor:
        box: tuple[float, float] = getattr(self.objective, "box", (0.0, 1.0))
        y = check_batch(x, y, box)
        room = (1 - self.part.share) * self.eps
        if self.part.steps and room:
            with evaluating(model):
                kernel = pgd(LINF, room, self.part.steps, box=box)
                x = last_iterate(kernel, model, x, y, cross_entropy, generator)
        return worst_cross_entropy(model, x, y, self.part.share * self.eps, box)
