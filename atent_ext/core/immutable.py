"""Read-only dicts and lists, for data that several objects share."""

from typing import Any, NoReturn


def frozen(value: Any) -> Any:
    """A copy of plain data in which dicts and lists are read-only at every depth, also inside tuples.

    The copy equals `value`, its containers still are dicts and lists, and it can be pickled and written as JSON. It
    shares no mutable object with `value`, except objects that are neither dict, list nor tuple.
    """
    if isinstance(value, dict):
        return FrozenDict((key, frozen(part)) for key, part in value.items())
    if isinstance(value, list):
        return FrozenList(map(frozen, value))
    if type(value) is tuple:
        return tuple(map(frozen, value))
    return value


def _refuse(self: object, *_: object, **__: object) -> NoReturn:
    """Raise TypeError, since other objects share the data."""
    plain = "dict" if isinstance(self, dict) else "list"
    raise TypeError(f"this {plain} belongs to a value that does not change; change a copy, {plain}(...)")


class FrozenDict(dict[Any, Any]):
    """A dict that raises TypeError on changes. `dict(frozen)` and `frozen.copy()` are ordinary, mutable dicts."""

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)

    def __deepcopy__(self, memo: object) -> "FrozenDict":
        return self


class FrozenList(list[Any]):
    """A list that raises TypeError on changes. `list(frozen)` and `frozen.copy()` are ordinary, mutable lists."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenList, (list(self),)

    def __deepcopy__(self, memo: object) -> "FrozenList":
        return self
