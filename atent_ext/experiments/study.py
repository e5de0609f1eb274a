"""What a table or a figure of the papers is: rows to train or load, columns to measure, the paper's numbers, scales."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from atent_ext.attacks.spec import AnyAttack, AttackSpec
from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import NormName
from atent_ext.core.schema import Count, Positive, Section, Threat
from atent_ext.training import recipes
from atent_ext.training.recipes import Recipe

ScaleName = Literal["smoke", "cpu", "full"]
SCALES: tuple[ScaleName, ...] = ("smoke", "cpu", "full")


class Certify(Section):
    """Certified accuracy at `radius`: an ℓ∞ radius, through the ℓ2 ball that holds its ball (v2 Table 5), or an ℓ2 one.

    by: "smoothing" with noise of deviation sigma; n0, alpha as in `certification.Smoothing`, whose n is the scale's
    `certificates`; a radius of 0 asks for the right answer alone. Or by "intervals", in ℓ∞, as `bounds.certified_linf`.
    """

    by: Literal["smoothing", "intervals"] = "smoothing"
    sigma: Positive | None = None
    norm: NormName = "Linf"
    radius: Annotated[float, Field(ge=0)]
    n0: Count = 100
    alpha: float = 0.001

    @model_validator(mode="after")
    def _fields_apply(self) -> "Certify":
        if (self.by == "smoothing") != (self.sigma is not None) or (self.by == "intervals" and self.norm != "Linf"):
            raise BadInput(
                f"a certificate by {self.by} has sigma {self.sigma}, norm {self.norm}; smoothing needs a sigma, "
                "intervals take none and are in Linf"
            )
        return self


class Column(Section):
    """One measurement of every row.

    attack or certify: what is done. eps, norm: the radius, absolute; else `share` of the row's own radius. slow: on the
    scale's smaller number of images. step_share: the attack's step size as a share of the row's own radius.
    """

    name: str
    attack: AnyAttack | None = None
    certify: Certify | None = None
    share: Annotated[float, Field(ge=0)] = 1.0
    eps: Annotated[float, Field(ge=0)] | None = None
    norm: NormName | None = None
    step_share: Positive | None = None
    slow: bool = False

    @model_validator(mode="after")
    def _measures_one_thing(self) -> "Column":
        if (self.attack is None) == (self.certify is None):
            raise BadInput(f"column {self.name!r} needs either attack or certify")
        if (self.eps is None) != (self.norm is None):
            raise BadInput(f"column {self.name!r} needs eps and norm together")
        if self.certify is not None and self.model_fields_set & {"eps", "norm", "share", "step_share"}:
            raise BadInput(
                f"column {self.name!r} has the radius of its certificate; remove eps, norm, share, step_share"
            )
        if self.attack is not None and self.step_share is not None and not hasattr(self.attack, "step_size"):
            raise BadInput(
                f"column {self.name!r} has a step_share, and {self.attack.attack} has no step_size; remove it"
            )
        return self

    def threat(self, row: Threat) -> Threat:
        """The radius that a row is measured at, whose own threat model is `row`."""
        if self.eps is not None and self.norm is not None:
            return Threat(norm=self.norm, eps=self.eps)
        return Threat(norm=row.norm, eps=row.eps * self.share)

    def spec(self, row: Threat) -> AttackSpec:
        """The attack on a row whose own threat model is `row`."""
        if self.attack is None:
            raise BadInput(f"column {self.name!r} is a certificate, not an attack")
        if self.step_share is None:
            return self.attack
        return self.attack.model_copy(update={"step_size": row.eps * self.step_share})


class CurveAxis(Section):
    """Accuracy against eps: one column for each of 0, by, 2 by, ..., to. trained: the radius that its plot marks."""

    norm: NormName
    attack: AnyAttack
    to: Positive
    by: Positive
    trained: Positive

    def radii(self) -> list[float]:
        """The radii, in order."""
        return [round(k * self.by, 6) for k in range(round(self.to / self.by) + 1)]

    def columns(self) -> list[Column]:
        """One column a radius, named after norm and radius."""
        return [
            Column(name=f"{self.norm} {eps:.4g}", attack=self.attack, eps=eps, norm=self.norm) for eps in self.radii()
        ]


class Shipped(Section):
    """A checkpoint inside an installed package, `module:path`, trained by others, and the network that it is of."""

    file: str
    model: str
    dataset: str
    threat: Threat


class Row(Section):
    """One line of a table.

    recipe: what is trained, put into the scale's `recipes`. set: overrides of the recipe at each scale. of: a study
    whose row (`row`, or else of the same name) is meant. after: the row of this study whose weights training starts
    from. weights: a checkpoint that is loaded instead. quoted: why nobody here trains it; then it has the paper's
    numbers alone. scales: at which scales it exists (None: all). n: at most so many images. skip: column -> why it is
    not measured. paper: column -> the paper's number in %, or its seconds.
    """

    name: str
    recipe: str | None = None
    set: Mapping[ScaleName, tuple[str, ...]] = Field(default_factory=dict)
    of: str | None = None
    row: str | None = None
    after: str | None = None
    weights: Shipped | None = None
    quoted: str | None = None
    scales: tuple[ScaleName, ...] | None = None
    n: Count | None = None
    skip: Mapping[str, str] = Field(default_factory=dict)
    paper: Mapping[str, float] = Field(default_factory=dict)
    note: str = ""

    @model_validator(mode="after")
    def _comes_from_one_place(self) -> "Row":
        if sum(source is not None for source in (self.recipe, self.of, self.weights, self.quoted)) != 1:
            raise BadInput(f"row {self.name!r} needs exactly one of recipe, of, weights and quoted")
        return self


class Scale(Section):
    """How much is done. recipes: the name of a row's recipe, with {recipe} in it. set: overrides of every recipe.

    n: test images of each column (training times: rounds; a plane: images of each class), slow: of the slow ones,
    images: of single columns. certificates: noisy draws that bound each probability. leave_out: columns that are not
    measured. dataset, updates: of a plane. differs: what differs from the paper's setting, in words.
    """

    recipes: str = "{recipe}"
    set: tuple[str, ...] = ()
    n: Count = 10_000
    slow: Count = 10_000
    images: Mapping[str, Count] = Field(default_factory=dict)
    certificates: Count = 100_000
    batch_size: Count = 250
    leave_out: tuple[str, ...] = ()
    dataset: Literal["digits", "mnist"] = "digits"
    updates: Count = 400
    differs: str = ""


class Study(Section):
    """One table or figure.

    kind: accuracies, training times, or a figure, `draws` of `figures`, of the rows' runs. curves: axes of a plot.
    """

    name: str
    title: str
    kind: Literal["accuracy", "times", "figure"] = "accuracy"
    draws: str | None = None
    rows: tuple[Row, ...] = ()
    columns: tuple[Column, ...] = ()
    curves: tuple[CurveAxis, ...] = ()
    scales: Annotated[dict[ScaleName, Scale], Field(min_length=1)]
    notes: str = ""

    def measured(self) -> list[Column]:
        """All columns, those of the curves included."""
        return [*self.columns, *(column for axis in self.curves for column in axis.columns())]

    def rows_at(self, scale: ScaleName) -> Iterator[Row]:
        """The rows that exist at a scale."""
        return (row for row in self.rows if row.scales is None or scale in row.scales)

    def row(self, name: str) -> Row:
        """The row of that name. Raises BadInput if there is none."""
        found = next((row for row in self.rows if row.name == name), None)
        if found is None:
            raise registry.nearest(f"row of {self.name}", name, [row.name for row in self.rows])
        return found

    def at(self, scale: str) -> Scale:
        """The settings of a scale. Raises BadInput for one that the study does not have."""
        found = {str(name): settings for name, settings in self.scales.items()}
        if scale not in found:
            raise registry.nearest(f"scale of {self.name}", scale, found)
        return found[scale]

    @model_validator(mode="after")
    def _paper_names_columns(self) -> "Study":
        known = {column.name for column in self.measured()}
        for row in self.rows:
            for column in (row.paper.keys() | row.skip.keys()) - known if self.kind == "accuracy" else ():
                raise registry.nearest(f"column of row {row.name!r}", column, known)
            if row.after is not None:
                self.row(row.after)
        for scale in self.scales.values():
            for column in {*scale.leave_out, *scale.images} - known:
                raise registry.nearest(f"column of {self.name}", column, known)
        if (self.kind == "figure") != (self.draws is not None):
            raise BadInput(f"{self.name}: a study of kind 'figure', and no other, says what it draws")
        return self


def names() -> list[str]:
    """The names of all studies."""
    return list(registry.files("study"))


def load(name: str) -> Study:
    """The study `name`. Raises BadInput with the nearest name if there is none, and for a file that is not valid."""
    shipped = registry.files("study")
    if name not in shipped:
        raise registry.nearest("table or figure", name, shipped)
    try:
        return Study.model_validate(yaml.safe_load(shipped[name].read_text(encoding="utf-8")))
    except ValidationError as error:
        raise BadInput(f"study {name}: {' '.join(str(error).split())}") from None


def resolved(study: Study, row: Row) -> tuple[Study, Row]:
    """The study and the row that are meant, where `row` points to one of another study."""
    if row.of is None:
        return study, row
    other = load(row.of)
    return resolved(other, other.row(row.row or row.name))


def recipe_of(study: Study, row: Row, scale: ScaleName, seed: int = 0) -> Recipe:
    """The recipe of a row at a scale, overrides applied. Raises BadInput for a row that is not trained."""
    study, row = resolved(study, row)
    if row.recipe is None:
        raise BadInput(f"row {row.name!r} of {study.name} is not trained here")
    settings = study.at(scale)
    changes = [*settings.set, *row.set.get(scale, ()), f"seed={seed}"]
    return recipes.load(settings.recipes.format(recipe=row.recipe), changes)


def run_name(recipe: Recipe) -> str:
    """The folder of a recipe's run: its name and a digest of what decides the weights, so that equal runs meet."""
    deciding: dict[str, Any] = recipe.model_dump(mode="json", exclude={"description", "differs", "name"})
    deciding["init_from"] = recipe.init_from and Path(recipe.init_from).name  # a run's name, wherever it lies
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
    return f"{recipe.name}-{digest[:8]}"
