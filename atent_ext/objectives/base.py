"""What the adversarial objectives share: their common fields, and the one adversary of those that need one."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor
from typing_extensions import Self

from atent_ext.attacks.langevin import Langevin, last_iterate
from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import evaluating
from atent_ext.core.norms import NormName
from atent_ext.core.norms import norm as norm_called
from atent_ext.core.types import Loss, Model

InnerMode = Literal["train", "eval"]


def inside(mode: InnerMode, model: Model) -> AbstractContextManager[None]:
    """The mode of the inner loop: "eval" switches the model for the block, "train" leaves it in the caller's mode."""
    return evaluating(model) if mode == "eval" else nullcontext()


def checked(x: Tensor, y: Tensor, box: tuple[float, float] = (-math.inf, math.inf)) -> Tensor:
    """The labels as 64-bit integers.

    Raises BadInput for an empty batch, for images outside the box and for labels that are not one class number each.
    """
    validate.images(x, *box)
    validate.labels(y, len(x))
    if len(x) == 0:
        raise BadInput("the batch is empty; a loss needs at least one image")
    return y.long()


@dataclass(frozen=True, kw_only=True)
class Adversarial:
    """The common fields.

    norm: "Linf" or "L2". eps: radius of the threat model, in units of x. steps: K >= 1. step_size: of the inner loop.
    box: lowest and highest value of an input. inner_mode: "eval" runs the inner loop in eval mode and puts the model
    back; "train" runs it in the mode that the caller set. Raises BadInput for values that make no sense.
    """

    # Recipes build objectives through pydantic; a field that does not exist must not pass in silence.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    norm: NormName = "Linf"
    eps: float
    steps: int
    step_size: float
    box: tuple[float, float] = (0.0, 1.0)
    inner_mode: InnerMode = "eval"

    def __post_init__(self) -> None:
        validate.choice("inner_mode", self.inner_mode, ("train", "eval"))
        self.kernel  # noqa: B018 -- building it checks the common fields

    @property
    def terms(self) -> int:
        """How many terms a call yields."""
        return 1

    @property
    def kernel(self) -> Langevin:
        """The inner loop as a value of the one kernel: PGD from near the clean point (TRADES, MART) by default."""
        chosen = norm_called(self.norm)
        return Langevin(
            norm=chosen,
            eps=self.eps,
            steps=self.steps,
            step_size=self.step_size,
            direction=chosen.direction,
            start="near",
            box=self.box,
        )

    def scaled(self, factor: float) -> Self:
        """The same method with eps and step size multiplied by `factor`, for an eps that grows during training."""
        validate.number("factor", factor)
        return replace(self, eps=self.eps * factor, step_size=self.step_size * factor)

    def check(self, x: Tensor, y: Tensor) -> Tensor:
        """`checked` for images in the box."""
        return checked(x, y, self.box)

    def adversary(
        self, model: Model, x: Tensor, target: Tensor, loss: Loss, generator: torch.Generator | None
    ) -> Tensor:
        """The last iterate of the inner loop on `loss(model(x'), target)`, (N, ...), in the inner mode."""
        with inside(self.inner_mode, model):
            return last_iterate(self.kernel, model, x, target, loss, generator)


@dataclass(frozen=True, kw_only=True)
class Regularized(Adversarial):
    """An objective that weighs a clean-against-adversarial term with `beta` >= 0 (TRADES, MART)."""

    beta: float

    def __post_init__(self) -> None:
        validate.number("beta", self.beta)
        super().__post_init__()


Terms = Iterator[Tensor]
