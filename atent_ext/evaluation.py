"""Accuracy of a model, clean and under attack: flags per example, counts, intervals, the worst case over attacks."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError, model_validator
from scipy.stats import binomtest
from torch import Tensor, nn

from atent_ext import checks, registry
from atent_ext.data import Split
from atent_ext.errors import BadInput
from atent_ext.langevin import Langevin, atent, fgsm, pgd
from atent_ext.library_attacks import Attack, carlini_wagner, deepfool
from atent_ext.losses import cross_entropy
from atent_ext.modes import device_of, evaluating, frozen, seeded
from atent_ext.norms import Norm
from atent_ext.norms import norm as norm_called
from atent_ext.recipes import Count, Section, Threat
from atent_ext.search import Keep, adversaries, allowed
from atent_ext.types import Radius

_MINIMAL: Mapping[str, Callable[[Norm, int], Attack]] = {"cw": carlini_wagner, "deepfool": deepfool}
_CHAIN = ("steps", "restarts", "step_size", "keep")
_APPLY = {
    "pgd": _CHAIN,
    "ifgsm": ("steps",),
    "cw": ("steps",),
    "deepfool": ("steps",),
    "atent": (*_CHAIN, "noise", "project"),
    "autoattack": ("version",),
}


class AttackSpec(Section):
    """One measurement of a protocol.

    attack: "clean"; "fgsm", "ifgsm" (steps of eps / steps from the clean image), "pgd", "atent"; "cw" and "deepfool" of
    other libraries (`library_attacks`); "autoattack". steps, restarts, step_size: of PGD and ATENT; a step_size
    of None is 2.5 eps / steps; keep: "last" counts a run's last iterate, "success" each on the way. noise, project: of
    ATENT, as in `langevin.atent`. version: of AutoAttack.
    """

    attack: Literal["clean", "fgsm", "ifgsm", "pgd", "atent", "cw", "deepfool", "autoattack"]
    steps: Count = 40
    restarts: Count = 1
    step_size: Annotated[float, Field(gt=0)] | None = None
    keep: Keep = "last"
    noise: Annotated[float, Field(ge=0)] = 1e-3
    project: Literal["last", "every"] | None = None
    version: Literal["standard", "rand", "plus"] = "standard"

    @model_validator(mode="after")
    def _fields_apply(self) -> "AttackSpec":
        for name in self.model_fields_set - {"attack", *_APPLY.get(self.attack, ())}:
            raise BadInput(f"{name} does not apply to attack {self.attack!r}; remove it")
        return self


class Protocol(Section):
    """What is measured, in order: a file of eval/protocols/."""

    name: str
    description: str
    attacks: Annotated[tuple[AttackSpec, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Outcome:
    """One attack's result: `flags` (N,) is True where the prediction was right and stayed right.

    `seconds` is the work of all processes together. `robust_after`: of AutoAttack, as in `AutoAttackResult`.
    """

    attack: str
    settings: Mapping[str, Any]
    flags: Tensor
    seconds: float
    notes: tuple[str, ...] = ()
    robust_after: Mapping[str, int] = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """Share of examples that are right, in [0, 1]."""
        return float(self.flags.double().mean())

    def report(self) -> dict[str, Any]:
        """The outcome as plain data: counts, accuracy, 95 % interval, the flags as a text of 0 and 1."""
        right, count = int(self.flags.sum()), len(self.flags)
        return {
            "attack": self.attack,
            **self.settings,
            "correct": right,
            "n": count,
            "accuracy": right / count,
            "interval95_wilson": interval(right, count),
            **({"robust_after": dict(self.robust_after)} if self.robust_after else {}),
            "seconds": round(self.seconds, 1),
            "notes": list(self.notes),
            "flags": "".join("01"[int(flag)] for flag in self.flags),
        }


@dataclass(frozen=True)
class Setting:
    """Under what an attack is run. `seed` starts its random draws; results depend on `batch_size` through them.

    `busy` is told what a long attack is doing.
    """

    threat: Threat
    seed: int = 0
    batch_size: int = 250
    busy: Callable[[str], None] = lambda text: None


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    found = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def paired(mine: str, theirs: str) -> tuple[int, int, float]:
    """Images right by the first flags alone, by the second alone, and McNemar's exact two-sided p-value.

    Flags are "1" for right and "0" for wrong, of the same images. Raises ValueError where one are more than the other.
    """
    both = list(zip(mine, theirs, strict=True))
    own, other = both.count(("1", "0")), both.count(("0", "1"))
    return own, other, float(binomtest(own, own + other).pvalue) if own + other else 1.0


def predict(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """The logits (N, classes) of `images` (N, ...) in eval mode, computed in batches, on the CPU."""
    device = device_of(model)
    with evaluating(model), torch.no_grad():
        return torch.cat([model(batch.to(device)).float().cpu() for batch in torch.split(images, batch_size)])


def clean_flags(model: nn.Module, split: Split, batch_size: int = 250) -> Tensor:
    """Which examples are predicted right, (N,) bool."""
    return predict(model, split.images, batch_size).argmax(1) == split.labels


def robust_flags(
    model: nn.Module,
    split: Split,
    kernel: Langevin,
    setting: Setting,
    restarts: int = 1,
    keep: Keep = "last",
    early_stop: bool = True,
) -> Tensor:
    """Which examples are right and stay right in every one of `restarts` runs of the attack, (N,) bool.

    keep: "last" counts the last iterate of each run, "success" every iterate. early_stop: what is broken is attacked no
    further, which changes the cost and not the flags (`search.adversaries`).
    Raises BadInput if the attack runs into NaN: what cannot be attacked is not robust.
    """
    generator = torch.Generator(device_of(model)).manual_seed(setting.seed)

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return adversaries(
            kernel, model, x, y, cross_entropy, generator, restarts=restarts, keep=keep, early_stop=early_stop
        )

    return flags_under(attack, model, split, kernel.norm, kernel.eps, setting.batch_size, kernel.box)


def flags_under(
    attack: Attack,
    model: nn.Module,
    split: Split,
    norm: Norm,
    eps: Radius,
    batch_size: int,
    box: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Which examples are right and stay right under any attack, (N,) bool.

    What an attack returns outside the eps ball or the box does not count, so that a minimal-norm attack succeeds only
    within eps.
    """
    device = device_of(model)
    flags = []
    with evaluating(model), frozen(model):
        for start in range(0, len(split), batch_size):
            batch = slice(start, start + batch_size)
            x, y = split.images[batch].to(device), split.labels[batch].to(device)
            adversary = attack(model, x, y)
            stays = _right(model, adversary, y) | ~allowed(norm, eps, x, adversary, box)
            flags.append((_right(model, x, y) & stays).cpu())
    return torch.cat(flags)


def load_protocol(name: str) -> Protocol:
    """A protocol of eval/protocols by name. Raises BadInput with the nearest name if there is none."""
    shipped = registry.files("protocol")
    if name not in shipped:
        raise registry.nearest("protocol", name, shipped)
    try:
        return Protocol.model_validate(yaml.safe_load(shipped[name].read_text(encoding="utf-8")))
    except ValidationError as error:
        raise BadInput(f"protocol {name}: {' '.join(str(error).split())}") from None


def evaluate(
    model: nn.Module,
    split: Split,
    protocol: Protocol,
    setting: Setting,
    report: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """Run a protocol: one outcome per attack, then their worst case if there are several.

    Raises BadInput for images outside [0, 1], for labels that the model has no logit for, and for an empty split.
    """
    with seeded(setting.seed):  # for networks that draw
        _check(model, split)
    outcomes = []
    for spec in protocol.attacks:
        start = time.perf_counter()
        with seeded(setting.seed):
            outcome = _RUNNERS[spec.attack](model, split, spec, setting)
        outcomes.append(replace(outcome, seconds=time.perf_counter() - start))
        report(outcomes[-1])
    if len(outcomes) > 1:
        outcomes.append(worst_case(outcomes))
        report(outcomes[-1])
    return outcomes


def worst_case(outcomes: list[Outcome]) -> Outcome:
    """An example counts only if it is right under every one of the outcomes."""
    flags = reduce(torch.logical_and, [outcome.flags for outcome in outcomes])
    over = ", ".join(outcome.attack for outcome in outcomes)
    return Outcome("worst case", {"over": over}, flags, sum(outcome.seconds for outcome in outcomes))


def _check(model: nn.Module, split: Split) -> None:
    if not len(split):
        raise BadInput("there are no images to evaluate on")
    checks.images(split.images, 0.0, 1.0)
    checks.labels(split.labels, len(split.images), predict(model, split.images[:1]).shape[1])


def _clean(model: nn.Module, split: Split, spec: AttackSpec, setting: Setting) -> Outcome:
    logits = predict(model, split.images, setting.batch_size)
    broken = int((~logits.isfinite()).any(1).sum())
    if broken:
        raise BadInput(f"the model's logits are NaN or infinite for {broken} of {len(split)} images; mend it first")
    return Outcome("clean", {}, logits.argmax(1) == split.labels, 0.0)


def _fgsm(model: nn.Module, split: Split, spec: AttackSpec, setting: Setting) -> Outcome:
    kernel = fgsm(norm_called(setting.threat.norm), setting.threat.eps)
    return Outcome("FGSM", {}, robust_flags(model, split, kernel, setting), 0.0)


def _ifgsm(model: nn.Module, split: Split, spec: AttackSpec, setting: Setting) -> Outcome:
    eps = setting.threat.eps
    kernel = pgd(norm_called(setting.threat.norm), eps, spec.steps, eps / spec.steps, start="clean")
    return _chain("IFGSM", kernel, model, split, spec, setting)


def _minimal(model: nn.Module, split: Split, spec: AttackSpec, setting: Setting) -> Outcome:
    norm, eps = norm_called(setting.threat.norm), setting.threat.eps
    with seeded(setting.seed):
        flags = flags_under(_MINIMAL[spec.attack](norm, spec.steps), model, split, norm, eps, setting.batch_size)
    return Outcome(f"{spec.attack}-{spec.steps}", {"steps": spec.steps}, flags, 0.0)


def _pgd(model: nn.Module, split: Split, spec: AttackSpec, setting: Setting) -> Outcome:
    kernel = pgd(norm_called(setting.threat.norm), setting.threat.eps, spec.steps, spec.step_size)
    return _chain("PGD", kernel, model, split, spec, setting)


def _atent(model: nn.Module, split: Split, spec: AttackSpec, setting: Setting) -> Outcome:
    chosen = norm_called(setting.threat.norm)
    kernel = atent(chosen, setting.threat.eps, spec.steps, spec.step_size, noise=spec.noise, project=spec.project)
    return _chain("ATENT", kernel, model, split, spec, setting, noise=kernel.noise, project=kernel.project)


def _chain(
    name: str, kernel: Langevin, model: nn.Module, split: Split, spec: AttackSpec, setting: Setting, **more: Any
) -> Outcome:
    settings = {"steps": spec.steps, "step_size": kernel.step_size, "restarts": spec.restarts, **more}
    name += f"-{spec.steps}" + (f" x {spec.restarts}" if spec.restarts > 1 else "")
    if spec.keep == "success":
        settings["keep"], name = spec.keep, f"{name}, every iterate"
    flags = robust_flags(model, split, kernel, setting, spec.restarts, spec.keep)
    return Outcome(name, settings, flags, 0.0)


def _autoattack(model: nn.Module, split: Split, spec: AttackSpec, setting: Setting) -> Outcome:
    from atent_ext.adapters import autoattack

    result = autoattack.run(
        model,
        split.images,
        split.labels,
        norm=setting.threat.norm,
        eps=setting.threat.eps,
        version=spec.version,
        seed=setting.seed,
        batch_size=setting.batch_size,
        on_attack=lambda name, images: setting.busy(f"AutoAttack: {name} on {images} images"),
    )
    settings = {"version": spec.version, "package": result.package, "attacks": list(result.attacks)}
    changed = any(note.startswith(autoattack.NOT_STANDARD) for note in result.notes)
    name = "AutoAttack, changed" if changed else "AutoAttack"
    inside = allowed(norm_called(setting.threat.norm), setting.threat.eps, split.images, result.adversaries)
    outside = int((~inside).sum())
    notes = [*result.notes, *([f"{outside} adversaries left ball or box and do not count"] if outside else [])]
    flags = torch.where(inside, result.robust, clean_flags(model, split, setting.batch_size))
    return Outcome(name, settings, flags, 0.0, tuple(notes), result.robust_after)


_RUNNERS: Mapping[str, Callable[[nn.Module, Split, AttackSpec, Setting], Outcome]] = {
    "clean": _clean,
    "fgsm": _fgsm,
    "ifgsm": _ifgsm,
    "pgd": _pgd,
    "atent": _atent,
    "cw": _minimal,
    "deepfool": _minimal,
    "autoattack": _autoattack,
}


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        prediction: Tensor = model(x).argmax(1)
    return prediction == y
