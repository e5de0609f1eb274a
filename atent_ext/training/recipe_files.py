"""Recipe files as plain data: looked up by name, merged over their bases, with overrides applied.

A file may name a `base` file in the same folder (`_name.yaml`), whose fields it overrides. Nothing here imports torch,
so that recipes are listed quickly; `recipes` validates the data.
"""

import copy
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.training.overrides import merge, numbers, override


def names() -> list[str]:
    """The names of all recipes, including those of other packages."""
    return [name for name in registry.files("recipe") if not name.startswith("_")]


def read(name: str, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The fields of the recipe `name`, or of the YAML file at the path `name`, with `key.subkey=value` overrides.

    A value is YAML; a number may also be a fraction, 8/255. Raises BadInput for an unknown recipe (it names the
    nearest), for a file that is not YAML, for a missing base, and for an override of another form.
    """
    return overridden(name, overrides)[0]


def overridden(name: str, overrides: Iterable[str]) -> tuple[dict[str, Any], list[str]]:
    """The data that `read` returns, and messages about the overrides (`overrides.override`)."""
    return override(_merged(_locate(name)), overrides)


def every() -> Iterator[tuple[str, dict[str, Any] | BadInput]]:
    """The name of each recipe with its fields, or with the error if it cannot be read."""
    for name, path in registry.files("recipe").items():
        if name.startswith("_"):
            continue
        try:
            yield name, _merged(path)
        except (BadInput, OSError) as error:  # a broken recipe of another package
            yield name, error if isinstance(error, BadInput) else BadInput(str(error), code="unreadable")


def _locate(name: str) -> Path:
    if name.endswith((".yaml", ".yml")):
        if not Path(name).is_file():
            raise BadInput(f"there is no recipe file {name}", code="missing", field="recipe")
        return Path(name)
    shipped = registry.files("recipe")
    if name not in shipped:
        raise registry.nearest("recipe", name, names())
    return shipped[name]


@lru_cache(maxsize=256)
def _yaml(text: str) -> Any:
    """Parsing takes longer than all else that is done to a recipe; several have the same base."""
    return yaml.safe_load(text)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        raw = copy.deepcopy(_yaml(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: bytes that are not UTF-8, an impossible date
        message = f"{path} is not YAML: {' '.join(str(error).split())}"
        raise BadInput(message, code="unreadable", field="recipe") from None
    if not isinstance(raw, dict):
        message = f"{path} holds no fields; a recipe is a mapping of names to values"
        raise BadInput(message, code="unreadable", field="recipe")
    return numbers(raw)  # type: ignore[no-any-return]


def _merged(path: Path, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The fields of a file merged over those of its bases. above: the files that have this one as their base."""
    raw = _parsed(path)
    base = raw.pop("base", None)
    if base is None:
        return raw
    beside, above = (path.parent / f"{base}.yaml").resolve(), (*above, path.resolve())
    if beside in above or beside.parent != path.parent.resolve() or not beside.is_file():
        message = f"{path}: base is {base!r}; it must name another recipe file beside it, without .yaml"
        raise BadInput(message, code="bad-value", field="base")
    return merge(_merged(beside, above), raw)
