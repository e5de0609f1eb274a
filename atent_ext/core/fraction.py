"""Numbers written as fractions, such as 8/255."""

import re

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
