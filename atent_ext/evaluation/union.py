"""The report of several threat models: a whole report of each, and the union, where an image has to be right in all."""

import json
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from atent_ext.attacks.spec import Outcome
from atent_ext.core.schema import Section, Threat
from atent_ext.core.tables import Table
from atent_ext.evaluation import report_files
from atent_ext.evaluation.report import Report, Result, result_of
from atent_ext.evaluation.run import total
from atent_ext.storage import files


def called(threat: Threat) -> str:
    """The name of a threat model in reports: "Linf eps 0.0314"."""
    return f"{threat.norm} eps {threat.eps:.4g}"


class UnionReport(Section):
    """The results of one model under several threat models, on the same images and with the same seed.

    reports: of each threat model, as an evaluation of it alone gives. union: an image is right if it is right in the
    worst case of every one of them.
    """

    kind: Literal["several-threats"] = "several-threats"
    version: Literal[1] = 1
    union: Result
    reports: Annotated[tuple[Report, ...], Field(min_length=2)]

    @classmethod
    def of(cls, reports: Sequence[Report]) -> Self:
        """The report of these parts, with their union."""
        return cls(union=_union(reports), reports=tuple(reports))

    @model_validator(mode="after")
    def _of_its_parts(self) -> Self:
        if len({called(threat) for threat in self.threats}) < len(self.reports):
            raise ValueError("a threat model is in it twice")
        if any(report.drawn for report in self.reports):
            raise ValueError("its reports stopped early, each at other images")
        if len({_images(report) for report in self.reports}) > 1:
            raise ValueError("its reports are of other images, models or seeds than each other")
        expected = _union(self.reports)
        if (self.union.flags, self.union.correct, self.union.n) != (expected.flags, expected.correct, expected.n):
            raise ValueError("the union has other flags than its parts together")
        return self

    @property
    def threats(self) -> tuple[Threat, ...]:
        """The threat models, in the order in which they were asked for."""
        return tuple(report.threat for report in self.reports)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.reports[0].name

    @property
    def n(self) -> int:
        """The number of scored images."""
        return self.union.n

    @property
    def worst_case(self) -> float:
        """The share in [0, 1] of the images that are right under every attack of every threat model."""
        return self.union.accuracy

    def flags(self) -> Tensor:
        """Which images stayed right under all threat models, (n,) bool."""
        return self.union.robust()

    def report(self, threat: Threat) -> Report:
        """The report of a threat model. Raises KeyError if it is none of `threats`."""
        return dict(zip(map(called, self.threats), self.reports, strict=True))[called(threat)]

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of all parts, each with its threat model."""
        return tuple(f"{called(one.threat)}: {note}" for one in self.reports for note in one.notes)

    @property
    def passes(self) -> int | None:
        """The forward passes of one image of all parts; None if they were not counted."""
        return total([report.passes for report in self.reports])

    def to_json(self) -> str:
        """The report as JSON text, which `load` reads back."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"

    def save(self, path: Path | str) -> None:
        """Write the report as a JSON file, atomically. Raises NotWritten if that fails."""
        files.write(Path(path), self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """The report in a JSON file. Raises BadInput if it is missing or no report of several threat models."""
        return cls.parse(report_files.read(path), str(path))

    @classmethod
    def parse(cls, raw: Any, source: str) -> Self:
        """The report in plain data. source: its name in errors. Raises BadInput for other data."""
        return report_files.parse(cls, raw, source)

    def table(self) -> Table:
        """One row per threat model and attack, then the union."""
        first = self.reports[0]
        title = f"{self.name} on {first.data}, {first.split}; {len(self.reports)} threat models, seed {first.seed}"
        table = Table("threat", "attack", "correct", "accuracy", "95 % interval", "seconds", title=title, figures=4)
        for report in self.reports:
            for result in report.results:
                table.add(f"{called(report.threat)}", *_row(result))
        table.add("all of them", *_row(self.union))
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return report_files.recorded(self.table(), self.notes).export_text().rstrip()

    def _repr_html_(self) -> str:
        console = report_files.recorded(self.table(), self.notes)
        return console.export_html(inline_styles=True, code_format=report_files.PRE)


def _row(result: Result) -> tuple[str, ...]:
    low, high = result.interval95
    counts = f"{result.correct}/{result.n}", f"{result.accuracy:.2%}", f"{low:.1%} - {high:.1%}"
    return (result.attack, *counts, f"{result.seconds:.1f}")


def _images(report: Report) -> tuple[Any, ...]:
    hashes = report.weights_sha256, report.data_sha256, report.content_sha256
    return (report.name, report.data, report.part, report.n, report.total, report.seed, *hashes)


def _union(reports: Sequence[Report]) -> Result:
    """The union of the worst cases. Raises ValueError for reports of other numbers of images."""
    worst = [report.worst for report in reports]
    if len({result.n for result in worst}) > 1:
        raise ValueError("its reports are of other numbers of images")
    flags = reduce(torch.logical_and, [result.robust() for result in worst])
    over = ", ".join(called(report.threat) for report in reports)
    seconds, passes = sum(result.seconds for result in worst), total([report.passes for report in reports])
    return result_of(Outcome("worst_case", "union", {"over": over}, flags, seconds, passes=passes))
