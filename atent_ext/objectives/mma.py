"""MMA: max-margin adversarial training (Ding et al. 2020, Eq. 9 and Algorithm 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from atent_ext.attacks.langevin import last_iterate, pgd
from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy, soft_margin
from atent_ext.core.norms import norm as norm_called
from atent_ext.core.norms import per_example
from atent_ext.core.types import Model
from atent_ext.objectives.base import Adversarial, Terms, inside

HALVINGS = 10
BEYOND = 1.05
"""The search for the boundary ends this far beyond d_max (the authors' code)."""


@dataclass(eq=False)
class Lengths:
    """The distance to the boundary that was found last for each training example; `least` where none was yet."""

    least: float
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    common: Tensor = field(default_factory=lambda: torch.zeros(0))  # as all processes had them last

    def of(self, index: Tensor | None, x: Tensor) -> Tensor:
        """The lengths of a batch, (N,), of the dtype and device of `x`."""
        if index is None:
            return x.new_full((len(x),), self.least)
        validate.places(index, len(x))
        self.values = self._at_least(self.values, int(index.max()) + 1)
        return self.values[index.cpu()].to(x)

    def put(self, index: Tensor | None, which: Tensor, found: Tensor) -> None:
        """Keep the lengths of those examples of a batch that `which` (N,) marks."""
        if index is not None:
            which = which.cpu()
            self.values[index.cpu()[which]] = found.to(self.values)[which]

    def take(self, values: Tensor) -> None:
        """Have these lengths, and know that all processes do."""
        self.values, self.common = values.clone(), values.clone()  # two runs never share their memory

    def merge(self, others: Sequence[Tensor]) -> None:
        """Have what any process has found since all had the same."""
        size = max(map(len, others))
        common = merged = self._at_least(self.common, size)
        for values in (self._at_least(other, size) for other in others):
            merged = torch.where(values != common, values, merged)
        self.take(merged)

    def _at_least(self, values: Tensor, size: int) -> Tensor:
        missing = size - len(values)
        return torch.cat([values, torch.full((missing,), self.least)]) if missing > 0 else values


@dataclass(frozen=True, kw_only=True)
class MMA(Adversarial):
    """2/3 (sum of CE(x') over right examples nearer than eps, and of CE(x) over wrong ones) / N + 1/3 mean CE(x).

    x' is where the soft logit margin changes its sign along the direction that PGD found (AN-PGD): PGD with the
    length of the example's last visit and steps of 2.5 length / steps, then bisection of [0, 1.05 eps].
    eps: d_max, the largest margin that is asked for. least: the length at the first visit. The lengths are kept by the
    position of the example in the training set (`index`); without it every visit is a first one.
    """

    least: float
    step_size: float = field(init=False, default=0.0)  # follows from the lengths
    lengths: Lengths = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("eps", "least"):
            validate.number(name, getattr(self, name))
        if not 0 < self.least <= self.eps:
            raise BadInput(f"least is {self.least}; it must lie in (0, eps], and eps is {self.eps}")
        object.__setattr__(self, "lengths", Lengths(self.least))
        super().__post_init__()

    def scaled(self, factor: float) -> Self:
        """The same method, with the same memory, for another d_max."""
        validate.number("factor", factor)
        eps = self.eps * factor
        other = replace(self, eps=eps, least=min(self.least, eps))
        object.__setattr__(other, "lengths", self.lengths)
        return other

    def state_dict(self) -> dict[str, Any]:
        """What must outlive an interruption: the lengths found so far."""
        return {"lengths": self.lengths.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.lengths.take(state["lengths"])

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Take up what several processes' `state_dict`s found since they were last the same."""
        self.lengths.merge([state["lengths"] for state in states])

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        index: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Terms:
        """Yield the one term."""
        y = self.check(x, y)
        with inside(self.inner_mode, model), torch.no_grad():
            logits = model(x)
            validate.logits(logits, len(x))
            validate.labels(y, len(x), logits.shape[1])
            right = soft_margin(logits, y) < 0
            lengths = self.lengths.of(index, x).clamp_max(BEYOND * self.eps)
            unit = self._directions(model, x, y, lengths, generator)
            found = self._boundary(model, x, y, unit, lengths)
        self.lengths.put(index, right, found)
        near = right & (found < self.eps)
        points = torch.where(per_example(near, x).bool(), self._at(x, unit, found), x)
        hinge = cross_entropy(model(points), y) * (near | ~right)
        yield 2 / 3 * hinge.mean() + 1 / 3 * cross_entropy(model(x), y).mean()

    def _directions(
        self, model: Model, x: Tensor, y: Tensor, lengths: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """PGD's displacement divided by its length, (N, ...)."""
        kernel = pgd(norm_called(self.norm), lengths, self.steps, 2.5 * lengths / self.steps, box=self.box)
        ends = last_iterate(kernel, model, x, y, soft_margin, generator)
        return (ends - x) / per_example(lengths, x)

    def _at(self, x: Tensor, unit: Tensor, lengths: Tensor) -> Tensor:
        return (x + per_example(lengths, x) * unit).clamp(*self.box)

    def _boundary(self, model: Model, x: Tensor, y: Tensor, unit: Tensor, lengths: Tensor) -> Tensor:
        """Where each example changes class along its direction, (N,), to 1.05 eps / 2^10; else 1.05 eps."""
        low, high = torch.zeros_like(lengths), torch.full_like(lengths, BEYOND * self.eps)
        probe = lengths
        for _ in range(HALVINGS + 1):
            wrong = soft_margin(model(self._at(x, unit, probe)), y) >= 0
            low, high = torch.where(wrong, low, probe), torch.where(wrong, probe, high)
            probe = (low + high) / 2
        return probe
