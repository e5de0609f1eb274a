"""The config.json of a repository of the hub: which known network its weights are for. No code of it is run."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Normalisation
from atent_ext.storage import untrusted
from atent_ext.submissions.cards import Submission

MOST = 1_000_000
"""Bytes of a config.json, at most."""
_OF_THE_DATA = {"num_classes", "in_chans", "classes", "channels"}
"""Arguments that the data set decides."""
_HARMLESS = {"drop_path_rate"}
_LARGEST, _DEEPEST = 4096, 200
"""The largest number among the arguments, and the largest depth or number of layers or blocks."""
_DEPTHS = ("depth", "layers", "blocks")
_FORBIDDEN = (
    "pretrained",
    "checkpoint",
    "path",
    "file",
    "cache",
    "scriptable",
    "exportable",
    "no_jit",
    "features_only",
)
"""Parts of names of arguments by which timm reads files, downloads, or makes something else than a classifier."""


@dataclass(frozen=True)
class Config:
    """model: as `python_code.build` takes it. arguments: of the network. normalisation: None if nothing is said."""

    model: str
    arguments: Mapping[str, Any]
    normalisation: Normalisation | None


def read(content: bytes, shown: Path) -> Config:
    """The bytes of a config.json; `shown` names it in errors.

    `architecture` is a network of the registry or of timm, `model_args` are its plain arguments, and mean and std lie
    in `pretrained_cfg`, as timm writes them. Raises BadInput for anything else.
    """
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        message = f"{shown} is not JSON: {untrusted.line(error)}"
        raise BadInput(message, code="unreadable", field="config") from None
    named = raw.get("architecture") if isinstance(raw, dict) else None
    if not isinstance(named, str) or not named.isprintable() or len(named) > 100:
        message = (
            f"{shown} names no architecture, as timm's do; export the network to a program instead, or give --model"
        )
        raise BadInput(message, code="unsupported", field="config")
    arguments = raw.get("model_args") or {}
    _check(named, arguments, shown)
    model = named if named in registry.entries("model") else f"timm:{named.partition('.')[0]}"
    return Config(model, {k: v for k, v in arguments.items() if k not in _OF_THE_DATA}, _normalisation(raw, shown))


def _check(named: str, arguments: Any, shown: Path) -> None:
    if not isinstance(arguments, dict):
        raise BadInput(f"{shown} has model_args that are not a mapping", code="bad-type", field="config")
    try:
        Submission.model_validate({"architecture": {"name": named, "arguments": arguments}} | _OTHERS)
    except ValidationError as error:
        message = f"{shown} has arguments that are not plain values: {error.errors()[0]['msg']}"
        raise BadInput(message[:300], code="unsafe", field="config") from None
    for name, value in arguments.items():
        forbidden = name not in _HARMLESS and any(part in name.lower() for part in _FORBIDDEN)
        if forbidden or (isinstance(value, str) and not value.isidentifier()):
            message = f"{shown} has the argument {name[:100]!a}, by which a network could read files; it is not taken"
            raise BadInput(message, code="unsafe", field="config")
        if name not in _OF_THE_DATA:
            _check_size(name, value, shown)


def _check_size(name: str, value: Any, shown: Path) -> None:
    """Refuse a number by which a network would take all time or memory while it is built."""
    most = _DEEPEST if any(part in name.lower() for part in _DEPTHS) else _LARGEST
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, int | float) and abs(number) > most:
            message = f"{shown} has {number!r} for the argument {name[:100]!a}, of which at most {most:,} is taken; "
            raise BadInput(
                f"{message}build the network yourself: --model FILE.py:NAME", code="too-large", field="config"
            )


_OTHERS = {"name": "a", "authors": "a", "license": "a", "dataset": "a", "threat": {"norm": "Linf", "eps": 0.0}}
"""Values for a card's other fields: the arguments are checked as those of a stranger's card."""


def _normalisation(raw: Mapping[str, Any], shown: Path) -> Normalisation | None:
    configured = raw.get("pretrained_cfg")
    stated = {**raw, **(configured if isinstance(configured, dict) else {})}
    if "mean" not in stated and "std" not in stated:
        return None
    try:
        return Normalisation.model_validate({"mean": stated.get("mean"), "std": stated.get("std")})
    except ValidationError as error:
        message = f"{shown} has an invalid mean or std: {error.errors()[0]['msg']}"
        raise BadInput(message[:300], code="bad-value", field="config") from None
