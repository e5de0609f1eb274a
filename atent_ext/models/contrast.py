"""A small network for near-binary images such as MNIST's, to be trained on interval bounds.

Its first layer saturates: with eps at most `low` and at most 1 - `high`, a pixel of 0 or 1 stays exactly 0 or 1 in the
whole ball, so that only grey pixels are intervals. Gradients vanish in the saturated pixels, and with them the strength
of gradient attacks: publish what interval bounds prove, and attack it without gradients as well.
"""

import math

from torch import Tensor, nn

from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.models.networks import check_width

_CLOSEST = 1e-3


class Contrast(nn.Module):
    """clamp((x - low) / (high - low), 0, 1), elementwise.

    Raises BadInput unless 0 <= low, high <= 1, and low lies at least 0.001 below high, so that float32 can divide.
    """

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        for name, value in (("low", low), ("high", high)):
            validate.number(name, value)
        if high > 1:
            raise BadInput(f"high is {high}; it must be at most 1", code="bad-value", field="high")
        if high - low < _CLOSEST:
            message = f"low is {low} and high is {high}; low must lie at least {_CLOSEST} below high"
            raise BadInput(message, code="bad-value", field="low")
        self._low, self._high = low, high

    @property
    def low(self) -> float:
        """Up to which value the output is 0."""
        return self._low

    @property
    def high(self) -> float:
        """From which value on the output is 1."""
        return self._high

    def forward(self, x: Tensor) -> Tensor:
        """Inputs of any shape to outputs in [0, 1] of the same shape."""
        return ((x - self.low) / (self.high - self.low)).clamp(0, 1)

    def extra_repr(self) -> str:
        """The two limits."""
        return f"{self.low}, {self.high}"


class ContrastCNN(nn.Sequential):
    """For 28×28 images: `Contrast`, conv 32 (7×7) and 64 (5×5) of stride 2, fc 256, with ReLU.

    It has 465,290 weights. They are drawn with deviation sqrt(2 pi) / fan-in, for which interval widths neither grow
    nor vanish from layer to layer (Shi et al. 2021, "Fast certified robust training with short warmup"). low, high:
    where the first layer saturates. width: factor on the channels of the convolutions, 1 to 16. hidden: units of the
    fully connected layer, at most 4096. Raises BadInput for other values.
    """

    def __init__(
        self,
        classes: int = 10,
        channels: int = 1,
        low: float = 0.3,
        high: float = 0.7,
        width: int = 1,
        hidden: int = 256,
    ) -> None:
        check_width(width)
        validate.steps("hidden", hidden)
        if hidden > 4096:  # as for the width: a submission of a few bytes must not take all memory
            raise BadInput(f"hidden is {hidden}; it must be at most 4096", code="bad-value", field="hidden")
        few, many = 32 * width, 64 * width
        super().__init__(
            Contrast(low, high),
            nn.Conv2d(channels, few, 7, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(few, many, 5, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(many * 5 * 5, hidden),
            nn.ReLU(),
            nn.Linear(hidden, classes),
        )
        for layer in self:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(layer.weight, std=math.sqrt(2 * math.pi) / layer.weight[0].numel())
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
