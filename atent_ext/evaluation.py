"""Accuracy of a model, clean and under attack: flags per example, counts, intervals, the worst case over attacks."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import Field, ValidationError
from scipy.stats import binomtest
from torch import Tensor, nn

from atent_ext import checks, registry
from atent_ext.data import Split
from atent_ext.errors import BadInput
from atent_ext.langevin import Langevin, fgsm, last_iterate, pgd
from atent_ext.losses import cross_entropy
from atent_ext.modes import evaluating, frozen
from atent_ext.norms import norm as norm_called
from atent_ext.recipes import Count, Section, Threat

_ROUNDING = 1e-5
"""What float32 may add to a radius; an attack that leaves ball or box by more has not succeeded."""


class AttackSpec(Section):
    """One measurement of a protocol.

    attack: "clean", "fgsm", "pgd" or "autoattack". steps, restarts: of PGD. step_size: of PGD; None is 2.5 eps / steps.
    version: of AutoAttack.
    """

    attack: Literal["clean", "fgsm", "pgd", "autoattack"]
    steps: Count = 40
    restarts: Count = 1
    step_size: Annotated[float, Field(gt=0)] | None = None
    version: Literal["standard", "rand", "plus"] = "standard"


class Protocol(Section):
    """What is measured, in order: a file of eval/protocols/."""

    name: str
    description: str
    attacks: tuple[AttackSpec, ...]


@dataclass(frozen=True)
class Outcome:
    """One attack's result: `flags` (N,) is True where the prediction was right and stayed right."""

    attack: str
    settings: Mapping[str, Any]
    flags: Tensor
    seconds: float
    notes: tuple[str, ...] = ()

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
            "seconds": round(self.seconds, 1),
            "notes": list(self.notes),
            "flags": "".join("01"[int(flag)] for flag in self.flags),
        }


@dataclass(frozen=True)
class Setting:
    """Under what an attack is run. `seed` starts its random draws; results depend on `batch_size` through them."""

    threat: Threat
    seed: int = 0
    batch_size: int = 250


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    found = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def predict(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """The logits (N, classes) of `images` (N, ...) in eval mode, computed in batches, on the CPU."""
    device = _device(model)
    with evaluating(model), torch.no_grad():
        return torch.cat([model(batch.to(device)).float().cpu() for batch in torch.split(images, batch_size)])


def clean_flags(model: nn.Module, split: Split, batch_size: int = 250) -> Tensor:
    """Which examples are predicted right, (N,) bool."""
    return predict(model, split.images, batch_size).argmax(1) == split.labels


def robust_flags(model: nn.Module, split: Split, kernel: Langevin, setting: Setting, restarts: int = 1) -> Tensor:
    """Which examples are right and stay right in every one of `restarts` runs of the attack, (N,) bool."""
    device = _device(model)
    generator = torch.Generator(device).manual_seed(setting.seed)
    flags = []
    with evaluating(model), frozen(model):
        for start in range(0, len(split), setting.batch_size):
            batch = slice(start, start + setting.batch_size)
            x, y = split.images[batch].to(device), split.labels[batch].to(device)
            right = _right(model, x, y)
            for _ in range(restarts):
                adversary = last_iterate(kernel, model, x, y, cross_entropy, generator)
                right &= _right(model, adversary, y) | ~allowed(kernel, x, adversary)
            flags.append(right.cpu())
    return torch.cat(flags)


def allowed(kernel: Langevin, x: Tensor, adversary: Tensor) -> Tensor:
    """Which adversaries keep to the eps ball and the box up to rounding, (N,) bool: only those can count."""
    low, high = kernel.box
    in_box = ((adversary >= low - _ROUNDING) & (adversary <= high + _ROUNDING)).flatten(1).all(1)
    return in_box & (kernel.norm.size(adversary - x) <= kernel.eps + _ROUNDING)


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
    _check(model, split)
    outcomes = []
    for spec in protocol.attacks:
        start = time.perf_counter()
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
    return Outcome("clean", {}, clean_flags(model, split, setting.batch_size), 0.0)


def _fgsm(model: nn.Module, split: Split, spec: AttackSpec, setting: Setting) -> Outcome:
    kernel = fgsm(norm_called(setting.threat.norm), setting.threat.eps)
    return Outcome("FGSM", {}, robust_flags(model, split, kernel, setting), 0.0)


def _pgd(model: nn.Module, split: Split, spec: AttackSpec, setting: Setting) -> Outcome:
    eps = setting.threat.eps
    step_size = spec.step_size or 2.5 * eps / spec.steps
    kernel = pgd(norm_called(setting.threat.norm), eps, spec.steps, step_size)
    settings = {"steps": spec.steps, "step_size": step_size, "restarts": spec.restarts}
    return Outcome(f"PGD-{spec.steps}", settings, robust_flags(model, split, kernel, setting, spec.restarts), 0.0)


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
    )
    settings = {"version": spec.version, "package": result.package, "attacks": list(result.attacks)}
    return Outcome("AutoAttack", settings, result.robust.cpu(), 0.0, result.notes)


_RUNNERS: Mapping[str, Callable[[nn.Module, Split, AttackSpec, Setting], Outcome]] = {
    "clean": _clean,
    "fgsm": _fgsm,
    "pgd": _pgd,
    "autoattack": _autoattack,
}


def _right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        prediction: Tensor = model(x).argmax(1)
    return prediction == y


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
