"""Wide residual networks without BatchNorm, for small images such as 28×28 and 32×32.

Without it a network computes the same in train and eval mode, and an example never depends on the others of its batch.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atent_ext.core import validate
from atent_ext.core.errors import BadInput

Scaling = Literal["standardised", "fixup"]

_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "silu": (F.silu, 1.7881293296813965),
    "relu": (F.relu, 1.7139588594436646),
}
"""The activation, and the factor after which normal inputs have a variance of 1 again (Brock et al. 2021, Table 1)."""
_BRANCH = 0.2
"""The share with which a standardised branch is added (Brock et al. 2021)."""


class StandardisedConv2d(nn.Conv2d):
    """A convolution whose kernels have mean 0 and variance 1 / fan-in, times a gain each (Brock et al. 2021, Eq. 1)."""

    def __init__(self, before: int, after: int, size: int, stride: int = 1) -> None:
        super().__init__(before, after, size, stride=stride, padding=size // 2)
        nn.init.kaiming_normal_(self.weight, nonlinearity="linear")
        assert self.bias is not None
        nn.init.zeros_(self.bias)
        self.gain = nn.Parameter(torch.ones(after, 1, 1, 1))

    def standardised(self) -> Tensor:
        """The kernels that are applied, (after, before, size, size)."""
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        fan_in = self.weight[0].numel()
        return self.gain * (self.weight - mean) * torch.rsqrt((variance * fan_in).clamp_min(1e-4))

    def forward(self, x: Tensor) -> Tensor:
        """(N, before, H, W) to (N, after, H', W')."""
        return F.conv2d(x, self.standardised(), self.bias, self.stride, self.padding)


class _StandardisedBlock(nn.Module):
    """shortcut + 0.2 * skip * f(x / expected), a pre-activation block whose `expected` deviation of x is known."""

    def __init__(self, before: int, after: int, stride: int, activation: str, expected: float) -> None:
        super().__init__()
        self.activation, self.scale = activation, 1 / expected
        self.first = StandardisedConv2d(before, after, 3, stride)
        self.second = StandardisedConv2d(after, after, 3)
        changes = stride != 1 or before != after
        self.shortcut = StandardisedConv2d(before, after, 1, stride) if changes else None
        self.skip = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        function, gain = _ACTIVATIONS[self.activation]
        out = gain * function(self.scale * x)
        shortcut = x if self.shortcut is None else self.shortcut(out)
        result: Tensor = shortcut + _BRANCH * self.skip * self.second(gain * function(self.first(out)))
        return result


class _FixupBlock(nn.Module):
    """shortcut + scale * f(x) + bias, with a bias before each convolution and activation (Zhang et al. 2019)."""

    def __init__(self, before: int, after: int, stride: int, activation: str, blocks: int) -> None:
        super().__init__()
        self.activation = activation
        self.first = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        nn.init.normal_(self.first.weight, std=math.sqrt(2 / (9 * after) / blocks))
        nn.init.zeros_(self.second.weight)
        changes = stride != 1 or before != after
        self.shortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False) if changes else None
        if self.shortcut is not None:
            nn.init.kaiming_normal_(self.shortcut.weight, nonlinearity="linear")
        self.biases = nn.Parameter(torch.zeros(5))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        function, _ = _ACTIVATIONS[self.activation]
        out = function(x + self.biases[0]) + self.biases[1]
        shortcut = x if self.shortcut is None else self.shortcut(out)
        branch: Tensor = self.second(function(self.first(out) + self.biases[2]) + self.biases[3])
        result: Tensor = shortcut + self.scale * branch + self.biases[4]
        return result


class NormFreeWideResNet(nn.Module):
    """A wide residual network (Zagoruyko and Komodakis 2016) without BatchNorm; global pooling allows any image size.

    depth: 6 n + 4, for n blocks of two convolutions in each of 3 stages; 10 to 100. width: factor on 16, 32 and 64
    channels, 1 to 16. activation: "silu" or "relu". scaling: what replaces BatchNorm, "standardised" weights (Brock
    et al. 2021) or "fixup" initialisation (Zhang et al. 2019). Raises BadInput for other values.
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 3,
        depth: int = 16,
        width: int = 2,
        activation: Literal["silu", "relu"] = "silu",
        scaling: Scaling = "standardised",
    ) -> None:
        super().__init__()
        _check(depth, width)
        validate.choice("activation", activation, _ACTIVATIONS)
        validate.choice("scaling", scaling, ("standardised", "fixup"))
        self.activation, count = activation, (depth - 4) // 6
        blocks: list[nn.Module] = []
        before, expected = 16, 1.0
        for stage, after in enumerate((16 * width, 32 * width, 64 * width)):
            for place in range(count):
                shape = (before, after, 2 if stage and not place else 1, activation)
                changes = before != after or shape[2] != 1
                if scaling == "fixup":
                    blocks.append(_FixupBlock(*shape, 3 * count))
                else:
                    blocks.append(_StandardisedBlock(*shape, expected))
                    expected = math.sqrt((1.0 if changes else expected**2) + _BRANCH**2)
                before = after
        standardised = scaling == "standardised"
        self.stem = StandardisedConv2d(channels, 16, 3) if standardised else nn.Conv2d(channels, 16, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(before, classes)
        if not standardised:
            nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, H, W) to logits (N, classes)."""
        function, gain = _ACTIVATIONS[self.activation]
        features = gain * function(self.blocks(self.stem(x)))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


def _check(depth: int, width: int) -> None:
    # The limits keep a submission of a few bytes from requesting all memory.
    validate.steps("depth", depth)
    validate.steps("width", width)
    if not (10 <= depth <= 100 and depth % 6 == 4):
        message = f"depth is {depth}; it must be 6 n + 4, from 10 to 100"
        raise BadInput(message, code="bad-value", field="depth")
    if width > 16:
        raise BadInput(f"width is {width}; it must be at most 16", code="bad-value", field="width")
