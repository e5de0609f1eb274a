"""`atent view`: a report, a card or a run as one HTML page that opens without a network; two of them side by side."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from atent_ext.core.errors import BadInput
from atent_ext.evaluation import report_files
from atent_ext.evaluation.comparison import Comparison, compare
from atent_ext.evaluation.report import Report, Result
from atent_ext.evaluation.union import UnionReport
from atent_ext.leaderboard import chart, ranking, site
from atent_ext.leaderboard.chart import Chart
from atent_ext.leaderboard.view_images import Images
from atent_ext.storage import files, untrusted
from atent_ext.submissions.cards import Card, read_card

_LARGEST = 100_000_000
"""Bytes of the largest file that is read."""


@dataclass(frozen=True)
class Shown:
    """What one reference of the command stands for. epochs: the lines of a run's metrics.jsonl.

    union: a report of several threat models; then `report` is None, and the page has an article for each of them.
    """

    name: str
    report: Report | None
    card: Card | None = None
    epochs: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    union: UnionReport | None = None

    @property
    def parts(self) -> "list[Shown]":
        """Itself, or one for each threat model of a union."""
        return [Shown(one.name, one) for one in self.union.reports] if self.union else [self]

    @property
    def charts(self) -> list[Chart]:
        """Curves of training, and accuracy against eps."""
        return [*_training(self.epochs), *_against_eps(self.card)]

    @property
    def fallen(self) -> list[tuple[str, int]]:
        """(what happened, number of images): wrong when clean, fell first to an attack, or right under all."""
        return _fallen(self.report) if self.report else []

    @property
    def counted(self) -> bool:
        """Whether the report has the passes that it took."""
        return self.report is not None and self.report.passes is not None

    @property
    def passes(self) -> dict[str, int]:
        """Attack -> forward passes for an image, where the report counts them.

        Else forward and backward passes for an image, at most; of attacks whose settings say it.
        """
        results = self.report.results if self.report else ()
        if self.counted:
            return {one.attack: round((one.passes or 0) / one.n) for one in results if one.kind != "evidence"}
        known = {one.attack: (one.settings.get("steps"), one.settings.get("restarts", 1)) for one in results}
        return {
            name: steps * restarts
            for name, (steps, restarts) in known.items()
            if isinstance(steps, int) and isinstance(restarts, int)
        }


def read(path: Path) -> Shown:
    """A report of `atent eval`, a card, or a run folder with its metrics and the report of the most images.

    Raises BadInput for a path that is none of these.
    """
    if path.is_dir():
        return _run(path)
    if not path.is_file():
        message = f"{path} does not exist; name a report, a card or a run folder"
        raise BadInput(message, code="missing", field="reports")
    try:
        raw = json.loads(untrusted.read(path, _LARGEST))
    except (ValueError, RecursionError):
        raise BadInput(f"{path} is no JSON file; name a report, a card or a run", code="unreadable") from None
    if isinstance(raw, dict) and "submission" in raw:
        card = read_card(path)
        return Shown(card.submission.name, card.report, card)
    if report_files.of_several(raw):
        union = UnionReport.parse(raw, str(path))
        return Shown(union.name, None, union=union)
    report = Report.parse(raw, str(path))
    return Shown(report.name, report)


def _run(folder: Path) -> Shown:
    metrics = folder / "metrics.jsonl"
    reports = [Report.load(path) for path in sorted(folder.glob("eval-*.json"))]
    if not (metrics.is_file() or reports):
        message = f"{folder} holds no metrics and no report; name a run folder of `atent train`"
        raise BadInput(message, code="missing", field="reports")
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    try:
        epochs = [json.loads(line) for line in lines]
    except ValueError:
        raise BadInput(
            f"{metrics} has a line that is no JSON; train anew", code="unreadable", field="reports"
        ) from None
    return Shown(folder.name, max(reports, key=lambda report: report.n, default=None), epochs=epochs)


def write(shown: Sequence[Shown], out: Path, images: Images | None = None) -> None:
    """Write the page of one or two. images: of the first one's model.

    Raises NotWritten if that fails, and BadInput for a report of several threat models beside another one.
    """
    union = next((one.union for one in shown if one.union), None)
    if union is not None and len(shown) > 1:
        message = f"a report of {union.name} is of several threat models, and has a page of its own; name it alone"
        raise BadInput(message, code="conflict", field="reports")
    page = site.templates().get_template("view.html")
    comparisons = list(_comparisons([one.report for one in shown if one.report]))
    title = " and ".join(one.name for one in shown)
    parts = [part for one in shown for part in one.parts]
    context = {"shown": parts, "union": union, "comparisons": comparisons, "images": images}
    files.write(out, page.render(up="", title=title, **context, **_WORDS))


_WORDS = {"norms": {"Linf": "ℓ∞", "L2": "ℓ2", "L1": "ℓ1"}, "eps": ranking.eps_text}


def _comparisons(reports: Sequence[Report]) -> Iterator[Comparison]:
    """Two reports under each attack that both have. Raises BadInput for reports of different images."""
    if len(reports) < 2:
        return
    first, second = reports
    theirs = {result.attack for result in second.results}
    for result in first.results:
        if result.attack in theirs:
            yield compare(first, second, attack=result.kind if result.kind != "attack" else result.attack)


def _fallen(report: Report) -> list[tuple[str, int]]:
    attacks = [result for result in report.results if result.kind != "worst_case" and _flagged(result)]
    if not attacks:
        return []
    first = Counter(
        next((result.attack for result, flag in zip(attacks, flags, strict=True) if flag == "0"), "")
        for flags in zip(*(result.flags for result in attacks), strict=True)
    )
    words = {"clean": "wrong without an attack"}
    shares = [(words.get(one.attack, f"fell first to {one.attack}"), first[one.attack]) for one in attacks]
    return [*shares, ("right under all of them", first[""])]


def _flagged(result: Result) -> bool:
    return len(result.flags) == result.n and not result.flags.strip("01")


def _training(epochs: Sequence[Mapping[str, Any]]) -> Iterator[Chart]:
    if len(epochs) < 2:
        return
    yield chart.draw("loss of training", "epoch", {"loss": _series(epochs, "loss")})
    shares = {name: _series(epochs, name) for name in ("clean", "robust")}
    held_out = {f"{name}, held-out images": points for name, points in shares.items() if points}
    if held_out:
        yield chart.draw("accuracy", "epoch", held_out, top=1.0)


def _series(epochs: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [
        (float(one["epoch"]), float(one[key]))
        for one in epochs
        if isinstance(one.get(key), int | float) and "epoch" in one
    ]


def _against_eps(card: Card | None) -> Iterator[Chart]:
    if card is not None and card.curve:
        try:
            curve = ranking.Curve.model_validate_json(json.dumps(card.curve))
        except ValidationError as error:
            message = f"the card of {card.submission.name} has no valid curve ({untrusted.line(error)}); verify it anew"
            raise BadInput(message, code="unreadable", field="curve") from None
        series = {name: list(zip(curve.eps, shares, strict=True)) for name, shares in curve.accuracy.items()}
        yield chart.draw("accuracy", "eps", {name: sorted(points) for name, points in series.items()}, top=1.0)
