"""Numbers written as fractions, such as 8/255."""

import re
from collections.abc import Collection
from typing import Any

from atent_ext.core.errors import BadInput

_NUMBER = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
_FRACTION = re.compile(rf"\s*({_NUMBER})\s*/\s*({_NUMBER})\s*")


def fraction(text: str, field: str) -> float | None:
    """The value of a text `a/b`, where a and b are numbers; None for any other text. Raises BadInput if b is 0."""
    parts = _FRACTION.fullmatch(text)
    if parts is None:
        return None
    numerator, denominator = map(float, parts.groups())
    if not denominator:
        raise BadInput(f"{field} is {text}, which divides by 0; give another number", code="bad-value", field=field)
    return numerator / denominator


def fractions(value: Any, texts: Collection[str] = (), field: str = "", depth: int = 5) -> Any:
    """Plain data in which each text `a/b` is its value, except where the field is called like one of `texts`.

    What holds no fraction is returned itself, the rest as a copy. field: the name of `value`, for errors. depth: levels
    that are looked at, since YAML data may contain itself. Raises BadInput if b is 0.
    """
    if isinstance(value, str):
        number = None if field.rpartition(".")[2] in texts else fraction(value, field)
        return value if number is None else number
    if isinstance(value, dict) and depth:
        start = f"{field}." if field else ""
        fields = {key: fractions(below, texts, f"{start}{key}", depth - 1) for key, below in value.items()}
        return fields if any(fields[key] is not value[key] for key in value) else value
    if isinstance(value, list) and depth:
        items = [fractions(below, texts, field, depth - 1) for below in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value
