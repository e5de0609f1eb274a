"""AutoAttack (Croce & Hein 2020, arXiv:2003.01690) on any classifier: few classes, any input rank, per-example flags.

If AutoAttack can run as published, it runs unchanged, and the flags equal those of the package called directly.
Otherwise as little as possible is changed, and a note of the kind "changed" describes each change:

- fewer than 10 classes: the targeted attacks aim at all classes - 1 wrong ones instead of 9;
- 2 or 3 classes: the targeted DLR loss reads the fourth largest logit, so apgd-t maximises minus the cross-entropy of
  its target instead, whose gradient does not vanish for confident models;
- 2 classes: the DLR loss reads the third largest logit, so apgd-dlr is left out;
- L2 on images less than 5 pixels high: the first stripes of Square would be 0 pixels wide, so it is left out.
"""

import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.attacks.proven import Proven
from atent_ext.attacks.spec import Note
from atent_ext.core import compat, model_state, seeds, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import ball
from atent_ext.core.registry import nearest
from atent_ext.core.types import Model

ATTACKS = ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")
_TARGETED = {"apgd-t", "fab-t"}
_TARGET_CLASSES = 9


@dataclass(frozen=True, eq=False)
class AutoAttackResult:
    """The result of AutoAttack on N images.

    `adversaries` (N, ...): images that fool the model, or the clean image if none was found; shape, dtype and device
    are those of the input. `robust` (N,) bool: the model predicts the label for `adversaries`. `attacks`: the ensemble,
    in order (AutoAttack stops early when no robust image is left). `target_classes`: number of wrong
    classes that the targeted attacks aim at; 0 without targeted attacks. `package`: name and version of the AutoAttack
    package. `notes`: changes, and AutoAttack's own warnings. `robust_after`: number of images that are robust before
    any attack ("clean") and after each of `attacks`, as in AutoAttack's log.
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
    queries: int | None = None,
    on_attack: Callable[[str, int], None] | None = None,
) -> AutoAttackResult:
    """Evaluate a classifier under AutoAttack in the "Linf", "L2" or "L1" ball of radius `eps`.

    `x` (N, ...) of any rank >= 2 with values in [0, 1], `y` (N,) class numbers, `model` images to logits (N, classes).
    `version` is "standard", "plus" or "rand". If `attacks` is given, only these run, with the settings of that version.
    "custom" uses the package's own settings (five restarts) and needs `attacks`. `queries`: of Square, instead of its
    5,000. Batches are moved to the model's
    device. `on_attack(name, images)` is called before an attack processes a batch of so many images.

    Inputs that are not images (N, C, H, W) are reshaped for the attacks, (N, F) to one column of F pixels. This does
    not affect APGD and FAB. Square, which searches over squares of pixels, then changes one feature at a time.

    The model is attacked in eval mode; its state and the random state are restored. No attack runs with eps 0 or
    without images. Raises BadInput for arguments, images, labels or logits that AutoAttack does not support.
    """
    _check(norm, eps, version, batch_size, attacks)
    validate.seed(seed)
    validate.images(x, 0.0, 1.0)
    validate.labels(y, len(x))
    x, y = x.detach(), y.detach().to(x.device, torch.long)
    with model_state.evaluating(model), compat.untouched(model):
        seeds.everywhere(seed)
        target = _Images(model, x)
        logits = target.logits(x, batch_size)
        if len(x):
            _check_logits(logits)
            validate.labels(y, len(x), logits.shape[1])
        if eps == 0 or len(x) == 0:
            return _clean(x, logits, y)
        attacker = _attacker(target, norm, eps, version, seed, attacks)
        if queries is not None:
            validate.steps("queries", queries)
            attacker.square.n_queries = queries
        notes = _adapt(attacker, logits.shape[1], target.shape[1], attacks)
        counts = _count_images(attacker, target, on_attack)
        with _warnings() as warnings:
            images, classes = attacker.run_standard_evaluation(target.images(x), y, bs=batch_size, return_labels=True)
        adversaries = target.restored(images, x)
        robust = target.logits(adversaries, batch_size).max(dim=1).indices == y
        notes += [*warnings.values(), *_disagreement(classes == y, robust)]
        return _result(attacker, adversaries, robust, notes, _robust_after(attacker, counts, classes == y))


def _check(norm: str, eps: float, version: str, batch_size: int, attacks: Sequence[str] | None) -> None:
    ball(norm)
    if isinstance(eps, Tensor):
        raise BadInput("eps is a tensor; AutoAttack takes one number for all images", code="bad-type", field="eps")
    validate.radius("eps", eps)
    validate.steps("batch_size", batch_size)
    if version not in compat.VERSIONS:
        raise nearest("AutoAttack version", version, compat.VERSIONS, field="version")
    for name in attacks or ():
        if name not in ATTACKS:
            raise nearest("attack of AutoAttack", name, ATTACKS, field="attacks")
    if (attacks is None and version == "custom") or (attacks is not None and not attacks):
        message = f"attacks is {attacks!r}; name at least one of {', '.join(ATTACKS)}"
        raise BadInput(message, code="missing", field="attacks")


class _Images:
    """The model for AutoAttack: float32 images (N, C, H, W) on the model's device to float32 logits (N, classes)."""

    def __init__(self, model: Model, x: Tensor) -> None:
        tensors = [*model.parameters(), *model.buffers()] if isinstance(model, nn.Module) else []
        self.model = model
        self.inner = x.shape[1:]
        self.shape = _image_shape(*x.shape[1:])
        self.device = model_state.device_of(model, x.device)
        own = next((t.dtype for t in tensors if t.is_floating_point()), x.dtype)
        self.dtype = x.dtype if own == x.dtype or self._takes(x) else own

    def __call__(self, images: Tensor) -> Tensor:
        logits = self.model(images.reshape(len(images), *self.inner).to(self.dtype, copy=True))
        if bool(validate.logits(logits, len(images)).isnan().any()):  # argmax prefers NaN: it would look robust
            message = "the network's logits are NaN under attack, so that AutoAttack cannot score it"
            raise BadInput(message, code="broken-model", field="model")
        return logits.float()

    def _takes(self, x: Tensor) -> bool:
        """Whether the model takes inputs of their own precision, which is not that of its weights."""
        try:
            with torch.no_grad():
                self.model(x[:1].to(self.device, copy=True))
        except RuntimeError:
            return False
        return True

    def settled(self, images: Tensor) -> bool:
        """Whether no attack can change the answers for these images."""
        return isinstance(self.model, Proven) and self.model.settled(images.reshape(len(images), *self.inner))

    def images(self, x: Tensor) -> Tensor:
        """Inputs (N, ...) as images for the attacks; contiguous, since the attacks use `view`."""
        return x.float().reshape(len(x), *self.shape).contiguous()

    def restored(self, images: Tensor, x: Tensor) -> Tensor:
        """The attacks' images in the shape and dtype of `x`; those that they did not change are exactly `x`."""
        changed = (images != self.images(x)).flatten(1).any(dim=1)
        adversaries = x.clone()
        adversaries[changed] = images[changed].reshape(-1, *self.inner).to(x.dtype)
        return adversaries

    def logits(self, x: Tensor, batch_size: int) -> Tensor:
        """Logits (N, classes) on the device of `x`, in the same batches as AutoAttack."""
        if len(x) == 0:
            return x.new_zeros((0, 1))
        with torch.no_grad():
            return torch.cat([self(batch.to(self.device)).to(x.device) for batch in torch.split(x, batch_size)])


def _image_shape(*shape: int) -> tuple[int, int, int]:
    """(C, H, W) with the same values in the same order. Features become a column, sequences images 1 pixel wide."""
    if len(shape) == 1:
        return 1, shape[0], 1
    if len(shape) == 2:
        return shape[0], shape[1], 1
    return shape[0], math.prod(shape[1:-1]), shape[-1]


def _check_logits(logits: Tensor) -> None:
    if logits.shape[1] < 2:
        message = "the model returns 1 logit z per image; AutoAttack needs one per class: torch.cat([0 * z, z], 1)"
        raise BadInput(message, code="bad-shape", field="logits")
    broken = int((~torch.isfinite(logits)).any(dim=1).sum())
    if broken:
        message = f"the model returns NaN or infinite logits for {broken} of {len(logits)} images; fix the model first"
        raise BadInput(message, code="broken-model", field="logits")


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
    """Select the attacks, and leave out or change those that cannot run on the model; return notes of the changes."""
    notes = [] if attacker.version == "standard" else [f"version {attacker.version!r}"]
    selected = list(attacker.attacks_to_run if attacks is None else attacks)
    if set(selected) != set(attacker.attacks_to_run):
        notes.append(f"only {', '.join(selected)}")
    impossible = _impossible(classes, attacker.norm, height)
    attacker.attacks_to_run = [name for name in selected if name not in impossible]
    notes += [f"{name} left out, {impossible[name]}" for name in selected if name in impossible]
    if not attacker.attacks_to_run:
        message = f"no attack can run: {'; '.join(notes)}; choose other attacks"
        raise BadInput(message, code="unsupported", field="attacks")
    changes = notes + _lower_targets(attacker, classes)
    return [Note(kind="changed", text=f"not standard AutoAttack: {change}") for change in changes]


def _impossible(classes: int, norm: str, height: int) -> dict[str, str]:
    reasons = {}
    if classes < 3:
        reasons["apgd-dlr"] = f"the DLR loss needs 3 classes and the model has {classes}"
    if norm != "Linf" and height < 5:
        reasons["square"] = f"in {norm} it needs images at least 5 pixels high and these have {height}"
    return reasons


def _lower_targets(attacker: Any, classes: int) -> list[str]:
    notes = []
    if classes <= _TARGET_CLASSES and _TARGETED & set(attacker.attacks_to_run):
        for attack in (attacker.apgd_targeted, attacker.fab):  # in L1 APGD-T has 5 from the start
            attack.n_target_classes = min(classes - 1, attack.n_target_classes)
        notes.append(f"target classes lowered from {_TARGET_CLASSES} to {classes - 1}, the model has {classes} classes")
    if classes < 4 and "apgd-t" in attacker.attacks_to_run:
        attacker.apgd_targeted.dlr_loss_targeted = attacker.apgd_targeted.ce_loss_targeted
        notes.append("apgd-t with the targeted cross-entropy, the targeted DLR loss needs 4 classes")
    return notes


def _count_images(attacker: Any, target: _Images, on_attack: Callable[[str, int], None] | None) -> dict[str, int]:
    """Wrap the attacks: count the images that each will process, and call `on_attack` before each batch.

    Where all images of a batch are proven robust, nothing is run: each attack draws from its seed in every batch.
    `perturb` is the only method that AutoAttack calls on its attacks.
    """
    counts: dict[str, int] = {}

    def count(name: str, images: int) -> None:
        counts[name] = counts.get(name, 0) + images
        if on_attack is not None:
            on_attack(name, images)

    apgd, fab = attacker.apgd, attacker.fab
    _before(apgd, target, lambda images: count(f"apgd-{apgd.loss}", images))
    _before(attacker.apgd_targeted, target, lambda images: count("apgd-t", images))
    _before(fab, target, lambda images: count("fab-t" if fab.targeted else "fab", images))
    _before(attacker.square, target, lambda images: count("square", images))
    return counts


def _before(attack: Any, target: _Images, callback: Callable[[int], None]) -> None:
    perturb = attack.perturb

    def counted(x: Tensor, y: Tensor) -> Any:
        callback(len(x))
        return x if target.settled(x) else perturb(x, y)

    attack.perturb = counted


def _robust_after(attacker: Any, counts: Mapping[str, int], robust: Tensor) -> dict[str, int]:
    """Robust images before and after each attack: each attack gets those that the earlier attacks did not break."""
    attacks = list(attacker.attacks_to_run)
    remaining = [*(counts.get(name, 0) for name in attacks), int(robust.sum())]
    return dict(zip(("clean", *attacks), remaining, strict=True))


@contextmanager
def _warnings() -> Iterator[dict[str, Note]]:
    """Collect the warnings of AutoAttack's checks (random, dynamic or gradient-masking models), each kind once."""
    notes: dict[str, Note] = {}

    def collect(record: logging.LogRecord) -> bool:
        message = record.getMessage()
        # Its warning about few classes is left out: `_adapt` reports that.
        if record.levelno >= logging.WARNING and not message.startswith("with only"):
            note = Note(kind="warning", text=f"AutoAttack warns: {message}")
            notes.setdefault(re.sub(r"[\d.]+", "", message), note)
        return record.levelno < logging.WARNING

    logger = logging.getLogger("auto-attack")
    logger.addFilter(collect)
    try:
        yield notes
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
    return " ".join(compat.autoattack_package())
