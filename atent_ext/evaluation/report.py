"""The report: the results of a model under a protocol, with the images and settings.

One typed, versioned record. Evaluations write it; cards, the leaderboard, papers, bundles and pages read it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AfterValidator, ConfigDict, Field, JsonValue, model_serializer, model_validator
from torch import Tensor
from typing_extensions import Self

from atent_ext.attacks.spec import Kind, Note, Outcome
from atent_ext.core.errors import BadInput
from atent_ext.core.registry import nearest
from atent_ext.core.schema import Readable, Section, Threat
from atent_ext.core.statistics import interval, running_interval
from atent_ext.core.tables import Table
from atent_ext.evaluation import report_files, version1
from atent_ext.evaluation.drawn import Drawn
from atent_ext.evaluation.majority import majorities
from atent_ext.evaluation.report_files import PRE
from atent_ext.storage import files

# Numbers are numbers, no texts that look like one: a card is a stranger's.
Images = Annotated[int, Field(gt=0, le=100_000_000, strict=True)]
Counted = Annotated[int, Field(ge=0, strict=True)]
Share = Annotated[float, Field(ge=0, le=1, strict=True)]

_MAY_LACK = {"per_image", "passes", "proven", "interval95_wilson", "interval95_anytime"}
"""Fields of a result that are left out of its file if they are empty."""


def _in_one_line(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"{text!r} holds characters that are not printable")
    return text


class Result(Section):
    """The result of one attack, or of the worst case: counts, accuracy in [0, 1], 95 % interval, flags.

    kind: what it measures. attack: its display name. settings: of the attack. flags: a string of n digits, 1 for an
    image that is classified correctly under the attack. robust_after: for AutoAttack, the correct images before any
    attack and after each. seconds: the total of all processes. per_image: other figures, n numbers each.
    interval95_wilson: for a number of images that was fixed before. interval95_anytime: instead of it where the images
    were drawn and scored until an interval said enough. passes: forward passes of one image; None where not counted.
    proven: images that are proven robust, on which the network was not run.
    """

    kind: Kind
    attack: Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_in_one_line)]
    settings: dict[str, JsonValue] = Field(default_factory=dict)
    correct: Counted
    n: Images
    accuracy: Share
    interval95_wilson: tuple[Share, Share] | None = None
    interval95_anytime: tuple[Share, Share] | None = None
    robust_after: dict[str, Counted] = Field(default_factory=dict)
    seconds: Annotated[float, Field(ge=0, strict=True)] = 0.0
    passes: Counted | None = None
    proven: Counted = 0
    notes: tuple[Note, ...] = ()
    flags: str = ""
    per_image: dict[str, list[float]] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _without_no_figures(self, plain: Any) -> dict[str, Any]:
        fields: dict[str, Any] = plain(self)
        return {name: fields[name] for name in fields if fields[name] or name not in _MAY_LACK}

    @model_validator(mode="after")
    def _of_one_interval(self) -> Self:
        if (self.interval95_wilson is None) == (self.interval95_anytime is None):
            raise ValueError(f"{self.attack} needs one interval, interval95_wilson or interval95_anytime")
        return self

    @property
    def interval95(self) -> tuple[float, float]:
        """The 95 % interval (low, high) in [0, 1], of the kind that suits how the images were chosen."""
        return self.interval95_wilson or self.interval95_anytime or (0.0, 1.0)

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_version(cls, raw: Any) -> Any:
        return (
            version1.migrated_result(raw) if isinstance(raw, Mapping) and "kind" not in raw and "attack" in raw else raw
        )

    @classmethod
    def of_cell(cls, cell: Mapping[str, Any]) -> "Result":
        """The result in a cell of a study, which holds settings beside figures, as version 1 did."""
        return cls.model_validate(version1.migrated_result(cell))

    @property
    def over(self) -> str:
        """The names of the attacks of a worst case."""
        return str(self.settings.get("over", ""))

    @property
    def changed(self) -> bool:
        """Whether AutoAttack ran otherwise than as published."""
        return any(note.kind == "changed" for note in self.notes)

    def robust(self) -> Tensor:
        """Which images stayed right, (n,) bool. Raises BadInput where the flags are not n digits 0 or 1."""
        if len(self.flags) != self.n or self.flags.strip("01"):
            message = f"{self.attack} has {len(self.flags)} flags, and {self.n} digits 0 or 1 are needed; score it anew"
            raise BadInput(message, code="bad-shape", field="flags")
        return torch.tensor([flag == "1" for flag in self.flags], dtype=torch.bool)


class About(Section):
    """Where a model and its images come from.

    weights_sha256: of the weights file. weights_notes: what was guessed while it was read. data_sha256: of the scored
    images and labels. None where unknown. recipe: of a training run.
    """

    name: Readable
    model: Readable
    weights_sha256: str | None = None
    weights_notes: tuple[Readable, ...] = ()
    data: Readable
    data_note: Readable = ""
    data_sha256: str | None = None
    recipe: dict[str, JsonValue] | None = None


class Report(About):
    """The results of one model under one protocol.

    part, n, total: the first `n` of the `total` images of this part of the data set; with `drawn`, the first n of a
    random order of all of them, in which the flags are, and the hashes are of all images. smaller_batches: chunk
    number -> batch size, for chunks that ran out of memory. prepared: how the model was read, and what was changed to
    run it faster.
    protocol_attacks: the fields of the protocol's attacks. content_sha256: of weights, images and labels. Reports of
    older versions lack some fields.
    """

    model_config = ConfigDict(extra="ignore")

    version: Literal[2] = 2
    part: str
    n: Images
    total: Images
    protocol: str
    threat: Threat
    seed: int
    batch_size: int
    chunk: int | None = None
    protocol_attacks: tuple[dict[str, JsonValue], ...] | None = None
    content_sha256: str | None = None
    versions: dict[str, str | None] = Field(default_factory=dict)
    smaller_batches: dict[str, int] = Field(default_factory=dict)
    speed: str | None = None
    folded: bool | None = None
    prepared: tuple[str, ...] = ()
    processes: int = 1
    machine: dict[str, JsonValue] = Field(default_factory=dict)
    drawn: Drawn | None = None
    results: Annotated[tuple[Result, ...], Field(min_length=1)]

    @model_serializer(mode="wrap")
    def _without_no_order(self, plain: Any) -> dict[str, Any]:
        fields: dict[str, Any] = plain(self)
        return {name: fields[name] for name in fields if name != "drawn" or self.drawn}

    @model_validator(mode="after")
    def _of_the_same_images(self) -> Self:
        if self.n > self.total:
            raise ValueError(f"n is {self.n}, and total {self.total}; n is at most total")
        for result in self.results:
            if result.n != self.n:
                raise ValueError(f"{result.attack} is of {result.n} images, and the report of {self.n}")
            if (result.interval95_anytime is None) == (self.drawn is not None):
                raise ValueError(f"{result.attack} has the interval of images that were chosen in another way")
        return self

    @model_validator(mode="before")
    @classmethod
    def _of_an_older_version(cls, raw: Any) -> Any:
        if report_files.of_several(raw):
            raise ValueError(report_files.SEVERAL)
        return version1.migrated(raw) if isinstance(raw, Mapping) and "version" not in raw and "split" in raw else raw

    @property
    def split(self) -> str:
        """A description of the images."""
        chosen = "the first {} of {}" if self.drawn is None else "{} drawn from {}"
        return f"{self.part}, {chosen.format(self.n, self.total)}"

    def of_kind(self, kind: Kind) -> Result | None:
        """The first result of a kind, None if there is none."""
        return next((result for result in self.results if result.kind == kind), None)

    def result(self, name: str) -> Result:
        """The result of the kind `name` ("clean", "autoattack", "worst_case"), or whose attack is called `name`.

        The kind comes first: no attack hides another by the name it has. Raises BadInput with the nearest name.
        """
        found = [result for result in self.results if result.kind == name != "attack"]
        found += [result for result in self.results if result.attack == name]
        if not found:
            raise nearest("attack of the report", name, [result.attack for result in self.results])
        return found[0]

    def accuracy(self, name: str) -> float:
        """The accuracy in [0, 1] under an attack; `name` as in `result`."""
        return self.result(name).accuracy

    def flags(self, name: str) -> Tensor:
        """Which images stayed right under an attack, (n,) bool. Raises BadInput as `result` and `Result.robust` do."""
        return self.result(name).robust()

    @property
    def attacks(self) -> tuple[Result, ...]:
        """The single attacks: neither clean accuracy nor the worst case."""
        return tuple(result for result in self.results if result.kind not in ("clean", "worst_case"))

    @property
    def worst_case(self) -> float:
        """The worst-case accuracy in [0, 1]: an image counts if it is classified correctly under every attack."""
        return self.worst.accuracy

    @property
    def worst(self) -> Result:
        """The result of the worst case; of a protocol of one attack, that attack's."""
        return self.of_kind("worst_case") or self.results[-1]

    @property
    def evidence(self) -> tuple[Result, ...]:
        """The adversarial images of others that lowered the worst case; `settings["by"]` says whose."""
        return tuple(result for result in self.results if result.kind == "evidence")

    @property
    def autoattack(self) -> Result | None:
        """AutoAttack, also a changed one, unless it was not run."""
        return self.of_kind("autoattack")

    @property
    def notes(self) -> tuple[str, ...]:
        """The texts of all notes, without duplicates."""
        texts = dict.fromkeys(note.text for result in self.results for note in result.notes)
        bounds = f"interval bounds prove {self.proven} of {self.n} images robust"
        bounds += "; attacks that treat images singly left them out"
        drawn = [self.drawn.note(self.n, self.total)] if self.drawn else []
        return (*drawn, *([bounds] if self.proven else []), *texts)

    @property
    def proven(self) -> int:
        """How many images interval bounds prove robust; attacks that treat images singly left them out."""
        return max(result.proven for result in self.results)

    @property
    def passes(self) -> int | None:
        """The forward passes of one image of all attacks; None if they were not counted. Evidence took none."""
        counts = [result.passes for result in self.results if result.kind not in ("worst_case", "evidence")]
        return None if None in counts else sum(count or 0 for count in counts)

    def to_json(self) -> str:
        """The report as JSON text, which `load` reads back."""
        return json.dumps(self.model_dump(mode="json"), indent=1) + "\n"

    def save(self, path: Path | str) -> None:
        """Write the report as a JSON file, atomically. Raises NotWritten if that fails."""
        files.write(Path(path), self.to_json())

    @classmethod
    def load(cls, path: Path | str) -> "Report":
        """The report in a JSON file, also of an older version. Raises BadInput if it is missing or not a report."""
        return cls.parse(report_files.read(path), str(path))

    @classmethod
    def parse(cls, raw: Any, source: str) -> "Report":
        """The report in plain data. source: its name in errors. Raises BadInput for data that are not a report.

        Those of several threat models (`UnionReport`) are none: the error has code "conflict" and field "threats".
        """
        return report_files.parse(cls, raw, source)

    def table(self) -> Table:
        """One row per attack: correct, accuracy, 95 % interval, total seconds of all processes."""
        title = (
            f"{self.name} on {self.data}, {self.split}; {self.threat.norm} eps {self.threat.eps:g}, "
            f"protocol {self.protocol}, seed {self.seed}"
        )
        seconds = "seconds" if self.processes == 1 else "process seconds"
        bounds = "95 % interval" if self.drawn is None else "95 %, anytime"
        table = Table("attack", "correct", "accuracy", bounds, seconds, title=title, figures=4)
        for result in self.results:
            low, high = result.interval95
            counts = f"{result.correct}/{result.n}", f"{result.accuracy:.2%}", f"{low:.1%} - {high:.1%}"
            table.add(result.attack, *counts, f"{result.seconds:.1f}")
            for *row, fixed in majorities(result.attack, result.settings, result.per_image):
                table.add(*row, fixed if self.drawn is None else "", "")
        return table

    def __rich__(self) -> Table:
        return self.table()

    def __str__(self) -> str:
        return report_files.recorded(self.table(), self.notes).export_text().rstrip()

    def _repr_html_(self) -> str:
        return report_files.recorded(self.table(), self.notes).export_html(inline_styles=True, code_format=PRE)


def result_of(outcome: Outcome, drawn_from: int | None = None) -> Result:
    """An outcome as a result, with counts, accuracy and interval.

    drawn_from: the number of images from which those of the outcome were drawn, in its order; None if their number was
    fixed before.
    """
    right, count = int(outcome.flags.sum()), len(outcome.flags)
    anytime = None if drawn_from is None else running_interval(outcome.flags.numpy(), drawn_from)
    return Result(
        kind=outcome.kind,
        attack=outcome.attack,
        settings=dict(outcome.settings),
        correct=right,
        n=count,
        accuracy=right / count,
        interval95_wilson=interval(right, count) if anytime is None else None,
        interval95_anytime=anytime,
        robust_after=dict(outcome.robust_after),
        seconds=round(outcome.seconds, 1),
        passes=outcome.passes,
        proven=outcome.proven,
        notes=outcome.notes,
        flags="".join("01"[int(flag)] for flag in outcome.flags),
        per_image={name: list(figures) for name, figures in outcome.per_image.items()},
    )
