"""The kernel of stochastic gradient Langevin dynamics in data space, and the only loop over its steps.

    x'_{k+1} = clamp( project( x'_k + step_size * direction(grad L) + pull + noise * sqrt(2 step_size) * N(0, I) ) )

PGD, FGSM, IFGSM, the inner loops of TRADES and MART, ATENT (Jagatap et al. 2022, Eqs. 8-14) and DESGD are special
cases. Symbols: x is the clean batch, x'_k the iterate after k steps, K the number of steps.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias, get_args

import torch
from torch import Tensor

from atent_ext.attacks.moves import DIRECTIONS, PULLS, SCHEDULES, STARTS, Generator, Project, Pull, Schedule, reflect
from atent_ext.core import validate
from atent_ext.core.box import Box, clamp
from atent_ext.core.box import check as check_box
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import frozen
from atent_ext.core.norms import LINF, Direction, Norm, Start, gaussian, per_example
from atent_ext.core.types import Loss, Model, Radius


@dataclass(frozen=True, kw_only=True)
class Langevin:
    """The settings of the kernel.

    norm: the norm of the projection. eps: radius of the ball, a number or (N,), in the units of x.
    steps: K >= 1. step_size: length of one step along `direction`, a number or (N,). schedule: step size and
    temperature stay "constant", or fall from their values to 0 over the K steps by half a "cosine" or "linear"ly.
    direction: "sign" or "unit" (per example), "unit-or-random" (unit, random where the gradient is zero), "raw".
    noise: the square root of the temperature (v2 Eq. 8), a number or (N,). gamma: strength of the pull towards x; pull:
    its form, `gamma (x - x')` ("authors"), step_size times that ("paper"), or gamma along one coordinate
    ("coordinate"). project: at which steps x' is projected to the eps ball: "every", "last" or "never"; "reflect"
    mirrors a step that leaves ball or box at the border, as sampling needs it. start: how x'_0 is chosen: "uniform" in
    the cube of half-width eps, "ball" (normal, projected to the ℓ2 ball), "corner" of the cube, "blocks" (a corner with
    the same sign for 4 x 4 pixels of a channel; images (N, C, H, W) only), "near" (normal with standard deviation 1e-3
    around x), or "clean" (x itself). box: lowest and highest value of an input, numbers or tensors (see `core.box`).
    box_first: clamp to the box before projecting instead of after. targeted: minimise the loss instead of maximising
    it. Raises BadInput for invalid values.
    """

    norm: Norm
    eps: Radius
    steps: int
    step_size: Radius
    direction: Direction
    noise: Radius = 0.0
    gamma: float = 0.0
    pull: Pull = "authors"
    project: Project = "every"
    start: Start = "clean"
    box: Box = (0.0, 1.0)
    box_first: bool = False
    targeted: bool = False
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        _check_norm(self.norm)
        validate.steps("steps", self.steps)
        for name in ("eps", "step_size", "noise"):
            validate.radius(name, getattr(self, name))
        validate.number("gamma", self.gamma)
        for name in ("targeted", "box_first"):
            validate.flag(name, getattr(self, name))
        tables = {"direction": DIRECTIONS, "pull": PULLS, "start": STARTS, "schedule": SCHEDULES}
        for name, known in tables.items():
            validate.choice(name, getattr(self, name), known)
        validate.choice("project", self.project, get_args(Project))
        check_box(self.box)

    def begin(self, x: Tensor, generator: Generator = None) -> Tensor:
        """x'_0, inside the box; (N, ...) -> (N, ...). Raises BadInput if "blocks" gets inputs that are not images."""
        return clamp(STARTS[self.start](x, self.norm, self.eps, generator), self.box)

    @torch.no_grad()
    def step(self, x: Tensor, moving: Tensor, gradient: Tensor, k: int, generator: Generator = None) -> Tensor:
        """x'_{k+1} from x'_k (`moving`) and the gradient of the summed loss at x'_k, all (N, ...); k < K."""
        share = SCHEDULES[self.schedule](k / self.steps)
        step = per_example(self.step_size, x) * share
        move = step * DIRECTIONS[self.direction](gradient, generator)
        moved = moving - move if self.targeted else moving + move
        if self.gamma:
            moved = moved + PULLS[self.pull](x - moving, self.gamma, step)
        if isinstance(self.noise, Tensor) or self.noise:
            scale = math.sqrt(2 * share) * per_example(self.noise, x) * step**0.5
            moved = moved + scale * gaussian(x, generator)
        return self._confine(x, moved, k + 1 == self.steps)

    def _confine(self, x: Tensor, moved: Tensor, last: bool) -> Tensor:
        if self.project == "reflect":
            return reflect(x, moved, self.norm, self.eps, self.box)
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
        moving = kernel.step(x, moving, gradient(moving), k, generator)
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
        logits = validate.logits(answer(model, leaf), len(leaf))
        total = loss(logits, _recordable(target)).sum()
        gradient = torch.autograd.grad(total, leaf, allow_unused=True)[0] if total.requires_grad else None
        if gradient is None:
            message = (
                "the model's logits have no gradient with respect to the images (detach, no_grad or numpy in it?), so "
                "that gradient attacks cannot score it"
            )
            raise BadInput(message, code="broken-model", field="model")
        return gradient, logits.detach()


def answer(model: Model, leaf: Tensor) -> Tensor:
    """The logits at a leaf; a model that works in place, which autograd refuses on a leaf, gets a copy."""
    try:
        return model(leaf)
    except RuntimeError as error:
        if "a leaf Variable that requires grad" not in str(error):
            raise
        return model(leaf.clone())


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


FIRST_STEP = {"Linf": 1.0, "L2": 2.0}
"""The first step of an annealed chain, as a share of eps."""
WARMTH = 0.4
"""Standard deviation of the noise of an annealed ℓ∞ chain's first step, as a share of eps."""


def atent(
    norm: Norm,
    eps: Radius,
    steps: int,
    step_size: Radius | None = None,
    *,
    noise: Radius | None = None,
    gamma: float | None = None,
    box: Box = (0.0, 1.0),
    start: Start | None = None,
    project: Project = "every",
    schedule: Schedule | None = None,
    targeted: bool = False,
) -> Langevin:
    """ATENT's chain as an attack (Jagatap et al. 2022, section 4): its last iterate lies in the eps ball and the box.

    schedule: None anneals the chain by a "cosine", unless a step size is given: then it is "constant", as in the paper.
    step_size: None is `FIRST_STEP` for a schedule that falls, else 2.5 eps / steps, and for ℓ2 at least 1.25 gamma eps,
    since the pull stops a chain at the distance step_size / gamma. noise: square root of the temperature; None is the
    paper's 1e-3, but for ℓ∞ and a schedule that falls such that a step of eps has the `WARMTH`. gamma: strength of the
    pull; None is 0, but the paper's 0.05 for ℓ2 and a constant schedule. project: with "last", the authors' choice for
    ℓ∞, the attack is much weaker (docs/log/measurements.md). start: None is the norm's own, as in `pgd`.
    """
    _check_norm(norm)
    validate.radius("eps", eps)
    chosen: Schedule = ("cosine" if step_size is None else "constant") if schedule is None else schedule
    linf, falls = norm == LINF, chosen != "constant"
    gamma = (0.0 if linf or falls else 0.05) if gamma is None else gamma
    validate.number("gamma", gamma)
    if noise is None:
        noise = WARMTH * (eps / 2) ** 0.5 if linf and falls else 1e-3
    if step_size is None:
        step_size = FIRST_STEP[norm.name] * eps if falls else _usual_step(eps, steps, 0.0 if linf else 1.25 * gamma)
    return Langevin(
        norm=norm,
        eps=eps,
        steps=steps,
        step_size=step_size,
        direction=norm.direction,
        noise=noise,
        gamma=gamma,
        pull="coordinate" if linf else "authors",
        project=project,
        start=norm.start if start is None else start,
        box=box,
        targeted=targeted,
        schedule=chosen,
    )
