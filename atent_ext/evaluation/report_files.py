"""What reports of one and of several threat models share: how a file is read, and how a table is shown as text."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from rich.console import Console

from atent_ext.core.errors import BadInput
from atent_ext.core.schema import explain
from atent_ext.core.tables import Table

PRE = "<pre>{code}</pre>"
KIND = "several-threats"
"""The field `kind` of a report of several threat models."""
SEVERAL = (
    "it is a report of several threat models, and one of a single one is needed: `atent view` shows it, its field "
    "`reports` has each, and `atent eval --norm --eps` scores one alone"
)
_Model = TypeVar("_Model", bound=BaseModel)


def of_several(raw: Any) -> bool:
    """Whether plain data are a report of several threat models."""
    return isinstance(raw, Mapping) and raw.get("kind") == KIND


def read(path: Path | str) -> Any:
    """The plain data of a JSON file. Raises BadInput if it is missing or no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}); name a report"
        raise BadInput(message, code="missing", field="path") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        message = f"{path} is no report of `atent eval` ({reason})"
        raise BadInput(message, code="unreadable", field="path") from None


def parse(kind: type[_Model], raw: Any, source: str) -> _Model:
    """Plain data as a report of this kind. source: its name in errors. Raises BadInput for other data."""
    if not isinstance(raw, Mapping):
        raise BadInput(f"{source} is no report of `atent eval`: it holds no fields", code="unreadable")
    if of_several(raw) and "reports" not in kind.model_fields:
        raise BadInput(f"{source} cannot be used here: {SEVERAL}", code="conflict", field="threats")
    try:
        return kind.model_validate(dict(raw))
    except ValidationError as error:
        message = f"{source} is no report of `atent eval`: {explain(error, kind)}"
        raise BadInput(" ".join(message.split())[:1000], code="unreadable") from None


def recorded(table: Table, notes: Sequence[str]) -> Console:
    """A console that has recorded the table and the notes, and has shown them nowhere."""
    console = Console(width=100, record=True, file=io.StringIO(), force_terminal=False, force_jupyter=False)
    console.print(table, crop=False)
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False)
    return console
