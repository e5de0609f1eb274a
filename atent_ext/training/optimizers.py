"""Optimizers and learning rates of a recipe, as validated data that build the torch objects."""

import inspect
import math
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.optim import lr_scheduler

from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Count, Growing, Positive, Share
from atent_ext.training.entropy_sgd import EntropySGD

_KINDS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "entropy-sgd": EntropySGD}


class Optimizer(Growing):
    """The optimizer: torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, or `entropy_sgd.EntropySGD`.

    weight_decay: an L2 penalty; AdamW decays the weights themselves. momentum: not used by Adam and AdamW. nesterov:
    Nesterov's momentum, for SGD only. arguments: only for Entropy-SGD: steps, gamma, h, noise, average, outer.
    """

    added: ClassVar[frozenset[str]] = frozenset({"nesterov"})

    name: Literal["sgd", "adam", "adamw", "entropy-sgd"] = "sgd"
    lr: Positive
    momentum: Share = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    # Left to right: PyYAML reads 1e-3 as a text, and 5 steps must stay an int.
    arguments: dict[str, Annotated[int | float | str, Field(union_mode="left_to_right")]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _arguments_apply(self) -> "Optimizer":
        if self.nesterov and (self.name != "sgd" or not self.momentum):
            what = "has no Nesterov momentum" if self.name != "sgd" else "needs a momentum above 0 for it"
            message = f"optimizer.nesterov is true, and {self.name} {what}; set it to false, or change the other"
            raise BadInput(message, code="conflict", field="optimizer.nesterov")
        self.build([torch.zeros(1, requires_grad=True)])
        return self

    @property
    def needs_closure(self) -> bool:
        """Whether `step` needs a closure, because it computes gradients at several points."""
        return self.name == "entropy-sgd"

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimizer over `parameters`. Raises BadInput for arguments that it does not take."""
        given: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay, **self.arguments}
        known = inspect.signature(EntropySGD).parameters if self.name == "entropy-sgd" else {}
        for argument in sorted(self.arguments.keys() - (known.keys() - {"params", *type(self).model_fields})):
            message = f"optimizer.arguments.{argument} is not an argument of {self.name}; remove it"
            raise BadInput(message, code="unused", field=f"optimizer.arguments.{argument}")
        if self.name in ("sgd", "entropy-sgd"):
            given["momentum"] = self.momentum
        if self.name == "sgd":
            given["nesterov"] = self.nesterov
        optimizer: torch.optim.Optimizer = _KINDS[self.name](parameters, **given)
        return optimizer


class Schedule(Growing):
    """The learning rate.

    constant; multi-step: multiplied by `factor` at each epoch of `milestones`; one-cycle: up to lr, then down to 0;
    cosine: from lr to 0 by half a cosine.
    warmup: the share of the training, in [0, 1), in which the rate rises: of one-cycle, by default 0.3, and linearly of
    cosine, by default 0.
    """

    added: ClassVar[frozenset[str]] = frozenset({"factor"})

    name: Literal["constant", "multi-step", "one-cycle", "cosine"] = "constant"
    milestones: tuple[Count, ...] = ()
    factor: Positive = 0.1
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.3

    @model_validator(mode="before")
    @classmethod
    def _no_warmup_of_cosine(cls, given: Any) -> Any:
        return {"warmup": 0.0, **given} if isinstance(given, dict) and given.get("name") == "cosine" else given

    def build(self, optimizer: torch.optim.Optimizer, epochs: int, steps: int) -> lr_scheduler.LRScheduler:
        """A scheduler to step once per optimizer step, of which an epoch has `steps`."""
        lr, total, warmup = optimizer.param_groups[0]["lr"], epochs * steps, self.warmup
        if self.name == "cosine":
            return lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step, total, warmup * total))
        if self.name == "one-cycle":
            if warmup * total == 1:
                message = f"schedule.warmup is {warmup}, exactly one of {total} steps; choose another share"
                raise BadInput(message, code="bad-value", field="schedule.warmup")
            return lr_scheduler.OneCycleLR(optimizer, lr, total_steps=total, pct_start=warmup, cycle_momentum=False)
        milestones = [epoch * steps for epoch in self.milestones] if self.name == "multi-step" else []
        return lr_scheduler.MultiStepLR(optimizer, milestones, gamma=self.factor)


def _cosine(step: int, total: int, rise: float) -> float:
    """The share of the learning rate at a step: it rises over the first `rise` steps, then falls."""
    if step < rise:
        return (step + 1) / (rise + 1)
    return (1 + math.cos(math.pi * (step - rise) / (total - rise))) / 2
