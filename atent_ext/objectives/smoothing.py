"""Training for randomized smoothing: Gaussian noise, SmoothAdv and smoothed TRADES.

sigma: standard deviation of the noise, >= 0, in units of x. The noise is not clamped to the box: the certificate of
Cohen et al. 2019 holds for noise on the whole space.
"""

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from atent_ext.attacks.langevin import Langevin, last_iterate
from atent_ext.core import validate
from atent_ext.core.losses import cross_entropy, kl_divergence
from atent_ext.core.model_state import frozen
from atent_ext.core.norms import NormName, gaussian
from atent_ext.core.types import Model
from atent_ext.objectives.base import Adversarial, SingleTerm, check_batch, model_mode
from atent_ext.objectives.standard import Standard


@dataclass(frozen=True, kw_only=True)
class GaussianNoise(Standard):
    """mean_i CE(f(x_i + sigma N), y_i) (Cohen et al. 2019, section 3.3)."""

    sigma: float

    def __post_init__(self) -> None:
        validate.number("sigma", self.sigma)

    def loss(self, model: Model, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss. Raises BadInput as `check_batch` does."""
        y = check_batch(x, y)
        return cross_entropy(model(x + self.sigma * gaussian(x, generator)), y).mean()


@dataclass(frozen=True, kw_only=True)
class SmoothTRADES(GaussianNoise):
    """mean_i CE(f(x_i), y_i) + beta mean_i KL(f(x_i) ‖ f(x_i + sigma N)): TRADES with noise, not PGD; beta >= 0."""

    beta: float = 6.0

    def __post_init__(self) -> None:
        validate.number("beta", self.beta)
        super().__post_init__()

    def loss(self, model: Model, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss. Raises BadInput as `check_batch` does."""
        y = check_batch(x, y)
        clean = validate.logits(model(x), len(x))
        noisy = model(x + self.sigma * gaussian(x, generator))
        divergence = kl_divergence(noisy, F.softmax(clean, -1))
        return cross_entropy(clean, y).mean() + self.beta * divergence.mean()


@dataclass(frozen=True, kw_only=True)
class SmoothAdv(Adversarial, SingleTerm):
    """mean_j CE(f(x' + n_j), y) over `draws` >= 1 noises n_j = sigma N (Salman et al. 2019, Algorithm 1).

    x' maximises the cross-entropy of the mean softmax over the same noises, -log mean_j softmax(f(x' + n_j))_y, by PGD
    from the clean image. The other fields: see `Adversarial`.
    """

    sigma: float
    draws: int = 2
    norm: NormName = "L2"

    def __post_init__(self) -> None:
        validate.number("sigma", self.sigma)
        validate.steps("draws", self.draws)
        super().__post_init__()

    @property
    def kernel(self) -> Langevin:
        """PGD from the clean image."""
        return replace(super().kernel, start="clean")

    def loss(self, model: Model, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The loss. Raises BadInput as `check_batch` does."""
        y = self.check(x, y)
        noises = [self.sigma * gaussian(x, generator) for _ in range(self.draws)]

        def averaged(moving: Tensor) -> Tensor:
            """The log of the mean softmax over the noises, (N, classes); PGD maximises its cross-entropy."""
            outputs = [validate.logits(model(moving + noise), len(x)) for noise in noises]
            logs = torch.stack([F.log_softmax(logits, -1) for logits in outputs])
            return logs.logsumexp(0) - math.log(self.draws)

        with model_mode(self.inner_mode, model), frozen(model):
            x_adv = last_iterate(self.kernel, averaged, x, y, cross_entropy, generator)
        return torch.stack([cross_entropy(model(x_adv + noise), y).mean() for noise in noises]).mean()
