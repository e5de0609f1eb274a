"""Standard training: the cross-entropy of the clean images."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor
from typing_extensions import Self

from atent_ext.core.losses import cross_entropy
from atent_ext.core.types import Model
from atent_ext.objectives.base import Terms, check_batch


@dataclass(frozen=True, kw_only=True)
class Standard:
    """mean_i CE(f(x_i), y_i)."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @property
    def terms(self) -> int:
        """How many terms a call yields."""
        return 1

    def scaled(self, factor: float) -> Self:
        """The same objective: it has no eps."""
        return self

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Yield the mean cross-entropy. Raises BadInput as `check_batch` does."""
        y = check_batch(x, y)
        yield cross_entropy(model(x), y).mean()
