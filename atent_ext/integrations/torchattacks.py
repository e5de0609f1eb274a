"""ATENT as attacks of torchattacks: subclasses of its `Attack`, so its modes, wrappers and `save` work with them.

Unlike torchattacks' own attacks they also run under `torch.no_grad()`, and the mode of every module is restored: a
BatchNorm in eval mode stays frozen. Importing this module raises MissingExtra if torchattacks is not installed.
"""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from atent_ext.attacks.langevin import Langevin, atent
from atent_ext.attacks.moves import Project, Schedule
from atent_ext.attacks.restarts import adversaries
from atent_ext.core import compat, validate
from atent_ext.core.losses import cross_entropy
from atent_ext.core.model_state import device_of, evaluating, frozen
from atent_ext.core.norms import L2, LINF, Norm

compat.neighbour("torchattacks", "torchattacks")
from torchattacks.attack import Attack  # noqa: E402 -- after the check that it is there


class _ATENTAttack(Attack):  # type: ignore[misc]
    """Base of both attacks, with the defaults of ℓ∞; a subclass sets `norm`. Attributes are read at each call."""

    norm: Norm

    def __init__(
        self,
        model: nn.Module,
        eps: float = 8 / 255,
        alpha: float | None = None,
        steps: int = 10,
        noise: float | None = None,
        random_start: bool = True,
        *,
        gamma: float | None = None,
        schedule: Schedule | None = None,
        project: Project = "every",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(type(self).__name__, model)
        self.device = device_of(model, None)  # torchattacks looks at parameters alone
        self.eps = eps
        self.alpha = alpha
        self.steps = steps
        self.noise = noise
        self.random_start = random_start
        self.gamma = gamma
        self.schedule = schedule
        self.project = project
        self.generator = generator
        self.supported_mode = ["default", "targeted"]
        self.kernel  # noqa: B018 -- building it checks the arguments now, not at the first call

    @property
    def kernel(self) -> Langevin:
        """The attack as a `Langevin` kernel, in units of raw images also if the inputs are normalised."""
        if self.alpha is not None:
            validate.radius("alpha", self.alpha)
        validate.flag("random_start", self.random_start)
        return atent(
            self.norm,
            self.eps,
            self.steps,
            self.alpha,
            noise=self.noise,
            gamma=self.gamma,
            start=None if self.random_start else "clean",
            project=self.project,
            schedule=self.schedule,
            targeted=self.targeted,
        )

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The last iterate of one chain per image; calling the attack prepares the model and calls this.

        images: (N, ...) in [0, 1], any rank >= 2 and floating type. labels: (N,) classes, or targets in the mode "by
        label". Returns (N, ...) on `self.device`, detached. Raises BadInput for images outside [0, 1] and bad labels.
        """
        validate.images(images, 0.0, 1.0, "call set_normalization_used")
        validate.labels(labels, len(images))
        images = images.detach().to(self.device)
        labels = labels.detach().to(self.device, torch.long)
        target = self.get_target_label(images, labels) if self.targeted else labels
        kernel, falls = self.kernel, self.kernel.schedule != "constant"
        return adversaries(kernel, self.get_logits, images, target, cross_entropy, self.generator, rescue=falls)

    def __call__(self, inputs: Tensor, labels: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        # torchattacks restores modes by model.train(), which unfreezes a BatchNorm, and not at all after an error.
        normalised = self._normalization_applied
        try:
            with evaluating(self.model), frozen(self.model):
                adversary: Tensor = super().__call__(inputs, labels, *args, **kwargs)
        finally:
            self._set_normalization_applied(normalised)
        return adversary

    def save(self, *args: Any, **kwargs: Any) -> Any:
        """Attack a data loader and save the result, see torchattacks; each module keeps its mode."""
        with evaluating(self.model):
            return super().save(*args, **kwargs)

    @torch.no_grad()
    def get_output_with_eval_nograd(self, inputs: Tensor) -> Tensor:
        """The logits (N, classes) in eval mode; afterwards each module is in its previous mode."""
        with evaluating(self.model):
            return validate.logits(self.get_logits(inputs), len(inputs))

    def normalize(self, inputs: Tensor) -> Tensor:
        """Raw to normalised, in the dtype of the inputs (torchattacks returns that of the mean, perhaps float64)."""
        return super().normalize(inputs).to(inputs.dtype)  # type: ignore[no-any-return]

    def inverse_normalize(self, inputs: Tensor) -> Tensor:
        """Normalised to raw, in the dtype of the inputs."""
        return super().inverse_normalize(inputs).to(inputs.dtype)  # type: ignore[no-any-return]


class ATENT(_ATENTAttack):
    """ATENT ℓ∞ as an attack: an annealed chain of signed Langevin steps, projected to the eps ball at every step.

    model: module, raw images (N, ...) to logits; call `set_normalization_used` if it takes normalised images.
    eps: radius. alpha: step size; None starts at eps and falls to 0 by a cosine; a given one is kept, unless `schedule`
    says otherwise. steps: K >= 1. noise: square root of the temperature; None as in `langevin.atent`. random_start:
    uniform in the ball; False starts at the image. gamma: pull of the farthest pixel. project: "every" step, or the
    "last" alone. generator: source of starts and noise (random targets use torch's global one). The result lies in the
    eps ball and in [0, 1]. Where the input gradient is 0, an annealed chain goes on as `restarts.adversaries` says.
    Raises BadInput for invalid values.
    """

    norm = LINF

    @classmethod
    def paper(cls, model: nn.Module, **settings: Any) -> Self:
        """Algorithm 2's inner loop: 40 constant steps of 0.01, projected at the last step only."""
        printed: dict[str, Any] = {"alpha": 0.01, "steps": 40, "project": "last"}
        return cls(model, **printed | settings)


class ATENTL2(_ATENTAttack):
    """ATENT ℓ2 as an attack: an annealed chain of unit Langevin steps, projected to the eps ball at every step.

    A random start is normal, projected to the ball. gamma: pull towards the image; None is 0, but the paper's 0.05 for
    a constant step size. All else is as in `ATENT`.
    """

    norm = L2

    def __init__(
        self,
        model: nn.Module,
        eps: float = 1.0,
        alpha: float | None = None,
        steps: int = 10,
        gamma: float | None = None,
        noise: float | None = None,
        random_start: bool = True,
        **settings: Any,
    ) -> None:
        super().__init__(model, eps, alpha, steps, noise, random_start, gamma=gamma, **settings)

    @classmethod
    def paper(cls, model: nn.Module, **settings: Any) -> Self:
        """Algorithm 1's inner loop: 40 constant steps of 0.125, a pull of 0.05; projected, as on MNIST."""
        printed: dict[str, Any] = {"alpha": 0.125, "steps": 40, "gamma": 0.05}
        return cls(model, **printed | settings)
