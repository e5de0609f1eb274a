"""Which images a model predicts correctly, clean and under attack: flags (N,), one per image."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.attacks.external import Attack
from atent_ext.attacks.langevin import Langevin
from atent_ext.attacks.restarts import Keep, adversaries, allowed
from atent_ext.attacks.spec import Setting
from atent_ext.attacks.uphill import Climb
from atent_ext.core import seeds, validate
from atent_ext.core.box import Box
from atent_ext.core.losses import cross_entropy
from atent_ext.core.model_state import device_of, evaluating, frozen
from atent_ext.core.norms import Norm
from atent_ext.core.outputs import HALF, answers
from atent_ext.core.types import Loss, Radius
from atent_ext.data.datasets import Split


def predict(model: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """The logits (N, classes) of `images` (N, ...) in eval mode, in batches, on the CPU; float32 or float64."""
    device = device_of(model)
    with evaluating(model), torch.no_grad():
        parts = [_logits(model, batch.to(device)) for batch in torch.split(images, batch_size)]
        return torch.cat([(part.float() if part.dtype in HALF else part).cpu() for part in parts])


def votes(model: nn.Module, images: Tensor, draws: int = 1, batch_size: int = 250) -> Tensor:
    """How often each class is predicted in `draws` passes, (N, classes). Random networks need more than one.

    A pass whose logits are NaN predicts no class.
    """
    if not len(images):
        return torch.zeros(0, 1)
    logits = [predict(model, images, batch_size) for _ in range(draws)]
    counts = torch.zeros_like(logits[0])
    for one in logits:
        answer = answers(one)
        counts[(answer >= 0).nonzero().squeeze(1), answer[answer >= 0]] += 1
    return counts


def elected(counts: Tensor) -> Tensor:
    """The class of most of the `votes` of each image, (N,); -1 where no pass predicted one."""
    return torch.where(counts.sum(1) > 0, counts.argmax(1), -1)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    return validate.logits(model(x.clone()), len(x))  # it may work in place


def clean_flags(model: nn.Module, split: Split, batch_size: int = 250) -> Tensor:
    """Which examples are predicted correctly, (N,) bool."""
    return answers(predict(model, split.images, batch_size)) == split.labels


def robust_flags(
    model: nn.Module,
    split: Split,
    kernel: Langevin,
    setting: Setting,
    restarts: int = 1,
    keep: Keep = "last",
    early_stop: bool = True,
    loss: Loss | Sequence[Climb] = cross_entropy,
) -> Tensor:
    """Which examples are predicted correctly, clean and after each of `restarts` restarts of the attack, (N,) bool.

    loss: as in `restarts.adversaries`, which also says how an annealed kernel continues where the gradient is 0.
    keep: "last" checks the last iterate of each restart, "success" every iterate. early_stop: images that are already
    misclassified are skipped from then on, which reduces the cost and does not change the flags (see
    `restarts.adversaries`). Raises BadInput if input gradients are NaN or missing, since the attack would fail.
    """
    generator = seeds.generator(setting.seed, device_of(model))

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        how: dict[str, Any] = {
            "restarts": restarts,
            "keep": keep,
            "early_stop": early_stop,
            "rescue": kernel.schedule != "constant",
        }
        return adversaries(kernel, model, x, y, loss, generator, **how)

    return flags_under(attack, model, split, kernel.norm, kernel.eps, setting.batch_size, kernel.box, setting.found)


def flags_under(
    attack: Attack,
    model: nn.Module,
    split: Split,
    norm: Norm,
    eps: Radius,
    batch_size: int,
    box: Box = (0.0, 1.0),
    found: Callable[[Tensor, Tensor], None] = lambda rows, adversaries: None,
) -> Tensor:
    """Which examples are predicted correctly, clean and after `attack`, (N,) bool.

    Adversaries outside the eps ball or the box do not count, so that a minimal-norm attack succeeds only within eps.
    batch_size: images per call of `attack`, which gets (model, x (n, ...), y (n,)) on the model's device.
    found: as `Setting.found`.
    """
    device = device_of(model)
    flags = []
    with evaluating(model), frozen(model):
        for start in range(0, len(split), batch_size):
            batch = slice(start, start + batch_size)
            x, y = split.images[batch].to(device), split.labels[batch].to(device)
            adversary = attack(model, x, y)
            robust = _correct(model, adversary, y) | ~allowed(norm, eps, x, adversary, box)
            right = _correct(model, x, y)
            broken = (right & ~robust).nonzero().flatten()
            found(start + broken.cpu(), adversary[broken].cpu())
            flags.append((right & robust).cpu())
    return torch.cat(flags)


def _correct(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return answers(_logits(model, x)) == y
