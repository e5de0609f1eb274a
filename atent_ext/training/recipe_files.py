"""Recipe files as plain data: found by name, put on top of their bases, with overrides applied.

A file may name a `base` file beside it (`_name.yaml`), whose fields it overrides one by one. Nothing here imports
torch, so that recipes are listed quickly; `recipes` validates what is read here.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.training.overrides import merge, override

Parser: TypeAlias = Callable[[Path], dict[str, Any]]


def names() -> list[str]:
    """The names of all recipes, other packages' too."""
    return [name for name in registry.files("recipe") if not name.startswith("_")]


def read(name: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of the recipe `name` (or of the YAML file at that path), with `key.subkey=value` overrides applied.

    A value is YAML; a number may be written as a fraction, 8/255. Raises BadInput for an unknown recipe, naming the
    nearest, for a file that is not YAML, a base that is not there, and an override of another form.
    """
    return overridden(name, overrides)[0]


def overridden(name: str, overrides: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """What `read` returns, and what a user has to know of the overrides, in words (`overrides.override`)."""
    return override(_merged(_locate(name)), overrides)


def every() -> Iterator[tuple[str, dict[str, Any] | BadInput]]:
    """Each recipe's name and fields, or the error where they cannot be read. A base of many is read once."""
    parsed = cache(_parsed)
    for name, path in registry.files("recipe").items():
        if name.startswith("_"):
            continue
        try:
            yield name, _merged(path, parsed)
        except (BadInput, OSError) as error:  # one of another package
            yield name, error if isinstance(error, BadInput) else BadInput(str(error))


def _locate(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise BadInput(f"there is no recipe file {name}")
        return Path(name)
    shipped = registry.files("recipe")
    if name not in shipped:
        raise registry.nearest("recipe", name, names())
    return shipped[name]


def _parsed(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are no text, a date that does not exist
        raise BadInput(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise BadInput(f"{path} holds no fields; a recipe is a mapping of names to values")
    return raw


def _merged(path: Path, parsed: Parser = _parsed, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The fields of a file on top of those of its bases. above: the files that name this one as their base."""
    raw = dict(parsed(path))
    base = raw.pop("base", None)
    if base is None:
        return raw
    beside, above = (path.parent / f"{base}.yaml").resolve(), (*above, path.resolve())
    if beside in above or beside.parent != path.parent.resolve() or not beside.is_file():
        raise BadInput(f"{path}: base is {base!r}; it must name another recipe file beside it, without .yaml")
    return merge(_merged(beside, parsed, above), raw)
