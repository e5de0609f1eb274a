"""Context managers that restore a model's mode, requires_grad and gradients and the random state, also on errors."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar, overload

import numpy as np
import torch
from torch import nn

from atent_ext.core import seeds

Default = TypeVar("Default", torch.device, None)
_CPU = torch.device("cpu")


def _modules(model: object) -> list[nn.Module]:
    """The modules that have a mode; those of a frozen TorchScript module are in eval mode for ever and have none."""
    return [module for module in _all_modules(model) if hasattr(module, "training")]


def _all_modules(model: object) -> list[nn.Module]:
    return list(model.modules()) if isinstance(model, nn.Module) else []


@overload
def device_of(model: object) -> torch.device: ...
@overload
def device_of(model: object, default: Default) -> torch.device | Default: ...
def device_of(model: object, default: torch.device | None = _CPU) -> torch.device | None:
    """The device of the model's first parameter, else of its first buffer; `default` if it has neither."""
    tensors = chain(model.parameters(), model.buffers()) if isinstance(model, nn.Module) else iter(())
    return next((tensor.device for tensor in tensors), default)


def is_training(model: object) -> bool:
    """Whether any module of the model is in train mode; False for a plain function."""
    return any(module.training for module in _modules(model))


@contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Put the model into eval mode for the block. Each module's own mode is restored afterwards.

    Frozen TorchScript modules have no mode. In the block their `training` is False, since some packages read it.
    """
    modes = [(module, module.training) for module in _modules(model)]
    others = [module for module in _all_modules(model) if not hasattr(module, "training")]
    try:
        for module in (*(module for module, _ in modes), *others):
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for module in others:
            del module.training


@contextmanager
def frozen(model: object) -> Iterator[None]:
    """Set `requires_grad` of all parameters to False for the block and restore it afterwards."""
    trainable = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def full_precision(model: object) -> Iterator[None]:
    """Compute in the precision of the weights in the block: without autocast, also the one that Accelerate wraps."""
    wrapped = [module for module in _all_modules(model) if "_original_forward" in vars(module)]
    before = [module.forward for module in wrapped]
    try:
        for module in wrapped:
            setattr(module, "forward", module._original_forward)  # noqa: B010 -- mypy takes it for a submodule
        with torch.autocast(device_of(model).type, enabled=False):
            yield
    finally:
        for module, forward in zip(wrapped, before, strict=True):
            module.forward = forward


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global random states of torch, NumPy and Python for the block, and restore them afterwards.

    Raises BadInput for an invalid seed.
    """
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 -- a network may use it
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        seeds.everywhere(seed)
        random.seed(int(seed))
        np.random.seed(seeds.derived(seed, 32))  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def kept(model: object) -> Iterator[None]:
    """Restore modes, `requires_grad` and gradients after a block in which another library uses the model."""
    modes = [(module, module.training) for module in _modules(model)]
    parameters = list(model.parameters()) if isinstance(model, nn.Module) else []
    states = [(p, p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in parameters]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, trainable, gradient, values in states:
            parameter.requires_grad_(trainable)
            parameter.grad = gradient  # the same tensor: it may be a view of a buffer of all gradients
            if gradient is not None and values is not None:
                with torch.no_grad():
                    gradient.copy_(values)
