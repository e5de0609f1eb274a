"""What a protocol asks of one attack, the setting it runs under, and its outcome."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from torch import Tensor

from atent_ext.attacks.names import FIELDS, AttackName
from atent_ext.attacks.restarts import Keep
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Count, Section, Threat
from atent_ext.core.statistics import interval


class AttackSpec(Section):
    """One measurement of a protocol.

    attack: "clean"; "fgsm", "ifgsm" (steps of eps / steps from the clean image), "pgd", "atent"; "cw" and "deepfool" of
    other libraries (`library_attacks`); "autoattack". steps, restarts, step_size: of PGD and ATENT; a step_size
    of None is 2.5 eps / steps; keep: "last" counts a run's last iterate, "success" each on the way. noise, project: of
    ATENT, as in `langevin.atent`. version: of AutoAttack.
    """

    attack: AttackName
    steps: Count = 40
    restarts: Count = 1
    step_size: Annotated[float, Field(gt=0)] | None = None
    keep: Keep = "last"
    noise: Annotated[float, Field(ge=0)] = 1e-3
    project: Literal["last", "every"] | None = None
    version: Literal["standard", "rand", "plus"] = "standard"

    @model_validator(mode="after")
    def _fields_apply(self) -> "AttackSpec":
        for name in self.model_fields_set - {"attack", *FIELDS[self.attack]}:
            raise BadInput(f"{name} does not apply to attack {self.attack!r}; remove it")
        return self


@dataclass(frozen=True)
class Outcome:
    """One attack's result: `flags` (N,) is True where the prediction was right and stayed right.

    `seconds` is the work of all processes together. `robust_after`: of AutoAttack, as in `AutoAttackResult`.
    """

    attack: str
    settings: Mapping[str, Any]
    flags: Tensor
    seconds: float
    notes: tuple[str, ...] = ()
    robust_after: Mapping[str, int] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Share of examples that are right, in [0, 1]."""
        return float(self.flags.double().mean())

    def report(self) -> dict[str, Any]:
        """The outcome as plain data: counts, accuracy, 95 % interval, the flags as a text of 0 and 1."""
        right, count = int(self.flags.sum()), len(self.flags)
        return {
            "attack": self.attack,
            **self.settings,
            "correct": right,
            "n": count,
            "accuracy": right / count,
            "interval95_wilson": interval(right, count),
            **({"robust_after": dict(self.robust_after)} if self.robust_after else {}),
            "seconds": round(self.seconds, 1),
            "notes": list(self.notes),
            "flags": "".join("01"[int(flag)] for flag in self.flags),
        }


@dataclass(frozen=True)
class Setting:
    """Under what an attack is run. `seed` starts its random draws; results depend on `batch_size` through them.

    `busy` is told what a long attack is doing.
    """

    threat: Threat
    seed: int = 0
    batch_size: int = 250
    busy: Callable[[str], None] = lambda text: None
