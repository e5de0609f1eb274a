"""What lies in a checkpoint: groups of tensors, however nested, and what the keys say of them.

No tensor is computed with.
"""

import re
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atent_ext.core.errors import BadInput

_DEPTH, _LENGTH = 20, 1000
"""The deepest nesting of a checkpoint, and the most letters of a key that are looked at."""
_CHANNELS = 16
"""The most channels of a normalisation."""
_LISTED = 12
"""How many names an error or a note lists."""
_MEAN = re.compile(r"_*((new|norm|normali[sz]e|data|ima?ge?|pixel|input|channel)_)?(means?|mu)_*", re.IGNORECASE)
_STD = re.compile(r"_*((new|norm|normali[sz]e|data|ima?ge?|pixel|input|channel)_)?(stds?|sigma|stdev)_*", re.IGNORECASE)
_AVERAGED = {"ema", "swa", "swag", "avg", "average", "averaged", "averaging", "polyak", "shadow"}
_RAW = {"raw", "current", "online", "collected", "backup"}
"""Words in keys: of `ema_model` and `online_model`, of `shadow` and `collected_params`, the first is averaged."""

Keys = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Group:
    """Tensors that lie together in a checkpoint: under names, or in order (then the names are 0, 1, ...).

    path: the keys that lead to them.
    """

    path: Keys
    tensors: Mapping[str, Tensor]
    ordered: bool = False
    averaged: bool = False


@dataclass(frozen=True, eq=False)
class Scale:
    """A mean or a standard deviation that a checkpoint holds. name: where; stem: `name` without its last part."""

    name: str
    kind: str
    values: Tensor

    @property
    def stem(self) -> str:
        """The name of the module that it belongs to."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, eq=False)
class Contents:
    """The groups of tensors in a checkpoint, and the means and deviations that lie elsewhere, as numbers in lists."""

    checkpoint: Any
    groups: tuple[Group, ...]
    scales: tuple[Scale, ...]


def contents(checkpoint: Any, path: Path) -> Contents:
    """All groups of tensors in nested mappings and lists. Raises BadInput for deeper nesting than 20."""
    groups: list[Group] = []
    scales: list[Scale] = []
    seen = set[int]()
    pending = deque[tuple[Keys, Any, bool]]([((), checkpoint, False)])
    while pending:
        where, value, averaged = pending.popleft()
        if id(value) in seen:  # a pickle may contain one mapping often, or inside itself
            continue
        seen.add(id(value))
        if len(where) > _DEPTH:
            message = f"{path} is nested deeper than {_DEPTH} levels; save the state dict alone"
            raise BadInput(message, code="too-large", field="path")
        ordered = not isinstance(value, Mapping)
        entries = dict(enumerate(value)) if ordered else value
        group = _group(where, entries, ordered, averaged)
        if group.tensors:
            groups.append(group)
        scales += _listed_scales(where, entries)
        # The callback of Lightning 2.6 moves the raw weights away and saves the averaged ones under "state_dict".
        swapped = "averaging_state" in entries and "current_model_state" in entries
        for key, inner in entries.items():
            if isinstance(inner, Mapping | list | tuple):
                part = key_text(key)
                pending.append(
                    ((*where, part), inner, is_averaged((part,), averaged) or (swapped and key == "state_dict"))
                )
    return Contents(checkpoint, tuple(groups), tuple(scales))


def _group(where: Keys, entries: Mapping[Any, Any], ordered: bool, averaged: bool) -> Group:
    if ordered:
        every = {str(key): value for key, value in entries.items() if isinstance(value, Tensor)}
        return Group(where, every if len(every) == len(entries) else {}, True, averaged)
    named = {key: value for key, value in entries.items() if isinstance(key, str) and isinstance(value, Tensor)}
    return Group(where, named, False, averaged)


def _listed_scales(where: Keys, entries: Mapping[Any, Any]) -> Iterator[Scale]:
    """A mean and a deviation that lie side by side as lists of numbers, such as {"mean": [0.5], "std": [0.25]}."""
    found = []
    for key, value in entries.items():
        kind = scale_kind(key) if isinstance(key, str) else None
        if kind and isinstance(value, list | tuple) and 0 < len(value) <= _CHANNELS and all(map(_is_number, value)):
            numbers = torch.tensor([float(number) for number in value], dtype=torch.float64)
            found.append(Scale(".".join((*where, key)), kind, numbers))
    if {scale.kind for scale in found} == {"mean", "std"}:
        yield from found


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**31)


def scale_kind(name: str) -> str | None:
    """Whether a name is that of a mean or a deviation in a normalising layer: "mean", "std" or None."""
    last = name.rpartition(".")[2]
    if len(last) > _LENGTH:
        return None
    return "mean" if _MEAN.fullmatch(last) else "std" if _STD.fullmatch(last) else None


def is_averaged(path: Sequence[str], before: bool = False) -> bool:
    """Whether the last part of a path that says so names averaged weights. before: the answer if none says so."""
    for part in reversed(path):
        words = {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", part[:_LENGTH])}
        if words & _RAW:
            return False
        if words & _AVERAGED or any(
            word.startswith(("ema", "swa")) and word.endswith(("model", "weights")) for word in words
        ):
            return True
    return before


def entries(found: Contents, group: Group) -> Iterator[tuple[str, Any]]:
    """Names with dots, and values, of all entries along the path to a group; the group's own entries come last."""
    value = found.checkpoint
    for depth in range(len(group.path) + 1):
        inside = dict(value) if isinstance(value, Mapping) else dict(enumerate(value))
        for key, entry in inside.items():
            yield ".".join((*group.path[:depth], key_text(key))), entry
        if depth < len(group.path):
            value = next(entry for key, entry in inside.items() if key_text(key) == group.path[depth])


def beside(found: Contents, group: Group) -> list[str]:
    """The names of entries that are not read: those beside the path to a group, and those in it that are no tensors."""
    way = {".".join(group.path[: depth + 1]) for depth in range(len(group.path))}
    own = set() if group.ordered else {".".join((*group.path, name)) for name in group.tensors}
    return [name for name, _ in entries(found, group) if name not in way and name not in own and not group.ordered]


def listed(names: Collection[str]) -> str:
    """The first twelve names on one line."""
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return (", ".join(map(shown, list(names)[:_LISTED])) or "nothing") + more


def shown(name: str) -> str:
    """A name of a stranger's file, in quotes, short and without control characters."""
    return ascii(name[:100])


def key_text(key: Any) -> str:
    """A key of a mapping as text; keys that are no text or number are called by their type."""
    return str(key)[:_LENGTH] if isinstance(key, str | int) else type(key).__name__
