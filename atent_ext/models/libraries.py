"""Networks as other libraries define them: advertorch, pyautoattack, RobustBench, torchvision, timm.

All take images in [0, 1] without normalisation; state dicts have the library's own names. Libraries are imported by the
functions, which raise MissingExtra for one that is not installed, and BadInput for counts that a network does not have.
"""

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from atent_ext.core import compat, validate
from atent_ext.core.errors import BadInput

Activation = Literal["relu", "silu"]
Statistics = Literal["cifar10", "cifar100"]
Size = Literal["tiny", "small", "base", "large"]


def _require(network: str, argument: str, value: int, supported: int) -> None:
    if value != supported:
        message = f"{network} takes {argument}={supported} only, not {value}; choose another model"
        raise BadInput(message, code="unsupported", field=argument)


def lenet5_madry(classes: int = 10, channels: int = 1) -> nn.Module:
    """`LeNet5Madry` of advertorch_examples for 28×28 images: conv 32 and 64 (5×5), fc 3136-1024-classes."""
    compat.advertorch()
    from advertorch_examples.models import LeNet5Madry

    network: nn.Module = LeNet5Madry(nb_filters=(channels, 32, 64), nb_classes=classes)
    # The network flattens the last pooled tensor with `view`, which fails for channels-last tensors.
    network.get_submodule("maxpool2").register_forward_hook(_contiguous)
    return network


def _contiguous(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
    return output.contiguous()


def lenet5_advertorch(classes: int = 10, channels: int = 1) -> nn.Module:
    """`LeNet5` of advertorch for 28×28 images, 1 channel, 10 classes: the class of the two checkpoints it ships."""
    _require("lenet5-advertorch", "classes", classes, 10)
    _require("lenet5-advertorch", "channels", channels, 1)
    compat.advertorch()
    from advertorch.test_utils import LeNet5

    network: nn.Module = LeNet5()
    return network


def resnet18_pyautoattack(classes: int = 10, channels: int = 3) -> nn.Module:
    """pyautoattack's ResNet-18 for 32×32 images: the class of the checkpoint it ships."""
    from pyautoattack.examples.resnet import BasicBlock, ResNet

    _require("resnet-18-pyautoattack", "channels", channels, 3)
    network: nn.Module = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    return network


def resnet18(classes: int = 10, channels: int = 3) -> nn.Module:
    """RobustBench's ResNet-18 for 32×32 images. Raises MissingExtra without the extra `robustbench`."""
    _require("resnet-18", "channels", channels, 3)
    compat.robustbench()
    from robustbench.model_zoo.architectures.resnet import BasicBlock, ResNet

    network: nn.Module = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=classes)
    return network


def preact_resnet18(
    classes: int = 10,
    channels: int = 3,
    activation: Activation = "relu",
    statistics: Statistics = "cifar10",
    bn_before_fc: bool = False,
    out_shortcut: bool = False,
) -> nn.Module:
    """RobustBench's PreActResNet-18 for 32×32 images. Raises MissingExtra without the extra `robustbench`.

    activation: "relu", or "silu" for the network of Gowal et al. 2021 and Rebuffi et al. 2021, which normalises by the
    mean and deviation of the data set `statistics`. bn_before_fc, out_shortcut: variants of the former, both of which
    Rice et al. 2020 use.
    """
    _require("preact-resnet-18", "channels", channels, 3)
    _check_activation(activation)
    compat.robustbench()
    if activation == "silu":
        from robustbench.model_zoo.architectures.dm_wide_resnet import DMPreActResNet

        return _deepmind(DMPreActResNet, classes, statistics, depth=18)
    from robustbench.model_zoo.architectures.resnet import PreActBlock, PreActResNet

    variant = {"bn_before_fc": bn_before_fc, "out_shortcut": out_shortcut}
    network: nn.Module = PreActResNet(PreActBlock, [2, 2, 2, 2], num_classes=classes, **variant)
    return network


def wrn28_10(
    classes: int = 10, channels: int = 3, activation: Activation = "relu", statistics: Statistics = "cifar10"
) -> nn.Module:
    """RobustBench's WideResNet-28-10 for 32×32 images; as `wrn34_10`."""
    return _wide("wrn-28-10", 28, 10, classes, channels, activation, statistics)


def wrn34_10(
    classes: int = 10, channels: int = 3, activation: Activation = "relu", statistics: Statistics = "cifar10"
) -> nn.Module:
    """RobustBench's WideResNet-34-10 for 32×32 images. Raises MissingExtra without the extra `robustbench`.

    activation: "relu" is TRADES' network; "silu" is DeepMind's (Gowal et al. 2020), which normalises by the mean and
    deviation of the data set `statistics`.
    """
    return _wide("wrn-34-10", 34, 10, classes, channels, activation, statistics)


def wrn70_16(
    classes: int = 10, channels: int = 3, activation: Activation = "relu", statistics: Statistics = "cifar10"
) -> nn.Module:
    """RobustBench's WideResNet-70-16 for 32×32 images, 267 million weights; as `wrn34_10`."""
    return _wide("wrn-70-16", 70, 16, classes, channels, activation, statistics)


def _wide(
    name: str, depth: int, width: int, classes: int, channels: int, activation: Activation, statistics: Statistics
) -> nn.Module:
    _require(name, "channels", channels, 3)
    _check_activation(activation)
    compat.robustbench()
    if activation == "silu":
        from robustbench.model_zoo.architectures.dm_wide_resnet import DMWideResNet

        return _deepmind(DMWideResNet, classes, statistics, depth=depth, width=width)
    from robustbench.model_zoo.architectures.wide_resnet import WideResNet

    network: nn.Module = WideResNet(depth=depth, widen_factor=width, num_classes=classes)
    return network


def _check_activation(activation: str) -> None:
    validate.choice("activation", activation, ("relu", "silu"))


def _deepmind(kind: Any, classes: int, statistics: str, **settings: int) -> nn.Module:
    """A network of DeepMind's with SiLU, whose own Swish calls what torch has removed."""
    from robustbench.model_zoo.architectures import dm_wide_resnet

    known = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}
    validate.choice("statistics", statistics, known)
    mean, std = (getattr(dm_wide_resnet, f"{known[statistics]}_{value}") for value in ("MEAN", "STD"))
    network: nn.Module = kind(num_classes=classes, activation_fn=nn.SiLU, mean=mean, std=std, **settings)
    return network


def resnet50(classes: int = 10, channels: int = 3) -> nn.Module:
    """torchvision's ResNet-50, made for 224×224 images; its adaptive pooling allows 32×32 and larger."""
    from torchvision.models import resnet50 as network_class

    _require("resnet-50", "channels", channels, 3)
    network: nn.Module = network_class(weights=None, num_classes=classes)
    return network


def convnext(classes: int = 10, channels: int = 3, size: Size = "tiny") -> nn.Module:
    """timm's ConvNeXt for images of 32×32 and larger, made for 224×224. size: "tiny", "small", "base" or "large".

    Raises MissingExtra without the extra `timm`.
    """
    validate.choice("size", size, ("tiny", "small", "base", "large"))
    return _timm(f"convnext_{size}", num_classes=classes, in_chans=channels)


def vit(
    classes: int = 10, channels: int = 3, size: Size = "small", patch: int = 16, image_size: int = 224
) -> nn.Module:
    """timm's vision transformer. size: "tiny", "small", "base" or "large".

    patch: side of a patch in pixels, 1 to 32; image_size: side of the images, a multiple of it up to 1024. Patches of
    another side than 16 are those of no checkpoint of timm's; 4 suits images of 32×32. Raises MissingExtra without the
    extra `timm`, and BadInput for other values.
    """
    validate.choice("size", size, _VIT)
    validate.steps("patch", patch)
    validate.steps("image_size", image_size)
    if patch > 32 or image_size > 1024 or image_size % patch:
        message = f"image_size is {image_size} and patch {patch}; a multiple of the patch up to 1024 is needed, of 32"
        raise BadInput(message, code="bad-value", field="image_size" if patch <= 32 else "patch")
    return _timm(_VIT[size], num_classes=classes, in_chans=channels, img_size=image_size, patch_size=patch)


_VIT: Mapping[str, str] = {size: f"vit_{size}_patch16_224" for size in ("tiny", "small", "base", "large")}


def _timm(name: str, **settings: int) -> nn.Module:
    network: nn.Module = compat.neighbour("timm", "timm").create_model(name, pretrained=False, **settings)
    return network


def vgg11(classes: int = 10, channels: int = 3) -> nn.Module:
    """torchvision's unchanged VGG-11: made for 224×224 images; its adaptive pooling allows 32×32 and larger."""
    from torchvision.models import vgg11 as network_class

    _require("vgg-11", "channels", channels, 3)
    network: nn.Module = network_class(weights=None, num_classes=classes)
    return network
