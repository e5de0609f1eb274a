"""PGD adversarial training (Madry et al. 2018, Eq. 2.1; v2 Algorithm 4), of which FGSM training is a special case."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from atent_ext.attacks.langevin import Langevin
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import Start, norm
from atent_ext.core.types import Model
from atent_ext.objectives.base import Adversarial, SingleTerm


@dataclass(frozen=True, kw_only=True)
class PGDAT(Adversarial, SingleTerm):
    """mean_i CE(f(x'_i), y_i), where x' maximises the cross-entropy by PGD.

    start: as in `Langevin`; None takes the norm's random start. One step of size eps from start "clean" is FGSM
    (Goodfellow et al. 2015). The other fields: see `Adversarial`.
    """

    start: Start | None = None

    @property
    def kernel(self) -> Langevin:
        """PGD from `start`."""
        return replace(super().kernel, start=norm(self.norm).start if self.start is None else self.start)

    def loss(self, model: Model, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The mean cross-entropy of the adversarial images. Raises BadInput as `check_batch` does."""
        y = self.check(x, y)
        x_adv = self.adversary(model, x, y, cross_entropy, generator)
        return cross_entropy(model(x_adv), y).mean()
