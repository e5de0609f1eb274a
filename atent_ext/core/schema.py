"""Pieces of validated data that recipes, protocols, cards and reports share."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atent_ext.core import registry
from atent_ext.core.norms import NormName

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all parts: unknown fields are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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
