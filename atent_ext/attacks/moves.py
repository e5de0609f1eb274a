"""What a step of the Langevin kernel is made of, by name: directions, pulls, starts and schedules."""

import math
from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from atent_ext.core.box import Box, clamp
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import L2, LINF, Norm, gaussian, per_example
from atent_ext.core.types import Radius

Generator: TypeAlias = torch.Generator | None
Pull = Literal["authors", "paper", "coordinate"]
Project = Literal["every", "last", "never", "reflect"]
Schedule = Literal["constant", "cosine", "linear"]

NEAR = 1e-3
"""Standard deviation of the "near" start of TRADES and MART."""

BLOCK = 4
"""Side of a block of the start "blocks", in pixels."""


def _unit_or_random(gradient: Tensor, generator: Generator) -> Tensor:
    # A zero gradient (TRADES starts near the clean image, where its KL is flat) is replaced by a random direction.
    size = per_example(LINF.size(gradient), gradient)
    return L2.steepest(torch.where(size == 0, gaussian(gradient, generator), gradient))


DIRECTIONS: Mapping[str, Callable[[Tensor, Generator], Tensor]] = {
    "sign": lambda gradient, _: LINF.steepest(gradient),
    "unit": lambda gradient, _: L2.steepest(gradient),
    "unit-or-random": _unit_or_random,
    "raw": lambda gradient, _: gradient,
}


def _largest_coordinate(displacement: Tensor) -> Tensor:
    """The sign of each example's entry of largest absolute value, zero elsewhere (v1 Eq. 13)."""
    flat = displacement.flatten(1)
    largest = flat.abs().argmax(1, keepdim=True)
    return torch.zeros_like(flat).scatter(1, largest, flat.gather(1, largest).sign()).view_as(displacement)


PULLS: Mapping[str, Callable[[Tensor, float, Radius], Tensor]] = {
    "authors": lambda back, gamma, step: gamma * back,
    "paper": lambda back, gamma, step: step * gamma * back,
    "coordinate": lambda back, gamma, step: gamma * _largest_coordinate(back),
}
"""(x - x', gamma, step size) -> displacement. Only the paper, not the authors' code, multiplies by the step size."""


def _blocks(x: Tensor, generator: Generator) -> Tensor:
    """Random signs of the shape of `x` (N, C, H, W), constant within blocks of 4 x 4 pixels of a channel."""
    if x.dim() != 4:
        message = f"the start is 'blocks' and the inputs have shape {tuple(x.shape)}; it needs images (N, C, H, W)"
        raise BadInput(message, code="bad-shape", field="start")
    signs = gaussian(x[..., ::BLOCK, ::BLOCK], generator).sign()
    return signs.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[..., : x.shape[2], : x.shape[3]]


STARTS: Mapping[str, Callable[[Tensor, Norm, Radius, Generator], Tensor]] = {
    "uniform": lambda x, norm, eps, generator: x + LINF.random(x, eps, generator),
    "ball": lambda x, norm, eps, generator: x + L2.random(x, eps, generator),
    "corner": lambda x, norm, eps, generator: x + per_example(eps, x) * gaussian(x, generator).sign(),
    "blocks": lambda x, norm, eps, generator: x + per_example(eps, x) * _blocks(x, generator),
    "near": lambda x, norm, eps, generator: x + NEAR * gaussian(x, generator),
    "clean": lambda x, norm, eps, generator: x.clone(),
}


def reflect(x: Tensor, moved: Tensor, norm: Norm, eps: Radius, box: Box) -> Tensor:
    """`moved` (N, ...), where it left the eps ball around x or the box, mirrored back at the border."""
    delta = moved - x
    delta = norm.project(2 * norm.project(delta, eps) - delta, eps)
    moved = x + delta
    return clamp(2 * clamp(moved, box) - moved, box)


SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
}
"""k / K, the share of the chain that is done, to the factor of the step size and of the temperature at step k."""
