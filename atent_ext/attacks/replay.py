"""Chains that are recorded in one call of an objective and replayed in the next one, without a gradient."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

Chain: TypeAlias = list[tuple[Tensor, Tensor]]
"""The iterates of a chain, and the state of the generator after each of them."""


@dataclass
class Tape:
    """The chains of one batch. `langevin.walk` records them, or replays them once `replaying` is set.

    It hangs at a `SharedGenerator`, which an objective passes on. A call that replays starts from the generator's state
    at the start of the recorded one; then it sees the same draws and the same iterates x'.
    """

    chains: deque[Chain] = field(default_factory=deque)
    replaying: bool = False

    def play(self, chain: Iterator[Tensor], generator: torch.Generator) -> Iterator[Tensor]:
        """Yield the iterates of `chain`, or those that were recorded in its place."""
        if self.replaying:
            for iterate, state in self.chains.popleft():
                generator.set_state(state)
                yield iterate
            return
        recorded: Chain = []
        self.chains.append(recorded)
        for iterate in chain:
            recorded.append((iterate.detach(), generator.get_state()))
            yield iterate
