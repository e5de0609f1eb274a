"""Interfaces that several packages use.

Shapes, everywhere: `x` (N, ...) images or features with any rank >= 2, values inside the box (usually [0, 1]);
`y` (N,) integer labels, or probabilities (N, classes) for an objective; `logits` (N, classes); a per-example loss (N,);
`eps` a number or a tensor (N,), one value per example.
"""

from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Model: TypeAlias = Callable[[Tensor], Tensor]
"""Inputs (N, ...) to logits (N, classes): usually a `torch.nn.Module`, but any function will do for an attack."""

Radius: TypeAlias = float | Tensor
"""A length: one number for the batch, or a tensor (N,) with one per example."""

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(logits, target) to one loss per example, shape (N,). A loss that is summed over the batch works as well."""


class Objective(Protocol):
    """A training method: it yields scalar loss terms, which are back-propagated one after the other.

    The caller runs `backward()` on each term before it requests the next, and steps its optimizer after the last.
    `index` holds the positions of the examples in the training set, for methods that keep state per example.
    `generator` is used for the method's own random draws (None: torch's global generator). Dropout uses the global one.

    In a distributed run each process calls the method with its share of a batch. This equals training in one process if
    every term is a mean over the examples and the noise is drawn by `norms.gaussian` or a norm's `random`, which
    support `norms.SharedGenerator`. A method with state has `state_dict` and `load_state_dict`, for checkpoints, and
    `merge`, which receives the `state_dict`s of all processes after each epoch and gives all the same state.
    """

    @property
    def terms(self) -> int:
        """How many terms a call yields."""
        ...

    def scaled(self, factor: float) -> "Objective":
        """The same method with eps and step size multiplied by `factor`; a method without eps returns itself."""
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
