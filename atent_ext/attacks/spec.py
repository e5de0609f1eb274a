"""One attack of a protocol as data that can run itself, the setting it runs under, and its outcome.

A new attack is a subclass of `AttackSpec` in a file of its own. Ours are in `attacks/specs`; another package registers
its class under the entry-point group `atent_ext.attacks`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, SerializeAsAny, ValidationError
from torch import Tensor, nn

from atent_ext.core import registry
from atent_ext.core.errors import BadInput, Code
from atent_ext.core.schema import Readable, Section, Threat, explain
from atent_ext.data.datasets import Split

Kind = Literal["clean", "attack", "autoattack", "worst_case", "certified", "evidence"]
"""Kinds of results: clean accuracy, an attack, AutoAttack (also changed), the worst case of several, a certificate,
adversarial images of somebody else that were checked again."""

NoteKind = Literal["changed", "warning", "boundary", "outside", "memory", "no-attack", "bias", "other"]
"""AutoAttack was changed; AutoAttack warned; images lie on the boundary; adversaries left ball or box and do not count;
memory ran out and batches were halved; no attack ran; how a cascade compares with AutoAttack; other notes (also those
in reports of older versions)."""


class Note(Section):
    """A remark on a result, for readers."""

    kind: NoteKind
    text: Readable


@dataclass(frozen=True)
class Outcome:
    """The result of an attack: `flags` (N,) bool is True for images that are predicted correctly, clean and attacked.

    attack: display name, with the main settings. settings: all settings, as plain data. seconds: duration, summed over
    all processes. robust_after: for AutoAttack, as in `AutoAttackResult`. per_image: other figures, one an image.
    passes: forward passes of one image, which the caller counts; None if it did not. proven: images that interval
    bounds prove robust and on which the network was not run.
    """

    kind: Kind
    attack: str
    settings: Mapping[str, Any]
    flags: Tensor
    seconds: float = 0.0
    notes: tuple[Note, ...] = ()
    robust_after: Mapping[str, int] = field(default_factory=dict)
    per_image: Mapping[str, Sequence[float]] = field(default_factory=dict)
    passes: int | None = None
    proven: int = 0

    @property
    def accuracy(self) -> float:
        """Share of flags that are True, in [0, 1]."""
        return float(self.flags.double().mean())


@dataclass(frozen=True)
class Setting:
    """The threat model, seed and batch size of an attack. Results depend on `batch_size` through the random draws.

    `busy` is called with progress messages of long attacks. `found` is called with the rows (k,) of images that an
    attack broke, and their adversaries (k, ...); attacks of other packages may leave it out.
    """

    threat: Threat
    seed: int = 0
    batch_size: int = 250
    busy: Callable[[str], None] = lambda text: None
    found: Callable[[Tensor, Tensor], None] = lambda rows, adversaries: None


class Passes(NamedTuple):
    """How often an image goes through the network at most: with an input gradient, and without one."""

    gradients: int
    forwards: int


class AttackSpec(Section, ABC):
    """An attack of a protocol: a literal `attack` name, its own fields, and `run`."""

    attack: str
    by_image: ClassVar[bool] = False
    """Whether what it does to an image does not depend on the logits of those in its batch that it cannot break."""

    @abstractmethod
    def run(self, model: nn.Module, split: Split, setting: Setting) -> Outcome:
        """Attack all images of `split`. The model is in eval mode; the caller seeds torch and measures the duration.

        Take the flags from `robust_flags` or `flags_under` (`attacks.accuracy`), which check ball and box.
        """

    def for_random_network(self) -> "AttackSpec":
        """A variant of the attack for networks with random outputs; by default the attack itself."""
        return self

    def passes(self, classes: int) -> Passes | None:
        """What an image that resists costs in a network of so many classes; None if that is not known."""
        return None


def parse(raw: object) -> AttackSpec:
    """The attack that a mapping describes, chosen by its field `attack`. Raises BadInput for invalid mappings."""
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
"""A pydantic field type for any registered attack."""
