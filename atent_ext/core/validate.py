"""Checks of arguments, images, labels, logits. Each raises BadInput that names the thing, the value and the remedy."""

import math
from collections.abc import Iterable
from fractions import Fraction
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor

from atent_ext.core.errors import BadInput, Code
from atent_ext.core.types import Radius

# Images may lie this far outside the box, relative to its width, because of rounding or float16.
_ROUNDING = 1e-3
_LARGEST = 1e15
"""Products of two numbers up to this one, and of their noise, are finite in float32."""
SEED_BITS = 64
"""Seeds are whole numbers below 2 to this power, as torch's generators require."""


def radius(name: str, value: Radius) -> None:
    """Refuse a radius, step size or noise that is negative, infinite, NaN or above 1e15."""
    code: Code = "bad-value" if isinstance(value, Tensor) or _is_number(value) else "bad-type"
    if isinstance(value, Tensor):
        signed = value.dtype.is_signed and not value.is_complex()
        good = value.numel() > 0 and signed and bool(((value >= 0) & (value < torch.inf)).all())
        large = good and bool((value > _LARGEST).any())
    else:
        good = _is_number(value) and 0 <= value < math.inf
        large = good and int(value) > _LARGEST  # int: as in `_is_moderate`
    if not good or large:
        message = f"{name} is {value!r}; it must be a finite number >= 0{' and at most 1e15' if large else ''}"
        raise BadInput(message, code=code, field=name)


def number(name: str, value: float) -> None:
    """Refuse what `radius` refuses, and tensors of rank 1 and more."""
    if isinstance(value, Tensor) and value.dim():
        message = f"{name} is {value!r}; it must be one number, the same for all images"
        raise BadInput(message, code="bad-shape", field=name)
    radius(name, value)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | Fraction)  # torch supports neither


def _is_moderate(value: float) -> bool:
    # int, since numpy compares in float16, where 1e15 is infinite
    return -math.inf < value < math.inf and abs(int(value)) <= _LARGEST


def box(value: tuple[float, float]) -> None:
    """Refuse a box that is not two numbers (lowest, highest) in this order; they may be infinite."""
    pair = isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value))
    if not pair or not all(abs(side) == math.inf or _is_moderate(side) for side in value):
        message = f"box is {value!r}; it must be two numbers, the lowest and the highest value of an input"
        raise BadInput(message, code="bad-type", field="box")
    if not value[0] < value[1]:
        raise BadInput(f"box is {value}; its first value must be below its second", code="bad-value", field="box")


def choice(name: str, value: str, known: Iterable[str]) -> None:
    """Refuse a value that is not one of the known names."""
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise BadInput(f"{name} is {value!r}; known: {', '.join(known)}", code="unknown-name", field=name)


def flag(name: str, value: bool) -> None:
    """Refuse a value that is neither True nor False, nor 0 or 1."""
    if not isinstance(value, Integral | np.bool_) or value not in (0, 1):
        raise BadInput(f"{name} is {value!r}; it must be True or False", code="bad-type", field=name)


def steps(name: str, value: int) -> None:
    """Refuse a number of steps that is not a whole number >= 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        code: Code = "bad-value" if isinstance(value, Integral) else "bad-type"
        raise BadInput(f"{name} is {value!r}; it must be a whole number >= 1", code=code, field=name)


def seed(value: int, name: str = "seed") -> None:
    """Refuse a seed that is not a whole number from 0 to 2^64 - 1."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        code: Code = "bad-type"
    elif not 0 <= value < 2**SEED_BITS:
        code = "bad-value"
    else:
        return
    raise BadInput(f"{name} is {value!r}; it must be a whole number from 0 to 2^{SEED_BITS} - 1", code=code, field=name)


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def images(x: Tensor, low: float, high: float) -> None:
    """Refuse inputs that are not a floating-point batch (N, ...) inside [low, high]; the message guesses the reason.

    An empty batch is valid; images without pixels are not.
    """
    if not isinstance(x, Tensor) or x.dim() < 2 or x.dtype not in _FLOATS or 0 in x.shape[1:]:
        actual = f"{x.dtype} of shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        code: Code = "bad-type" if not isinstance(x, Tensor) or x.dtype not in _FLOATS else "bad-shape"
        message = f"images are {actual}; a floating-point tensor (N, ...) in [{low:g}, {high:g}] is needed"
        if isinstance(x, Tensor) and not (x.is_floating_point() or x.is_complex() or x.dtype is torch.bool):
            message += "; if they are 0-255, divide them by 255"
        raise BadInput(message, code=code, field="images")
    if x.numel() == 0:
        return
    least, most = (float(v) for v in torch.aminmax(x.detach()))
    if not (math.isfinite(least) and math.isfinite(most)):
        message = "images hold NaN or infinity; remove them before attacking or training"
        raise BadInput(message, code="bad-value", field="images")
    width = high - low
    room = _ROUNDING * (width if math.isfinite(width) else 1.0)
    if least < low - room or most > high + room:
        message = f"images span [{least:.4g}, {most:.4g}], outside the box [{low:g}, {high:g}]; {_guess(least, most)}"
        raise BadInput(message, code="bad-value", field="images")


def _guess(least: float, most: float) -> str:
    if least >= 0 and most > 2:
        return "they look like 0-255 images: divide them by 255"
    return (
        "they look normalised: pass raw images and put the normalisation into the model, or give clip_min and clip_max"
    )


def logits(value: Tensor, count: int) -> None:
    """Refuse outputs that are not logits (count, classes)."""
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    if not isinstance(value, Tensor) or value.dim() != 2 or len(value) != count:
        message = f"the model gives {shape} for {count} images; logits ({count}, classes) are needed"
        raise BadInput(message, code="bad-shape", field="logits")


def places(index: Tensor, count: int) -> None:
    """Refuse an index that is not (count,) int32 or int64 positions >= 0 in a training set."""
    whole = isinstance(index, Tensor) and index.dtype in (torch.int32, torch.int64) and index.shape == (count,)
    if not whole or bool((index < 0).any()):
        message = f"index is {index!r}; the {count} examples' positions are needed, whole numbers >= 0"
        raise BadInput(message, code="bad-value", field="index")


def labels(y: Tensor, count: int, classes: int | None = None) -> None:
    """Refuse labels that are not (count,) integers in [0, classes)."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype is torch.bool or y.is_complex():
        actual = y.dtype if isinstance(y, Tensor) else type(y).__name__
        message = f"labels are {actual}; integer class numbers are needed{_rows(y)}"
        raise BadInput(message, code="bad-type", field="labels")
    if y.shape != (count,):
        message = f"labels have shape {tuple(y.shape)}; one class number per image is needed: ({count},){_rows(y)}"
        raise BadInput(message, code="bad-shape", field="labels")
    if count == 0:
        return
    least, most = (int(v) for v in torch.aminmax(y.long()))  # aminmax does not support unsigned integers above 8 bits
    if least < 0 or (classes is not None and most >= classes):
        end = "" if classes is None else f" and at most {classes - 1}, for a model of {classes} classes"
        message = f"labels span [{least}, {most}]; they must be at least 0{end}"
        raise BadInput(message, code="bad-value", field="labels")


def _rows(y: object) -> str:
    """The remedy for labels that are rows of classes."""
    rows = isinstance(y, Tensor) and y.dim() == 2 and y.shape[1] > 1
    return "; of one-hot rows give labels.argmax(1)" if rows else ""
