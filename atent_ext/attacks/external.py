"""Minimal-norm attacks of other libraries: functions from a batch to adversaries.

A minimal-norm attack searches for the nearest adversary. It succeeds at eps only if the distance is at most eps, which
`accuracy.flags_under` checks.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from atent_ext.core import compat, validate
from atent_ext.core.norms import L2, Norm

Attack: TypeAlias = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, x (N, ...) in [0, 1], y (N,)) -> adversaries (N, ...); x itself if the attack fails."""


def carlini_wagner(norm: Norm, steps: int) -> Attack:
    """Carlini & Wagner 2017: ℓ2 by Foolbox (9 binary search steps of `steps` each), ℓ∞ by ART.

    Raises MissingExtra without the extra `foolbox` (ℓ2) or `art` (ℓ∞).
    """
    if norm == L2:
        return _by_foolbox("L2CarliniWagnerAttack", steps=steps)
    return _by_art("CarliniLInfMethod", max_iter=steps)


def deepfool(norm: Norm, steps: int) -> Attack:
    """DeepFool (Moosavi-Dezfooli et al. 2016) in ℓ2 or ℓ∞, by Foolbox with its overshoot of 2 %.

    Raises MissingExtra without the extra `foolbox`.
    """
    return _by_foolbox("L2DeepFoolAttack" if norm == L2 else "LinfDeepFoolAttack", steps=steps)


def _by_foolbox(name: str, **settings: Any) -> Attack:
    foolbox: Any = compat.neighbour("foolbox", "foolbox")
    library_attack = getattr(foolbox.attacks, name)(**settings)

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
        adversaries: Tensor = library_attack.run(wrapped, x, foolbox.criteria.Misclassification(y))
        return adversaries

    return attack


def _by_art(name: str, **settings: Any) -> Attack:
    compat.neighbour("art", "art")
    from art.attacks import evasion
    from art.estimators.classification import PyTorchClassifier

    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            classes = validate.logits(model(x[:1]), 1).shape[1]
        device = "gpu" if x.is_cuda else "cpu"
        estimator = PyTorchClassifier(
            model, nn.CrossEntropyLoss(), x.shape[1:], classes, clip_values=(0.0, 1.0), device_type=device
        )
        library_attack = getattr(evasion, name)(estimator, batch_size=len(x), verbose=False, **settings)
        return torch.from_numpy(library_attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)

    return attack
