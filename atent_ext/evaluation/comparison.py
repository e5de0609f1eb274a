"""Compare models on the same images by McNemar's exact test, or by a sequential one that stops when it has decided."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from atent_ext.core import seeds, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Section
from atent_ext.core.statistics import holm, paired, sequential_mcnemar
from atent_ext.core.tables import Table
from atent_ext.data import datasets
from atent_ext.evaluation.report import Report, Result

LEVEL = 0.05
"""Significance level: the family-wise error rate over all pairs."""
_WORDS = {"win": "better", "tie": "not significantly different", "loss": "worse"}


class Pair(Section):
    """One pair of reports: how many images are correct under the attack for both, for `a` or `b` alone, for neither.

    p: McNemar's exact two-sided p-value; p_holm: corrected for the number of pairs (Holm 1979). verdict: of `a`
    against `b`, "tie" where p_holm is not below 0.05. scored: None, or the number of images in random order after which
    a sequential comparison stopped; the counts and p, which is valid whenever one stops, are of these, and p_holm is p
    times the number of pairs (Bonferroni).
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
    scored: int | None = None


class Comparison(Section):
    """All pairs of reports under one attack, on the same `n` images. notes: other differences between the reports."""

    attack: str
    n: int
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...] = ()

    def table(self) -> Table:
        """One row per pair, the two models below each other, so that their names stay whole in 80 columns."""
        if any(pair.scored is not None for pair in self.pairs):
            return self._sequential_table()
        title = f"{self.attack} on the same {self.n} images; win and loss at {LEVEL:.0%}, corrected by Holm"
        table = Table("models", "right alone", "p", "p (Holm)", "the first is", title=title)
        for pair in self.pairs:
            alone = f"{pair.a_alone}\n{pair.b_alone}"
            table.add(f"{pair.a}\n{pair.b}", alone, f"{pair.p:.2g}", f"{pair.p_holm:.2g}", _WORDS[pair.verdict])
        return table

    def _sequential_table(self) -> Table:
        title = f"{self.attack}, the same {self.n} images in random order until decided at {LEVEL:.0%} over all pairs"
        table = Table("models", "images", "right alone", "p (anytime)", "the first is", title=title)
        for pair in self.pairs:
            alone = f"{pair.a_alone}\n{pair.b_alone}"
            table.add(f"{pair.a}\n{pair.b}", str(pair.scored), alone, f"{pair.p_holm:.2g}", _WORDS[pair.verdict])
        return table

    def to_json(self) -> str:
        """The comparison as JSON text."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        console = Console(width=100, no_color=True, force_terminal=False, force_jupyter=False)
        with console.capture() as capture:
            console.print(self.table(), crop=False)
            for note in self.notes:
                console.print(f"note: {note}", markup=False, highlight=False)
        return capture.get().rstrip()


def compare(
    *reports: Report | Path | str, attack: str = "worst_case", until_decided: bool = False, seed: int = 0
) -> Comparison:
    """Compare every pair of reports under one attack, by McNemar's exact test with Holm's correction.

    reports: reports, or paths of their JSON files. attack: the name of an attack, or a kind of result: "worst_case",
    "autoattack", "clean". until_decided: look at the images in an order drawn from `seed`, and stop at the first after
    which a sequential McNemar test tells the two apart; equal models are told apart in at most 5 % of orders. That says
    how many images a comparison takes. Reports of evaluations that stopped early are always compared by that test, on
    the images that all of them scored, in their order; seed plays no role there. Raises BadInput for fewer than two
    reports, for reports of different images or threat models, and for a report without the attack.
    """
    if len(reports) < 2:
        message = f"{len(reports)} report is given; a comparison needs at least two"
        raise BadInput(message, code="missing", field="reports")
    validate.seed(seed)
    read = [report if isinstance(report, Report) else Report.load(report) for report in reports]
    first, *others = read
    for other in others:
        _same_images(first, other, attack)
    results = [_result(report, attack) for report in read]
    names = _names(read)
    label = results[0].attack if len({result.attack for result in results}) == 1 else attack
    n = min(report.n for report in read)
    flags = [result.robust()[:n] for result in results]
    if first.drawn is not None:
        pairs = _until_decided(names, flags)
    elif until_decided:
        order = torch.randperm(n, generator=seeds.generator(seed))
        pairs = _until_decided(names, [those[order] for those in flags])
    else:
        pairs = _on_all(names, results)
    return Comparison(attack=label, n=n, pairs=tuple(pairs), notes=tuple(_differences(read, attack)))


def _on_all(names: Sequence[str], results: Sequence[Result]) -> list[Pair]:
    tests = [paired(a.flags, b.flags) for a, b in combinations(results, 2)]
    corrected = holm([p for _, _, p in tests])
    both = [int((a & b).sum()) for a, b in combinations([result.robust() for result in results], 2)]
    rows = zip(combinations(names, 2), both, tests, corrected, strict=True)
    return [_pair(a, b, (right, results[0].n), test, p_holm) for (a, b), right, test, p_holm in rows]


def _until_decided(names: Sequence[str], drawn: Sequence[Tensor]) -> list[Pair]:
    """Each pair at the first image whose p-value decides; at the last where none does. drawn: flags in random order."""
    tests = len(drawn) * (len(drawn) - 1) // 2
    pairs = []
    for (a, b), (mine, theirs) in zip(combinations(names, 2), combinations(drawn, 2), strict=True):
        alone = (mine & ~theirs).cumsum(0).numpy(), (theirs & ~mine).cumsum(0).numpy()
        p = np.minimum.accumulate(sequential_mcnemar(*alone))
        last = int((p * tests < LEVEL).argmax()) if p[-1] * tests < LEVEL else len(p) - 1
        counts = int(alone[0][last]), int(alone[1][last]), float(p[last])
        both = int((mine & theirs)[: last + 1].sum())
        pair = _pair(a, b, (both, last + 1), counts, min(1.0, tests * counts[2]))
        pairs.append(pair.model_copy(update={"scored": last + 1}))
    return pairs


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

    Those of evaluations that stopped early are in one order if they are of one seed; their numbers may differ.

    Without the hash of the images in both, their data set, part and number must agree. That does not tell which images
    two runs held out of training.
    """
    if (a.drawn is None) != (b.drawn is None):
        one, other = (a, b) if b.drawn is None else (b, a)
        message = f"the images of {one.name} were drawn, and those of {other.name} are the first ones"
        message += "; score both with --until-width, or neither"
        raise BadInput(message, code="conflict", field="drawn")
    hashed = bool(a.data_sha256 and b.data_sha256)
    if not hashed and a.part != datasets.TEST:
        message = f"{a.name} or {b.name} does not say which images it is of, and {a.part} may differ; score them anew"
        raise BadInput(message, code="missing", field="data_sha256")
    fields = ["part", "total", "seed"] if a.drawn else ["n", "part"]
    fields += ["data_sha256"] if hashed else ["data", "total"]
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
