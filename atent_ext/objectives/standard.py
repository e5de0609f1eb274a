"""Standard training: the cross-entropy of the clean images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from atent_ext.core.losses import cross_entropy
from atent_ext.core.types import Model
from atent_ext.objectives.base import SingleTerm, check_batch


@dataclass(frozen=True, kw_only=True)
class Standard(SingleTerm):
    """mean_i CE(f(x_i), y_i)."""

    def loss(self, model: Model, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The mean cross-entropy. Raises BadInput as `check_batch` does."""
        y = check_batch(x, y)
        return cross_entropy(model(x), y).mean()
