"""Reports for tests, whole in every field, of few figures."""

from collections.abc import Mapping
from typing import Any

from atent_ext.attacks.spec import Kind
from atent_ext.core.statistics import interval
from atent_ext.evaluation.report import Report, Result

KINDS: Mapping[str, Kind] = {
    "clean": "clean",
    "AutoAttack": "autoattack",
    "AutoAttack, changed": "autoattack",
    "worst case": "worst_case",
}


def result(attack: str, accuracy: float = 0.5, n: int = 200, **fields: Any) -> Result:
    """The result of an attack of this name: of `n` images the first ones stay right."""
    right = round(accuracy * n)
    figures: dict[str, Any] = {
        "kind": KINDS.get(attack, "attack"),
        "attack": attack,
        "correct": right,
        "n": n,
        "accuracy": accuracy,
        "interval95_wilson": interval(right, n),
        "flags": "1" * right + "0" * (n - right),
    }
    return Result.model_validate(figures | fields)


def report(*results: Result, **fields: Any) -> Report:
    """A report of these results, on test images of the digits."""
    about: dict[str, Any] = {
        "name": "sample",
        "model": "digits-cnn",
        "data": "digits",
        "part": "test",
        "n": results[0].n,
        "total": 360,
        "protocol": "mine",
        "threat": {"norm": "Linf", "eps": 0.15},
        "seed": 0,
        "batch_size": 250,
    }
    return Report.model_validate(about | {"results": results} | fields)
