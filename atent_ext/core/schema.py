"""Pieces of validated data that recipes, protocols, cards and reports share."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from typing_extensions import Self

from atent_ext.core import registry, validate
from atent_ext.core.immutable import frozen
from atent_ext.core.norms import NormName

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**validate.SEED_BITS)]


class Section(BaseModel):
    """Base of all parts: unknown fields are refused, values do not change, however deep they lie.

    Dicts and lists inside of it raise TypeError where they are changed, so that copies may share them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _does_not_change(self) -> Self:
        self.__dict__.update({name: frozen(value) for name, value in self.__dict__.items()})
        return self

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields replaced, which are not validated; what it is given may be changed afterwards."""
        return super().model_copy(update=frozen(dict(update or {})), deep=deep)


class Threat(Section):
    """The threat model that the run is judged by. eps in units of the images, which lie in [0, 1]."""

    norm: NormName
    eps: Annotated[float, Field(ge=0)]


class Network(Section):
    """A model by its registry name, with the arguments of its constructor."""

    name: str
    arguments: dict[str, Any] = {}


def explain(error: ValidationError, kind: type[BaseModel]) -> str:
    """A pydantic error of `kind` in one line: each wrong field, its value, what is needed."""
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
