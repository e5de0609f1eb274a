"""AutoAttack (Croce & Hein 2020, arXiv:2003.01690) on any classifier: few classes, any input rank, per-example flags.

Where AutoAttack as published can run, it runs unchanged, and the flags are those of the package called directly.
Where it cannot, as little as possible is changed and a note of the kind "changed" says what:

- fewer than 10 classes: the targeted attacks aim at all classes - 1 wrong ones instead of 9;
- 2 or 3 classes: the targeted DLR loss reads the fourth largest logit, so apgd-t maximises minus the cross-entropy to
  its target instead, which does not vanish for confident models;
- 2 classes: the DLR loss reads the third largest logit, so apgd-dlr is left out;
- L2 on images less than 5 pixels high: the first stripes of Square would be 0 pixels wide, so it is left out.
"""

import importlib.metadata
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.attacks.spec import Note
from atent_ext.core import compat, model_state, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.registry import nearest
from atent_ext.core.types import Model

ATTACKS = ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")
_TARGETED = {"apgd-t", "fab-t"}
_TARGET_CLASSES = 9


@dataclass(frozen=True, eq=False)
class AutoAttackResult:
    """What AutoAttack found for N images.

    `adversaries` (N, ...): the images that fooled the model, the clean image where none did; shape, dtype and device
    of the input. `robust` (N,) bool: the model still gives the label to `adversaries`. `attacks`: the ensemble, in
    order (AutoAttack stops early when no robust image is left). `target_classes`: how many wrong classes the targeted
    attacks aimed at; 0 without one. `package`: what ran, with its version. `notes`: what was changed, and what
    AutoAttack itself warned of. `robust_after`: how many images AutoAttack's log counts as robust before any attack,
    under "clean", and after each of `attacks`.
    """

    adversaries: Tensor
    robust: Tensor
    attacks: tuple[str, ...]
    target_classes: int
    package: str
    notes: tuple[Note, ...]
    robust_after: Mapping[str, int]


def run(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    norm: str,
    eps: float,
    version: str = "standard",
    seed: int = 0,
    batch_size: int = 250,
    attacks: Sequence[str] | None = None,
    on_attack: Callable[[str, int], None] | None = None,
) -> AutoAttackResult:
    """Evaluate a classifier under AutoAttack in the "Linf" or "L2" ball of radius `eps`.

    `x` (N, ...) of any rank >= 2 with values in [0, 1], `y` (N,) class numbers, `model` images to logits (N, classes).
    `version` is "standard", "plus" or "rand"; `attacks` runs only these, with that version's settings; "custom" takes
    the package's own settings (five restarts) and needs `attacks`. Batches go to the model's device.
    `on_attack(name, images)` is called before each batch that an attack is given.

    Inputs that are not images (N, C, H, W) are shown to the attacks as such, (N, F) as one column of F pixels: this
    changes nothing for APGD and FAB; Square, which searches over squares of pixels, then tries one feature at a time.

    The model is attacked in eval mode and comes back as found, like the random state. With eps 0 no attack runs, and
    without images none either. Raises BadInput for arguments, images, labels or logits that AutoAttack cannot take.
    """
    _check(norm, eps, version, batch_size, attacks)
    validate.seed(seed)
    validate.images(x, 0.0, 1.0)
    validate.labels(y, len(x))
    x, y = x.detach(), y.detach().to(x.device, torch.long)
    with model_state.evaluating(model), compat.untouched(model):
        torch.manual_seed(seed)
        target = _Images(model, x)
        logits = target.logits(x, batch_size)
        if len(x):
            _check_logits(logits)
            validate.labels(y, len(x), logits.shape[1])
        if eps == 0 or len(x) == 0:
            return _clean(x, logits, y)
        attacker = _attacker(target, norm, eps, version, seed, attacks)
        notes = _adapt(attacker, logits.shape[1], target.shape[1], attacks)
        given = _listen(attacker, on_attack)
        with _warnings() as warned:
            found, classes = attacker.run_standard_evaluation(target.images(x), y, bs=batch_size, return_labels=True)
        adversaries = target.restored(found, x)
        robust = target.logits(adversaries, batch_size).max(dim=1).indices == y
        notes += [*warned.values(), *_disagreement(classes == y, robust)]
        return _result(attacker, adversaries, robust, notes, _robust_after(attacker, given, classes == y))


def _check(norm: str, eps: float, version: str, batch_size: int, attacks: Sequence[str] | None) -> None:
    if norm not in ("Linf", "L2"):
        raise BadInput(f"norm is {norm!r}; 'Linf' or 'L2' is needed")
    if isinstance(eps, Tensor):
        raise BadInput("eps is a tensor; AutoAttack takes one number for all images")
    validate.radius("eps", eps)
    validate.steps("batch_size", batch_size)
    if version not in compat.VERSIONS:
        raise nearest("AutoAttack version", version, compat.VERSIONS)
    for name in attacks or ():
        if name not in ATTACKS:
            raise nearest("attack of AutoAttack", name, ATTACKS)
    if (attacks is None and version == "custom") or (attacks is not None and not attacks):
        raise BadInput(f"attacks is {attacks!r}; name at least one of {', '.join(ATTACKS)}")


class _Images:
    """The model as AutoAttack sees it: float32 images (N, C, H, W) on its device to float32 logits (N, classes)."""

    def __init__(self, model: Model, x: Tensor) -> None:
        tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
        self.model = model
        self.inner = x.shape[1:]
        self.shape = _image_shape(*x.shape[1:])
        self.device = model_state.device_of(model, x.device)
        self.dtype = next((t.dtype for t in tensors if t.is_floating_point()), x.dtype)

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.model(images.reshape(len(images), *self.inner).to(self.dtype))
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
            found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise BadInput(f"the model returns {found} for {len(images)} images; logits (N, classes) are needed")
        return logits.float()

    def images(self, x: Tensor) -> Tensor:
        """Inputs (N, ...) as the attacks take them; contiguous, for they use `view`."""
        return x.float().reshape(len(x), *self.shape).contiguous()

    def restored(self, found: Tensor, x: Tensor) -> Tensor:
        """The attacks' images in the shape and dtype of `x`; those that they left alone are exactly `x`."""
        changed = (found != self.images(x)).flatten(1).any(dim=1)
        adversaries = x.clone()
        adversaries[changed] = found[changed].reshape(-1, *self.inner).to(x.dtype)
        return adversaries

    def logits(self, x: Tensor, batch_size: int) -> Tensor:
        """Logits (N, classes) on the device of `x`, batched as AutoAttack does it."""
        if len(x) == 0:
            return x.new_zeros((0, 1))
        with torch.no_grad():
            return torch.cat([self(batch.to(self.device)).to(x.device) for batch in torch.split(x, batch_size)])


def _image_shape(*shape: int) -> tuple[int, int, int]:
    """(C, H, W) with the same values in the same order: features become a column, series images 1 pixel wide."""
    if len(shape) == 1:
        return 1, shape[0], 1
    if len(shape) == 2:
        return shape[0], shape[1], 1
    return shape[0], math.prod(shape[1:-1]), shape[-1]


def _check_logits(logits: Tensor) -> None:
    if logits.shape[1] < 2:
        raise BadInput(
            "the model returns 1 logit z per image; AutoAttack needs one per class: torch.cat([0 * z, z], 1)"
        )
    broken = int((~torch.isfinite(logits)).any(dim=1).sum())
    if broken:
        raise BadInput(f"the model returns NaN or infinite logits for {broken} of {len(logits)} images; mend it first")


def _clean(x: Tensor, logits: Tensor, y: Tensor) -> AutoAttackResult:
    text = "eps is 0: no attack ran, robust means correct" if len(x) else "no images: no attack ran"
    note = Note(kind="no-attack", text=text)
    robust = logits.max(dim=1).indices == y
    return AutoAttackResult(x.clone(), robust, (), 0, _package(), (note,), {"clean": int(robust.sum())})


def _attacker(target: _Images, norm: str, eps: float, version: str, seed: int, attacks: Sequence[str] | None) -> Any:
    custom = list(attacks or ()) if version == "custom" else []
    return compat.autoattack_class()(
        target,
        norm=norm,
        eps=float(eps),
        seed=seed,
        verbose=False,
        attacks_to_run=custom,
        version=version,
        device=target.device,
    )


def _adapt(attacker: Any, classes: int, height: int, attacks: Sequence[str] | None) -> list[Note]:
    """Set the attacks and leave out or change what cannot run on such a model; return what was done."""
    notes = [] if attacker.version == "standard" else [f"version {attacker.version!r}"]
    wanted = list(attacker.attacks_to_run if attacks is None else attacks)
    if set(wanted) != set(attacker.attacks_to_run):
        notes.append(f"only {', '.join(wanted)}")
    impossible = _impossible(classes, attacker.norm, height)
    attacker.attacks_to_run = [name for name in wanted if name not in impossible]
    notes += [f"{name} left out, {impossible[name]}" for name in wanted if name in impossible]
    if not attacker.attacks_to_run:
        raise BadInput(f"no attack can run: {'; '.join(notes)}; ask for other attacks")
    changes = notes + _lower_targets(attacker, classes)
    return [Note(kind="changed", text=f"not standard AutoAttack: {change}") for change in changes]


def _impossible(classes: int, norm: str, height: int) -> dict[str, str]:
    reasons = {}
    if classes < 3:
        reasons["apgd-dlr"] = f"the DLR loss needs 3 classes and the model has {classes}"
    if norm == "L2" and height < 5:
        reasons["square"] = f"in L2 it needs images at least 5 pixels high and these have {height}"
    return reasons


def _lower_targets(attacker: Any, classes: int) -> list[str]:
    notes = []
    if classes <= _TARGET_CLASSES and _TARGETED & set(attacker.attacks_to_run):
        attacker.apgd_targeted.n_target_classes = attacker.fab.n_target_classes = classes - 1
        notes.append(f"target classes lowered from {_TARGET_CLASSES} to {classes - 1}, the model has {classes} classes")
    if classes < 4 and "apgd-t" in attacker.attacks_to_run:
        attacker.apgd_targeted.dlr_loss_targeted = attacker.apgd_targeted.ce_loss_targeted
        notes.append("apgd-t with the targeted cross-entropy, the targeted DLR loss needs 4 classes")
    return notes


def _listen(attacker: Any, on_attack: Callable[[str, int], None] | None) -> dict[str, int]:
    """Count the images that each attack is given from now on, and tell `on_attack` of each batch before it is attacked.

    `perturb` is the one method that AutoAttack calls on its attacks.
    """
    given: dict[str, int] = {}

    def hear(name: str, images: int) -> None:
        given[name] = given.get(name, 0) + images
        if on_attack is not None:
            on_attack(name, images)

    apgd, fab = attacker.apgd, attacker.fab
    _before(apgd, lambda images: hear(f"apgd-{apgd.loss}", images))
    _before(attacker.apgd_targeted, lambda images: hear("apgd-t", images))
    _before(fab, lambda images: hear("fab-t" if fab.targeted else "fab", images))
    _before(attacker.square, lambda images: hear("square", images))
    return given


def _before(attack: Any, tell: Callable[[int], None]) -> None:
    perturb = attack.perturb

    def told(x: Tensor, y: Tensor) -> Any:
        tell(len(x))
        return perturb(x, y)

    attack.perturb = told


def _robust_after(attacker: Any, given: Mapping[str, int], robust: Tensor) -> dict[str, int]:
    """An attack is given what those before it left; with nothing left AutoAttack stops, and 0 stays 0."""
    attacks = list(attacker.attacks_to_run)
    counts = [*(given.get(name, 0) for name in attacks), int(robust.sum())]
    return dict(zip(("clean", *attacks), counts, strict=True))


@contextmanager
def _warnings() -> Iterator[dict[str, Note]]:
    """Collect what AutoAttack's own checks warn of (a random, dynamic or gradient-masking model), each kind once."""
    found: dict[str, Note] = {}

    def collect(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        # It also warns of few classes, which `_adapt` has dealt with.
        if record.levelno >= logging.WARNING and not message.startswith("with only"):
            note = Note(kind="warning", text=f"AutoAttack warns: {message}")
            found.setdefault(re.sub(r"[\d.]+", "", message), note)
        return record.levelno < logging.WARNING

    logger = logging.getLogger("auto-attack")
    logger.addFilter(collect)
    try:
        yield found
    finally:
        logger.removeFilter(collect)


def _disagreement(robust_in_run: Tensor, robust: Tensor) -> list[Note]:
    count = int((robust_in_run != robust).sum())
    if not count:
        return []
    why = "they lie on the boundary, or the model draws at random"
    return [Note(kind="boundary", text=f"{count} images are answered otherwise in a second pass: {why}")]


def _result(
    attacker: Any, adversaries: Tensor, robust: Tensor, notes: list[Note], robust_after: dict[str, int]
) -> AutoAttackResult:
    attacks = tuple(attacker.attacks_to_run)
    targets = int(attacker.apgd_targeted.n_target_classes) if _TARGETED & set(attacks) else 0
    return AutoAttackResult(adversaries, robust, attacks, targets, _package(), tuple(notes), robust_after)


def _package() -> str:
    ours = issubclass(compat.autoattack_class(), compat.OriginalSignatures)
    name = "pyautoattack" if ours else "autoattack"
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} of unknown version"
