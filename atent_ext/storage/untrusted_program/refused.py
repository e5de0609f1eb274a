"""What the reader of programs raises inside, and how it looks at JSON of unknown content."""

from typing import Any, TypeVar

from atent_ext.core.errors import Code

Kind = TypeVar("Kind")
_SHOWN = 80


class Refused(Exception):
    """A program that is not read. `text` completes the sentence that starts with the file's name."""

    def __init__(self, text: str, code: Code = "unreadable") -> None:
        super().__init__(text)
        self.text, self.code = text, code


def short(value: object) -> str:
    """A value of the file in messages: quoted, in ASCII, on one line and short."""
    text = ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def field(mapping: Any, name: str, kind: type[Kind], where: str) -> Kind:
    """The entry `name` of a JSON mapping, of the type `kind`. Raises Refused if it is missing or of another type."""
    value = mapping.get(name) if isinstance(mapping, dict) else None
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Refused(f"is broken: {where} has no {name} of type {kind.__name__}")
    return value


def only(mapping: Any, where: str) -> tuple[str, Any]:
    """The one entry of a JSON mapping, as torch writes a value with its kind: {"as_int": 3}."""
    if not isinstance(mapping, dict) or len(mapping) != 1:
        raise Refused(f"is broken: {where} is {short(mapping)}, and a value with its kind is needed")
    return next(iter(mapping.items()))


def whole(value: Any, where: str, most: int = 2**40) -> int:
    """A whole number between -most and most."""
    if type(value) is not int:
        raise Refused(f"is broken: {where} is {short(value)}, and a whole number is needed")
    if abs(value) > most:
        raise Refused(f"asks for too much: {where} is {short(value)}", "too-large")
    return value
