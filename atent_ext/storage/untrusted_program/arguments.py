"""Arguments of calls in a program's JSON, and text in it that torch would evaluate as Python: here it never is."""

import math
import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from atent_ext.storage.untrusted_program.archive import checked_name, dtype
from atent_ext.storage.untrusted_program.refused import Refused, field, only, short, whole

_LONGEST = 1000
"""Entries of a list, at most."""
_WORD = re.compile(r"[\w ,.>\-]{0,100}", re.ASCII)
"""Texts that operators take: the mode of a padding, the formula of einsum."""
_SYMBOL = re.compile(r"Symbol\('[a-z]{1,4}\d{1,8}'(, (positive|nonnegative|integer)=True)*\)")
_SIZES = re.compile(r"[\s\d,()+*/.-]|Symbol|Integer|Rational|Mul|Add|Pow|FloorDiv|CleanDiv|PythonMod|Mod|Max|Min|Abs")
_RELATIONS = re.compile(
    r"Equality|Unequality|StrictLessThan|StrictGreaterThan|LessThan|GreaterThan|And|Or|Not|true|false"
)
_GUARD = re.compile(r"[\w\s\[\].'\"()=<>!*+/%-]{1,500}", re.ASCII)
_GUARD_WORDS = {"L", "x", "size", "args", "kwargs", "and", "or", "not", "input", "images"}
_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format}
_END = 2**63 - 1
"""The end of an open slice."""


@dataclass(frozen=True)
class Ref:
    """An argument that is the result of an earlier call, a held tensor, or the input."""

    name: str


@dataclass(frozen=True)
class Device:
    """An argument that is the device of the images, whatever the file says."""


def tensor_name(value: Any) -> str:
    """The name in {"name": ...}."""
    return checked_name(field(value, "name", str, "a tensor"), "name")


def refs(values: Iterable[Any]) -> Iterable[str]:
    """The names that arguments refer to."""
    for value in values:
        if isinstance(value, Ref):
            yield value.name
        elif isinstance(value, list):
            yield from refs(value)


def argument(kind: str, value: Any, known: Collection[str]) -> Any:
    """An argument of the kind `kind`. known: the names that it may refer to. Raises Refused."""
    read = _ARGUMENTS.get(kind)
    if read is None:
        raise Refused(f"has an argument of the kind {short(kind)}; only tensors and plain values are read", "unsafe")
    return read(value, known)


# ---- text that torch would evaluate


def is_symbol(text: Any) -> bool:
    """Whether an expression is one symbol."""
    return isinstance(text, str) and _SYMBOL.fullmatch(text) is not None


def check_guards(guards: Any) -> None:
    """Refuse guards that do more than compare sizes of the input; the others are not needed, and left out."""
    for guard in guards if isinstance(guards, list) else [guards]:
        words = set(re.findall(r"[A-Za-z_]\w*", guard)) if isinstance(guard, str) else set()
        if not isinstance(guards, list) or not isinstance(guard, str) or not _GUARD.fullmatch(guard):
            words = {""}
        if words - _GUARD_WORDS:
            raise Refused(f"holds guard code, {short(guard)}, which was not run; export it again without it", "unsafe")


def check_expressions(value: Any) -> None:
    """Refuse expressions that are more than sizes, wherever they stand in a piece of JSON."""
    pending = [value]
    while pending:
        current = pending.pop()
        if isinstance(current, dict):
            if "expr_str" in current:
                _check_expression(current["expr_str"])
            pending.extend(current.values())
        elif isinstance(current, list):
            pending.extend(current)


def _check_expression(text: Any) -> None:
    plain = isinstance(text, str) and len(text) <= 10_000
    if not plain or _SIZES.sub("", _RELATIONS.sub("", _SYMBOL.sub("", text))):
        raise Refused(f"holds an expression that is no size, {short(text)}, which was not evaluated", "unsafe")


# ---- kinds of arguments


def _ref(value: Any, known: Collection[str]) -> Ref:
    name = tensor_name(value)
    if name not in known:
        raise Refused(f"is broken: it uses {short(name)} before that is made")
    return Ref(name)


def _size(value: Any, known: Collection[str]) -> Ref | int:
    kind, inner = only(value, "a size")
    return whole(inner, "a size") if kind == "as_int" else _ref({"name": inner}, known)


def _optional(value: Any, known: Collection[str]) -> Ref | None:
    kind, inner = only(value, "a tensor")
    return None if kind == "as_none" else _ref(inner, known)


def _number(value: Any, known: Collection[str]) -> float:
    """A float; torch writes infinities as text."""
    if value in ("Infinity", "-Infinity", "NaN"):
        return float(value.replace("Infinity", "inf"))
    if type(value) not in (float, int) or not math.isfinite(value):
        raise Refused(f"is broken: {short(value)} is no finite number")
    return float(value)


def _integer(value: Any, known: Collection[str]) -> int:
    return _END if type(value) is int and value == _END else whole(value, "an argument")


def _truth(value: Any, known: Collection[str]) -> bool:
    if not isinstance(value, bool):
        raise Refused(f"is broken: {short(value)} is no truth value")
    return value


def _text(value: Any, known: Collection[str]) -> str:
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise Refused(f"has a text as an argument that no operator takes: {short(value)}", "unsafe")
    return value


def _memory_format(value: Any, known: Collection[str]) -> torch.memory_format:
    if type(value) is not int or value not in _FORMATS:
        raise Refused(f"has an unknown memory format, {short(value)}", "unsupported")
    return _FORMATS[value]


def _layout(value: Any, known: Collection[str]) -> torch.layout:
    if value != 7:
        raise Refused(f"has tensors of an unknown layout, {short(value)}", "unsupported")
    return torch.strided


_Read = Callable[[Any, Collection[str]], Any]


def _list_of(read: _Read) -> _Read:
    def run(value: Any, known: Collection[str]) -> list[Any]:
        if not isinstance(value, list) or len(value) > _LONGEST:
            raise Refused(f"is broken: {short(value)} is no list of at most {_LONGEST:,} entries")
        return [read(part, known) for part in value]

    return run


_ARGUMENTS: dict[str, _Read] = {
    "as_none": lambda value, known: None,
    "as_tensor": _ref,
    "as_tensors": _list_of(_ref),
    "as_optional_tensor": _optional,
    "as_optional_tensors": _list_of(_optional),
    "as_int": _integer,
    "as_ints": _list_of(_integer),
    "as_sym_int": _size,
    "as_sym_ints": _list_of(_size),
    "as_float": _number,
    "as_floats": _list_of(_number),
    "as_bool": _truth,
    "as_bools": _list_of(_truth),
    "as_string": _text,
    "as_scalar_type": lambda value, known: dtype(value, "an argument"),
    "as_memory_format": _memory_format,
    "as_layout": _layout,
    "as_device": lambda value, known: Device(),
}
