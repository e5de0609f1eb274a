"""MART: misclassification-aware adversarial training (Wang et al. 2020, Eq. 11)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from atent_ext.core.losses import boosted_cross_entropy, cross_entropy, mart_regularizer
from atent_ext.core.types import Model
from atent_ext.objectives.base import Regularized, SingleTerm


@dataclass(frozen=True, kw_only=True)
class MART(Regularized, SingleTerm):
    """mean_i BCE(f(x'_i), y_i) + beta * mean_i KL(f(x_i) ‖ f(x'_i)) (1 - p_y(x_i)).

    x' maximises the cross-entropy by PGD. The authors define it for ℓ∞ only; for ℓ2, PGD in the ℓ2 ball is used
    instead. beta >= 0. The other fields: see `Adversarial`.
    """

    beta: float = 5.0

    def loss(self, model: Model, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss. Raises BadInput as `check_batch` does."""
        y = self.check(x, y)
        x_adv = self.adversary(model, x, y, cross_entropy, generator)
        clean, adversarial = model(x), model(x_adv)
        regularizer = mart_regularizer(adversarial, clean, y)
        return boosted_cross_entropy(adversarial, y).mean() + self.beta * regularizer.mean()
