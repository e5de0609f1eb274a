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
from atent_ext.core.model_state import evaluating, full_precision
from atent_ext.models import networks
from atent_ext.models.contrast import Contrast, ContrastCNN

Interval: TypeAlias = tuple[Tensor, Tensor]
"""Lower and upper bounds, elementwise, of one shape (N, ...)."""

_LEAST, _MOST = 1e-37, 1e30
"""Below the first, products may be flushed to zero; above the second, sums may overflow in float32."""
_CHAINS = (networks.DigitsCNN, networks.LeNet5V1, networks.SmallCNN, ContrastCNN)
"""Networks of ours that apply their children in order."""
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


def worst_margins(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    box: tuple[float, float] = (0.0, 1.0),
    rounding: float = 0.0,
) -> Tensor:
    """Upper bounds of logit_k - logit_y over the ℓ∞ ball of radius eps inside the box, (N, classes); 0 for k = y.

    The last linear layer is elided (Gowal et al. 2018, section 3): differences of its rows are applied to the interval
    of its input, which is tighter than differences of logit bounds. x (N, ...) in the box, y (N,), eps >= 0.
    rounding: the relative error of one operation of the network that is meant, if it is run in a lower precision than
    `model` here; then the bounds are of the logits as that network computes them.
    Raises BadInput for invalid inputs and for networks that `sequence` refuses.
    """
    ends = _last_features(model, x, eps, box, rounding)
    validate.labels(y, len(x), len(ends.weight))
    return ends.margins(y)


def worst_cross_entropy(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, box: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """Upper bounds of the cross-entropy over the ball of `worst_margins`, (N,); it does not depend on the shift.

    y: (N,), or soft labels (N, classes), for which the bounds of all classes are averaged. Raises BadInput as
    `worst_margins`.
    """
    ends = _last_features(model, x, eps, box)
    if not is_soft(y):
        validate.labels(y, len(x), len(ends.weight))
        return ends.cross_entropy(y)
    classes = [torch.full((len(x),), label, device=x.device) for label in range(y.shape[1])]
    bounds = torch.stack([ends.cross_entropy(one) for one in classes], 1)
    return (y.to(bounds) * bounds).sum(1)


@dataclass(frozen=True)
class _Ends:
    """The interval of the input of the last linear layer, (N, d), and that layer's weight and bias."""

    low: Tensor
    high: Tensor
    weight: Tensor
    bias: Tensor
    rounding: float = 0.0

    def margins(self, y: Tensor) -> Tensor:
        rows = self.weight - self.weight[y][:, None]
        middle, radius = _middle(self.low, self.high)
        bounds = _apply(rows, middle) + _apply(rows.abs(), radius) + self.bias - self.bias[y][:, None]
        if not self.rounding:
            return bounds
        of_logit = torch.as_tensor(_error(_Product(self.weight, self.bias), self.low, self.high, self.rounding))
        errors = of_logit + of_logit.gather(1, y[:, None])
        return bounds + errors.scatter(1, y[:, None], 0.0)

    def cross_entropy(self, y: Tensor) -> Tensor:
        """Of the worst margins, (N,), also where autocast computes them in 16 bits."""
        margins = self.margins(y)
        return cross_entropy(margins if margins.dtype is torch.float64 else margins.float(), y)


def _last_features(model: nn.Module, x: Tensor, eps: float, box: tuple[float, float], rounding: float = 0.0) -> _Ends:
    validate.number("eps", eps)
    validate.images(x, *box)
    layers = sequence(model, x)
    head = layers.pop() if type(layers[-1]) is nn.Linear else None
    low, high = _through(layers, (x - eps).clamp(*box), (x + eps).clamp(*box), rounding)
    weight = head.weight if isinstance(head, nn.Linear) else torch.eye(low.shape[1]).to(low)
    bias = head.bias if isinstance(head, nn.Linear) and head.bias is not None else weight.new_zeros(len(weight))
    if len(weight) < 2:
        message = "the network has one logit, of which no class follows; return one of each class"
        raise BadInput(message, code="bad-shape", field="model")
    return _Ends(low, high, weight, bias, rounding if head is not None else 0.0)


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
    exists. x (N, ...), y (N,). Raises BadInput as `worst_margins`, and for a network with hooks or a `forward` set on a
    module: the bounds are those of its layers.
    """
    for module in model.modules() if isinstance(model, nn.Module) else ():
        _check_untouched(module)
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


def _children(module: nn.Module) -> list[nn.Module]:
    """The children in order; `children()` would leave out the second use of a layer."""
    return [child for child in module._modules.values() if child is not None]


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    children = _children(module)
    if type(module) in _RULES:
        yield module
    elif children or isinstance(module, nn.Sequential):
        for child in children:
            yield from _leaves(child)
    else:
        known = ", ".join(sorted(kind.__name__ for kind in _RULES))
        message = f"the layer {module} has no interval bounds; build the network of {known}"
        raise BadInput(message, code="unsupported", field="model")


def _check_untouched(module: nn.Module) -> None:
    """Raise BadInput for hooks and a `forward` set on the module itself, but for Accelerate's and torch.compile's."""
    own = vars(module).get("forward")
    known = own is None or "_orig_mod" in module._modules or _of_accelerate(module, own)
    if not known or module._forward_hooks or module._forward_pre_hooks:
        what = "hooks" if known else "a forward of its own"
        message = f"the {type(module).__name__} has {what}, which interval bounds do not see; remove it"
        message += " (those of weight_norm and pruning by remove_weight_norm and prune.remove)" if known else ""
        raise BadInput(message, code="unsupported", field="model")


def _of_accelerate(module: nn.Module, forward: object) -> bool:
    """Whether Accelerate set this `forward`, which converts the outputs of the module's own one."""
    function = getattr(forward, "__func__", forward)
    return "_original_forward" in vars(module) and str(getattr(function, "__module__", "")).startswith("accelerate.")


def _is_plain(module: nn.Module) -> bool:
    """Whether the module and all its descendants use the `forward` of `nn.Sequential` or of a known layer."""
    chain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return type(module) in _RULES or (chain and all(map(_is_plain, _children(module))))


def exact(model: nn.Module) -> bool:
    """Whether the layers of `sequence` are the network by its construction, and not only as far as samples show.

    A module with hooks or with a `forward` of its own may do anything on other inputs; known are chains, by their exact
    class: a subclass may do something else.
    """
    known = type(model) in (nn.Sequential, *_CHAINS) or type(model) in _RULES
    changed = "forward" in vars(model) or model._forward_hooks or model._forward_pre_hooks
    return known and not changed and all(map(exact, _children(model)))


def _agree(layers: list[nn.Module], model: nn.Module, sample: Tensor) -> bool:
    with evaluating(model), full_precision(model), torch.no_grad():
        expected = validate.logits(model(sample.clone()), len(sample))
        try:
            actual = reduce(lambda features, layer: layer(features), layers, sample.clone())
        except (RuntimeError, ValueError):  # shapes that do not fit
            return False
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-4, atol=1e-5)


# ---- the layers


def _through(layers: list[nn.Module], low: Tensor, high: Tensor, rounding: float = 0.0) -> Interval:
    low, high = low.clone(), high.clone()  # the first layer may work in place
    for layer in layers:
        error = _error(layer, low, high, rounding) if rounding else 0.0
        low, high = _RULES[type(layer)](layer, low, high)
        low, high = low - error, high + error
    return low, high


@dataclass(frozen=True)
class _Product:
    """A matrix with its bias, (classes, d) and (classes,), as a layer."""

    weight: Tensor
    bias: Tensor | None


def _error(layer: Any, low: Tensor, high: Tensor, rounding: float) -> Tensor | float:
    """Bound of the error of a layer's output, for inputs in [low, high], in an arithmetic of this relative error.

    Of a sum of n products it is at most about n times the rounding times the sum of their absolute values, in whatever
    order they are added (Higham 2002, section 3.1). Infinite where float32 would overflow.
    """
    size = torch.maximum(low.abs(), high.abs())
    if isinstance(layer, (nn.Linear, _Product)):
        terms = layer.weight.shape[1]
        sums = F.linear(size, layer.weight.abs(), None if layer.bias is None else layer.bias.abs())
    elif isinstance(layer, nn.Conv2d):
        terms = layer.weight[0].numel()
        sums = _convolve(layer, size, layer.weight.abs(), None if layer.bias is None else layer.bias.abs())
    elif isinstance(layer, nn.BatchNorm2d):
        terms, sums = 8, _batch_norm_sizes(layer, size)
    elif isinstance(layer, (nn.AvgPool2d, nn.AdaptiveAvgPool2d)):
        sums = layer(size)
        terms = size[0].numel() // sums[0].numel()
    elif isinstance(layer, (nn.Tanh, nn.Sigmoid)):
        return 16 * rounding
    elif isinstance(layer, Contrast):
        return 8 * rounding * (size + layer.low) / (layer.high - layer.low)
    else:
        return 0.0  # they only choose or move values
    error = (terms + 4) * (rounding * sums + _LEAST)
    return torch.where(sums < _MOST, error, torch.full_like(error, torch.inf))


def _batch_norm_sizes(layer: nn.BatchNorm2d, size: Tensor) -> Tensor:
    shape = (1, -1, 1, 1)
    mean, variance = layer.running_mean, layer.running_var
    if mean is None or variance is None:
        return torch.full_like(size, torch.inf)
    scale = (1 if layer.weight is None else layer.weight.abs()) / (variance + layer.eps).sqrt()
    moved = (size + mean.abs().view(shape)) * scale.view(shape)
    return moved if layer.bias is None else moved + layer.bias.abs().view(shape)


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
    **dict.fromkeys((nn.ReLU, nn.Tanh, nn.Sigmoid, Contrast), _monotone),
    **dict.fromkeys((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten), _monotone),
    **dict.fromkeys((nn.Dropout, nn.Identity), _identity),
}
