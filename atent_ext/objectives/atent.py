"""ATENT (Jagatap et al. 2022, Algorithms 1 and 2): the gradient of the running average, exactly, at K + 1 passes.

mu <- (1 - alpha) mu + alpha mean_i L_i(w; x'_j) for j = 1..K, from mu = 0, so iterate x'_j weighs
alpha (1 - alpha)^(K - j) and x'_0 nothing; the x' are constants for w. The gradient of an average is the average of the
gradients: each term is back-propagated and freed before the next one, and the forward pass that the average needs at
x'_j is the one that the Langevin step from x'_j needs.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from atent_ext.attacks.langevin import Langevin, Project, Pull, hardest, input_gradient, walk
from atent_ext.core import validate
from atent_ext.core.errors import BadInput, TermsCollected
from atent_ext.core.losses import cross_entropy
from atent_ext.core.model_state import frozen, is_training
from atent_ext.core.norms import Direction, Start
from atent_ext.core.norms import norm as norm_called
from atent_ext.core.types import Model
from atent_ext.objectives.base import Adversarial, InnerMode, Terms, inside

_SMALL = 1e-3
"""Below this scale a float32 backward flushes too many directions to zero; the gradient is then computed apart."""

_DEFAULTS: dict[str, tuple[Project, Start, Pull, float]] = {
    "Linf": ("last", "corner", "coordinate", 0.0),
    "L2": ("never", "ball", "authors", 0.05),
}
"""project, start, pull and gamma where the user names none: the authors' (v2 Algorithms 1 and 2, Eq. 13)."""


@dataclass(frozen=True, kw_only=True)
class ATENT(Adversarial):
    """The average loss over a Langevin chain around each image.

    alpha: averaging constant in (0, 1]. average: "exponential" is ATENT's; "uniform" weighs x'_1..x'_K alike, whatever
    alpha. noise: square root of the temperature. gamma: strength of the pull (None: 0.05
    for ℓ2, 0 for ℓ∞, whose projection replaces it). tolerance: iterates that weigh less than this share of the heaviest
    are dropped, nothing is renormalised; 0 keeps all. direction, pull, project, start: as in `Langevin`; None takes the
    authors' (sign, coordinate, last, corner for ℓ∞; unit, authors, never, ball for ℓ2). inner_mode "eval" costs one
    more pass a kept iterate when the model is in train mode. starts: each image's chain goes on from the one of so many
    (>= 1) random x'_0 with the largest loss, at a forward pass for each if there are several; the authors draw one.
    """

    alpha: float = 0.9
    average: Literal["exponential", "uniform"] = "exponential"
    noise: float = 1e-3
    gamma: float | None = None
    tolerance: float = 1e-3
    direction: Direction | None = None
    pull: Pull | None = None
    project: Project | None = None
    start: Start | None = None
    inner_mode: InnerMode = "train"
    starts: int = 1

    def __post_init__(self) -> None:
        validate.number("alpha", self.alpha)
        validate.number("tolerance", self.tolerance)
        validate.steps("starts", self.starts)
        if not 0 < self.alpha <= 1:
            raise BadInput(f"alpha is {self.alpha}; it must lie in (0, 1]")
        validate.choice("average", self.average, ("exponential", "uniform"))
        if not 0 <= self.tolerance <= 0.9:
            raise BadInput(f"tolerance is {self.tolerance}; it must lie in [0, 0.9]")
        super().__post_init__()
        if self.starts > 1 and self.start == "clean":
            raise BadInput(f"starts is {self.starts} and the start is 'clean', which is always the same; name another")

    @property
    def kernel(self) -> Langevin:
        """The Langevin chain."""
        chosen = norm_called(self.norm)
        project, start, pull, gamma = _DEFAULTS[self.norm]
        return Langevin(
            norm=chosen,
            eps=self.eps,
            steps=self.steps,
            step_size=self.step_size,
            direction=chosen.direction if self.direction is None else self.direction,
            noise=self.noise,
            gamma=gamma if self.gamma is None else self.gamma,
            pull=pull if self.pull is None else self.pull,
            project=project if self.project is None else self.project,
            start=start if self.start is None else self.start,
            box=self.box,
        )

    @property
    def weights(self) -> dict[int, float]:
        """j -> weight of iterate x'_j, for the iterates that are kept, in order."""
        iterates = range(1, self.steps + 1)
        if self.average == "uniform":
            return dict.fromkeys(iterates, 1 / self.steps)
        every = {j: self.alpha * (1 - self.alpha) ** (self.steps - j) for j in iterates}
        # 1.001: alpha 0.9 gives weights of exactly 1e-3 of the largest, and rounding must not decide about them.
        least = 1.001 * self.tolerance * max(every.values())
        return {j: weight for j, weight in every.items() if weight > least}

    @property
    def terms(self) -> int:
        """How many terms a call yields: the kept iterates."""
        return len(self.weights)

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Yield weight * mean loss at each kept iterate; raises TermsCollected if backward() did not run in between."""
        passes = _Passes(self, model, self.check(x, y))
        weights, kernel = self.weights, self.kernel
        first = hardest(kernel, x.detach(), passes.losses, self.starts, generator)
        for j, moving in enumerate(walk(kernel, x, passes.gradient, generator, first)):
            if weights.get(j):
                yield passes.term(moving, weights[j], last=j == self.steps)


@dataclass
class _Passes:
    """The forward passes of one batch: each gives a term, the input gradient, or both."""

    objective: ATENT
    model: Model
    y: Tensor
    shared: Tensor | None = None  # x'_j as the leaf of the term that was yielded last
    early: Tensor | None = None  # its input gradient, where it was computed before the term was yielded
    scale: list[Tensor] = field(default_factory=list)  # what the caller's backward multiplied the losses with

    def term(self, moving: Tensor, weight: float, last: bool) -> Tensor:
        """weight * mean loss at x', its graph ready for the caller's backward; no step follows from the last."""
        leaf = moving.detach().requires_grad_(not last)
        losses = cross_entropy(self.model(leaf), self.y)
        self.scale.clear()
        self.shared, self.early = leaf, None
        if last:
            return weight * losses.mean()
        losses.register_hook(self.scale.append)  # type: ignore[no-untyped-call]
        if self._one_graph_serves() and (self.objective.direction == "raw" or weight < self._small()):
            self.early = torch.autograd.grad(losses.sum(), leaf, retain_graph=True)[0]
            self.scale.clear()
        return weight * losses.mean()

    def losses(self, moving: Tensor) -> Tensor:
        """The loss of each example at x', (N,), in the inner mode."""
        # Frozen: until torch 2.4 at least autocast keeps the casts made here of weights that want gradients, and
        # the passes that follow would take those, which have none.
        with inside(self.objective.inner_mode, self.model), frozen(self.model), torch.no_grad():
            return cross_entropy(self.model(moving), self.y)

    def gradient(self, moving: Tensor) -> Tensor:
        """The input gradient at x', up to a factor that no direction but "raw" sees."""
        leaf, self.shared = self.shared, None
        if leaf is None:
            return self._apart(moving)
        if not self.scale:
            raise TermsCollected(
                "a term of ATENT was asked for before backward() ran on the last one; "
                "write `for term in objective(model, x, y): term.backward()`"
            )
        if self.early is not None:
            return self.early
        if leaf.grad is None or not self._one_graph_serves() or self._lost(leaf.grad):
            return self._apart(moving)
        return leaf.grad

    def _one_graph_serves(self) -> bool:
        # The terms run in the caller's mode; a chain in eval mode shares their graphs only if that is the same.
        return self.objective.inner_mode == "train" or not is_training(self.model)

    def _small(self) -> float:
        return _SMALL * max(self.objective.weights.values())

    def _lost(self, gradient: Tensor) -> bool:
        """Whether the caller scaled the loss so far down or up that the gradient may have lost directions."""
        share = self.scale[-1].abs().amax() * len(self.y)
        return bool((share < self._small()) | ~gradient.isfinite().all())

    def _apart(self, moving: Tensor) -> Tensor:
        with inside(self.objective.inner_mode, self.model):
            return input_gradient(self.model, cross_entropy, self.y)(moving)


@dataclass(frozen=True, kw_only=True)
class DESGD(ATENT):
    """DESGD (Jagatap et al. 2020, "v1"): the mean loss over 20 unprojected Langevin steps around each image.

    A value of ATENT: uniform weights, gamma 1e-5, no projection. `eps` bounds the random start and nothing else. v1
    states no step size but ResNet-18's 0.01, so that a recipe names its own.
    """

    steps: int = 20
    average: Literal["exponential", "uniform"] = "uniform"
    gamma: float | None = 1e-5
    project: Project | None = "never"
