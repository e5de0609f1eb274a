"""Recipes: a training run as validated data, read from registry/recipes/*.yaml by `recipe_files`.

A recipe is checked whole before anything runs.
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
from atent_ext.core.errors import BadInput
from atent_ext.core.immutable import frozen
from atent_ext.core.schema import Count, Network, Positive, Section, Seed, Share, Threat
from atent_ext.core.types import Objective
from atent_ext.models.speed import Speed
from atent_ext.training import recipe_files
from atent_ext.training.entropy_sgd import EntropySGD
from atent_ext.training.recipe_files import names as names


class Optimizer(Section):
    """torch.optim.SGD, Adam, or our Entropy-SGD. weight_decay is the L2 form in all; Adam has no momentum.

    arguments: of Entropy-SGD alone: steps, gamma, h, noise, average, outer.
    """

    name: Literal["sgd", "adam", "entropy-sgd"] = "sgd"
    lr: Positive
    momentum: Share = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    # Left to right: PyYAML reads 1e-3 as a text, and 5 steps must not become 5.0.
    arguments: dict[str, Annotated[int | float | str, Field(union_mode="left_to_right")]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _arguments_apply(self) -> "Optimizer":
        self.build([torch.zeros(1, requires_grad=True)])
        return self

    @property
    def needs_closure(self) -> bool:
        """Whether its step computes the gradient itself, at several points."""
        return self.name == "entropy-sgd"

    def build(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimizer of `parameters`. Raises BadInput for arguments that it does not take."""
        given: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay, **self.arguments}
        kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "entropy-sgd": EntropySGD}[self.name]
        known = inspect.signature(EntropySGD).parameters if self.name == "entropy-sgd" else {}
        for argument in sorted(self.arguments.keys() - (known.keys() - {"params", *type(self).model_fields})):
            raise BadInput(f"optimizer.arguments.{argument} is not an argument of {self.name}; remove it")
        if self.name != "adam":
            given["momentum"] = self.momentum
        optimizer: torch.optim.Optimizer = kind(parameters, **given)
        return optimizer


class Schedule(Section):
    """The learning rate: constant; divided by 10 at each of `milestones` (epochs); or one cycle up to lr and down to 0.

    warmup: share of the training in which one-cycle rises.
    """

    name: Literal["constant", "multi-step", "one-cycle"] = "constant"
    milestones: tuple[Count, ...] = ()
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.3


class Validation(Section):
    """How the epoch to keep is chosen: on `count` images held out of the TRAINING set, never on test images.

    steps: of the PGD attack that measures robust accuracy there, each of 2.5 eps / steps.
    select: keep the epoch of best robust accuracy, of best clean accuracy, or the last.
    """

    count: Count
    steps: Count = 10
    select: Literal["robust", "clean", "last"] = "robust"


class Recipe(Section):
    """One training run.

    objective: `name` of a registered objective and its fields. eps_ramp: share of the training in which eps and step
    size of the objective grow linearly to their values. ema: decay of an exponential moving average of the weights,
    which is then what is validated and kept. examples: train on the first so many images that are not held out (None:
    all). init_from: a run folder or a weights file to start from, for fine-tuning; a relative path starts at the
    current folder. speed: how the network is run, as in `atent_ext.models.speed`; a setting that it cannot run with
    gives way to a simpler one, and "auto" is measured on the first batch; the run folder's recipe holds the choice.
    differs: what differs from the published setting.
    """

    name: str
    description: str
    differs: str = ""
    dataset: str
    augment: Literal["none", "crop-flip", "shift", "affine"] = "none"
    examples: Count | None = None
    threat: Threat
    model: Network
    init_from: str | None = None
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
        # As the objective took them: PyYAML reads 1e-3 as a text, and only an equal recipe may resume a run.
        taken = {key: value if key == "name" else getattr(objective, key) for key, value in self.objective.items()}
        self.__dict__["objective"] = frozen(taken)
        for field, needed in (("norm", self.threat.norm), ("box", (0.0, 1.0))):
            if getattr(objective, field, needed) != needed:
                raise BadInput(
                    f"objective.{field} is {getattr(objective, field)!r}, but the threat model's is {needed!r}; "
                    "give both the same"
                )
        if self.optimizer.name == "entropy-sgd" and self.mixed_precision == "fp16":
            raise BadInput("mixed_precision is 'fp16', whose scaled steps Entropy-SGD cannot take; choose bf16 or no")
        for argument in {"classes", "channels"} & self.model.arguments.keys():
            raise BadInput(f"model.arguments.{argument} is decided by the data set; remove it")
        models, datasets = registry.entries("model"), registry.entries("data set")
        if self.model.name not in models:
            raise registry.nearest("model", self.model.name, models)
        if self.dataset not in datasets and not self.dataset.startswith(("folder:", "npz:")):
            raise registry.nearest("data set", self.dataset, datasets)
        return self

    def build_objective(self) -> Objective:
        """The objective that the recipe names, its fields validated."""
        given = dict(self.objective)
        name = given.pop("name", None)
        if name is None:
            raise BadInput(f"objective has no name; known: {', '.join(sorted(registry.entries('objective')))}")
        kind = registry.resolve("objective", str(name))
        if not (isinstance(kind, type) and is_dataclass(kind)):
            raise BadInput(f"objective {name!r} is {kind!r}; a dataclass is needed, whose fields a recipe can set")
        known = inspect.signature(kind).parameters
        for field in given.keys() - known.keys():  # another package's dataclass may not refuse it
            raise registry.nearest("field", f"objective.{field}", [f"objective.{one}" for one in known])
        try:
            return cast(Objective, TypeAdapter(kind).validate_python(given))
        except ValidationError as error:
            raise BadInput(_explain(error, kind, "objective.")) from None


def load(name: str, overrides: Iterable[str] = (), notice: Callable[[str], None] = lambda text: None) -> Recipe:
    """The recipe `name` (or the YAML file at that path), with `key.subkey=value` overrides applied.

    Where an override changes threat.eps alone, an objective.eps that was equal to it follows; its step_size stays.
    notice: hears what follows, and what an override leaves without effect.
    Raises BadInput for an unknown recipe or field, naming the nearest, for a value that does not fit, and for an
    override that contradicts what stays: threat.eps where objective.eps is another radius, threat.norm without
    threat.eps, model.name where model.arguments are another network's.
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
    """A recipe out of plain data; `source` names it in errors."""
    try:
        return Recipe.model_validate(dict(raw))
    except ValidationError as error:
        raise BadInput(f"recipe {source}: {_explain(error, Recipe)}") from None


def dump(recipe: Recipe) -> str:
    """The recipe as YAML text that `load` reads back."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _explain(error: ValidationError, kind: Any, prefix: str = "") -> str:
    """A pydantic error in one line: each wrong field, its value, what is needed."""
    return "; ".join(_explain_one(dict(detail), kind, prefix) for detail in error.errors())


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
    """The full names of the fields that exist where an unknown one was given."""
    for part in location[:-1]:
        kind = kind.model_fields[part].annotation
        prefix += f"{part}."
    known = [f.name for f in fields(kind) if f.init] if is_dataclass(kind) else list(kind.model_fields)
    return [prefix + name for name in known]
