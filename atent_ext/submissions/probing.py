"""What the checks of soundness ask of a network: answers and gradients of fresh copies, drawn with a seed."""

import copy
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from atent_ext.attacks.langevin import scored_gradient
from atent_ext.core import model_state, seeds
from atent_ext.core.losses import margin
from atent_ext.core.norms import LINF
from atent_ext.core.types import Loss

VISIBLE = 0.25
"""Noise of this size, uniform, is seen by anybody: a network that reads images answers differently."""


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Put back modes, `requires_grad`, gradients and buffers, should the network itself have been run."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        with model_state.kept(network):
            yield
    finally:
        for buffer, old in buffers:
            with torch.no_grad():
                buffer.copy_(old)


@contextmanager
def _drawing(seed: int) -> Iterator[None]:
    """Every global source of random numbers seeded for the block; afterwards it is what it was."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 -- a network may use it
    try:
        with model_state.seeded(seed):
            random.seed(seed)
            np.random.seed(seeds.derived(seed, 32))  # noqa: NPY002
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002


@dataclass(frozen=True)
class Probe:
    """A network and the images (N, ...), labels (N,) and seed that it is asked with."""

    network: nn.Module
    images: Tensor
    labels: Tensor
    seed: int

    def fresh(self) -> nn.Module:
        """A copy in the state that the network came in, in its own eval mode; itself where it cannot be copied."""
        try:
            mine = copy.deepcopy(self.network)
        except Exception:  # a network may refuse to be copied in any way
            mine = self.network
        mine.eval()
        mine.requires_grad_(False)
        return mine

    def answer(self, network: nn.Module, images: Tensor, other_seed: int = 0) -> Tensor:
        """Logits (N, classes), drawn with the seed or another."""
        with _drawing(seeds.derived(self.seed + other_seed)), torch.no_grad():
            logits: Tensor = network(images)
        return logits

    def gradient(self, loss: Loss) -> Tensor:
        """The input gradient of a loss, (N, ...)."""
        with _drawing(self.seed):
            return scored_gradient(self.fresh(), loss, self.images, self.labels)[0]

    def margins(self, images: Tensor) -> Tensor:
        """By how much each image is wrong, (N,)."""
        return margin(self.answer(self.fresh(), images), self.labels)

    def noisy(self, size: float = VISIBLE) -> Tensor:
        """The images under uniform noise."""
        generator = seeds.generator(self.seed)
        noise = size * (2 * torch.rand(self.images.shape, generator=generator) - 1)
        return (self.images + noise.to(self.images)).clamp(0, 1)


def drawers(probe: Probe) -> list[str]:
    """The innermost modules during whose call torch's random state moves, each with its class."""
    network = probe.fresh()
    found: list[str] = []
    handles = [handle for name, module in network.named_modules() for handle in _watch(name, module, found)]
    probe.answer(network, probe.images)
    for handle in handles:
        handle.remove()
    inner = [name for name in found if not any(_inside(other, name) for other in found)]
    return [called(name, network.get_submodule(name)) for name in dict.fromkeys(inner)]


def _watch(name: str, module: nn.Module, found: list[str]) -> Iterator[torch.utils.hooks.RemovableHandle]:
    states: list[Tensor] = []

    def before(*_: object) -> None:
        states.append(torch.get_rng_state())

    def after(*_: object) -> None:
        if not torch.equal(states.pop(), torch.get_rng_state()):
            found.append(name)

    yield module.register_forward_pre_hook(before)
    yield module.register_forward_hook(after)


def _inside(name: str, outer: str) -> bool:
    return name != outer and (not outer or name.startswith(f"{outer}."))


def vanishing(gradient: Tensor) -> Tensor:
    """Which images of a gradient (N, ...) have none: zero, or below what float32 holds in full precision, (N,) bool."""
    return LINF.size(gradient) < torch.finfo(torch.float32).tiny


def apart(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Which rows (N, classes) differ by more than a share of the largest entry, (N,) bool."""
    # NaN is apart from everything: a network that breaks on the way is not the same.
    return ~((one - other).abs().amax(1) <= tolerance * one.abs().max())


def called(name: str, module: nn.Module) -> str:
    """A module in words."""
    return f"{name or 'the network'} ({type(module).__name__})"


def listed(names: Sequence[str]) -> str:
    """The first few of many names."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def line(error: Exception) -> str:
    """An error in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
