"""Reports of version 1 as data of version 2: settings were next to the counts, notes were plain texts."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from atent_ext.attacks.spec import Kind, NoteKind

_SPLIT = re.compile(r"(?P<part>.+), the first (?P<n>\d+) of (?P<total>\d+)")

_FIELDS = {"attack", "correct", "n", "accuracy", "interval95_wilson", "robust_after", "seconds", "notes", "flags"}
_KINDS: Mapping[str, Kind] = {"clean": "clean", "worst case": "worst_case", "certified": "certified"}
_NOTES: Mapping[str, NoteKind] = {
    r"not standard AutoAttack": "changed",
    r"AutoAttack warns": "warning",
    r"\d+ images are answered otherwise": "boundary",
    r"\d+ adversaries left": "outside",
    r"memory ran out": "memory",
    r"eps is 0|no images": "no-attack",
}
_OF_CHUNKS = r"(in \d+ of \d+ chunks; first: )?"


def migrated_result(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A result of version 1, with settings beside the figures, as data of version 2."""
    name, texts = str(raw["attack"]), raw.get("notes", ())
    kind = raw.get("kind") or _KINDS.get(name, "autoattack" if name.startswith("AutoAttack") else "attack")
    kept = {key: value for key, value in raw.items() if key in _FIELDS}
    settings = {key: value for key, value in raw.items() if key not in (*_FIELDS, "kind")}
    notes = _notes(name, kind, texts) if isinstance(texts, list | tuple) and "kind" not in raw else texts
    return kept | {"kind": kind, "settings": settings, "notes": notes}


def _notes(name: str, kind: Kind, texts: Sequence[Any]) -> list[dict[str, Any]]:
    notes = [_note(text) for text in texts]
    if kind != "autoattack" or name == "AutoAttack" or any(note["kind"] == "changed" for note in notes):
        return notes
    return [{"kind": "changed", "text": f"not standard AutoAttack: the report calls it {name!r}"}, *notes]


def _note(text: Any) -> dict[str, Any]:
    kinds = (kind for start, kind in _NOTES.items() if re.match(f"{_OF_CHUNKS}({start})", str(text)))
    return {"kind": next(kinds, "other"), "text": text}


def migrated(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A report of version 1 as data of version 2, whose results are still of version 1. Raises ValueError."""
    split = _SPLIT.fullmatch(str(raw["split"]))
    if split is None:
        raise ValueError(f"split is {str(raw['split'])[:100]!r}; it reads 'test, the first 100 of 360'")
    images = {"part": split["part"], "n": int(split["n"]), "total": int(split["total"])}
    return {"version": 2, **{key: value for key, value in raw.items() if key != "split"}, **images}
