"""Networks by name. All take images in [0, 1] without normalisation and return logits (N, classes).

A factory takes `classes` and `channels`. It raises BadInput if its network supports other counts only.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atent_ext.core import layouts, registry, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import evaluating


def build(name: str, *, classes: int, channels: int, **arguments: Any) -> nn.Module:
    """Build a network of the registry in train mode, initialised from torch's global random state.

    Raises BadInput for an unknown name or argument and for counts that the network does not support, and MissingExtra
    if the network belongs to a library that is not installed.
    """
    factory = registry.resolve("model", name)
    known = inspect.signature(factory).parameters
    for argument in arguments:
        if argument not in known:
            message = str(registry.nearest(f"argument of model {name!r}:", argument, known))
            raise BadInput(message, code="unknown-name", field=argument)
    validate.steps("classes", classes)
    validate.steps("channels", channels)
    network: nn.Module = factory(classes=classes, channels=channels, **arguments)
    return network


def build_for(name: str, images: Tensor, classes: int, **arguments: Any) -> nn.Module:
    """`build` for the channels of `images` (N, C, H, W); the network is tried on the first image.

    Raises BadInput as `build` does, for `classes` or `channels` among the arguments, and if the network cannot take
    images of that size, or the images are (N, H, W, C).
    """
    for argument in {"classes", "channels"} & arguments.keys():
        message = f"{argument} is an argument of model {name!r} that the data set decides; remove it"
        raise BadInput(message, code="unused", field=argument)
    layouts.channels_first(images)
    network = build(name, classes=classes, channels=images.shape[1], **arguments)
    try:
        with evaluating(network), torch.no_grad():
            network(images[:1])
    except RuntimeError as error:
        size = "x".join(map(str, images.shape[1:]))
        reason = str(error).partition("\n")[0]
        message = f"model {name!r} cannot take images of {size} ({reason}); choose another model"
        raise BadInput(message, code="bad-shape", field="images") from None
    return network


class DigitsCNN(nn.Sequential):
    """For 8×8 images: conv 16 and 32 (3×3, padded), max-pool 2, fc 512-100-classes, with ReLU; 57,110 weights."""

    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__(
            *_conv(channels, 16, padding=1),
            *_conv(16, 32, padding=1),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 100),
            nn.ReLU(),
            nn.Linear(100, classes),
        )


class LeNet5V1(nn.Sequential):
    """v1's LeNet5 for 28×28 images (Jagatap et al. 2020, Appendix D): 3 conv with 2 max-pools between them, 1 fc.

    v1 gives no widths. 6, 16 and 120 channels and 5×5 kernels are those of LeNet-5 (LeCun et al. 1998): 51,902 weights
    for 10 classes.
    """

    def __init__(self, classes: int = 10, channels: int = 1) -> None:
        super().__init__(
            *_conv(channels, 6, padding=2, size=5),
            nn.MaxPool2d(2),
            *_conv(6, 16, size=5),
            nn.MaxPool2d(2),
            *_conv(16, 120, size=5),
            nn.Flatten(),
            nn.Linear(120, classes),
        )


class SmallCNN(nn.Module):
    """TRADES' network for 28×28 images (Zhang et al. 2019; ATENT paper A.1): 4 conv, 3 fc, 312,202 weights.

    Convolutions are initialised Kaiming-normal and the last layer with zeros, so that a fresh network returns zero
    logits. dropout: probability in [0, 1) between the first two fully connected layers. width: factor on the channels
    of the convolutions, 1 to 16; a width of 2 gives 711,018 weights. Raises BadInput for other values.
    """

    def __init__(self, classes: int = 10, channels: int = 1, dropout: float = 0.5, width: int = 1) -> None:
        super().__init__()
        number = isinstance(dropout, (int, float))
        if not (number and 0 <= dropout < 1):
            message = f"dropout is {dropout!r}; it must be a probability in [0, 1)"
            raise BadInput(message, code="bad-value" if number else "bad-type", field="dropout")
        check_width(width)
        few, many = 32 * width, 64 * width
        first, second = [*_conv(channels, few), *_conv(few, few)], [*_conv(few, many), *_conv(many, many)]
        self.features = nn.Sequential(*first, nn.MaxPool2d(2), *second, nn.MaxPool2d(2))
        hidden = [nn.Linear(many * 4 * 4, 200), nn.ReLU(), nn.Dropout(dropout), nn.Linear(200, 200), nn.ReLU()]
        last = nn.Linear(200, classes)
        self.classifier = nn.Sequential(nn.Flatten(), *hidden, last)
        _kaiming(self)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, 28, 28) to logits (N, classes)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class ResNet20(nn.Module):
    """ResNet-20 for 32×32 images (He et al. 2016, section 4.2): 3 stages of 3 blocks with 16, 32, 64 channels.

    Shortcuts that change the shape are 1×1 convolutions (option B): 272,474 weights for 3 channels and 10 classes.
    width: factor on the channels, 1 to 16; BadInput otherwise. Global average pooling allows other image sizes.
    """

    def __init__(self, classes: int = 10, channels: int = 3, width: int = 1) -> None:
        super().__init__()
        check_width(width)
        few, more, many = 16 * width, 32 * width, 64 * width
        stages = [(few, few, 1), (few, more, 2), (more, many, 2)]
        blocks = [block for before, after, stride in stages for block in _stage(before, after, stride)]
        self.stem = _conv_norm(channels, few, size=3)
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(many, classes)
        _kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, channels, H, W) to logits (N, classes)."""
        features = self.blocks(F.relu(self.stem(x)))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


class _BasicBlock(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = _conv_norm(before, after, size=3, stride=stride)
        self.second = _conv_norm(after, after, size=3)
        changes = stride != 1 or before != after
        self.shortcut = _conv_norm(before, after, size=1, stride=stride) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def _stage(before: int, after: int, stride: int) -> list[nn.Module]:
    return [_BasicBlock(before, after, stride), _BasicBlock(after, after, 1), _BasicBlock(after, after, 1)]


def _conv(before: int, after: int, padding: int = 0, size: int = 3) -> list[nn.Module]:
    return [nn.Conv2d(before, after, size, padding=padding), nn.ReLU()]


def _conv_norm(before: int, after: int, size: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after))


def check_width(width: int) -> None:
    """Raise BadInput unless `width` is a whole number from 1 to 16."""
    # The limit keeps a submission of a few bytes from requesting all memory.
    whole = isinstance(width, int) and not isinstance(width, bool)
    if not (whole and 1 <= width <= 16):
        message = f"width is {width!r}; it must be a whole number from 1 to 16"
        raise BadInput(message, code="bad-value" if whole else "bad-type", field="width")


def _kaiming(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
