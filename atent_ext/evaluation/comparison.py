"""Compare models on the same images by McNemar's exact test."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

from rich.console import Console

from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Section
from atent_ext.core.statistics import holm, paired
from atent_ext.core.tables import Table
from atent_ext.data import datasets
from atent_ext.evaluation.report import Report, Result

LEVEL = 0.05
"""Significance level: the family-wise error rate over all pairs."""


class Pair(Section):
    """One pair of reports: how many images are correct under the attack for both, for `a` or `b` alone, for neither.

    p: McNemar's exact two-sided p-value; p_holm: corrected for the number of pairs (Holm 1979). verdict: of `a`
    against `b`, "tie" where p_holm is not below 0.05.
    """

    a: str
    b: str
    both: int
    a_alone: int
    b_alone: int
    neither: int
    p: float
    p_holm: float
    verdict: Literal["win", "tie", "loss"]


class Comparison(Section):
    """All pairs of reports under one attack, on the same `n` images. notes: other differences between the reports."""

    attack: str
    n: int
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """One row per pair."""
        title = f"{self.attack} on the same {self.n} images; win and loss at {LEVEL:.0%}, corrected by Holm"
        table = Table("a", "b", "a alone", "b alone", "p", "p (Holm)", "a is", title=title)
        words = {"win": "better", "tie": "not significantly different", "loss": "worse"}
        for pair in self.pairs:
            counts = str(pair.a_alone), str(pair.b_alone), f"{pair.p:.2g}", f"{pair.p_holm:.2g}"
            table.add(pair.a, pair.b, *counts, words[pair.verdict])
        return table

    def to_json(self) -> str:
        """The comparison as JSON text."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        console = Console(width=100, no_color=True, force_terminal=False, force_jupyter=False)
        with console.capture() as capture:
            console.print(self.table())
            for note in self.notes:
                console.print(f"note: {note}", markup=False, highlight=False)
        return capture.get().rstrip()


def compare(*reports: Report | Path | str, attack: str = "worst_case") -> Comparison:
    """Compare every pair of reports under one attack, by McNemar's exact test with Holm's correction.

    reports: reports, or paths of their JSON files. attack: the name of an attack, or a kind of result: "worst_case",
    "autoattack", "clean". Raises BadInput for fewer than two reports, for reports of different images or threat
    models, and for a report without the attack.
    """
    if len(reports) < 2:
        message = f"{len(reports)} report is given; a comparison needs at least two"
        raise BadInput(message, code="missing", field="reports")
    read = [report if isinstance(report, Report) else Report.load(report) for report in reports]
    first, *others = read
    for other in others:
        _same_images(first, other, attack)
    results = [_result(report, attack) for report in read]
    names = _names(read)
    flags = [result.robust() for result in results]
    tests = [paired(a.flags, b.flags) for a, b in combinations(results, 2)]
    corrected = holm([p for _, _, p in tests])
    both = [int((a & b).sum()) for a, b in combinations(flags, 2)]
    rows = zip(combinations(names, 2), both, tests, corrected, strict=True)
    pairs = [_pair(a, b, (right, first.n), test, p_holm) for (a, b), right, test, p_holm in rows]
    label = results[0].attack if len({result.attack for result in results}) == 1 else attack
    return Comparison(attack=label, n=first.n, pairs=tuple(pairs), notes=tuple(_differences(read, attack)))


def _pair(a: str, b: str, right: tuple[int, int], test: tuple[int, int, float], p_holm: float) -> Pair:
    (both, n), (a_alone, b_alone, p) = right, test
    better: Literal["win", "loss"] = "win" if a_alone > b_alone else "loss"
    return Pair(
        a=a,
        b=b,
        both=both,
        a_alone=a_alone,
        b_alone=b_alone,
        neither=n - both - a_alone - b_alone,
        p=p,
        p_holm=p_holm,
        verdict=better if p_holm < LEVEL else "tie",
    )


def _result(report: Report, attack: str) -> Result:
    """The result called `attack`; the worst case of a protocol of one attack is that attack's."""
    return report.worst if attack == "worst_case" else report.result(attack)


def _same_images(a: Report, b: Report, attack: str) -> None:
    """Raise BadInput unless both reports are of the same images in the same order, and of one threat model.

    Without the hash of the images in both, their data set, part and number must agree. That does not tell which images
    two runs held out of training.
    """
    hashed = bool(a.data_sha256 and b.data_sha256)
    if not hashed and a.part != datasets.TEST:
        message = f"{a.name} or {b.name} does not say which images it is of, and {a.part} may differ; score them anew"
        raise BadInput(message, code="missing", field="data_sha256")
    fields = ["n", "part", *(["data_sha256"] if hashed else ["data", "total"])]
    if attack != "clean":
        fields.append("threat")
    for field in fields:
        mine, theirs = getattr(a, field), getattr(b, field)
        if mine != theirs:
            message = f"{a.name} has {field} {mine} and {b.name} {theirs}; only reports of the same images compare"
            raise BadInput(message, code="conflict", field=field)


def _names(reports: Sequence[Report]) -> list[str]:
    """The names of the models; equal names are numbered."""
    names = [report.name for report in reports]
    return [name if names.count(name) == 1 else f"{name} ({number})" for number, name in enumerate(names, 1)]


def _differences(reports: Sequence[Report], attack: str) -> list[str]:
    """Differences other than the model that can change flags."""
    first, notes = reports[0], []
    for field in ("protocol", "seed", "chunk", "batch_size", "versions"):
        values = [getattr(report, field) for report in reports]
        if any(value != getattr(first, field) for value in values):
            notes.append(f"{field} differs: {', '.join(dict.fromkeys(map(str, values)))}")
    results = [_result(report, attack) for report in reports]
    if len({json.dumps(result.model_dump(mode="json", include={"attack", "settings"})) for result in results}) > 1:
        notes.append("the settings of the attack differ")
    if len({result.changed for result in results}) > 1:
        notes.append("AutoAttack was changed in some of the reports")
    return notes
