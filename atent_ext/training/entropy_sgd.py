"""Entropy-SGD (Chaudhari et al. 2017, Algorithm 1) as a torch optimizer."""

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import gaussian


class EntropySGD(Optimizer):
    """Descent on the local entropy of the loss around the weights w.

    Each step makes `steps` inner steps  w' <- w' - h (grad L(w') + gamma (w' - w)) + sqrt(2 h) noise N(0, I)  from
    w' = w, with the running mean  mu <- average mu + (1 - average) w'  from mu = w. The outer step is lr times w - mu
    (outer "authors": the authors' code and ATENT) or lr times gamma (w - mu) (outer "paper"). Weight decay adds
    weight_decay w to the direction; momentum is that of SGD.
    lr, momentum, weight_decay, gamma, h, noise: >= 0. steps: >= 1. average: in [0, 1). The noise is seeded from torch's
    global random state. Raises BadInput for other values and for a step without a closure.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        steps: int = 5,
        gamma: float = 1e-3,
        h: float = 0.1,
        noise: float = 1e-4,
        average: float = 0.75,
        outer: Literal["authors", "paper"] = "authors",
    ) -> None:
        validate.steps("steps", steps)
        settings = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "gamma": gamma,
            "h": h,
            "noise": noise,
            "average": average,
        }
        for name, value in settings.items():
            validate.radius(name, value)
        if average >= 1:
            raise BadInput(f"average is {average}; it must lie in [0, 1)", code="bad-value", field="average")
        validate.choice("outer", outer, ("authors", "paper"))
        super().__init__(params, {**settings, "steps": steps, "outer": outer})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one outer step and return the loss at the weights before it.

        `closure` clears the gradients, back-propagates and returns the loss; it is called once per inner step. The
        weights are unchanged if it raises. Raises BadInput without a closure, and if `steps` differs between groups.
        """
        if closure is None:
            message = "Entropy-SGD was stepped without a closure; write optimizer.step(closure)"
            raise BadInput(message, code="missing", field="closure")
        weights = [(group, p) for group in self.param_groups for p in group["params"] if p.requires_grad]
        start = [p.clone() for _, p in weights]
        means = [p.clone() for _, p in weights]
        generator = _shared_generator(self.param_groups[0]["params"][0].device)
        losses = []
        try:
            for _ in range(self._steps()):
                with torch.enable_grad():
                    losses.append(closure())
                for (group, p), w, mean in zip(weights, start, means, strict=True):
                    _inner_step(group, p, w, mean, generator)
        finally:  # also after an exception of the closure
            for (_, p), w in zip(weights, start, strict=True):
                p.copy_(w)
        for (group, p), mean in zip(weights, means, strict=True):
            self._outer_step(group, p, mean)
        return losses[0]

    def _steps(self) -> int:
        """The inner steps of the groups, which load_state_dict may have changed."""
        counts: set[int] = {group["steps"] for group in self.param_groups}
        if len(counts) > 1:
            message = f"steps is {sorted(counts)} in different parameter groups; it must be one number for all"
            raise BadInput(message, code="conflict", field="steps")
        return counts.pop()

    def _outer_step(self, group: dict[str, Any], p: Tensor, mean: Tensor) -> None:
        if p.grad is None:  # SGD does not change such weights either, not even by weight decay
            return
        direction = (p - mean) * (group["gamma"] if group["outer"] == "paper" else 1.0) + group["weight_decay"] * p
        if group["momentum"]:
            state = self.state[p]
            before = state.get("momentum_buffer")
            direction = direction if before is None else group["momentum"] * before + direction
            state["momentum_buffer"] = direction
        p.sub_(group["lr"] * direction)


def _shared_generator(device: torch.device) -> torch.Generator:
    """A generator with the same seed in all processes; different noise would make their weights differ."""
    seed = torch.randint(2**62, (1,), device=device)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast(seed, 0)
    return torch.Generator(device).manual_seed(int(seed))


def _inner_step(group: dict[str, Any], p: Tensor, w: Tensor, mean: Tensor, generator: torch.Generator) -> None:
    if p.grad is None:
        return
    h = group["h"]
    p.sub_(h * (p.grad + group["gamma"] * (p - w)))
    if group["noise"]:
        p.add_(gaussian(p, generator), alpha=math.sqrt(2 * h) * group["noise"])
    mean.mul_(group["average"]).add_(p, alpha=1 - group["average"])
