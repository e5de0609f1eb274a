"""Interval bound propagation: certified bounds of a network's logits over a box of inputs (Gowal et al. 2018).

arXiv:1810.12715. The bounds are those of the network in eval mode, whatever its mode: dropout is the identity and batch
norm uses its running statistics. They hold up to floating-point rounding, and they are differentiable.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atent_ext.core import validate
from atent_ext.core.errors import BadInput, Code
from atent_ext.core.losses import cross_entropy, is_soft, margin
from atent_ext.core.model_state import evaluating

Interval: TypeAlias = tuple[Tensor, Tensor]
"""Lower and upper bounds, elementwise, of one shape (N, ...)."""

_SAMPLES = 2
"""Inputs on which a network with its own `forward` is compared with the chain of its children."""


def interval_bounds(model: nn.Module, low: Tensor, high: Tensor) -> Interval:
    """Elementwise bounds of the logits, (N, classes) each, for all inputs in [low, high] (Gowal et al. 2018, Eqs. 6-7).

    low, high: (N, ...). Raises BadInput if low > high or NaN anywhere, and for networks that `sequence` refuses.
    """
    if low.shape != high.shape or not bool((low <= high).all()):
        code: Code = "bad-shape" if low.shape != high.shape else "bad-value"
        message = f"low {tuple(low.shape)} must have the shape of high {tuple(high.shape)} and nowhere exceed it"
        raise BadInput(message, code=code, field="low")
    return _through(sequence(model, low), low, high)


def worst_margins(model: nn.Module, x: Tensor, y: Tensor, eps: float, box: tuple[float, float] = (0.0, 1.0)) -> Tensor:
    """Upper bounds of logit_k - logit_y over the ℓ∞ ball of radius eps inside the box, (N, classes); 0 for k = y.

    The last linear layer is elided (Gowal et al. 2018, section 3): differences of its rows are applied to the interval
    of its input, which is tighter than differences of logit bounds. x (N, ...) in the box, y (N,), eps >= 0.
    Raises BadInput for invalid inputs and for networks that `sequence` refuses.
    """
    ends = _last_features(model, x, eps, box)
    validate.labels(y, len(x), len(ends.weight))
    return ends.margins(y)


def worst_cross_entropy(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, box: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """Upper bounds of the cross-entropy over the ball of `worst_margins`, (N,); it does not depend on the shift.

    y: (N,), or soft labels (N, classes), for which the bounds of all classes are averaged. Raises BadInput as
    `worst_margins`.
    """
    if not is_soft(y):
        return cross_entropy(worst_margins(model, x, y, eps, box), y)
    ends = _last_features(model, x, eps, box)
    classes = [torch.full((len(x),), label, device=x.device) for label in range(y.shape[1])]
    bounds = torch.stack([cross_entropy(ends.margins(one), one) for one in classes], 1)
    return (y.to(bounds) * bounds).sum(1)


@dataclass(frozen=True)
class _Ends:
    """The interval of the input of the last linear layer, (N, d), and that layer's weight and bias."""

    low: Tensor
    high: Tensor
    weight: Tensor
    bias: Tensor

    def margins(self, y: Tensor) -> Tensor:
        rows = self.weight - self.weight[y][:, None]
        middle, radius = _middle(self.low, self.high)
        return _apply(rows, middle) + _apply(rows.abs(), radius) + self.bias - self.bias[y][:, None]


def _last_features(model: nn.Module, x: Tensor, eps: float, box: tuple[float, float]) -> _Ends:
    validate.number("eps", eps)
    validate.images(x, *box)
    layers = sequence(model, x)
    head = layers.pop() if type(layers[-1]) is nn.Linear else None
    low, high = _through(layers, (x - eps).clamp(*box), (x + eps).clamp(*box))
    weight = head.weight if isinstance(head, nn.Linear) else torch.eye(low.shape[1]).to(low)
    bias = head.bias if isinstance(head, nn.Linear) and head.bias is not None else weight.new_zeros(len(weight))
    return _Ends(low, high, weight, bias)


def certified_linf(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    box: tuple[float, float] = (0.0, 1.0),
    batch_size: int = 250,
) -> Tensor:
    """Which examples are certified: predicted correctly in the whole ℓ∞ ball of radius eps inside the box, (N,) bool.

    True means that all upper bounds of logit_k - logit_y, k != y, are negative. False does not mean that an adversary
    exists. x (N, ...), y (N,). Raises BadInput as `worst_margins`.
    """
    validate.labels(y, len(x))
    validate.steps("batch_size", batch_size)
    with torch.no_grad():
        parts = zip(torch.split(x, batch_size), torch.split(y, batch_size), strict=True)
        return torch.cat(
            [margin(worst_margins(model, images, labels, eps, box), labels) < 0 for images, labels in parts]
        )


def sequence(model: nn.Module, sample: Tensor) -> list[nn.Module]:
    """The layers of a network that is an `nn.Sequential`, or a module that applies its children in order.

    `sample` (N, ...) holds inputs on which a custom `forward` is compared with the chain of layers.
    Raises BadInput, which names the class, for a layer without bounds and for a network that is not a chain.
    """
    if not isinstance(model, nn.Module):
        message = f"the model is a {type(model).__name__}; interval bounds need an nn.Module"
        raise BadInput(message, code="bad-type", field="model")
    layers = list(_leaves(model))
    if not _is_plain(model) and not _agree(layers, model, sample[:_SAMPLES]):
        message = f"{type(model).__name__} does not apply its children in order; write it as an nn.Sequential"
        raise BadInput(message, code="unsupported", field="model")
    return layers


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    if type(module) in _RULES:
        yield module
    elif children or isinstance(module, nn.Sequential):
        for child in children:
            yield from _leaves(child)
    else:
        known = ", ".join(sorted(kind.__name__ for kind in _RULES))
        message = f"the layer {module} has no interval bounds; build the network of {known}"
        raise BadInput(message, code="unsupported", field="model")


def _is_plain(module: nn.Module) -> bool:
    """Whether the module and all its descendants use the `forward` of `nn.Sequential` or of a known layer."""
    chain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return type(module) in _RULES or (chain and all(_is_plain(child) for child in module.children()))


def exact(model: nn.Module) -> bool:
    """Whether the layers of `sequence` are the network by its construction, and not only as far as samples show.

    A module with hooks or with a `forward` of its own may do anything on other inputs; only our networks are known.
    """
    own = type(model).__module__.partition(".")[0] == __name__.partition(".")[0]
    known = own or type(model) in _RULES or type(model).forward is nn.Sequential.forward
    changed = "forward" in vars(model) or model._forward_hooks or model._forward_pre_hooks
    return known and not changed and all(map(exact, model.children()))


def _agree(layers: list[nn.Module], model: nn.Module, sample: Tensor) -> bool:
    with evaluating(model), torch.no_grad():
        expected = validate.logits(model(sample.clone()), len(sample))
        try:
            actual = reduce(lambda features, layer: layer(features), layers, sample.clone())
        except (RuntimeError, ValueError):  # shapes that do not fit
            return False
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-4, atol=1e-5)


# ---- the layers


def _through(layers: list[nn.Module], low: Tensor, high: Tensor) -> Interval:
    low, high = low.clone(), high.clone()  # the first layer may work in place
    for layer in layers:
        low, high = _RULES[type(layer)](layer, low, high)
    return low, high


def _middle(low: Tensor, high: Tensor) -> Interval:
    """Centre and radius of an interval."""
    return (low + high) / 2, (high - low) / 2


def _around(middle: Tensor, radius: Tensor) -> Interval:
    return middle - radius, middle + radius


def _apply(rows: Tensor, values: Tensor) -> Tensor:
    """A matrix per example, (N, classes, d), times a vector per example, (N, d)."""
    return torch.einsum("nkd,nd->nk", rows, values)


def _linear(layer: nn.Linear, low: Tensor, high: Tensor) -> Interval:
    middle, radius = _middle(low, high)
    return _around(F.linear(middle, layer.weight, layer.bias), F.linear(radius, layer.weight.abs()))


def _conv(layer: nn.Conv2d, low: Tensor, high: Tensor) -> Interval:
    if layer.padding_mode != "zeros":
        message = f"a Conv2d has padding_mode {layer.padding_mode!r}; interval bounds know 'zeros' only"
        raise BadInput(message, code="unsupported", field="model")
    middle, radius = _middle(low, high)
    return _around(_convolve(layer, middle, layer.weight, layer.bias), _convolve(layer, radius, layer.weight.abs()))


def _convolve(layer: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def _batch_norm(layer: nn.BatchNorm2d, low: Tensor, high: Tensor) -> Interval:
    mean, variance, weight = layer.running_mean, layer.running_var, layer.weight
    if mean is None or variance is None:
        message = "a BatchNorm2d has no running statistics; build it with track_running_stats=True"
        raise BadInput(message, code="unsupported", field="model")
    middle, radius = _middle(low, high)
    moved = F.batch_norm(middle, mean, variance, weight, layer.bias, eps=layer.eps)
    scale = None if weight is None else weight.abs()
    return _around(moved, F.batch_norm(radius, torch.zeros_like(mean), variance, scale, None, eps=layer.eps))


def _monotone(layer: nn.Module, low: Tensor, high: Tensor) -> Interval:
    return layer(low), layer(high)


def _identity(layer: nn.Module, low: Tensor, high: Tensor) -> Interval:
    return low, high


# Looked up by exact class, since a subclass may compute something else.
_RULES: Mapping[type[nn.Module], Callable[[Any, Tensor, Tensor], Interval]] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv,
    nn.BatchNorm2d: _batch_norm,
    **dict.fromkeys((nn.ReLU, nn.Tanh, nn.Sigmoid), _monotone),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten), _monotone),
    **dict.fromkeys((nn.Dropout, nn.Identity), _identity),
}
