"""MART: misclassification-aware adversarial training (Wang et al. 2020, Eq. 11)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from atent_ext.core.losses import boosted_cross_entropy, cross_entropy, mart_regularizer
from atent_ext.core.types import Model
from atent_ext.objectives.base import Regularized, Terms


@dataclass(frozen=True, kw_only=True)
class MART(Regularized):
    """mean_i BCE(f(x'_i), y_i) + beta * mean_i KL(f(x_i) ‖ f(x'_i)) (1 - p_y(x_i)).

    x' comes from PGD on the cross-entropy. Its authors give ℓ∞ only; the ℓ2 form, the same with unit
    steps in the ℓ2 ball, is ours.
    """

    beta: float = 5.0

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Yield the one term."""
        y = self.check(x, y)
        x_adv = self.adversary(model, x, y, cross_entropy, generator)
        clean, adversarial = model(x), model(x_adv)
        regularizer = mart_regularizer(adversarial, clean, y)
        yield boosted_cross_entropy(adversarial, y).mean() + self.beta * regularizer.mean()
