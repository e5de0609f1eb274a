"""Pydantic models and field types that recipes, protocols, cards and reports share."""

import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from atent_ext.core import registry, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.immutable import frozen
from atent_ext.core.literals import ThreatNorm

_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Bidirectional control characters, which can make a text look like another one."""


def readable(text: str) -> str:
    """`text`, if it can be printed to terminals and pages: no escape sequences and no bidirectional controls."""
    for character in text:
        if (unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t") or character in _BIDI:
            raise ValueError(f"the control character {character!r} is in it; remove it")
    return text


def escaped(text: str) -> str:
    """The text with line breaks and control characters escaped."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


Readable = Annotated[str, AfterValidator(readable)]
"""A text without control characters, for texts of strangers."""
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**validate.SEED_BITS)]


class Section(BaseModel):
    """Base of all models: unknown fields are errors, and values are read-only at every depth.

    Dicts and lists inside raise TypeError on changes, so that copies can share them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _freeze(self) -> Self:
        self.__dict__.update({name: frozen(value) for name, value in self.__dict__.items()})
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with the fields in `update` replaced, which are copied but not validated."""
        return super().model_copy(update=frozen(dict(update or {})), deep=deep)


class Growing(Section):
    """A section that has got more fields since files of it were written.

    Fields in `added` are written only where they are not their defaults, so that earlier files, and digests of what
    would be written, stay as they are.
    """

    added: ClassVar[frozenset[str]] = frozenset()

    @model_serializer(mode="wrap")
    def _without_added_defaults(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        defaults = {name: type(self).model_fields[name].get_default(call_default_factory=True) for name in self.added}
        written: dict[str, Any] = write(self)
        same = {name for name, default in defaults.items() if getattr(self, name) == default}
        return {name: value for name, value in written.items() if name not in same}


class Threat(Section):
    """The threat model: perturbations of norm at most eps >= 0, in units of the images, which lie in [0, 1]."""

    norm: ThreatNorm
    eps: Annotated[float, Field(ge=0)]


class Network(Section):
    """A model: its registry name and the arguments of its constructor."""

    name: str
    arguments: dict[str, Any] = {}


class Normalisation(Section):
    """Per channel, applied to images in [0, 1] before the network: (x - mean) / std."""

    mean: Annotated[tuple[float, ...], Field(min_length=1, max_length=16)]
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1, max_length=16)]

    @model_validator(mode="after")
    def _of_one_length(self) -> "Normalisation":
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means, {len(self.std)} deviations; one of each per channel is needed")
        return self


def _which(value: Any) -> str:
    return " " if isinstance(value, str) else ""


StatedNormalisation = (
    Annotated[Annotated[Normalisation, Tag("")] | Annotated[Literal["none"], Tag(" ")], Discriminator(_which)] | None
)
"""What is said of a weights file: a normalisation, that there is none, or nothing, which leaves it open.

Without tags pydantic would report the errors of both kinds.
"""


NORMALISATIONS = {
    name: Normalisation(mean=mean, std=std)
    for name, mean, std in (
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
        ("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("mnist", (0.1307,), (0.3081,)),
        ("fashion-mnist", (0.2860,), (0.3530,)),
    )
}
"""Mean and standard deviation of the pixels of training sets, as they are usually written. Reports have the numbers."""


def normalisation(given: str | Mapping[str, Any]) -> Normalisation | Literal["none"]:
    """Parse `none`, a name in `NORMALISATIONS`, or mean and std, as a card writes them or as a mapping of numbers.

    A card writes `{mean: [0.5], std: [0.25]}`. Raises BadInput otherwise.
    """
    if given == "none":
        return "none"
    if isinstance(given, str) and given in NORMALISATIONS:
        return NORMALISATIONS[given]
    remedy = f"say none, {', '.join(NORMALISATIONS)}, or '{{mean: [0.5], std: [0.25]}}' with one value per channel"
    try:
        return Normalisation.model_validate(yaml.safe_load(given) if isinstance(given, str) else given)
    except (ValidationError, yaml.YAMLError) as error:
        reason = explain(error, Normalisation) if isinstance(error, ValidationError) else "it is not YAML"
        message = f"normalisation is {validate.shown(given)} ({reason}); {remedy}"
        raise BadInput(message, code="bad-value", field="normalisation") from None


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """A pydantic error of the model `kind` in one line: for each wrong field its name, its value and what is valid."""
    return "; ".join(_explain_one(dict(detail), kind) for detail in error.errors())


def _explain_one(detail: dict[str, Any], kind: type[BaseModel]) -> str:
    location = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        below = len(detail["loc"]) > 1  # then it is a field of some part, not of `kind`
        known = registry.nearest("field", location, kind.model_fields)
        return f"{location}: unknown field; remove it" if below else str(known)
    message = str(detail["msg"]).removeprefix("Value error, ")
    value = "" if detail["type"] == "missing" else f" is {detail['input']!r}"
    return f"{location}{value}: {message}" if location else message
