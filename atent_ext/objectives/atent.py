"""ATENT (Jagatap et al. 2022, Algorithms 1 and 2): the exact gradient of the running average at K + 1 forward passes.

The algorithms compute mu <- (1 - alpha) mu + alpha mean_i L_i(w; x'_j) for j = 1..K from mu = 0. So iterate x'_j has
weight alpha (1 - alpha)^(K - j), and x'_0 has none; the x' are constants with respect to w. The gradient of the average
is the average of the gradients. Therefore each term is back-propagated and its graph freed before the next one, and one
forward pass at x'_j serves both the term and the Langevin step from x'_j.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from atent_ext.attacks.langevin import Langevin, hardest, input_gradient, walk
from atent_ext.attacks.moves import Project, Pull
from atent_ext.core import validate
from atent_ext.core.errors import BadInput, TermsCollected
from atent_ext.core.losses import cross_entropy
from atent_ext.core.model_state import frozen, is_training
from atent_ext.core.norms import Direction, Start
from atent_ext.core.norms import norm as norm_called
from atent_ext.core.types import Model
from atent_ext.objectives.base import Adversarial, InnerMode, Terms, model_mode

_SMALL = 1e-3
"""If a loss is scaled below this share of the largest weight, its float32 input gradient may underflow. The gradient of
the Langevin step is then computed separately."""

_DEFAULTS: dict[str, tuple[Project, Start, Pull, float]] = {
    "Linf": ("last", "corner", "coordinate", 0.0),
    "L2": ("never", "ball", "authors", 0.05),
}
"""norm -> default project, start, pull and gamma: those of the authors (v2 Algorithms 1 and 2, Eq. 13)."""


@dataclass(frozen=True, kw_only=True)
class ATENT(Adversarial):
    """The weighted average of the loss over a Langevin chain x'_1..x'_K around each image, K = `steps`.

    alpha: averaging constant in (0, 1]. average: "exponential" is ATENT's average; "uniform" gives all iterates the
    same weight, independent of alpha. noise: square root of the temperature, >= 0. gamma: strength of the pull towards
    the image, >= 0; None takes 0.05 for ℓ2 and 0 for ℓ∞, where the projection replaces it. tolerance: in [0, 0.9];
    iterates with less than this share of the largest weight are dropped, and the other weights stay; 0 keeps all.
    direction, pull, project, start: as in `Langevin`; None takes the authors' (sign, coordinate, last, corner for ℓ∞;
    unit, authors, never, ball for ℓ2). inner_mode: "eval" costs one more forward pass per kept iterate if the model is
    in train mode; the terms, in the caller's mode, then move BatchNorm's statistics, which later steps use. starts:
    number of random x'_0, >= 1; each image's chain continues from the one with the largest loss. Several starts cost a
    forward pass each; the authors use one. The other fields: see `Adversarial`.
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
            raise BadInput(f"alpha is {self.alpha}; it must lie in (0, 1]", code="bad-value", field="alpha")
        validate.choice("average", self.average, ("exponential", "uniform"))
        if not 0 <= self.tolerance <= 0.9:
            message = f"tolerance is {self.tolerance}; it must lie in [0, 0.9]"
            raise BadInput(message, code="bad-value", field="tolerance")
        super().__post_init__()
        if self.starts > 1 and self.start == "clean":
            message = f"starts is {self.starts} and the start is 'clean', which is always the same; name another"
            raise BadInput(message, code="conflict", field="starts")

    @property
    def kernel(self) -> Langevin:
        """The Langevin chain."""
        norm = norm_called(self.norm)
        project, start, pull, gamma = _DEFAULTS[self.norm]
        return Langevin(
            norm=norm,
            eps=self.eps,
            steps=self.steps,
            step_size=self.step_size,
            direction=norm.direction if self.direction is None else self.direction,
            noise=self.noise,
            gamma=gamma if self.gamma is None else self.gamma,
            pull=pull if self.pull is None else self.pull,
            project=project if self.project is None else self.project,
            start=start if self.start is None else self.start,
            box=self.box,
            schedule=self.schedule,
        )

    @property
    def weights(self) -> dict[int, float]:
        """j -> weight of iterate x'_j, for the kept iterates in ascending order."""
        iterates = range(1, self.steps + 1)
        if self.average == "uniform":
            return dict.fromkeys(iterates, 1 / self.steps)
        weights = {j: self.alpha * (1 - self.alpha) ** (self.steps - j) for j in iterates}
        # 1.001: with alpha 0.9 a weight is exactly 1e-3 of the largest; rounding must not decide whether it is kept.
        threshold = 1.001 * self.tolerance * max(weights.values())
        return {j: weight for j, weight in weights.items() if weight > threshold}

    @property
    def terms(self) -> int:
        """How many terms a call yields: the number of kept iterates."""
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
        """Yield weight * mean loss at each kept iterate.

        Raises TermsCollected if backward() did not run on a term before the next one, BadInput as `check_batch` does.
        """
        passes = _Passes(self, model, self.check(x, y))
        weights, kernel = self.weights, self.kernel
        first = hardest(kernel, x.detach(), passes.losses, self.starts, generator)
        for j, iterate in enumerate(walk(kernel, x, passes.gradient, generator, first)):
            if weights.get(j):
                yield passes.term(iterate, weights[j], last=j == self.steps)


@dataclass
class _Passes:
    """The forward passes of one batch. Each gives a term, an input gradient, or both."""

    objective: ATENT
    model: Model
    y: Tensor
    shared: Tensor | None = None  # the iterate of the last yielded term, a leaf of its graph
    early: Tensor | None = None  # its input gradient, if it was computed before the term was yielded
    scale: list[Tensor] = field(default_factory=list)  # the factors of the losses in the caller's backward()

    def term(self, iterate: Tensor, weight: float, last: bool) -> Tensor:
        """weight * mean loss at the iterate, for the caller's backward(). No step follows the `last` one."""
        leaf = iterate.detach().requires_grad_(not last)
        losses = cross_entropy(self.model(leaf), self.y)
        self.scale.clear()
        self.shared, self.early = leaf, None
        if last:
            return weight * losses.mean()
        losses.register_hook(self.scale.append)  # type: ignore[no-untyped-call]
        if self._shares_graph() and (self.objective.direction == "raw" or weight < self._small()):
            self.early = torch.autograd.grad(losses.sum(), leaf, retain_graph=True)[0]
            self.scale.clear()
        return weight * losses.mean()

    def losses(self, iterate: Tensor) -> Tensor:
        """The loss of each example at the iterate, (N,), in the inner mode."""
        # Frozen: autocast (at least until torch 2.4) caches the casts made here of weights that require gradients, and
        # later passes would use these casts, which have none.
        with model_mode(self.objective.inner_mode, self.model), frozen(self.model), torch.no_grad():
            return cross_entropy(self.model(iterate), self.y)

    def gradient(self, iterate: Tensor) -> Tensor:
        """The input gradient at the iterate, up to a positive factor; for direction "raw" the gradient itself."""
        leaf, self.shared = self.shared, None
        if leaf is None:
            return self._separate(iterate)
        if not self.scale:
            raise TermsCollected(
                "the next term of ATENT was requested before backward() ran on the last one; "
                "write `for term in objective(model, x, y): term.backward()`"
            )
        if self.early is not None:
            return self.early
        if leaf.grad is None or not self._shares_graph() or self._may_underflow(leaf.grad):
            return self._separate(iterate)
        return leaf.grad

    def _shares_graph(self) -> bool:
        # Terms are computed in the caller's mode. A chain in eval mode can share their graphs only in that mode.
        return self.objective.inner_mode == "train" or not is_training(self.model)

    def _small(self) -> float:
        return _SMALL * max(self.objective.weights.values())

    def _may_underflow(self, gradient: Tensor) -> bool:
        """Whether the caller scaled the loss so much that entries of the gradient may have under- or overflowed."""
        share = self.scale[-1].abs().amax() * len(self.y)
        return bool((share < self._small()) | ~gradient.isfinite().all())

    def _separate(self, iterate: Tensor) -> Tensor:
        """The input gradient at the iterate from a pass of its own, in the inner mode."""
        with model_mode(self.objective.inner_mode, self.model):
            return input_gradient(self.model, cross_entropy, self.y)(iterate)


@dataclass(frozen=True, kw_only=True)
class DESGD(ATENT):
    """DESGD (Jagatap et al. 2020, "v1"): the mean loss over 20 unprojected Langevin steps around each image.

    It is ATENT with uniform weights, gamma 1e-5 and no projection. `eps` bounds the random start only. v1 gives a step
    size for ResNet-18 only (0.01); `step_size` therefore has no default.
    """

    steps: int = 20
    average: Literal["exponential", "uniform"] = "uniform"
    gamma: float | None = 1e-5
    project: Project | None = "never"
