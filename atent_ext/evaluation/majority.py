"""Rows of a report's table for random networks: accuracy by the majority of several draws, beside that of one draw."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from atent_ext.core.statistics import interval

_KEYS = {"clean_majority": "clean", "majority": "{attack}"}


def majorities(
    attack: str, settings: Mapping[str, Any], per_image: Mapping[str, Sequence[float]]
) -> Iterator[tuple[str, str, str, str]]:
    """Name, correct, accuracy and 95 % interval of each majority that a result has."""
    for key, name in _KEYS.items():
        if flags := per_image.get(key):
            right, count = round(sum(flags)), len(flags)
            low, high = interval(right, count)
            text = f"{name.format(attack=attack)}, majority of {settings.get('draws')} draws"
            yield text, f"{right}/{count}", f"{right / count:.2%}", f"{low:.1%} - {high:.1%}"
