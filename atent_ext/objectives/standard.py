"""Plain training: the cross-entropy of the clean images."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from pydantic import ConfigDict
from torch import Tensor
from typing_extensions import Self

from atent_ext.core.losses import cross_entropy
from atent_ext.core.types import Model
from atent_ext.objectives.base import Terms, checked


@dataclass(frozen=True, kw_only=True)
class Standard:
    """mean_i CE(f(x_i), y_i), one term."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    @property
    def terms(self) -> int:
        """How many terms a call yields."""
        return 1

    def scaled(self, factor: float) -> Self:
        """Itself: there is no eps to scale."""
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
        """Yield the mean cross-entropy; raises BadInput for images and labels that make no sense."""
        y = checked(x, y)
        yield cross_entropy(model(x), y).mean()
