"""TRADES (Zhang et al. 2019, Eq. 5 and Algorithm 1)."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from atent_ext.attacks.langevin import Langevin
from atent_ext.core import validate
from atent_ext.core.losses import cross_entropy, kl_divergence
from atent_ext.core.model_state import frozen
from atent_ext.core.types import Model
from atent_ext.objectives.base import Regularized, SingleTerm, model_mode


@dataclass(frozen=True, kw_only=True)
class TRADES(Regularized, SingleTerm):
    """mean_i CE(f(x_i), y_i) + beta * mean_i KL(f(x_i) ‖ f(x'_i)), where x' maximises that KL by PGD.

    The KL is summed over the classes, and its gradient flows through both arguments. The inner maximisation computes
    the clean softmax once. In ℓ2 it clamps to the box before it projects onto the ball, and replaces a zero gradient by
    a random direction, as the authors' code does, whose step size is 2 eps / steps. beta >= 0. The other fields: see
    `Adversarial`.
    """

    beta: float = 6.0

    @property
    def kernel(self) -> Langevin:
        """PGD from a start near the clean image."""
        usual = super().kernel
        return usual if self.norm == "Linf" else replace(usual, direction="unit-or-random", box_first=True)

    def loss(self, model: Model, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss. Raises BadInput as `check_batch` does."""
        y = self.check(x, y)
        with model_mode(self.inner_mode, model), frozen(model), torch.no_grad():  # as in `ATENT.losses`
            probabilities = F.softmax(validate.logits(model(x), len(x)), -1)
        x_adv = self.adversary(model, x, probabilities, kl_divergence, generator)
        clean = validate.logits(model(x), len(x))
        divergence = kl_divergence(model(x_adv), F.softmax(clean, 1))
        return cross_entropy(clean, y).mean() + self.beta * divergence.mean()
