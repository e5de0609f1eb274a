"""Layers around a network that are part of the attacked model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


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
