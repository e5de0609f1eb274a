"""The few protocols that the parts of the package meet in.

Shapes, everywhere: `x` (N, ...) images or features with any rank >= 2, values inside the box (usually [0, 1]);
`y` (N,) integer labels; `logits` (N, classes); a per-example loss (N,); `eps` a number or one per example, (N,).
"""

from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Model: TypeAlias = Callable[[Tensor], Tensor]
"""Inputs (N, ...) to logits (N, classes): usually a `torch.nn.Module`, but any function will do for an attack."""

Radius: TypeAlias = float | Tensor
"""A length that is one number for the batch or one per example, shape (N,)."""

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(logits, target) to one loss per example, shape (N,). A loss that already sums over the batch works as well."""


class Objective(Protocol):
    """What a training method is: scalar terms to back-propagate, one after the other.

    The caller runs `backward()` on each term before it asks for the next, and steps its optimizer after the last.
    `index` holds the positions of the examples in the training set, for methods that keep state per example;
    `generator` is the source of the method's own random draws (None: torch's global one); dropout has the global one.

    On several processes each calls the method with its share of a batch. That is the same training as on one if every
    term is a mean over the examples and the noise is drawn by `norms.gaussian` or a norm's `random`, which look at
    `norms.SharedGenerator`. A method that remembers has `state_dict` and `load_state_dict`, for checkpoints; and
    `merge`, which is given the `state_dict`s of all processes after each epoch and makes all remember the same.
    """

    @property
    def terms(self) -> int:
        """How many terms a call yields."""
        ...

    def scaled(self, factor: float) -> "Objective":
        """The same method with eps and step size times `factor`; a method without an eps returns itself."""
        ...

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Yield the terms for one batch."""
        ...
