"""Overrides of a recipe, by `--set key=value` or by a file with a base, and the fields that follow from them.

Only changed fields are checked here: a recipe may train at a radius that is not that of its threat model.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any, get_args

import yaml

from atent_ext.core.errors import BadInput
from atent_ext.core.fraction import fractions
from atent_ext.core.literals import NormName

Raw = dict[str, Any]
_TEXTS = ("name", "description", "differs", "dataset", "init_from", "init_weights_key", "source", "teacher")
"""Fields in which "1/2" stays a text: `name` of every section, and the text fields of a recipe."""
_NORMS = get_args(NormName)


def override(raw: Raw, overrides: Iterable[str]) -> tuple[Raw, list[str]]:
    """A copy of `raw` with each override `key.subkey=value` applied, and messages for the user.

    If threat.eps changes and objective.eps is not overridden, an objective.eps that was equal to it changes too; its
    step_size stays. Raises BadInput for a text of another form, and if a field that is not overridden would contradict:
    an objective.eps that was not equal, threat.eps after another threat.norm, model.arguments of another model.name.
    """
    changed = copy.deepcopy(raw)
    given = {_put(changed, text) for text in overrides}
    return changed, _follow(raw, changed, given)


def numbers(value: Any, field: str = "") -> Any:
    """The value of a field of a recipe, or all fields, with fractions such as 8/255 as numbers; texts stay texts."""
    return fractions(value, _TEXTS, field)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> Raw:
    """The fields of a file merged over those of its base, field by field; dependent fields change as in `override`.

    Raises BadInput as `override` does.
    """
    merged = _merged(base, over)
    _follow(base, merged, set(_fields(over)))
    return merged


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> Raw:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _fields(raw: Mapping[str, Any], above: str = "", depth: int = 3) -> Iterator[str]:
    """The names of the fields that a file states, to the depth that is checked; YAML data may contain itself."""
    for key, value in raw.items():
        if isinstance(value, dict) and depth > 1:
            yield from _fields(value, f"{above}{key}.", depth - 1)
        else:
            yield f"{above}{key}"


def _put(raw: Raw, text: str) -> str:
    """Apply one override in place; returns the name of its field."""
    path, equals, written = text.partition("=")
    if not equals or not path:
        raise BadInput(f"--set {text!r} is not of the form key=value", code="bad-value", field="set")
    try:
        value = yaml.safe_load(written)
    except (yaml.YAMLError, ValueError):
        raise BadInput(f"--set {text!r}: the value is not YAML", code="bad-value", field=path) from None
    *parents, last = path.split(".")
    if not written.strip().startswith(("'", '"')):  # in quotes a fraction stays a text
        value = numbers(value, path)
    section = raw
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise BadInput(f"--set {text!r}: {parent} has no fields", code="unknown-name", field=path)
    section[last] = value
    return path


# ---- fields that depend on each other


def _follow(before: Mapping[str, Any], after: Raw, given: Set[str]) -> list[str]:
    """Change the dependent fields in place and return messages for the user. given: the names of the stated fields.

    Values that are invalid in themselves are left to the validation of the recipe.
    """
    _check_norm(before, after, given)
    _check_arguments(before, after, given)
    return [*_follow_radius(before, after, given), *_names_that_stay(before, after, given)]


def _check_norm(before: Mapping[str, Any], after: Raw, given: Set[str]) -> None:
    old, new = _word(before, "threat.norm"), _word(after, "threat.norm")
    if old != new and old in _NORMS and new in _NORMS and not _stated("threat.eps", given):
        eps = _at(after, "threat.eps")
        raise BadInput(
            f"threat.norm is {new} now, and threat.eps, {eps}, is a radius of {old}; give threat.eps, too",
            code="missing",
            field="threat.eps",
        )


def _follow_radius(before: Mapping[str, Any], after: Raw, given: Set[str]) -> Iterator[str]:
    old, new = _radius(before, "threat.eps"), _radius(after, "threat.eps")
    trained = _radius(after, "objective.eps")
    if old is None or new is None or trained is None or _stated("objective.eps", given) or new in (old, trained):
        return
    if trained != old:
        raise BadInput(
            f"threat.eps changed from {old:g} to {new:g}, but objective.eps, the radius of training, is {trained:g}; "
            "give objective.eps, too",
            code="conflict",
            field="objective.eps",
        )
    after["objective"] = after["objective"] | {"eps": _at(after, "threat.eps")}
    stays = _at(after, "objective.step_size")
    note = f"; objective.step_size stays {stays}" if stays is not None else ""
    yield f"objective.eps follows threat.eps: {new:g} instead of {old:g}{note}"


def _check_arguments(before: Mapping[str, Any], after: Raw, given: Set[str]) -> None:
    """Raise BadInput if the arguments of the old model would be passed to the new one."""
    old, new, held = _word(before, "model.name"), _word(after, "model.name"), _at(before, "model.arguments")
    if None in (old, new) or old == new or not isinstance(held, dict) or _stated("model.arguments", given):
        return
    kept = sorted(str(name) for name in held if not _stated(f"model.arguments.{name}", given))
    if kept:
        raise BadInput(
            f"model.name is {new!r} now, and model.arguments ({', '.join(kept)}) are those of {old!r}; give them, too, "
            "or model.arguments={} for none",
            code="conflict",
            field="model.arguments",
        )


def _names_that_stay(before: Mapping[str, Any], after: Raw, given: Set[str]) -> Iterator[str]:
    """A message if name and description, which reports and cards quote, still describe the old recipe."""
    pairs = {field: (_word(before, field), _word(after, field)) for field in ("dataset", "threat.norm", "model.name")}
    pairs["threat.eps"] = (_radius(before, "threat.eps"), _radius(after, "threat.eps"))
    changed = [field for field, (old, new) in pairs.items() if old != new and None not in (old, new)]
    if changed and not {"name", "description"} & given:
        yield (
            f"{', '.join(changed)} changed, and the recipe is still called {_at(after, 'name')!r} and described as "
            f"{_at(after, 'description')!r}; --set name=... and --set description=... change that"
        )


def _stated(field: str, given: Set[str]) -> bool:
    """Whether a field, or a section that contains it, is stated."""
    return any(field == path or field.startswith(f"{path}.") for path in given)


def _at(raw: Mapping[str, Any], field: str) -> Any:
    """The value of a field; None if it is missing."""
    value: Any = raw
    for part in field.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _word(raw: Mapping[str, Any], field: str) -> Any:
    """The value of a text field; None for other types: lists may contain themselves and are not compared."""
    value = _at(raw, field)
    return value if isinstance(value, str) else None


def _radius(raw: Mapping[str, Any], field: str) -> float | None:
    """The value of a radius; YAML reads some, such as 1e-3, as texts. None if it is not a number >= 0."""
    value = _at(raw, field)
    try:
        radius = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return radius if 0 <= radius < math.inf else None
