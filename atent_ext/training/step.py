"""One optimizer step: an objective's terms, parts of a batch, adversarial weight perturbation, clipped gradients."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from atent_ext.attacks.replay import Tape
from atent_ext.core.errors import NonFiniteLoss
from atent_ext.core.norms import SharedGenerator
from atent_ext.core.types import Objective
from atent_ext.training.batches import Batch
from atent_ext.training.recipes import AWP, Recipe

_TINY = 1e-20
"""Added to the norm of a gradient (the authors' code of AWP)."""


class Counted(nn.Module):
    """A network that counts the examples that pass it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.examples = network, 0

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (N, ...) to the network's logits."""
        self.examples += len(x)
        logits: Tensor = self.network(x)
        return logits


@dataclass
class Stepper:
    """Makes the optimizer steps of a training, of a model as Accelerate prepared it."""

    recipe: Recipe
    accelerator: Accelerator
    model: nn.Module
    optimizer: Any
    seen: int = 0  # examples since the last report of costs

    def __post_init__(self) -> None:
        # Passes are counted where they cost more than an objective says.
        self.called = Counted(self.model) if self.recipe.awp else self.model

    def costs(self) -> dict[str, float]:
        """With `awp`, the forward passes of each example in a step since the last call, as a line of the metrics."""
        if not isinstance(self.called, Counted):
            return {}
        passes = round(self.called.examples / self.seen, 2)
        self.called.examples = self.seen = 0
        return {"passes": passes}

    def __call__(self, objective: Objective, batch: Batch, generator: SharedGenerator, perturbs: bool) -> float:
        """Make one step and return the mean loss of this process's share at the weights before it.

        perturbs: take the gradient at weights perturbed by the recipe's `awp`. Raises NonFiniteLoss, before the weights
        change.
        """
        losses: list[float] = []
        self.seen += len(batch.rows)

        def closure() -> float:
            loss = self._gradients(objective, batch, generator, self.recipe.awp if perturbs else None)
            if self.recipe.clip is not None:
                self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
            losses.append(loss)
            return loss

        if self.recipe.optimizer.needs_closure:
            self.optimizer.step(closure)
        else:  # a scaled (fp16) step takes none
            closure()
            self.optimizer.step()
        return losses[0]

    def _gradients(self, objective: Objective, batch: Batch, generator: SharedGenerator, awp: AWP | None) -> float:
        """Leave the gradients of the batch on the weights, and return its loss at the weights themselves."""
        if awp is None:
            return self._pass(objective, batch, generator)
        start, generator.tape = generator.get_state(), Tape()
        try:
            with _statistics_kept(self.model):
                loss = self._pass(objective, batch, generator)
            with _perturbed(self.model, awp.gamma):
                generator.set_state(start)
                generator.tape.replaying = True
                self._pass(objective, batch, generator)
        finally:
            generator.tape = None
        return loss

    def _pass(self, objective: Objective, batch: Batch, generator: SharedGenerator) -> float:
        """Replace the gradients by those of the objective, part by part; return the mean loss."""
        self.optimizer.zero_grad()
        parts = list(batch.parts(self.recipe.accumulate))
        start, total = generator.get_state(), 0.0
        for position, part in enumerate(parts):
            if position:  # draws are made for the whole batch, of which each part takes its rows
                generator.set_state(start)
            generator.total, generator.rows = part.total, part.rows
            terms = objective(self.called, part.images, part.labels, part.index, generator=generator)
            bounds = getattr(objective, "bounds", False) and self.recipe.mixed_precision == "bf16"
            loss = self._backpropagate(objective.terms, terms, part.weight, position + 1 == len(parts), bounds)
            total += len(part.rows) / len(batch.rows) * loss
        if not math.isfinite(total):
            raise NonFiniteLoss(f"the loss is {total}")
        return total

    def _backpropagate(
        self, count: int, terms: Iterator[Tensor], weight: float, last_part: bool, bounds: bool
    ) -> float:
        """Back-propagate each of `count` terms, times `weight`, before the next; return the sum of the terms.

        bounds: whether interval bounds are computed in bfloat16; float16 would overflow.

        Processes exchange gradients for the last term of the last part only; the other passes run without it.
        """
        loss = torch.zeros((), device=self.accelerator.device)
        for position in range(count):
            last = last_part and position == count - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast() if bounds else nullcontext():  # bounds go around the model's forward
                    term = next(terms)
                self.accelerator.backward(weight * term)
            loss = loss + term.detach()  # in the wider dtype of the two
        return float(loss)


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Restore the buffers, such as BatchNorm's running statistics, after the block."""
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)


@contextmanager
def _perturbed(model: nn.Module, gamma: float) -> Iterator[None]:
    """Move each weight of rank 2 or more by gamma |w| along its gradient for the block; not where that is NaN."""
    moved = []
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1 and p.grad is not None:
                along = p.norm() / (p.grad.norm() + _TINY) * p.grad
                moved.append((p, p.clone()))
                p.add_(torch.where(along.isfinite().all(), along, torch.zeros_like(along)), alpha=gamma)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in moved:
                p.copy_(value)
