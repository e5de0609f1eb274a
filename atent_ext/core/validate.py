"""Checks of arguments, images, labels, logits. Each raises BadInput that names the thing, the value and the remedy."""

import math
from collections.abc import Iterable, Mapping
from fractions import Fraction
from numbers import Integral, Real

import numpy as np
import torch
from torch import Tensor, nn

from atent_ext.core.errors import BadInput, Code
from atent_ext.core.types import Radius

# Images may lie this far outside the box, relative to its width, because of rounding or float16.
_ROUNDING = 1e-3
_LARGEST = 1e15
"""Products of two numbers up to this one, and of their noise, are finite in float32."""
_LONGEST = 100
SEED_BITS = 64
"""Seeds are whole numbers below 2 to this power, as torch's generators require."""


def shown(value: object) -> str:
    """A value as errors quote it: tensors and arrays by dtype, shape and range, anything else cut to 100 characters."""
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        return f"a {str(value.dtype).removeprefix('torch.')} {kind} of shape {tuple(value.shape)}{_span(value)}"
    if isinstance(value, tuple | list):
        inner = ", ".join(map(shown, value[:4])) + (", ..." if len(value) > 4 else "")
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    text = type(value).__name__ if isinstance(value, nn.Module) else " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _span(value: Tensor | np.ndarray) -> str:
    values = torch.as_tensor(value).detach() if isinstance(value, Tensor) or value.dtype.kind in "biuf" else None
    if values is None or values.numel() == 0 or values.is_complex():
        return ""
    least, most = (float(value) for value in values.double().aminmax())
    return f" with value {least:g}" if values.numel() == 1 else f" with values in [{least:g}, {most:g}]"


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
        message = f"{name} is {shown(value)}; it must be a finite number >= 0{' and at most 1e15' if large else ''}"
        raise BadInput(message, code=code, field=name)


def number(name: str, value: float) -> None:
    """Refuse what `radius` refuses, and tensors of rank 1 and more."""
    if isinstance(value, Tensor) and value.dim():
        message = f"{name} is {shown(value)}; it must be one number, the same for all images"
        raise BadInput(message, code="bad-shape", field=name)
    radius(name, value)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool | Fraction)  # torch supports neither


def _is_moderate(value: float) -> bool:
    # int, since numpy compares in float16, where 1e15 is infinite
    return -math.inf < value < math.inf and abs(int(value)) <= _LARGEST


def box(value: tuple[float, float], low: str = "box", high: str = "box") -> None:
    """Refuse a box that is not two numbers (lowest, highest) in this order; they may be infinite.

    low, high: what the caller calls the two numbers, where it has a name for each.
    """
    name = low if low == high else f"({low}, {high})"
    pair = isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_number, value))
    if not pair or not all(abs(side) == math.inf or _is_moderate(side) for side in value):
        message = f"{name} is {shown(value)}; it must be two numbers, the lowest and the highest value of an input"
        raise BadInput(message, code="bad-type", field=low)
    if not value[0] < value[1]:
        message = f"{name} is {shown(value)}; its first value must be below its second"
        raise BadInput(message, code="bad-value", field=low)


def choice(name: str, value: str, known: Iterable[str]) -> None:
    """Refuse a value that is not one of the known names."""
    known = list(known)
    if not isinstance(value, str) or value not in known:
        raise BadInput(f"{name} is {shown(value)}; known: {', '.join(known)}", code="unknown-name", field=name)


def flag(name: str, value: bool) -> None:
    """Refuse a value that is neither True nor False, nor 0 or 1."""
    if not isinstance(value, Integral | np.bool_) or value not in (0, 1):
        raise BadInput(f"{name} is {shown(value)}; it must be True or False", code="bad-type", field=name)


def steps(name: str, value: int) -> None:
    """Refuse a number of steps that is not a whole number >= 1."""
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        code: Code = "bad-value" if isinstance(value, Integral) else "bad-type"
        raise BadInput(f"{name} is {shown(value)}; it must be a whole number >= 1", code=code, field=name)


def seed(value: int, name: str = "seed") -> None:
    """Refuse a seed that is not a whole number from 0 to 2^64 - 1."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        code: Code = "bad-type"
    elif not 0 <= value < 2**SEED_BITS:
        code = "bad-value"
    else:
        return
    message = f"{name} is {shown(value)}; it must be a whole number from 0 to 2^{SEED_BITS} - 1"
    raise BadInput(message, code=code, field=name)


_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def images(x: Tensor, low: float, high: float, remedy: str = "") -> None:
    """Refuse inputs that are not a floating-point batch (N, ...) inside [low, high]; the message guesses the reason.

    An empty batch is valid; images without pixels are not. remedy: how the caller's box is set, for the message.
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
        message = (
            f"images span [{least:.4g}, {most:.4g}], outside the box [{low:g}, {high:g}]; {guess(least, most, remedy)}"
        )
        raise BadInput(message, code="bad-value", field="images")


def guess(least: float, most: float, remedy: str = "") -> str:
    """What inputs outside their box look like, and what to do; remedy: how the caller's box is set."""
    if least >= 0 and most > 2:
        return "they look like 0-255 images: divide them by 255"
    other = f", or {remedy}" if remedy else ""
    return f"they look normalised: pass raw images and put the normalisation into the model{other}"


def logits(value: Tensor, count: int) -> Tensor:
    """The outputs of a model for `count` images, if they are logits (count, classes), else BadInput with the remedy.

    Every call of a user's network goes through this check.
    """
    if isinstance(value, Tensor) and value.dim() == 2 and len(value) == count:
        return value
    returned = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__}"
    message = f"the model returns {returned} for {count} images; logits ({count}, classes) are needed"
    code: Code = "bad-shape" if isinstance(value, Tensor) else "bad-type"
    raise BadInput(f"{message}{_wrapping(value, count)}", code=code, field="logits")


def _wrapping(value: object, count: int) -> str:
    """The remedy for a model with several outputs: which of them to return."""
    for place, part in _outputs(value):
        if isinstance(part, Tensor) and part.dim() == 2 and len(part) == count:
            return f": wrap it in a module whose forward returns model(x){place}"
    if isinstance(value, Tensor):
        return ""
    return ": wrap it in a module whose forward returns the tensor of logits alone"


def _outputs(value: object) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        named = sorted(value.items(), key=lambda item: item[0] != "logits")
        return [(f"[{key!r}]", part) for key, part in named]
    if isinstance(value, tuple | list):
        return [(f"[{place}]", part) for place, part in enumerate(value)]
    return [(".logits", getattr(value, "logits", None))]


def places(index: Tensor, count: int) -> None:
    """Refuse an index that is not (count,) int32 or int64 positions >= 0 in a training set."""
    whole = isinstance(index, Tensor) and index.dtype in (torch.int32, torch.int64) and index.shape == (count,)
    if not whole or bool((index < 0).any()):
        message = f"index is {shown(index)}; the {count} examples' positions are needed, whole numbers >= 0"
        raise BadInput(message, code="bad-value", field="index")


def targets(y: Tensor, count: int) -> None:
    """Refuse targets that are neither labels nor probabilities (count, classes)."""
    if not (isinstance(y, Tensor) and y.is_floating_point() and y.dim() == 2):
        return labels(y, count)
    good = y.shape[0] == count and bool((y >= 0).all()) and bool(((y.sum(1) - 1).abs() < _ROUNDING).all())
    if not good:
        message = f"labels have shape {tuple(y.shape)}; {count} rows of probabilities that add up to 1 are needed"
        raise BadInput(message, code="bad-value", field="labels")


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
