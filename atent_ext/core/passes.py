"""Passes of images through a network, counted: the price of an attack."""

from typing import Any

from torch import Tensor, nn


class Counted(nn.Module):
    """A network that counts its passes: `forward_passes` and, with `backward`, `backward_passes` of one image each.

    It is in the mode of `network` and computes the same.
    """

    def __init__(self, network: nn.Module, backward: bool = False) -> None:
        super().__init__()
        self.network = network
        self.forward_passes = self.backward_passes = 0
        self._backward = backward
        self.training = getattr(network, "training", False)  # frozen TorchScript has no mode

    def forward(self, x: Tensor) -> Any:
        """The network's output, whatever it is."""
        output = self.network(x)
        self.forward_passes += len(x)
        if self._backward and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(self._came_back)  # type: ignore[no-untyped-call]
        return output

    def _came_back(self, gradient: Tensor) -> None:
        self.backward_passes += len(gradient)
