"""Reports for tests, whole in every field, of few figures."""

from collections.abc import Mapping
from typing import Any

from atent_ext.attacks.spec import Kind
from atent_ext.core.statistics import interval, running_interval
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
        "total": max(360, results[0].n),
        "protocol": "mine",
        "threat": {"norm": "Linf", "eps": 0.15},
        "seed": 0,
        "batch_size": 250,
    }
    return Report.model_validate(about | {"results": results} | fields)


def drawn(name: str, flags: str, total: int, clean: str = "", attack: str = "AutoAttack", **fields: Any) -> Report:
    """A report of an evaluation that stopped early: the flags of the images, in the order in which they were drawn."""
    results = [
        result(kind, text.count("1") / len(text), len(text), flags=text)
        for kind, text in (("clean", clean or "1" * len(flags)), (attack, flags), ("worst case", flags))
    ]
    results = [
        one.model_copy(
            update={"interval95_wilson": None, "interval95_anytime": running_interval(one.robust().numpy(), total)}
        )
        for one in results
    ]
    about = {"name": name, "n": len(flags), "total": total, "drawn": {"ended": "it stopped"}, "data_sha256": "0" * 64}
    return report(*results, **about | fields)
