"""Layers around a network that are part of the attacked model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atent_ext.core import outputs
from atent_ext.core.around import Around, Plan, Resizing
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Normalisation, StatedNormalisation


class Normalised(nn.Module):
    """`network` on (x - mean) / std, for images x (N, C, H, W) in [0, 1]; mean and std are buffers (1, C, 1, 1).

    rank: that of x, 4 for images. The state dict does not contain mean and std; its names are those of `network` with
    the prefix "network.".
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float], rank: int = 4) -> None:
        super().__init__()
        self.network = network
        sizes = (1, -1, *[1] * (rank - 2))
        self.register_buffer("mean", torch.tensor(mean).view(sizes), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(sizes), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, classes)."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


class Resized(nn.Module):
    """`network` on images that it resizes itself: a perturbation is one of the images before that."""

    def __init__(self, network: nn.Module, plan: Plan) -> None:
        super().__init__()
        self.network, self.plan = network, plan

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) to logits (N, classes)."""
        logits: Tensor = self.network(self.plan.of(x))
        return logits


@dataclass(frozen=True)
class Surrounded:
    """A network with what stands around it. output: the name of its logits among several results. notes: what is to be
    said."""

    network: nn.Module
    output: str | None
    notes: tuple[str, ...]


def surrounded(network: nn.Module, around: Around, images: Tensor) -> Surrounded:
    """The network behind resizing and normalisation, for float32 images, with its logits alone; or itself.

    images (N, ...), a few of them: it is run on these, as `outputs.adapted` says. Raises BadInput as that, for a
    normalisation of another number of channels, and for a resizing that they do not have room for.
    """
    resizing = around.resize_inside
    inside = images if resizing is None else resizing.plan(images.shape[1:]).of(images)
    fitted = outputs.adapted(network, inside, around.output)
    placed, notes = behind(fitted.network, around, images.shape[1:])
    return Surrounded(placed, fitted.output, (*fitted.notes, *notes))


def behind(network: nn.Module, around: Around, shape: Sequence[int]) -> tuple[nn.Module, tuple[str, ...]]:
    """A network of logits behind resizing and normalisation of images of the shape (C, ...), and what is to be said."""
    made = normalised(network, around.normalisation, shape)
    if around.resize_inside is None:
        return made, ()
    note = f"the network gets images {around.resize_inside}: attacks change the images before that"
    return Resized(made, around.resize_inside.plan(shape)).train(network.training), (note,)


def normalised(network: nn.Module, stated: StatedNormalisation, shape: Sequence[int]) -> nn.Module:
    """The network behind the stated normalisation, or the network itself where none is stated.

    Raises BadInput for a normalisation of another number of channels than the images' (C, ...).
    """
    if not isinstance(stated, Normalisation):
        return network
    if len(stated.mean) != shape[0]:
        message = f"normalisation has {len(stated.mean)} means, and the images have {shape[0]} channels; "
        message += "give one mean and one std per channel"
        raise BadInput(message, code="bad-shape", field="normalisation")
    return Normalised(network, stated.mean, stated.std, len(shape) + 1).train(network.training)


def described(
    name: str,
    stated: StatedNormalisation,
    key: str | None = None,
    output: str | None = None,
    resizing: Resizing | None = None,
) -> str:
    """A network as text, with what the hash of its file does not cover.

    stated: the normalisation. key: the name of the weights in the file, where there was a choice. output: of the
    logits, where there are other results. resizing: that of the network.
    """
    text = name if key is None else f"{name}, weights under {key[:100]!a}"
    text += "" if output is None else f", output {output[:100]!a}"
    text += "" if resizing is None else f", images {resizing} by the network"
    if not isinstance(stated, Normalisation):
        return text
    return f"{text}, images normalised by mean {stated.mean} and std {stated.std}"
