"""Recipes: a training run as validated data. `recipe_files` reads them from registry/recipes/*.yaml.

The whole recipe is validated before anything runs.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Literal, cast

import torch
import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator
from torch import Tensor

from atent_ext.core import registry
from atent_ext.core.errors import BadInput, Code
from atent_ext.core.immutable import frozen
from atent_ext.core.schema import Count, Network, Positive, Section, Seed, Share, Threat
from atent_ext.core.types import Objective
from atent_ext.data import datasets
from atent_ext.models.speed import Speed
from atent_ext.training import recipe_files
from atent_ext.training.entropy_sgd import EntropySGD
from atent_ext.training.overrides import numbers
from atent_ext.training.recipe_files import names as names


class Optimizer(Section):
    """The optimizer: torch.optim.SGD, torch.optim.Adam, or `entropy_sgd.EntropySGD`.

    weight_decay: an L2 penalty for all three. momentum: not used by Adam. arguments: only for Entropy-SGD: steps,
    gamma, h, noise, average, outer.
    """

    name: Literal["sgd", "adam", "entropy-sgd"] = "sgd"
    lr: Positive
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    # Left to right: PyYAML reads 1e-3 as a text, and 5 steps must stay an int.
    arguments: dict[str, Annotated[int | float | str, Field(union_mode="left_to_right")]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _arguments_apply(self) -> "Optimizer":
        self.build([torch.zeros(1, requires_grad=True)])
        return self

    @property
    def needs_closure(self) -> bool:
        """Whether `step` needs a closure, because it computes gradients at several points."""
        return self.name == "entropy-sgd"

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimizer over `parameters`. Raises BadInput for arguments that it does not take."""
        given: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay, **self.arguments}
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "entropy-sgd": EntropySGD}[self.name]
        known = inspect.signature(EntropySGD).parameters if self.name == "entropy-sgd" else {}
        for argument in sorted(self.arguments.keys() - (known.keys() - {"params", *type(self).model_fields})):
            message = f"optimizer.arguments.{argument} is not an argument of {self.name}; remove it"
            raise BadInput(message, code="unused", field=f"optimizer.arguments.{argument}")
        if self.name != "adam":
            given["momentum"] = self.momentum
        optimizer: torch.optim.Optimizer = kind(parameters, **given)
        return optimizer


class Schedule(Section):
    """The learning rate.

    constant; multi-step: divided by 10 at each epoch of `milestones`; or one-cycle: up to lr, then down to 0.
    warmup: the share of the training, in [0, 1), in which the rate of one-cycle rises.
    """

    name: Literal["constant", "multi-step", "one-cycle"] = "constant"
    milestones: tuple[Count, ...] = ()
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.3


class Validation(Section):
    """How the epoch to keep is selected: on `count` images held out of the TRAINING set, never on test images.

    steps: of the PGD attack that measures robust accuracy, with step size 2.5 eps / steps. select: keep the epoch with
    the best robust accuracy, with the best clean accuracy, or the last.
    """

    count: Count
    steps: Count = 10
    select: Literal["robust", "clean", "last"] = "robust"


class Recipe(Section):
    """One training run.

    classes: how many, for `npz:` arrays that may lack some (None: as the data set says). objective: the `name` of a
    registered objective, and its fields. eps_ramp: the share of the training, in [0, 1], in which eps and step_size of
    the objective grow linearly to their values. ema: the decay of an exponential moving average of the weights; if it
    is set, the average is validated and kept. examples: train on the first `examples` images that are not held out
    (None: all). init_from: a run folder or a weights file to fine-tune from; a relative path is relative to the current
    folder. init_weights_key, init_normalisation: which weights of a file with several networks are meant, and that they
    are of images in [0, 1], where the file leaves that open. speed: as in `atent_ext.models.speed`; if the model cannot
    run with it, a simpler one is used; "auto" is measured on the first batch. The recipe in the run folder holds the
    speed that was used. differs: the differences from the published setting.
    """

    name: str
    description: str
    differs: str = ""
    dataset: str
    classes: Count | None = None
    augment: Literal["none", "crop-flip", "shift", "affine"] = "none"
    examples: Count | None = None
    threat: Threat
    model: Network
    init_from: str | None = None
    init_weights_key: str | None = None
    init_normalisation: Literal["none"] | None = None
    objective: dict[str, Any]
    optimizer: Optimizer
    schedule: Schedule = Schedule()
    epochs: Count
    batch_size: Count
    eps_ramp: Share = 0.0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    speed: Speed = "channels-last"
    validation: Validation
    seed: Seed = 0

    @model_validator(mode="after")
    def _names_exist(self) -> "Recipe":
        objective = self.build_objective()
        # Store the validated values: PyYAML reads 1e-3 as a text, and only an equal recipe may resume a run.
        taken = {key: value if key == "name" else getattr(objective, key) for key, value in self.objective.items()}
        self.__dict__["objective"] = frozen(taken)
        for field, needed in (("norm", self.threat.norm), ("box", (0.0, 1.0))):
            if getattr(objective, field, needed) != needed:
                raise BadInput(
                    f"objective.{field} is {getattr(objective, field)!r}, but the threat model's is {needed!r}; "
                    "give both the same",
                    code="conflict",
                    field=f"objective.{field}",
                )
        if self.optimizer.name == "entropy-sgd" and self.mixed_precision == "fp16":
            message = "mixed_precision is 'fp16', whose scaled steps Entropy-SGD cannot take; choose bf16 or no"
            raise BadInput(message, code="conflict", field="mixed_precision")
        for argument in {"classes", "channels"} & self.model.arguments.keys():
            message = f"model.arguments.{argument} is decided by the data set; remove it"
            raise BadInput(message, code="unused", field=f"model.arguments.{argument}")
        models = registry.entries("model")
        if self.model.name not in models:
            raise registry.nearest("model", self.model.name, models)
        datasets.check_name(self.dataset)
        return self

    def build_objective(self) -> Objective:
        """The objective of the recipe. Raises BadInput for an unknown objective and for invalid fields."""
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
