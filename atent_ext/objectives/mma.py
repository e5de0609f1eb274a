"""MMA: max-margin adversarial training (Ding et al. 2020, Eq. 9 and Algorithm 1)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from atent_ext.attacks.langevin import last_iterate, pgd
from atent_ext.attacks.moves import Schedule
from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy, likeliest, soft_margin
from atent_ext.core.model_state import frozen
from atent_ext.core.norms import norm as norm_called
from atent_ext.core.norms import per_example
from atent_ext.core.types import Model
from atent_ext.objectives.base import Adversarial, Terms, model_mode

HALVINGS = 10
"""Steps of the bisection."""
BEYOND = 1.05
"""The search for the boundary ends at this multiple of d_max (the authors' code)."""


@dataclass(eq=False)
class Lengths:
    """The last known distance to the boundary of each training example; `least` before its first visit.

    values: (examples,), by position in the training set. synced: the values at the last sync of all processes.
    """

    least: float
    values: Tensor = field(default_factory=lambda: torch.zeros(0))
    synced: Tensor = field(default_factory=lambda: torch.zeros(0))

    def of(self, index: Tensor | None, x: Tensor) -> Tensor:
        """The lengths of a batch, (N,), with the dtype and device of `x`; `least` if `index` is None."""
        if index is None:
            return x.new_full((len(x),), self.least)
        validate.places(index, len(x))
        self.values = self._extended(self.values, int(index.max()) + 1)
        return self.values[index.cpu()].to(x)

    def put(self, index: Tensor | None, mask: Tensor, lengths: Tensor) -> None:
        """Store the lengths (N,) of those examples of a batch that `mask` (N,) selects; nothing without an index."""
        if index is not None:
            mask = mask.cpu()
            self.values[index.cpu()[mask]] = lengths.to(self.values)[mask]

    def restore(self, values: Tensor) -> None:
        """Replace all lengths by `values`, which are the same in all processes."""
        self.values, self.synced = values.clone(), values.clone()  # two runs never share their memory

    def merge(self, others: Sequence[Tensor]) -> None:
        """Combine the values of all processes: each value that a process has changed since the last sync is taken."""
        size = max(map(len, others))
        synced = merged = self._extended(self.synced, size)
        for values in (self._extended(other, size) for other in others):
            merged = torch.where(values != synced, values, merged)
        self.restore(merged)

    def _extended(self, values: Tensor, size: int) -> Tensor:
        missing = size - len(values)
        return torch.cat([values, torch.full((missing,), self.least)]) if missing > 0 else values


@dataclass(frozen=True, kw_only=True)
class MMA(Adversarial):
    """2/3 (sum of CE(x') over correct examples with margin < eps, and of CE(x) over wrong ones) / N + 1/3 mean CE(x).

    x' is the point where the soft logit margin changes its sign along the direction of PGD (AN-PGD): PGD in the ball
    of the example's last known length with steps of 2.5 length / steps, then bisection of [0, 1.05 eps].
    eps: d_max > 0, the largest margin that is trained for. least: length at the first visit, in (0, eps]. Lengths are
    stored by the position of the example in the training set (`index`); without it every visit counts as the first.
    norm, steps, box, inner_mode: see `Adversarial`.
    """

    least: float
    step_size: float = field(init=False, default=0.0)  # computed from the lengths
    schedule: Schedule = field(init=False, default="constant")
    lengths: Lengths = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("eps", "least"):
            validate.number(name, getattr(self, name))
        if not 0 < self.least <= self.eps:
            message = f"least is {self.least}; it must lie in (0, eps], and eps is {self.eps}"
            raise BadInput(message, code="bad-value", field="least")
        object.__setattr__(self, "lengths", Lengths(self.least))
        super().__post_init__()

    def scaled(self, factor: float) -> Self:
        """The same method with d_max multiplied by `factor` > 0; both share their lengths."""
        validate.number("factor", factor)
        eps = self.eps * factor
        other = replace(self, eps=eps, least=min(self.least, eps))
        object.__setattr__(other, "lengths", self.lengths)
        return other

    def state_dict(self) -> dict[str, Any]:
        """The lengths, for checkpoints."""
        return {"lengths": self.lengths.values}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the lengths that `state_dict` returned."""
        self.lengths.restore(state["lengths"])

    def merge(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Combine the `state_dict`s of all processes into the same lengths everywhere."""
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
        """Yield the loss. Raises BadInput as `check_batch` does."""
        y = self.check(x, y)
        classes = likeliest(y)  # margins are those of a class
        with model_mode(self.inner_mode, model), frozen(model), torch.no_grad():  # as in `ATENT.losses`
            logits = validate.logits(model(x), len(x))
            validate.labels(classes, len(x), logits.shape[1])
            correct = soft_margin(logits, classes) < 0
            lengths = self.lengths.of(index, x).clamp_max(BEYOND * self.eps)
            unit = self._directions(model, x, classes, lengths, generator)
            margins = self._boundary(model, x, classes, unit, lengths)
        self.lengths.put(index, correct, margins)
        near = correct & (margins < self.eps)
        points = torch.where(per_example(near, x).bool(), self._at(x, unit, margins), x)
        hinge = cross_entropy(model(points), y) * (near | ~correct)
        yield 2 / 3 * hinge.mean() + 1 / 3 * cross_entropy(model(x), y).mean()

    def _directions(
        self, model: Model, x: Tensor, y: Tensor, lengths: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """PGD's displacement divided by the radius of its ball, (N, ...)."""
        kernel = pgd(norm_called(self.norm), lengths, self.steps, 2.5 * lengths / self.steps, box=self.box)
        ends = last_iterate(kernel, model, x, y, soft_margin, generator)
        return (ends - x) / per_example(lengths, x)

    def _at(self, x: Tensor, unit: Tensor, lengths: Tensor) -> Tensor:
        return (x + per_example(lengths, x) * unit).clamp(*self.box)

    def _boundary(self, model: Model, x: Tensor, y: Tensor, unit: Tensor, lengths: Tensor) -> Tensor:
        """Distance to the class boundary along each direction, (N,), to 1.05 eps / 2^10; 1.05 eps if there is none."""
        low, high = torch.zeros_like(lengths), torch.full_like(lengths, BEYOND * self.eps)
        probe = lengths
        for _ in range(HALVINGS + 1):
            wrong = soft_margin(model(self._at(x, unit, probe)), y) >= 0
            low, high = torch.where(wrong, low, probe), torch.where(wrong, probe, high)
            probe = (low + high) / 2
        return probe
