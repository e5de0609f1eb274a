"""Arguments that kernels take on trust: wrong ones would read or write beyond a tensor, or overflow.

Most operators check their arguments, and the meta device does so before anything is computed. The ones here take sizes
or scales beside the tensor that these belong to.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from atent_ext.storage.untrusted_program.refused import Refused

_WIDEST = 2**16
"""The largest stride, padding, dilation, kernel or group of a convolution or a pooling."""
_SCALES = (1e-3, 1e3)
_WINDOWS = ("conv", "max_pool", "avg_pool", "im2col", "unfold")


def check(name: str, values: Mapping[str, Any], where: str) -> None:
    """Raise Refused where the arguments of the operator `name` ("conv2d") do not belong together.

    values: by the names that the operator has for them, tensors on the meta device.
    """
    images = values.get("input")
    if name == "native_group_norm" and isinstance(images, Tensor):
        stated: list[Any] = [values.get(part) for part in ("N", "C", "HxW", "group")]
        if not all(type(part) is int and part > 0 for part in stated) or images.dim() < 2:
            raise Refused(f"is broken: {where}, has sizes {stated}")
        count, channels, pixels, groups = stated
        fits = (count, channels) == tuple(images.shape[:2]) and count * channels * pixels == images.numel()
        if not fits or channels % groups:
            raise Refused(f"is broken: {where}, has sizes {stated} for {tuple(images.shape)}")
        _check_features(values, channels, where)
    if name.startswith("_native_batch_norm") and isinstance(images, Tensor):
        _check_features(values, images.shape[1] if images.dim() > 1 else 0, where)
    if "upsample" in name:
        _check_scales(values, where)
    if any(word in name for word in _WINDOWS):
        widest = max((abs(number) for number in _numbers(values) if type(number) is int), default=0)
        if widest > _WIDEST:
            raise Refused(f"has a window of {widest:,}: {where}", "too-large")


def _check_features(values: Mapping[str, Any], features: int, where: str) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        given = values.get(name)
        if isinstance(given, Tensor) and given.shape != (features,):
            raise Refused(f"is broken: {where}, has {name} {tuple(given.shape)} for {features} features")


def _check_scales(values: Mapping[str, Any], where: str) -> None:
    for number in _numbers(values):
        if isinstance(number, float) and not (math.isfinite(number) and _SCALES[0] <= number <= _SCALES[1]):
            raise Refused(f"scales images by {number:g}: {where}", "bad-value")


def _numbers(values: Mapping[str, Any]) -> list[Any]:
    """All numbers among arguments and their lists."""
    return [
        part
        for value in values.values()
        for part in (value if isinstance(value, list) else [value])
        if not isinstance(part, Tensor)
    ]
