"""Layers around a network that are part of the attacked model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Normalisation, StatedNormalisation


class Normalised(nn.Module):
    """`network` on (x - mean) / std, for images x (N, C, H, W) in [0, 1]; mean and std are buffers (1, C, 1, 1).

    The state dict does not contain them; its names are those of `network` with the prefix "network.".
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1] to logits (N, classes)."""
        logits: Tensor = self.network((x - self.mean) / self.std)
        return logits


def normalised(network: nn.Module, stated: StatedNormalisation, channels: int) -> nn.Module:
    """The network behind the stated normalisation, or the network itself where none is stated.

    Raises BadInput for a normalisation of another number of channels than the images'.
    """
    if not isinstance(stated, Normalisation):
        return network
    if len(stated.mean) != channels:
        message = f"normalisation has {len(stated.mean)} means, and the images have {channels} channels; "
        message += "give one mean and one std per channel"
        raise BadInput(message, code="bad-shape", field="normalisation")
    return Normalised(network, stated.mean, stated.std)


def described(name: str, stated: StatedNormalisation, key: str | None = None) -> str:
    """A network as text, with what the hash of its file does not cover.

    stated: the normalisation. key: the name of the weights in the file, where there was a choice.
    """
    text = name if key is None else f"{name}, weights under {key[:100]!a}"
    if not isinstance(stated, Normalisation):
        return text
    return f"{text}, images normalised by mean {stated.mean} and std {stated.std}"
