"""Gradients straight through layers that saturate (Bengio et al. 2013; the BPDA attack of Athalye et al. 2018).

A layer that saturates passes no gradient where it does, so that an attack by gradients does not see what lies beyond.
Backwards it counts as the identity here. Only layers are found, no functions that a `forward` calls, such as
`torch.clamp`, and no layers of an exported program.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.models.contrast import Contrast

SATURATING = (nn.Hardtanh, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.Softsign, Contrast)
"""Layers whose output is bounded; ReLU6 is a Hardtanh."""


@contextmanager
def straight_through(model: nn.Module) -> Iterator[int]:
    """Let gradients pass `SATURATING` layers of `model` unchanged in the block; yields how many such layers there are.

    Outputs stay bit for bit what they are. In the block a network that `Module.compile` compiled runs uncompiled, since
    what was compiled before knows no hooks. Everything is put back afterwards, also after an exception.
    """
    layers = [module for module in model.modules() if isinstance(module, SATURATING)]
    with ExitStack() as stack:
        for module in model.modules():
            if module._compiled_call_impl is not None:
                stack.enter_context(_set(module, "_compiled_call_impl", None))
        for layer in layers:
            if getattr(layer, "inplace", False):
                stack.enter_context(_set(layer, "inplace", False))  # the hook needs the input
            stack.enter_context(layer.register_forward_hook(_straight, with_kwargs=True))
        yield len(layers)


@contextmanager
def _set(module: nn.Module, name: str, value: object) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _straight(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
    x = inputs[0] if inputs else next(iter(named.values()))
    result: Tensor = _Straight.apply(x, output)
    return result


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, output: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].to(ctx.dtype), None
