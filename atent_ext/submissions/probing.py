"""Outputs and input gradients of fresh copies of a network, with seeded random numbers; used by the checks."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atent_ext.attacks.langevin import scored_gradient
from atent_ext.core import model_state, seeds
from atent_ext.core.losses import margin
from atent_ext.core.norms import LINF
from atent_ext.core.types import Loss

VISIBLE = 0.25
"""Half-width of uniform noise that anybody sees; it changes the logits of a network that depends on its input."""


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Restore modes, `requires_grad`, gradients and buffers afterwards."""
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        with model_state.kept(network):
            yield
    finally:
        for buffer, old in buffers:
            with torch.no_grad():
                buffer.copy_(old)


@dataclass(frozen=True)
class Probe:
    """A network with images (N, ...) in [0, 1], labels (N,) and a seed for what it draws."""

    network: nn.Module
    images: Tensor
    labels: Tensor
    seed: int

    def fresh(self) -> nn.Module:
        """A frozen copy in eval mode, with the state that the network came in; itself where it cannot be copied."""
        try:
            network = copy.deepcopy(self.network)
        except Exception:  # copying may fail in any way
            network = self.network
        network.eval()
        network.requires_grad_(False)
        return network

    def answer(self, network: nn.Module, images: Tensor, other_seed: int = 0) -> Tensor:
        """Logits (N, classes) of `network`, without gradients; what it draws is seeded with seed + other_seed."""
        with model_state.seeded(seeds.derived(self.seed + other_seed)), torch.no_grad():
            logits: Tensor = network(images)
        return logits

    def gradient(self, loss: Loss) -> Tensor:
        """The gradient of a loss with respect to the images, (N, ...)."""
        with model_state.seeded(self.seed):
            return scored_gradient(self.fresh(), loss, self.images, self.labels)[0]

    def margins(self, images: Tensor) -> Tensor:
        """The margin loss of each image, (N,): the largest wrong logit minus that of the label."""
        return margin(self.answer(self.fresh(), images), self.labels)

    def noisy(self, size: float = VISIBLE) -> Tensor:
        """The images with uniform noise in [-size, size], clipped to [0, 1]."""
        generator = seeds.generator(self.seed)
        noise = size * (2 * torch.rand(self.images.shape, generator=generator) - 1)
        return (self.images + noise.to(self.images)).clamp(0, 1)


def drawers(probe: Probe) -> list[str]:
    """The innermost modules that draw random numbers: those whose call changes torch's random state."""
    network = probe.fresh()
    random: list[str] = []
    handles = [handle for name, module in network.named_modules() for handle in _watch(name, module, random)]
    probe.answer(network, probe.images)
    for handle in handles:
        handle.remove()
    inner = [name for name in random if not any(_inside(other, name) for other in random)]
    return [described(name, network.get_submodule(name)) for name in dict.fromkeys(inner)]


def _watch(name: str, module: nn.Module, random: list[str]) -> Iterator[torch.utils.hooks.RemovableHandle]:
    """Hooks that append `name` to `random` whenever a call of `module` changes torch's random state."""
    states: list[Tensor] = []

    def before(*_: object) -> None:
        states.append(torch.get_rng_state())

    def after(*_: object) -> None:
        if not torch.equal(states.pop(), torch.get_rng_state()):
            random.append(name)

    yield module.register_forward_pre_hook(before)
    yield module.register_forward_hook(after)


def _inside(name: str, outer: str) -> bool:
    return name != outer and (not outer or name.startswith(f"{outer}."))


def vanishing(gradient: Tensor) -> Tensor:
    """Which gradients of (N, ...) are zero or below the smallest normal float32, (N,) bool."""
    return LINF.size(gradient) < torch.finfo(torch.float32).tiny


def differs(logits: Tensor, others: Tensor, tolerance: float = 1e-5) -> Tensor:
    """Which rows of two (N, classes) differ by more than tolerance times the largest |logit|, (N,) bool; NaN does."""
    return ~((logits - others).abs().amax(1) <= tolerance * logits.abs().max())


def described(name: str, module: nn.Module) -> str:
    """A module as text: its name and its class."""
    return f"{name or 'the network'} ({type(module).__name__})"


def listed(names: Sequence[str]) -> str:
    """The first five names as text."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def line(error: Exception) -> str:
    """An error in one short line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
