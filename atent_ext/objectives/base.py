"""The common parts of the adversarial objectives: their fields, the checks of a batch, and the inner maximisation."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor
from typing_extensions import Self

from atent_ext.attacks.langevin import Langevin, last_iterate
from atent_ext.attacks.moves import Schedule
from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import evaluating
from atent_ext.core.norms import NormName
from atent_ext.core.norms import norm as norm_called
from atent_ext.core.types import Loss, Model

InnerMode = Literal["train", "eval"]


def model_mode(mode: InnerMode, model: Model) -> AbstractContextManager[None]:
    """The model's mode for the block: "eval" switches it to eval mode, "train" leaves it in the caller's mode."""
    return evaluating(model) if mode == "eval" else nullcontext()


def check_batch(x: Tensor, y: Tensor, box: tuple[float, float] = (-math.inf, math.inf)) -> Tensor:
    """Check images `x` (N, ...) and labels `y`, and return the labels: int64 (N,), or soft ones (N, classes).

    Raises BadInput if the batch is empty, an image leaves the box, or the labels are neither one class number nor the
    probabilities of the classes per image.
    """
    validate.images(x, *box, "give the objective another box")
    validate.targets(y, len(x))
    if len(x) == 0:
        raise BadInput("the batch is empty; a loss needs at least one image", code="bad-shape", field="images")
    return y if y.is_floating_point() else y.long()


Terms = Iterator[Tensor]


@dataclass(frozen=True, kw_only=True)
class SingleTerm(ABC):
    """A training method whose loss is one term: a subclass, a frozen dataclass, needs `loss` alone."""

    # Recipes build objectives through pydantic, which by default ignores unknown fields.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @abstractmethod
    def loss(self, model: Model, x: Tensor, y: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The scalar loss of one batch, with its graph; see `core.types.Objective` for the arguments."""

    @property
    def terms(self) -> int:
        """How many terms a call yields."""
        return 1

    def scaled(self, factor: float) -> Self:
        """The same method with its fields eps and step_size, where it has them, multiplied by `factor` >= 0."""
        validate.number("factor", factor)
        names = (field.name for field in fields(self) if field.init and field.name in ("eps", "step_size"))
        grown = {name: value * factor for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **grown) if grown else self

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Yield the loss of one batch. Raises what `loss` raises."""
        yield self.loss(model, x, y, generator=generator)


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """The common fields.

    norm: "Linf" or "L2". eps: radius of the threat model, >= 0, in units of x. steps: steps of the inner maximisation,
    >= 1. step_size: of each of them, >= 0, in units of x; of the first one if `schedule`, "constant", "cosine" or
    "linear", lets it fall to 0 over the steps. box: (lowest, highest) value of an input. inner_mode: "eval" runs the
    inner maximisation in eval mode and restores the model's mode; "train" runs it in the caller's mode. Raises BadInput
    for other values.
    """

    # Recipes build objectives through pydantic, which by default ignores unknown fields.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    norm: NormName = "Linf"
    eps: float
    steps: int
    step_size: float
    box: tuple[float, float] = (0.0, 1.0)
    inner_mode: InnerMode = "eval"
    schedule: Schedule = "constant"

    def __post_init__(self) -> None:
        validate.choice("inner_mode", self.inner_mode, ("train", "eval"))
        self.kernel  # noqa: B018 -- building the kernel checks the common fields

    @property
    def terms(self) -> int:
        """How many terms a call yields."""
        return 1

    @property
    def kernel(self) -> Langevin:
        """The inner maximisation as a `Langevin` kernel; by default PGD from a start near the clean image."""
        norm = norm_called(self.norm)
        return Langevin(
            norm=norm,
            eps=self.eps,
            steps=self.steps,
            step_size=self.step_size,
            direction=norm.direction,
            start="near",
            box=self.box,
            schedule=self.schedule,
        )

    def scaled(self, factor: float) -> Self:
        """The same method with eps and step size multiplied by `factor` >= 0, for an eps that grows during training."""
        validate.number("factor", factor)
        return replace(self, eps=self.eps * factor, step_size=self.step_size * factor)

    def check(self, x: Tensor, y: Tensor) -> Tensor:
        """`check_batch` with the objective's box: the labels, or BadInput."""
        return check_batch(x, y, self.box)

    def adversary(
        self, model: Model, x: Tensor, target: Tensor, loss: Loss, generator: torch.Generator | None
    ) -> Tensor:
        """The last iterate of the inner maximisation of `loss(model(x'), target)`, (N, ...), in the inner mode."""
        with model_mode(self.inner_mode, model):
            return last_iterate(self.kernel, model, x, target, loss, generator)


@dataclass(frozen=True, kw_only=True)
class Regularized(Adversarial):
    """An objective with a regularizer between clean and adversarial outputs of weight `beta` >= 0 (TRADES, MART)."""

    beta: float

    def __post_init__(self) -> None:
        validate.number("beta", self.beta)
        super().__post_init__()
