"""One attack of a protocol as data that can run itself, the setting it runs under, and its outcome.

A new attack is a subclass of `AttackSpec` in a file of its own. Ours stand in `attacks/specs`; another package names
its class under the entry-point group `atent_ext.attacks`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, SerializeAsAny, ValidationError
from torch import Tensor, nn

from atent_ext.core import registry
from atent_ext.core.errors import BadInput, Code
from atent_ext.core.schema import Section, Threat, explain
from atent_ext.data.datasets import Split

Kind = Literal["clean", "attack", "autoattack", "worst_case", "certified"]
"""What a result is: clean accuracy, one attack, AutoAttack (also a changed one), the worst case of several, a proof."""

NoteKind = Literal["changed", "warning", "boundary", "outside", "memory", "no-attack", "other"]
"""AutoAttack was changed; it warned; images lie on the boundary; adversaries left the ball and do not count; memory ran
out and batches were halved; no attack ran; something else (also of reports that older versions wrote)."""


class Note(Section):
    """What a reader has to know besides a result's figures."""

    kind: NoteKind
    text: str


@dataclass(frozen=True)
class Outcome:
    """The result of one attack: `flags` (N,) is True where the prediction was right and stayed right.

    attack: its name for readers, with the settings that tell it from others. settings: all of them, as plain data.
    seconds: the work of all processes together. robust_after: for AutoAttack, as in `AutoAttackResult`.
    """

    kind: Kind
    attack: str
    settings: Mapping[str, Any]
    flags: Tensor
    seconds: float = 0.0
    notes: tuple[Note, ...] = ()
    robust_after: Mapping[str, int] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Share of examples that are right, in [0, 1]."""
        return float(self.flags.double().mean())


@dataclass(frozen=True)
class Setting:
    """Under what an attack is run. `seed` starts its random draws; results depend on `batch_size` through them.

    `busy` is told what a long attack is doing.
    """

    threat: Threat
    seed: int = 0
    batch_size: int = 250
    busy: Callable[[str], None] = lambda text: None


class AttackSpec(Section, ABC):
    """One attack of a protocol: a literal `attack` name, fields of its own, and `run`."""

    attack: str

    @abstractmethod
    def run(self, model: nn.Module, split: Split, setting: Setting) -> Outcome:
        """Attack all images of `split`. The model is in eval mode; the caller seeds torch and counts the seconds.

        The flags have to be those of `robust_flags` or `flags_under` (`attacks.accuracy`), which check ball and box.
        """

    def for_random_network(self) -> "AttackSpec":
        """The attack as a network that answers at random is to be scored by it; most need no change."""
        return self


def parse(raw: object) -> AttackSpec:
    """The attack that a mapping describes, by its `attack` name. Raises BadInput for what does not fit."""
    if isinstance(raw, AttackSpec):
        return raw
    if not isinstance(raw, Mapping) or not isinstance(raw.get("attack"), str):
        message = f"{raw!r} is no attack; a mapping with the field attack is needed"
        raise BadInput(message, code="bad-type", field="attack")
    kind = registry.resolve("attack", raw["attack"])
    if not (isinstance(kind, type) and issubclass(kind, AttackSpec)):
        message = f"the attack {raw['attack']!r} is {kind!r}; a subclass of AttackSpec is needed"
        raise BadInput(message, code="bad-type", field="attack")
    try:
        return kind.model_validate(dict(raw))
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(map(str, wrong["loc"])) or "attack"
        code: Code = "unknown-name" if wrong["type"] == "extra_forbidden" else "bad-value"
        raise BadInput(f"attack {raw['attack']!r}: {explain(error, kind)}", code=code, field=field) from None


AnyAttack = Annotated[SerializeAsAny[AttackSpec], BeforeValidator(parse)]
"""A field that holds any attack, ours or another package's."""
