"""The box that inputs lie in: its lowest and highest value, each a number or a tensor with one value per feature.

A tensor has the shape of one input, (...), or of the batch, (N, ...), or one that broadcasts against them.
"""

import math
from typing import TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from atent_ext.core import validate
from atent_ext.core.errors import BadInput

Side: TypeAlias = float | Tensor
Box: TypeAlias = tuple[Side, Side]


def check(box: Box, low: str = "box", high: str = "box") -> None:
    """Refuse a box whose lowest values are not all below its highest, and values that are NaN, complex or bool.

    low, high: what the caller calls the two sides. Raises BadInput.
    """
    if not (isinstance(box, tuple | list) and len(box) == 2 and any(isinstance(side, Tensor) for side in box)):
        validate.box(cast(tuple[float, float], box), low, high)
        return
    for name, side in zip((low, high), box, strict=True):
        if isinstance(side, Tensor):
            _check_tensor(name, side)
        else:
            validate.box((side, math.inf) if side is box[0] else (-math.inf, side), name, name)
    try:
        ordered = bool((torch.as_tensor(box[0]).cpu() < torch.as_tensor(box[1]).cpu()).all())
    except RuntimeError:
        shapes = [tuple(torch.as_tensor(side).shape) for side in box]
        message = f"{low} has shape {shapes[0]} and {high} {shapes[1]}; give both the shape of one input"
        raise BadInput(message, code="bad-shape", field=low) from None
    if not ordered:
        message = f"{low} is {validate.shown(box[0])} and {high} {validate.shown(box[1])}; each {low} must be below"
        raise BadInput(f"{message} its {high}", code="bad-value", field=low)


def _check_tensor(name: str, side: Tensor) -> None:
    if side.is_complex() or side.dtype is torch.bool or not side.numel() or bool(side.isnan().any()):
        message = f"{name} is {validate.shown(side)}; real numbers without NaN are needed, one or one per feature"
        raise BadInput(message, code="bad-value", field=name)


def sides(box: Box, x: Tensor, low: str = "box", high: str = "box") -> Box:
    """The two sides as they are combined with `x` (N, ...): numbers, or tensors of its dtype on its device.

    Raises BadInput, which names `low` or `high`, for a tensor whose shape does not fit that of `x`.
    """
    return _side(box[0], x, low), _side(box[1], x, high)


def _side(side: Side, x: Tensor, name: str) -> Side:
    if not isinstance(side, Tensor):
        return side
    if side.numel() == 1:
        return float(side)
    try:
        fits = np.broadcast_shapes(side.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        message = (
            f"{name} has shape {tuple(side.shape)} and the inputs {tuple(x.shape)}; give it the shape of one input"
        )
        raise BadInput(message, code="bad-shape", field=name)
    return side.detach().to(x)


def clamp(x: Tensor, box: Box) -> Tensor:
    """`x` (N, ...) with each value moved into the box; gradients flow through it as through `Tensor.clamp`."""
    low, high = sides(box, x)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return x.clamp(torch.as_tensor(low).to(x), torch.as_tensor(high).to(x))
    return x.clamp(low, high)


def check_images(x: Tensor, box: Box, low: str = "box", high: str = "box", remedy: str = "") -> None:
    """`validate.images` for any box; low, high, remedy: what the caller calls the two sides, and how they are set."""
    lowest, highest = sides(box, x, low, high) if isinstance(x, Tensor) else box
    if not isinstance(lowest, Tensor) and not isinstance(highest, Tensor):
        validate.images(x, lowest, highest, remedy)
        return
    validate.images(x, -math.inf, math.inf)
    width = torch.as_tensor(highest) - lowest
    room = validate._ROUNDING * torch.where(width.isfinite(), width, 1.0)
    if len(x) and not bool(inside(x, (lowest, highest), room).all()):
        least, most = (float(value) for value in torch.aminmax(x.detach()))
        message = f"images span [{least:.4g}, {most:.4g}], outside [{low}, {high}], which are tensors"
        raise BadInput(f"{message}; {validate.guess(least, most, remedy)}", code="bad-value", field="images")


def rows_of(box: Box, x: Tensor, rows: Tensor) -> Box:
    """The box of the examples `rows` (n,) of the batch `x` (N, ...), whose sides may have one value per example."""
    low, high = box
    return _rows(low, x, rows), _rows(high, x, rows)


def _rows(side: Side, x: Tensor, rows: Tensor) -> Side:
    whole = isinstance(side, Tensor) and side.dim() == x.dim() and len(side) == len(x)
    return side[rows.to(side.device)] if isinstance(side, Tensor) and whole else side


def inside(x: Tensor, box: Box, room: Side = 0.0) -> Tensor:
    """Which values of `x` (N, ...) lie at most `room` outside the box: bool of the same shape."""
    low, high = sides(box, x)
    return (x >= low - room) & (x <= high + room)
