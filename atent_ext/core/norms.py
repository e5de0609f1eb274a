"""The ℓ∞ and ℓ2 norms: size, projection, random points, direction of steepest ascent.

Everything is per example: a batch (N, ...) is N vectors, and the result for one never depends on the others.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.core.literals import NormName as NormName
from atent_ext.core.literals import ThreatNorm as ThreatNorm
from atent_ext.core.types import Radius

Direction = Literal["sign", "unit", "unit-or-random", "raw"]
Start = Literal["uniform", "ball", "corner", "blocks", "near", "clean"]


class Ball(Protocol):
    """The norm of a threat model, as far as it measures how far an adversary is."""

    @property
    def name(self) -> ThreatNorm:
        """The name that AutoAttack and RobustBench use: "Linf", "L2" or "L1"."""
        ...

    def size(self, delta: Tensor) -> Tensor:
        """The norm of each example, (N, ...) -> (N,)."""
        ...


class Norm(Protocol):
    """One norm of data space."""

    @property
    def name(self) -> NormName:
        """The name that AutoAttack and RobustBench use: "Linf" or "L2"."""
        ...

    @property
    def direction(self) -> Direction:
        """The direction of steepest ascent in this norm, a value of `Langevin.direction`."""
        ...

    @property
    def start(self) -> Start:
        """The usual random start of an attack in this norm, a value of `Langevin.start`."""
        ...

    def size(self, delta: Tensor) -> Tensor:
        """The norm of each example, (N, ...) -> (N,)."""
        ...

    def project(self, delta: Tensor, eps: Radius) -> Tensor:
        """The nearest point in the eps ball around 0, (N, ...) -> (N, ...)."""
        ...

    def steepest(self, gradient: Tensor) -> Tensor:
        """The unit direction in which a linear loss grows fastest; 0 for a zero gradient, NaN for a NaN gradient."""
        ...

    def random(self, x: Tensor, eps: Radius, generator: torch.Generator | None) -> Tensor:
        """A random displacement inside the eps ball: uniform for ℓ∞, a projected normal for ℓ2; shape of `x`."""
        ...


def per_example(value: Radius, x: Tensor) -> Tensor:
    """Reshape a radius (N,) to (N, 1, ...), which broadcasts against `x`; a number is returned unchanged.

    So is a tensor of the shape of `x`, a radius per feature. Raises BadInput for a tensor of another shape.
    """
    if not isinstance(value, Tensor) or value.dim() == 0 or value.shape == x.shape:
        return cast(Tensor, value)  # broadcasts like a tensor, without a copy to the device
    if value.shape != x.shape[:1]:
        message = f"a radius or step size per example must have shape ({len(x)},), not {tuple(value.shape)}"
        raise BadInput(message, code="bad-shape")
    return value.to(x).reshape(-1, *[1] * (x.dim() - 1))


class SharedGenerator(torch.Generator):
    """A generator that gives each process its rows of a draw for the whole batch: `rows` of `total` examples.

    Processes that use the same seed then draw the same noise for each example as a single process would. Tensors whose
    length is not that of `rows` are drawn as from any other generator. tape: an `attacks.replay.Tape`, which records or
    replays the chains that are walked with this generator.
    """

    total: int = 0
    rows: range = range(0)
    tape: Any = None


def _sample(draw: Callable[..., Tensor], x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Random numbers of the shape, dtype and device of `x`, drawn on the generator's device."""
    if generator is not None and not isinstance(generator, torch.Generator):
        message = f"generator is {validate.shown(generator)}; it must be a torch.Generator or None"
        raise BadInput(message, code="bad-type", field="generator")
    device = x.device if generator is None else generator.device
    options: dict[str, Any] = {"generator": generator, "device": device, "dtype": x.dtype}
    if isinstance(generator, SharedGenerator) and x.shape[:1] == (len(generator.rows),):
        whole = draw((generator.total, *x.shape[1:]), **options)
        return whole[generator.rows.start : generator.rows.stop].to(x.device)
    return draw(x.shape, **options).to(x.device)


def gaussian(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Standard normal noise of the shape, dtype and device of `x`, drawn on the generator's device."""
    return _sample(torch.randn, x, generator)


@dataclass(frozen=True)
class _Linf:
    name: NormName = "Linf"
    direction: Direction = "sign"
    start: Start = "uniform"

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().amax(1)

    def project(self, delta: Tensor, eps: Radius) -> Tensor:
        bound = per_example(eps, delta)
        return delta.clamp(-bound, bound)

    def steepest(self, gradient: Tensor) -> Tensor:
        # sign(NaN) is 0 in torch, so that a NaN gradient would look like a robust image.
        return torch.where(gradient.isnan(), gradient, gradient.sign())

    def random(self, x: Tensor, eps: Radius, generator: torch.Generator | None) -> Tensor:
        return (2 * _sample(torch.rand, x, generator) - 1) * per_example(eps, x)


@dataclass(frozen=True)
class _L2:
    name: NormName = "L2"
    direction: Direction = "unit"
    start: Start = "ball"

    def size(self, delta: Tensor) -> Tensor:
        size: Tensor = torch.linalg.vector_norm(delta.flatten(1), dim=1)
        return size

    def project(self, delta: Tensor, eps: Radius) -> Tensor:
        size = per_example(self.size(delta), delta)
        bound = per_example(eps, delta)
        # Points inside stay bit-identical; `size` is positive wherever it exceeds the bound.
        # Not bound / size: for a plain number that is a reciprocal, infinite where `size` is subnormal.
        share = torch.zeros_like(size).add(bound) / size
        return torch.where(size > bound, delta * share, delta)

    def steepest(self, gradient: Tensor) -> Tensor:
        # Dividing by the largest entry first keeps the squares of very small gradients from underflowing.
        largest = per_example(gradient.flatten(1).abs().amax(1), gradient)
        scaled = torch.where(largest == 0, torch.zeros_like(gradient), gradient / largest)
        size = per_example(self.size(scaled), gradient)
        return torch.where(size == 0, scaled, scaled / size)

    def random(self, x: Tensor, eps: Radius, generator: torch.Generator | None) -> Tensor:
        return self.project(gaussian(x, generator), eps)


@dataclass(frozen=True)
class _L1:
    name: ThreatNorm = "L1"

    def size(self, delta: Tensor) -> Tensor:
        return delta.flatten(1).abs().sum(1, dtype=torch.float64).to(delta.dtype)


LINF: Norm = _Linf()
L2: Norm = _L2()
NORMS: dict[str, Norm] = {"Linf": LINF, "L2": L2}


BALLS: dict[str, Ball] = {"Linf": LINF, "L2": L2, "L1": _L1()}


def ball(name: str) -> Ball:
    """The norm of a threat model called `name`; raises BadInput unless it is "Linf", "L2" or "L1"."""
    if not isinstance(name, str) or name not in BALLS:
        raise BadInput(f"unknown norm {name!r}; known: {', '.join(BALLS)}", code="unknown-name", field="norm")
    return BALLS[name]


def norm(name: str) -> Norm:
    """The norm called `name`; raises BadInput unless it is "Linf" or "L2"."""
    if name == "L1":
        message = "norm is 'L1', in which only AutoAttack runs here; take the protocol autoattack-l1, or Linf or L2"
        raise BadInput(message, code="unsupported", field="norm")
    if not isinstance(name, str) or name not in NORMS:
        raise BadInput(f"unknown norm {name!r}; known: {', '.join(NORMS)}", code="unknown-name", field="norm")
    return NORMS[name]
