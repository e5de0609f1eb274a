"""Gradients straight through layers that saturate (Bengio et al. 2013; the BPDA attack of Athalye et al. 2018).

A layer that saturates passes no gradient where it does, so that an attack by gradients does not see what lies beyond.
Backwards it counts as the identity here. Only layers are found, no functions that a `forward` calls, such as
`torch.clamp`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from atent_ext.models.contrast import Contrast

SATURATING = (nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softsign, Contrast)
"""Layers whose output is bounded; ReLU6 is a Hardtanh."""


@contextmanager
def straight_through(model: nn.Module) -> Iterator[int]:
    """Let gradients pass `SATURATING` layers of `model` unchanged in the block; yields how many such layers there are.

    Outputs stay what they are. The hooks are removed afterwards, also after an exception.
    """
    layers = [module for module in model.modules() if isinstance(module, SATURATING)]
    with ExitStack() as hooks:
        for layer in layers:
            hooks.enter_context(layer.register_forward_hook(_straight))
        yield len(layers)


def _straight(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    x: Tensor = inputs[0]
    return x + (output - x).detach()
