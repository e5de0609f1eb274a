"""How each attack of a protocol is run: from a spec to its outcome on a split."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from atent_ext.attacks.accuracy import clean_flags, flags_under, predict, robust_flags
from atent_ext.attacks.external import Attack, carlini_wagner, deepfool
from atent_ext.attacks.langevin import Langevin, atent, fgsm, pgd
from atent_ext.attacks.restarts import allowed
from atent_ext.attacks.spec import AttackSpec, Outcome, Setting
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.core.norms import Norm
from atent_ext.core.norms import norm as norm_called
from atent_ext.data.datasets import Split

_MINIMAL: Mapping[str, Callable[[Norm, int], Attack]] = {"cw": carlini_wagner, "deepfool": deepfool}


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
    from atent_ext.attacks import autoattack

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


def run(model: nn.Module, split: Split, spec: AttackSpec, setting: Setting) -> Outcome:
    """Run one attack of a protocol on all images of `split`; the caller counts the seconds."""
    return _RUNNERS[spec.attack](model, split, spec, setting)
