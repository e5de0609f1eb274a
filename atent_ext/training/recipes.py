"""Recipes: a training run as validated data. `recipe_files` reads them from registry/recipes/*.yaml.

The whole recipe is validated before anything runs.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, ClassVar, Literal, cast

import yaml
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from atent_ext.core import registry
from atent_ext.core.errors import BadInput, Code
from atent_ext.core.immutable import frozen
from atent_ext.core.schema import Count, Growing, Network, Positive, Section, Seed, Share, Threat
from atent_ext.core.types import Objective
from atent_ext.data import datasets
from atent_ext.models.speed import Speed
from atent_ext.objectives.certified import Certified, WithCertified
from atent_ext.training import augment as augmentation
from atent_ext.training import recipe_files
from atent_ext.training.mixing import Mix
from atent_ext.training.optimizers import Optimizer as Optimizer
from atent_ext.training.optimizers import Schedule as Schedule
from atent_ext.training.overrides import numbers
from atent_ext.training.recipe_files import names as names


class Validation(Section):
    """How the epoch to keep is selected: on `count` images held out of the TRAINING set, never on test images.

    steps: of the PGD attack that measures robust accuracy, with step size 2.5 eps / steps. select: keep the epoch with
    the best robust accuracy, the best clean accuracy, the largest share that interval bounds prove robust, or the last.
    """

    count: Count
    steps: Count = 10
    select: Literal["robust", "clean", "proven", "last"] = "robust"


class Extra(Section):
    """Images to train on beside those of the data set, such as generated ones.

    source: npz:FILE, see `data.extra`; a relative path is relative to the current folder. share: of each batch, in
    (0, 1). teacher: a run folder whose network labels the images (pseudo-labels); None takes the labels of the file.
    """

    source: str
    share: Annotated[float, Field(gt=0, lt=1)]
    teacher: str | None = None


class AWP(Section):
    """Adversarial weight perturbation (Wu et al. 2020): a step takes the gradient at the worst weights nearby.

    gamma: the size of the perturbation of each layer relative to its weights, > 0. start: the share of the training
    before it sets in. The passes of the loss double, those of the attack do not.
    """

    gamma: Positive = 0.01
    start: Share = 0.0


def _no(given: Any) -> Any:
    """YAML reads a plain `no` as false."""
    return "no" if given is False else given


TrackerName = Literal["tensorboard", "wandb", "mlflow"]


class Recipe(Growing):
    """One training run.

    classes: how many, for `npz:` arrays that may lack some (None: as the data set says). objective: the `name` of a
    registered objective, and its fields. certified: a part of the loss that is certified by interval bounds (ℓ∞ only),
    see `objectives.certified`. eps_ramp: the share of the training, in [0, 1], in which eps and step_size of the
    objective grow linearly to their values. examples: train on the first `examples` images that are not held out
    (None: all). init_from: a run folder or a weights file to fine-tune from; a relative path is relative to the current
    folder. init_weights_key, init_normalisation: which weights of a file with several networks are meant, and that they
    are of images in [0, 1], where the file leaves that open. speed: as in `atent_ext.models.speed`; if the model cannot
    run with it, a simpler one is used; "auto" is measured on the first batch. The recipe in the run folder holds the
    speed that was used. differs: the differences from the published setting.

    Images: augment: the name of a change (see `Batches`), or several in this order. mix: mixup or CutMix.
    label_smoothing: the share of each label that is spread over all classes, in [0, 1). extra: more images.
    Steps: accumulate: the number of parts in which a batch is passed, one after the other, to save memory; the step is
    that of the whole batch, but BatchNorm normalises over a part. clip: the largest norm of the gradient of all
    weights; longer ones are shortened to it. awp: adversarial weight perturbation.
    Averages of the weights, which are validated and kept: ema: the decay of an exponential moving average over the
    steps. swa: the share of the training after which the weights of all epochs are averaged alike (stochastic weight
    averaging, Izmailov et al. 2018), with BatchNorm's statistics of the averaged network.
    tracker: where the metrics of each epoch are logged as well. It is no part of the recipe: files, reports and digests
    of recipes leave it out.
    """

    added: ClassVar[frozenset[str]] = frozenset(
        {"certified", "mix", "label_smoothing", "extra", "accumulate", "clip", "awp", "swa"}
        | {"classes", "init_weights_key", "init_normalisation"}
    )

    name: str
    description: str
    differs: str = ""
    dataset: str
    classes: Count | None = None
    augment: Annotated[augmentation.Name | tuple[augmentation.Name, ...], BeforeValidator(augmentation.check)] = "none"
    mix: Mix | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    extra: Extra | None = None
    examples: Count | None = None
    threat: Threat
    model: Network
    init_from: str | None = None
    init_weights_key: str | None = None
    init_normalisation: Literal["none"] | None = None
    objective: dict[str, Any]
    certified: Certified | None = None
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    epochs: Count
    batch_size: Count
    accumulate: Count = 1
    clip: Positive | None = None
    awp: AWP | None = None
    eps_ramp: Share = 0.0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    swa: Annotated[float, Field(ge=0, lt=1)] | None = None
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_no)] = "no"
    speed: Speed = "channels-last"
    validation: Validation
    seed: Seed = 0
    tracker: TrackerName | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _names_exist(self) -> "Recipe":
        objective = self._method()
        # Store the validated values: PyYAML reads 1e-3 as a text, and only an equal recipe may resume a run.
        taken = {key: value if key == "name" else getattr(objective, key) for key, value in self.objective.items()}
        self.__dict__["objective"] = frozen(taken)
        if self.awp is not None and hasattr(objective, "state_dict"):
            message = f"awp calls the objective twice a step, and {self.objective['name']} remembers its calls; "
            raise BadInput(f"{message}drop awp, or take another objective", code="unsupported", field="awp")
        for field, needed in (("norm", self.threat.norm), ("box", (0.0, 1.0))):
            if getattr(objective, field, needed) != needed:
                raise BadInput(
                    f"objective.{field} is {getattr(objective, field)!r}, but the threat model's is {needed!r}; "
                    "give both the same",
                    code="conflict",
                    field=f"objective.{field}",
                )
        if getattr(objective, "kappa_start", None) is not None and not self.eps_ramp:
            message = "objective.kappa_start is where kappa begins while eps grows, and eps_ramp is 0; give it a share"
            raise BadInput(message, code="unused", field="objective.kappa_start")
        if self.optimizer.name == "entropy-sgd" and self.mixed_precision == "fp16":
            message = "mixed_precision is 'fp16', whose scaled steps Entropy-SGD cannot take; choose bf16 or no"
            raise BadInput(message, code="conflict", field="mixed_precision")
        if self.ema is not None and self.swa is not None:
            message = f"ema is {self.ema} and swa is {self.swa}; only one average is kept, remove the other"
            raise BadInput(message, code="conflict", field="swa")
        if self.threat.norm == "L1":
            message = "threat.norm is L1, which is for evaluation alone; train in Linf or L2"
            raise BadInput(message, code="unsupported", field="threat.norm")
        bounds = {"certified": self.certified, "validation.select": self.validation.select == "proven"}
        for field in (field for field, given in bounds.items() if given and self.threat.norm != "Linf"):
            message = f"{field} needs interval bounds, which are for Linf, and threat.norm is {self.threat.norm}"
            raise BadInput(f"{message}; remove it", code="conflict", field=field)
        if self.extra and not self.extra.source.startswith("npz:"):
            message = f"extra.source is {self.extra.source!r}; write npz:FILE"
            raise BadInput(message, code="bad-value", field="extra.source")
        for argument in {"classes", "channels"} & self.model.arguments.keys():
            message = f"model.arguments.{argument} is decided by the data set; remove it"
            raise BadInput(message, code="unused", field=f"model.arguments.{argument}")
        models = registry.entries("model")
        if self.model.name not in models:
            raise registry.nearest("model", self.model.name, models)
        datasets.check_name(self.dataset)
        return self

    def build_objective(self) -> Objective:
        """The objective of the recipe, with its certified part. Raises BadInput as the recipe does."""
        method = self._method()
        if self.certified is None:
            return method
        return WithCertified(method, self.certified, getattr(method, "eps", self.threat.eps))

    def _method(self) -> Objective:
        """The objective alone. Raises BadInput for an unknown objective and for invalid fields."""
        given = dict(self.objective)
        name = given.pop("name", None)
        if name is None:
            message = f"objective has no name; known: {', '.join(sorted(registry.entries('objective')))}"
            raise BadInput(message, code="missing", field="objective.name")
        kind = registry.resolve("objective", str(name))
        if not (isinstance(kind, type) and is_dataclass(kind)):
            message = f"objective {name!r} is {kind!r}; a dataclass is needed, whose fields a recipe can set"
            raise BadInput(message, code="bad-type", field="objective.name")
        known = inspect.signature(kind).parameters
        there = {*dir(kind), *(field.name for field in fields(kind))}
        lacking = sorted(({"__call__", "terms", "scaled"} - there) | set(getattr(kind, "__abstractmethods__", ())))
        if lacking:
            message = f"objective {name!r} has no {' and no '.join(lacking)}; derive it from objectives.SingleTerm"
            raise BadInput(message, code="bad-type", field="objective.name")
        for field in given.keys() - known.keys():  # the dataclass of another package may accept unknown fields
            raise registry.nearest("field", f"objective.{field}", [f"objective.{name}" for name in known])
        try:
            return cast(Objective, TypeAdapter(kind).validate_python(given))
        except ValidationError as error:
            raise _bad_input(error, kind, prefix="objective.") from None


def load(name: str, overrides: Iterable[str] = (), notice: Callable[[str], None] = lambda text: None) -> Recipe:
    """The recipe `name`, or the YAML file at the path `name`, with `key.subkey=value` overrides applied.

    If an override changes only threat.eps, an objective.eps that was equal to it changes too; its step_size stays.
    notice: called with a message for each field that changed with an override, and for each that has no effect.
    Raises BadInput for an unknown recipe or field (it names the nearest), for an invalid value, and for an override
    that contradicts other fields: threat.eps if objective.eps is another radius, threat.norm without threat.eps,
    model.name if model.arguments are those of another model. `field` is the first wrong field.
    """
    overrides = tuple(overrides)
    raw, notices = recipe_files.overridden(name, overrides)
    recipe = parse(raw, name)
    for text in (*notices, *(_never_reached(recipe) if overrides else ())):
        notice(text)
    return recipe


def _never_reached(recipe: Recipe) -> Iterator[str]:
    schedule, epochs = recipe.schedule, recipe.epochs
    late = [milestone for milestone in schedule.milestones if milestone >= epochs]
    if schedule.name == "multi-step" and late:
        yield f"schedule.milestones {late} lie beyond the {epochs} epochs: the learning rate is not lowered there"
    if schedule.name == "multi-step" and not schedule.milestones:
        yield "schedule.milestones is empty: the learning rate is never lowered; name the epochs at which it is"


def parse(raw: Mapping[str, Any], source: str) -> Recipe:
    """The recipe in plain data. source: its name in errors. Raises BadInput for invalid data."""
    try:
        return Recipe.model_validate(numbers(dict(raw)))
    except ValidationError as error:
        raise _bad_input(error, Recipe, f"recipe {source}: ") from None


def dump(recipe: Recipe) -> str:
    """The recipe as YAML text that `load` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _bad_input(error: ValidationError, kind: Any, start: str = "", prefix: str = "") -> BadInput:
    """A pydantic error as one line that starts with `start`: each wrong field, its value, what is needed.

    Code and field are those of the first wrong field. prefix: of the names of the fields.
    """
    details: list[dict[str, Any]] = [dict(detail) for detail in error.errors()]
    message = start + "; ".join(_explain_one(detail, kind, prefix) for detail in details)
    first = details[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, BadInput):
        return BadInput(message, code=cause.code, field=cause.field and prefix + cause.field)
    field = prefix + ".".join(str(part) for part in first["loc"])
    return BadInput(message, code=_CODES.get(first["type"], "bad-value"), field=field or None)


_CODES: Mapping[str, Code] = {
    "missing": "missing",
    "missing_argument": "missing",
    "extra_forbidden": "unknown-name",
    "unexpected_keyword_argument": "unknown-name",
}
"""Type of a pydantic error -> code; all others are bad values."""


def _explain_one(detail: dict[str, Any], kind: Any, prefix: str) -> str:
    location = [str(part) for part in detail["loc"]]
    message = str(detail["msg"]).removeprefix("Value error, ")
    if detail["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return str(registry.nearest("field", prefix + ".".join(location), _siblings(kind, location, prefix)))
    if not location:
        return message
    value = "" if detail["type"] in ("missing", "missing_argument") else f" is {detail['input']!r}"
    return f"{prefix}{'.'.join(location)}{value}: {message}"


def _siblings(kind: Any, location: list[str], prefix: str) -> list[str]:
    """The full names of the fields that exist beside an unknown field."""
    for part in location[:-1]:
        kind = kind.model_fields[part].annotation
        prefix += f"{part}."
    known = [f.name for f in fields(kind) if f.init] if is_dataclass(kind) else list(kind.model_fields)
    return [prefix + name for name in known]
