"""Checks of what users hand in. Each raises BadInput that names the thing, the value and the remedy."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor

from atent_ext.errors import BadInput
from atent_ext.types import Radius

# A rounding or a float16 image may lie this far outside the box and is taken as it is.
_ROUNDING = 1e-3


def radius(name: str, value: Radius) -> None:
    """Refuse a radius, step size or noise that is negative, infinite or NaN."""
    if isinstance(value, Tensor):
        good = value.numel() > 0 and bool(torch.isfinite(value).all()) and bool((value >= 0).all())
    else:
        good = isinstance(value, Real) and math.isfinite(value) and value >= 0
    if not good:
        raise BadInput(f"{name} is {value!r}; it must be a finite number >= 0")


def steps(name: str, value: int) -> None:
    """Refuse a number of steps that is not a whole number >= 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise BadInput(f"{name} is {value!r}; it must be a whole number >= 1")


def images(x: Tensor, low: float, high: float) -> None:
    """Refuse inputs that are not a floating-point batch inside [low, high], and say what they look like instead."""
    if not isinstance(x, Tensor) or x.dim() < 2 or not x.is_floating_point():
        found = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise BadInput(f"images are {found}; a floating-point tensor (N, ...) in [{low:g}, {high:g}] is needed")
    if x.numel() == 0:
        return
    least, most = (float(v) for v in torch.aminmax(x.detach()))
    if not (math.isfinite(least) and math.isfinite(most)):
        raise BadInput("images hold NaN or infinity; remove them before attacking or training")
    width = high - low
    room = _ROUNDING * (width if math.isfinite(width) else 1.0)
    if least < low - room or most > high + room:
        raise BadInput(
            f"images span [{least:.4g}, {most:.4g}], outside the box [{low:g}, {high:g}]; {_guess(least, most)}"
        )


def _guess(least: float, most: float) -> str:
    if least >= 0 and most > 2:
        return "they look like 0-255 images: divide them by 255"
    return (
        "they look normalised: pass raw images and put the normalisation into the model, or give clip_min and clip_max"
    )


def labels(y: Tensor, count: int, classes: int | None = None) -> None:
    """Refuse labels that are not (count,) integers in [0, classes)."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype is torch.bool or y.is_complex():
        found = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise BadInput(f"labels are {found}; integer class numbers are needed")
    if y.shape != (count,):
        raise BadInput(f"labels have shape {tuple(y.shape)}; one class number per image is needed: ({count},)")
    if count == 0:
        return
    least, most = (int(v) for v in torch.aminmax(y))
    if least < 0 or (classes is not None and most >= classes):
        end = "" if classes is None else f" and at most {classes - 1}, for a model of {classes} classes"
        raise BadInput(f"labels span [{least}, {most}]; they must be at least 0{end}")
