"""Leave the model as it was found: mode, requires_grad and random state, also after an exception."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar, overload

import torch
from torch import nn

from atent_ext.core import validate

Default = TypeVar("Default", torch.device, None)
_CPU = torch.device("cpu")


def _modules(model: object) -> list[nn.Module]:
    return list(model.modules()) if isinstance(model, nn.Module) else []


@overload
def device_of(model: object) -> torch.device: ...
@overload
def device_of(model: object, default: Default) -> torch.device | Default: ...
def device_of(model: object, default: torch.device | None = _CPU) -> torch.device | None:
    """Where the model's first parameter is, or its first buffer; `default` for a model of neither, or a function."""
    tensors = chain(model.parameters(), model.buffers()) if isinstance(model, nn.Module) else iter(())
    return next((tensor.device for tensor in tensors), default)


def is_training(model: object) -> bool:
    """Whether any part of the model is in train mode (a plain function never is)."""
    return any(module.training for module in _modules(model))


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Put the model into eval mode; afterwards each module is back in its own mode (some BatchNorm may be frozen)."""
    modes = [(module, module.training) for module in _modules(model)]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def frozen(model: object) -> Iterator[None]:
    """Switch off the gradients of all parameters; afterwards each has the `requires_grad` it had."""
    trainable = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global random state for the block; afterwards it is what it was.

    Raises BadInput for what is no seed.
    """
    validate.seed(seed)
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


@contextmanager
def kept(model: object) -> Iterator[None]:
    """Let another library work with the model; afterwards modes, `requires_grad` and gradients are what they were."""
    modes = [(module, module.training) for module in _modules(model)]
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    found = [(p, p.requires_grad, None if p.grad is None else p.grad.clone()) for p in parameters]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, trainable, gradient in found:
            parameter.requires_grad_(trainable)
            parameter.grad = gradient
