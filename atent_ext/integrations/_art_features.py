"""Settings of ART attacks that differ between features: `clip_values` and `eps` as arrays, and a `mask`."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from atent_ext.attacks.langevin import Gradient, Langevin
from atent_ext.attacks.moves import Generator
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import L2

_ROUNDING = 1e-3
"""As far as this, relative to the width of a feature's range, an input may lie outside of it."""


@dataclass(frozen=True, kw_only=True)
class FeatureKernel(Langevin):
    """A chain that moves only features whose `mask` is True, and stays inside [low, high]; all of them (N, ...)."""

    low: Tensor
    high: Tensor
    mask: Tensor

    def begin(self, x: Tensor, generator: Generator = None) -> Tensor:
        """x'_0 (N, ...)."""
        return self._inside(x, super().begin(x, generator))

    def masked(self, gradient: Gradient) -> Gradient:
        """The gradient of the features that move, 0 for the others."""
        return lambda moving: torch.where(self.mask, gradient(moving), torch.zeros_like(moving))

    def _confine(self, x: Tensor, moved: Tensor, last: bool) -> Tensor:
        return self._inside(x, super()._confine(x, self._inside(x, moved, clamped=False), last))

    def _inside(self, x: Tensor, moved: Tensor, clamped: bool = True) -> Tensor:
        return torch.where(self.mask, moved.clamp(self.low, self.high) if clamped else moved, x)


@dataclass(frozen=True)
class Features:
    """The settings of all examples of a call, each (N, ...) like the inputs; `kernel` has what does not differ."""

    kernel: Langevin
    values: dict[str, Tensor]

    def of(self, rows: Any) -> Langevin:
        """The kernel for some of the examples: a slice or their numbers."""
        part = {name: value[rows] for name, value in self.values.items()}
        if self.kernel.norm == L2 and "eps" in part:
            part["eps"] = _of_examples(part["eps"])
        settings = {field.name: getattr(self.kernel, field.name) for field in fields(Langevin)}
        return FeatureKernel(**(settings | part)) if "mask" in part else Langevin(**(settings | part))


def features(kernel: Langevin, estimator: Any, x: Tensor, mask: np.ndarray | None) -> Features:
    """What differs between features of inputs x (N, ...), which lie inside the classifier's `clip_values`.

    Arrays are broadcast to x as NumPy does it. Raises BadInput for arrays that cannot be, and for a mask that is not
    boolean or numbers.
    """
    radii = {name: getattr(kernel, name) for name in ("eps", "step_size", "noise")}
    values = {name: _like(name, value, x) for name, value in radii.items() if isinstance(value, Tensor) and value.dim()}
    if mask is not None or not has_one_box(estimator):
        clip = (-np.inf, np.inf) if estimator.clip_values is None else estimator.clip_values
        low, high = (_like("clip_values", torch.as_tensor(side), x) for side in clip)
        room = _ROUNDING * (high - low).nan_to_num(posinf=1.0)
        if bool(((x < low - room) | (x > high + room)).any()):
            message = "images lie outside the classifier's clip_values; bring them into the range of each feature"
            raise BadInput(message, code="bad-value", field="images")
        values |= {"low": low, "high": high, "mask": _mask(mask, x)}
    return Features(kernel, values)


def has_one_box(estimator: Any) -> bool:
    """Whether all features of the classifier have the same clip values."""
    clip = estimator.clip_values
    return clip is None or all(len(np.unique(side)) == 1 for side in clip)


def radius(value: Any) -> Any:
    """A radius as the kernel takes it: a number, or a tensor for an array of several."""
    several = isinstance(value, np.ndarray) and value.ndim
    return torch.as_tensor(value) if several and value.dtype.kind in "fiu" else value


def check_shape(name: str, value: Any, estimator: Any) -> None:
    """Raise BadInput for an array that cannot be broadcast to inputs of the classifier."""
    shape = tuple(getattr(estimator, "input_shape", None) or ())
    if isinstance(value, Tensor) and shape:
        _broadcast(name, value, (len(value) if value.dim() > len(shape) else 1, *shape))


def _like(name: str, value: Tensor, x: Tensor) -> Tensor:
    return _broadcast(name, value.to(x), tuple(x.shape))


def _broadcast(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        return value.broadcast_to(shape)
    except RuntimeError:
        message = f"{name} is an array of shape {tuple(value.shape)}; it cannot be broadcast to inputs {shape}"
        raise BadInput(message, code="bad-shape", field=name) from None


def _mask(mask: np.ndarray | None, x: Tensor) -> Tensor:
    given = np.True_ if mask is None else np.asarray(mask)
    if given.dtype.kind not in "bfiu":
        message = f"mask is an array of {given.dtype}; booleans or numbers are needed"
        raise BadInput(message, code="bad-type", field="mask")
    return _broadcast("mask", torch.as_tensor(np.asarray(given != 0)), tuple(x.shape))


def _of_examples(eps: Tensor) -> Tensor:
    """The radius of each example, (N,), of an array that does not differ between features."""
    flat = eps.flatten(1)
    if bool((flat != flat[:, :1]).any()):
        message = "eps differs between features, and norm is 2, whose ball has one radius; give one for each example"
        raise BadInput(message, code="unsupported", field="eps")
    return flat[:, 0]
