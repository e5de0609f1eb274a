"""Studies: a table or figure of the papers as data, with rows, columns, the numbers of the paper, and scales."""

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
    """Certified accuracy at an ℓ∞ or ℓ2 `radius`. Smoothing certifies an ℓ∞ ball by the ℓ2 ball around it (v2 Table 5).

    by: "smoothing" with Gaussian noise of standard deviation sigma; n0, alpha as in `smoothing.Smoothing`, whose n is
    `certificates` of the scale. "intervals": ℓ∞ only, as `intervals.certified_linf`. At a radius of 0 an image counts
    if the prediction is correct.
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
                "intervals take none and are in Linf",
                code="conflict",
                field="by",
            )
        return self


class Column(Section):
    """A measurement that is taken of every row.

    attack or certify: what is measured. eps, norm: the absolute radius; without them it is `share` of the radius of the
    row. slow: measured on the smaller number of images of the scale. step_share: the step size of the attack as a share
    of the radius of the row.
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
            raise BadInput(f"column {self.name!r} needs either attack or certify", code="conflict", field="attack")
        if (self.eps is None) != (self.norm is None):
            raise BadInput(f"column {self.name!r} needs eps and norm together", code="conflict", field="eps")
        if self.certify is not None and self.model_fields_set & {"eps", "norm", "share", "step_share"}:
            message = f"column {self.name!r} has the radius of its certificate; remove eps, norm, share, step_share"
            raise BadInput(message, code="unused", field="certify")
        if self.attack is not None and self.step_share is not None and not hasattr(self.attack, "step_size"):
            message = f"column {self.name!r} has a step_share, and {self.attack.attack} has no step_size; remove it"
            raise BadInput(message, code="unused", field="step_share")
        return self

    def threat(self, row: Threat) -> Threat:
        """The threat model that a row is measured under. row: the threat model of the row."""
        if self.eps is not None and self.norm is not None:
            return Threat(norm=self.norm, eps=self.eps)
        return Threat(norm=row.norm, eps=row.eps * self.share)

    def spec(self, row: Threat) -> AttackSpec:
        """The attack on a row. row: its threat model. Raises BadInput if the column is a certificate."""
        if self.attack is None:
            raise BadInput(f"column {self.name!r} is a certificate, not an attack", code="missing", field="attack")
        if self.step_share is None:
            return self.attack
        return self.attack.model_copy(update={"step_size": row.eps * self.step_share})


class CurveAxis(Section):
    """Accuracy against eps: one column for each of 0, by, 2 by, ..., to. trained: the radius that the plot marks."""

    norm: NormName
    attack: AnyAttack
    to: Positive
    by: Positive
    trained: Positive

    def radii(self) -> list[float]:
        """The radii, in order."""
        return [round(k * self.by, 6) for k in range(round(self.to / self.by) + 1)]

    def columns(self) -> list[Column]:
        """One column per radius, named after norm and radius."""
        return [
            Column(name=f"{self.norm} {eps:.4g}", attack=self.attack, eps=eps, norm=self.norm) for eps in self.radii()
        ]


class Shipped(Section):
    """A checkpoint that an installed package ships, file `module:path`, with its model, data set and threat model."""

    file: str
    model: str
    dataset: str
    threat: Threat


class Row(Section):
    """One line of a table.

    recipe: the name that is inserted into `recipes` of the scale. set: scale -> overrides of the recipe. of: another
    study that holds the row, under the name `row` (None: the same name). after: the row of this study whose weights
    training starts from. weights: a checkpoint to load instead. quoted: why the row is not trained here; such a row has
    only the numbers of the paper. scales: the scales that have the row (None: all). n: the most images. skip: column ->
    why it is not measured. paper: column -> the number of the paper, in % or seconds.
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
            message = f"row {self.name!r} needs exactly one of recipe, of, weights and quoted"
            raise BadInput(message, code="conflict", field="recipe")
        return self


class Scale(Section):
    """The effort of a reproduction. recipes: a pattern for the names of recipes, with {recipe}. set: overrides of all.

    n: test images of each column (for training times: rounds; for a plane: images of each class). slow: of slow
    columns. images: column -> images. certificates: noisy samples per image of smoothing. leave_out: columns that are
    not measured. dataset, updates: of a plane. differs: the differences from the setting of the paper.
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

    kind: accuracies, training times, or a figure of the runs of the rows. draws: the kind of figure, as in
    `drawing.KINDS`. curves: axes of a plot.
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
        """All columns, including those of the curves."""
        return [*self.columns, *(column for axis in self.curves for column in axis.columns())]

    def rows_at(self, scale: ScaleName) -> Iterator[Row]:
        """The rows that exist at a scale."""
        return (row for row in self.rows if row.scales is None or scale in row.scales)

    def row(self, name: str) -> Row:
        """The row of that name. Raises BadInput if there is none."""
        row = next((row for row in self.rows if row.name == name), None)
        if row is None:
            raise registry.nearest(f"row of {self.name}", name, [row.name for row in self.rows])
        return row

    def at(self, scale: str) -> Scale:
        """The settings of a scale. Raises BadInput for one that the study does not have."""
        known = {str(name): settings for name, settings in self.scales.items()}
        if scale not in known:
            raise registry.nearest(f"scale of {self.name}", scale, known)
        return known[scale]

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
            message = f"{self.name}: a study of kind 'figure' needs `draws`, and no other kind takes it"
            raise BadInput(message, code="conflict", field="draws")
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
        message = f"study {name}: {' '.join(str(error).split())}"
        raise BadInput(message, code="bad-value", field="study") from None


def resolved(study: Study, row: Row) -> tuple[Study, Row]:
    """The study and row that define a row: those it refers to by `of`, else the row itself."""
    if row.of is None:
        return study, row
    other = load(row.of)
    return resolved(other, other.row(row.row or row.name))


def recipe_of(study: Study, row: Row, scale: ScaleName, seed: int = 0) -> Recipe:
    """The recipe of a row at a scale, overrides applied. Raises BadInput for a row that is not trained."""
    study, row = resolved(study, row)
    if row.recipe is None:
        raise BadInput(f"row {row.name!r} of {study.name} is not trained here", code="missing", field="recipe")
    settings = study.at(scale)
    changes = [*settings.set, *row.set.get(scale, ()), f"seed={seed}"]
    return recipes.load(settings.recipes.format(recipe=row.recipe), changes)


def run_name(recipe: Recipe) -> str:
    """The folder name of a run: the name of the recipe and a digest of all that decides the weights.

    Equal runs of different studies share a folder.
    """
    deciding: dict[str, Any] = recipe.model_dump(mode="json", exclude={"description", "differs", "name"})
    deciding["init_from"] = recipe.init_from and Path(recipe.init_from).name  # the name of the run, not its path
    digest = hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
    return f"{recipe.name}-{digest[:8]}"
