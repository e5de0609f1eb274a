"""The kernel of stochastic gradient Langevin dynamics in data space, and the only loop over its steps.

    x'_{k+1} = clamp( project( x'_k + step_size * direction(grad L) + pull + noise * sqrt(2 step_size) * N(0, I) ) )

PGD, FGSM, IFGSM, the inner loops of TRADES and MART, ATENT (Jagatap et al. 2022, Eqs. 8-14) and DESGD are special
cases. Symbols: x is the clean batch, x'_k the iterate after k steps, K the number of steps.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from atent_ext.core import validate
from atent_ext.core.box import Box, clamp
from atent_ext.core.box import check as check_box
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import frozen
from atent_ext.core.norms import L2, LINF, Direction, Norm, Start, gaussian, per_example
from atent_ext.core.types import Loss, Model, Radius

Generator: TypeAlias = torch.Generator | None
Pull = Literal["authors", "paper", "coordinate"]
Project = Literal["every", "last", "never"]

NEAR = 1e-3
"""Standard deviation of the "near" start of TRADES and MART."""

BLOCK = 4
"""Side of a block of the start "blocks", in pixels."""


def _unit_or_random(gradient: Tensor, generator: Generator) -> Tensor:
    # A zero gradient (TRADES starts near the clean image, where its KL is flat) is replaced by a random direction.
    size = per_example(LINF.size(gradient), gradient)
    return L2.steepest(torch.where(size == 0, gaussian(gradient, generator), gradient))


_DIRECTIONS: Mapping[str, Callable[[Tensor, Generator], Tensor]] = {
    "sign": lambda gradient, _: LINF.steepest(gradient),
    "unit": lambda gradient, _: L2.steepest(gradient),
    "unit-or-random": _unit_or_random,
    "raw": lambda gradient, _: gradient,
}


def _largest_coordinate(displacement: Tensor) -> Tensor:
    """The sign of each example's entry of largest absolute value, zero elsewhere (v1 Eq. 13)."""
    flat = displacement.flatten(1)
    largest = flat.abs().argmax(1, keepdim=True)
    return torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign()).view_as(displacement)


# (x - x', gamma, step size) -> displacement. Only the paper, not the authors' code, scales the pull by the step size.
_PULLS: Mapping[str, Callable[[Tensor, float, Radius], Tensor]] = {
    "authors": lambda back, gamma, step: gamma * back,
    "paper": lambda back, gamma, step: step * gamma * back,
    "coordinate": lambda back, gamma, step: gamma * _largest_coordinate(back),
}


def _blocks(x: Tensor, generator: Generator) -> Tensor:
    """Random signs of the shape of `x` (N, C, H, W), constant within blocks of 4 x 4 pixels of a channel."""
    if x.dim() != 4:
        message = f"the start is 'blocks' and the inputs have shape {tuple(x.shape)}; it needs images (N, C, H, W)"
        raise BadInput(message, code="bad-shape", field="start")
    signs = gaussian(x[..., ::BLOCK, ::BLOCK], generator).sign()
    return signs.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[..., : x.shape[2], : x.shape[3]]


_STARTS: Mapping[str, Callable[[Tensor, Norm, Radius, Generator], Tensor]] = {
    "uniform": lambda x, norm, eps, generator: x + LINF.random(x, eps, generator),
    "ball": lambda x, norm, eps, generator: x + L2.random(x, eps, generator),
    "corner": lambda x, norm, eps, generator: x + per_example(eps, x) * gaussian(x, generator).sign(),
    "blocks": lambda x, norm, eps, generator: x + per_example(eps, x) * _blocks(x, generator),
    "near": lambda x, norm, eps, generator: x + NEAR * gaussian(x, generator),
    "clean": lambda x, norm, eps, generator: x.clone(),
}


@dataclass(frozen=True, kw_only=True)
class Langevin:
    """The settings of the kernel.

    norm: the norm of the projection. eps: radius of the ball, a number or (N,), in the units of x.
    steps: K >= 1. step_size: length of one step along `direction`, a number or (N,).
    direction: "sign" or "unit" (per example), "unit-or-random" (unit, random where the gradient is zero), "raw".
    noise: the square root of the temperature (v2 Eq. 8). gamma: strength of the pull towards x; pull: its form,
    `gamma (x - x')` ("authors"), step_size times that ("paper"), or gamma along one coordinate ("coordinate").
    project: at which steps x' is projected to the eps ball: "every", "last" or "never". start: how x'_0 is chosen:
    "uniform" in the cube of half-width eps, "ball" (normal, projected to the ℓ2 ball), "corner" of the cube, "blocks"
    (a corner with the same sign for 4 x 4 pixels of a channel; images (N, C, H, W) only), "near" (normal with standard
    deviation 1e-3 around x), or "clean" (x itself).
    box: lowest and highest value of an input, numbers or tensors (see `core.box`). box_first: clamp to the box before
    projecting instead of after.
    targeted: minimise the loss instead of maximising it.
    Raises BadInput for invalid values.
    """

    norm: Norm
    eps: Radius
    steps: int
    step_size: Radius
    direction: Direction
    noise: float = 0.0
    gamma: float = 0.0
    pull: Pull = "authors"
    project: Project = "every"
    start: Start = "clean"
    box: Box = (0.0, 1.0)
    box_first: bool = False
    targeted: bool = False

    def __post_init__(self) -> None:
        _check_norm(self.norm)
        validate.steps("steps", self.steps)
        for name in ("eps", "step_size"):
            validate.radius(name, getattr(self, name))
        for name in ("noise", "gamma"):
            validate.number(name, getattr(self, name))
        for name in ("targeted", "box_first"):
            validate.flag(name, getattr(self, name))
        for name, known in (("direction", _DIRECTIONS), ("pull", _PULLS), ("start", _STARTS)):
            validate.choice(name, getattr(self, name), known)
        validate.choice("project", self.project, ("every", "last", "never"))
        check_box(self.box)

    def begin(self, x: Tensor, generator: Generator = None) -> Tensor:
        """x'_0, inside the box; (N, ...) -> (N, ...). Raises BadInput if "blocks" gets inputs that are not images."""
        return clamp(_STARTS[self.start](x, self.norm, self.eps, generator), self.box)

    @torch.no_grad()
    def step(self, x: Tensor, moving: Tensor, gradient: Tensor, last: bool, generator: Generator = None) -> Tensor:
        """x'_{k+1} from x'_k (`moving`) and the gradient of the summed loss at x'_k, all (N, ...)."""
        step = per_example(self.step_size, x)
        move = step * _DIRECTIONS[self.direction](gradient, generator)
        moved = moving - move if self.targeted else moving + move
        if self.gamma:
            moved = moved + _PULLS[self.pull](x - moving, self.gamma, step)
        if self.noise:
            scale = math.sqrt(2) * self.noise * step**0.5
            moved = moved + scale * gaussian(x, generator)
        return self._confine(x, moved, last)

    def _confine(self, x: Tensor, moved: Tensor, last: bool) -> Tensor:
        if self.project == "never" or (self.project == "last" and not last):
            return clamp(moved, self.box)
        if self.box_first:
            return x + self.norm.project(clamp(moved, self.box) - x, self.eps)
        return clamp(x + self.norm.project(moved - x, self.eps), self.box)


Gradient: TypeAlias = Callable[[Tensor], Tensor]
"""x' (N, ...) to the gradient of the SUM of the per-example losses, so that examples do not affect each other."""


def walk(
    kernel: Langevin, x: Tensor, gradient: Gradient, generator: Generator = None, first: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield x'_0, ..., x'_K. x'_0 is `first` (N, ...) if given. This is the only loop over steps in the project.

    `gradient` is called with x'_k after x'_k was yielded, so that a training method can use x'_k first. If the
    generator's `replay.Tape` replays, the recorded iterates are yielded instead, without a gradient.
    """
    chain = _steps(kernel, x, gradient, generator, first)
    tape = getattr(generator, "tape", None)
    return chain if tape is None else tape.play(chain, generator)


def _steps(
    kernel: Langevin, x: Tensor, gradient: Gradient, generator: Generator, first: Tensor | None
) -> Iterator[Tensor]:
    x = x.detach()
    moving = kernel.begin(x, generator) if first is None else first
    yield moving
    for k in range(kernel.steps):
        moving = kernel.step(x, moving, gradient(moving), k + 1 == kernel.steps, generator)
        yield moving


def hardest(
    kernel: Langevin, x: Tensor, losses: Callable[[Tensor], Tensor], starts: int, generator: Generator = None
) -> Tensor:
    """For each example, the x'_0 with the largest loss among `starts` >= 1 random starts, (N, ...).

    `losses` maps x' (N, ...) to (N,) and must not record a graph. It is not called for a single start. Raises BadInput
    unless `starts` is a whole number >= 1.
    """
    validate.steps("starts", starts)
    start = kernel.begin(x, generator)
    if starts == 1:
        return start
    highest = losses(start)
    for _ in range(starts - 1):
        other = kernel.begin(x, generator)
        loss = losses(other)
        harder = loss > highest
        highest = torch.where(harder, loss, highest)
        start = torch.where(harder.reshape(-1, *[1] * (x.dim() - 1)), other, start)
    return start


def input_gradient(model: Model, loss: Loss, target: Tensor) -> Gradient:
    """The gradient of `loss(model(x'), target)`, summed, with respect to x' only; no gradient is left on the model."""
    return lambda moving: scored_gradient(model, loss, moving, target)[0]


def scored_gradient(model: Model, loss: Loss, moving: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`input_gradient` at x', (N, ...), and the logits (N, classes) of the same forward pass.

    Raises BadInput if the logits are not (N, classes) or do not depend differentiably on the images.
    """
    with torch.inference_mode(False), torch.enable_grad(), frozen(model):
        leaf = _recordable(moving.detach()).requires_grad_()
        logits = validate.logits(model(leaf), len(leaf))
        total = loss(logits, _recordable(target)).sum()
        gradient = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
        if gradient is None:
            message = (
                "the model's logits have no gradient with respect to the images (detach, no_grad or numpy in it?), so "
                "that gradient attacks cannot score it"
            )
            raise BadInput(message, code="broken-model", field="model")
        return gradient, logits.detach()


def _recordable(tensor: Tensor) -> Tensor:
    # Autograd cannot record tensors made under inference_mode, but it can record copies made outside it.
    return tensor.clone() if tensor.is_inference() else tensor


def last_iterate(
    kernel: Langevin, model: Model, x: Tensor, target: Tensor, loss: Loss, generator: Generator = None
) -> Tensor:
    """x'_K of one chain per example, (N, ...): the adversary that an attack or an adversarial objective uses."""
    return deque(walk(kernel, x, input_gradient(model, loss, target), generator), maxlen=1).pop()


def _check_norm(norm: Norm) -> None:
    if not hasattr(norm, "steepest"):
        message = f"norm is {validate.shown(norm)}; a kernel takes norms.LINF or norms.L2"
        raise BadInput(message, code="bad-type", field="norm")


def _usual_step(eps: Radius, steps: int, least: float = 0.0) -> Radius:
    """2.5 eps / steps, with which a chain can cross the ball, but at least `least` times eps."""
    validate.steps("steps", steps)
    validate.radius("eps", eps)
    return 2.5 * eps / steps if 2.5 / steps >= least else least * eps


def finite(adversary: Tensor) -> Tensor:
    """The adversaries (N, ...), unchanged. Raises BadInput for NaN, since a failed attack does not show robustness."""
    broken = int((~adversary.isfinite()).flatten(1).any(1).sum()) if len(adversary) else 0
    if broken:
        message = (
            f"the model's input gradient is not finite for {broken} of {len(adversary)} images, so that gradient "
            "attacks cannot score it; mend the model (a log or a root of zero?)"
        )
        raise BadInput(message, code="broken-model", field="model")
    return adversary


def pgd(
    norm: Norm,
    eps: Radius,
    steps: int,
    step_size: Radius | None = None,
    *,
    box: Box = (0.0, 1.0),
    start: Start | None = None,
) -> Langevin:
    """Projected gradient ascent (Madry et al. 2018): no noise, no pull, projected at every step.

    step_size: None is 2.5 eps / steps, with which a chain can cross the ball. start: None is the norm's own: "uniform"
    for ℓ∞, "ball" for ℓ2.
    """
    _check_norm(norm)
    return Langevin(
        norm=norm,
        eps=eps,
        steps=steps,
        step_size=_usual_step(eps, steps) if step_size is None else step_size,
        direction=norm.direction,
        start=norm.start if start is None else start,
        box=box,
    )


def fgsm(norm: Norm, eps: Radius, *, box: Box = (0.0, 1.0)) -> Langevin:
    """The fast gradient (sign) method (Goodfellow et al. 2015): one step of size eps from the clean input."""
    return pgd(norm, eps, 1, eps, box=box, start="clean")


def atent(
    norm: Norm,
    eps: Radius,
    steps: int,
    step_size: Radius | None = None,
    *,
    noise: float = 1e-3,
    gamma: float | None = None,
    box: Box = (0.0, 1.0),
    start: Start | None = None,
    project: Project | None = None,
    targeted: bool = False,
) -> Langevin:
    """ATENT's chain as an attack (Jagatap et al. 2022, section 4): its last iterate lies in the eps ball and the box.

    project: None is "last" for ℓ∞, as in the authors' code, and "every" for ℓ2. With "last" the ℓ∞ attack is much
    weaker than with "every" (docs/log/measurements.md). gamma: strength of the pull; None is 0 for ℓ∞ and the paper's
    0.05 for ℓ2. step_size: None is 2.5 eps / steps, and for ℓ2 at least 1.25 gamma eps, since the pull stops a chain
    at the distance step_size / gamma. start: None is the norm's own, as in `pgd`.
    """
    _check_norm(norm)
    linf = norm == LINF
    gamma = (0.0 if linf else 0.05) if gamma is None else gamma
    validate.number("gamma", gamma)
    return Langevin(
        norm=norm,
        eps=eps,
        steps=steps,
        step_size=_usual_step(eps, steps, 0.0 if linf else 1.25 * gamma) if step_size is None else step_size,
        direction=norm.direction,
        noise=noise,
        gamma=gamma,
        pull="coordinate" if linf else "authors",
        project=("last" if linf else "every") if project is None else project,
        start=norm.start if start is None else start,
        box=box,
        targeted=targeted,
    )
