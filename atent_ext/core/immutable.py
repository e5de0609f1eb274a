"""Mappings and lists that do not change, for data that several owners share."""

from typing import Any, NoReturn


def frozen(value: Any) -> Any:
    """Plain data whose dicts and lists, however deep, refuse to be changed; tuples are looked into, the rest stays.

    What comes back is a copy: it equals `value`, is a dict or list as before, can be pickled and written as JSON, and
    shares nothing with `value` that can change.
    """
    if isinstance(value, dict):
        return FrozenDict((key, frozen(part)) for key, part in value.items())
    if isinstance(value, list):
        return FrozenList(map(frozen, value))
    if type(value) is tuple:
        return tuple(map(frozen, value))
    return value


def _refuse(self: object, *_: object, **__: object) -> NoReturn:
    """Raise TypeError: nobody changes what others share."""
    plain = "dict" if isinstance(self, dict) else "list"
    raise TypeError(f"this {plain} belongs to a value that does not change; change a copy, {plain}(...)")


class FrozenDict(dict[Any, Any]):
    """A dict that raises TypeError where it is changed. `dict(it)` and `it.copy()` are plain ones, which may be."""

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenDict, (dict(self),)

    def __deepcopy__(self, memo: object) -> "FrozenDict":
        return self


class FrozenList(list[Any]):
    """A list that raises TypeError where it is changed. `list(it)` and `it.copy()` are plain ones, which may be."""

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenList, (list(self),)

    def __deepcopy__(self, memo: object) -> "FrozenList":
        return self
