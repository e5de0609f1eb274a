"""Signs of gradient masking (Athalye et al. 2018, arXiv:1802.00420, section 3.1; Carlini et al. 2019): an attack that
should be weaker breaks images that a stronger one does not.

Two attacks are compared on the same images by McNemar's exact test, one-sided: of the images that exactly one of them
breaks, does the weaker attack break more than half? A sign is found if the p-value is below `LEVEL`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from atent_ext.attacks.accuracy import clean_flags, flags_under, predict
from atent_ext.attacks.external import Attack
from atent_ext.attacks.langevin import fgsm, pgd, scored_gradient
from atent_ext.attacks.restarts import Keep, adversaries
from atent_ext.core import seeds
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy, margin
from atent_ext.core.model_state import device_of, evaluating, seeded
from atent_ext.core.norms import LINF, Norm
from atent_ext.core.norms import norm as norm_called
from atent_ext.core.schema import Threat
from atent_ext.core.statistics import binomial_p
from atent_ext.core.types import Loss
from atent_ext.data.datasets import Split
from atent_ext.evaluation.report import Report
from atent_ext.models import networks
from atent_ext.submissions.cards import Sign
from atent_ext.submissions.probing import vanishing
from atent_ext.training.batches import Batches

Curve: TypeAlias = dict[str, Any]
LEVEL = 0.01
STEPS = 40
IMAGES = 200
"""Number of images for the tests, at most. McNemar's test needs 7 discordant images to reach `LEVEL`."""
CURVE_IMAGES = 50
BLACK_BOX = "black box beats white box"
_FLAT = 0.05
"""Share of images without a gradient that is normal for a sound network."""
_SQUARE = 0.002
"""Share of images that only Square breaks: AutoAttack itself warns above this value."""
_BETTER = 0.05
"""Share of images by which another loss may beat cross-entropy: a few points are normal on sound networks."""
_SURROGATES = ("digits-cnn", "small-cnn")
_ANY_SIZE = "resnet-20"
_TRAINING = 2000
_EPOCHS = 4


def signs(
    network: nn.Module,
    split: Split,
    threat: Threat,
    *,
    train: Split,
    classes: int,
    random: bool = False,
    seed: int = 0,
    batch_size: int = 250,
    busy: Callable[[str], None] = lambda text: None,
) -> tuple[tuple[Sign, ...], Curve]:
    """Test for every sign but `black_box`, and measure the accuracy at growing radii; returns (signs, curve).

    The signs use the first `IMAGES` of `split`, the curve the first `CURVE_IMAGES`. train: training images of the
    surrogate network of the transfer attack; without any, transfer is not tested. random: whether the network is
    random; then only last iterates count, because an earlier iterate may succeed by chance. curve: `n`, `eps`, and
    `accuracy` under PGD and under random noise, a number in [0, 1] for each eps. The network is attacked in eval mode
    and its modes are restored.
    Raises BadInput for gradients that are not finite and for an invalid seed. The network must have a gradient with
    respect to its input (see `sanity.fatal`).
    """
    target = _Target(network, split.take(min(IMAGES, len(split))), threat, random, seed, batch_size)
    with seeded(seed):  # for networks that draw random numbers
        busy(f"signs of gradient masking: PGD-{STEPS}")
        strong = target.broken_by(target.pgd(cross_entropy))
        tests: tuple[Callable[[], Sign], ...] = (
            partial(_one_step, target, strong),
            partial(_zero_gradients, target),
            partial(_other_losses, target, strong),
            partial(_transfer, target, strong, train, classes),
        )
        results = []
        for test in tests:
            results.append(sign := test())
            busy(f"signs of gradient masking: {sign.name}: {'found' if sign.found else 'not found'}")
        busy("signs of gradient masking: growing eps")
        curve, large_radius = _curve(target)
    return (*results, large_radius), curve


# ---- attacks and their comparison


@dataclass(frozen=True)
class _Target:
    network: nn.Module
    split: Split
    threat: Threat
    random: bool
    seed: int
    batch_size: int

    @property
    def keep(self) -> Keep:
        """The iterates of PGD that count: of a random network the last ones only, since success may be chance."""
        return "last" if self.random else "success"

    @property
    def norm(self) -> Norm:
        return norm_called(self.threat.norm)

    def broken_by(self, attack: Attack, eps: float | None = None) -> Tensor:
        """Which images are misclassified, clean or under the attack, (N,) bool."""
        eps = self.threat.eps if eps is None else eps
        return ~flags_under(attack, self.network, self.split, self.norm, eps, self.batch_size)

    def pgd(self, loss: Loss, eps: float | None = None) -> Attack:
        """PGD on the network itself."""
        return self._pgd(loss, eps, None, self.keep)

    def transferred(self, surrogate: nn.Module) -> Attack:
        """The last iterates of PGD on another network."""
        return self._pgd(cross_entropy, None, surrogate, "last")

    def _pgd(self, loss: Loss, eps: float | None, surrogate: nn.Module | None, keep: Keep) -> Attack:
        kernel = pgd(self.norm, self.threat.eps if eps is None else eps, STEPS)
        generator = seeds.generator(self.seed, device_of(self.network))

        def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            source = model if surrogate is None else surrogate
            return adversaries(kernel, source, x, y, loss, generator, keep=keep)

        return attack

    def fgsm(self) -> Attack:
        kernel = fgsm(self.norm, self.threat.eps)
        return lambda model, x, y: adversaries(kernel, model, x, y, cross_entropy)

    def noise(self, eps: float) -> Attack:
        """One random point of the ball."""
        generator = seeds.generator(self.seed, device_of(self.network))
        return lambda model, x, y: (x + self.norm.random(x, eps, generator)).clamp(0, 1)


def _alone(weaker: Tensor, stronger: Tensor) -> tuple[int, int, float]:
    """The numbers of images that only the weaker and only the stronger attack breaks, and McNemar's p-value."""
    first, second = int((weaker & ~stronger).sum()), int((stronger & ~weaker).sum())
    return first, second, binomial_p(first, first + second, alternative="greater")


def _compared(name: str, target: _Target, attacks: tuple[str, str], broken: tuple[Tensor, Tensor]) -> Sign:
    """A sign, found if the first attack, which should be weaker, breaks images that the second does not."""
    weaker, stronger, p = _alone(*broken)
    return Sign(name=name, found=p < LEVEL, evidence=_evidence(target, attacks, (weaker, stronger), _p(p)))


def _evidence(target: _Target, attacks: tuple[str, str], alone: tuple[int, int], p: str) -> str:
    return (
        f"of {len(target.split)} images at {target.threat.norm} eps {target.threat.eps:.4g}, {attacks[0]} alone breaks "
        f"{alone[0]} and {attacks[1]} alone {alone[1]}; {p}"
    )


def _p(value: float) -> str:
    return f"p = {value:.2g} (McNemar, exact, one-sided; level {LEVEL:g})"


# ---- signs


def _one_step(target: _Target, strong: Tensor) -> Sign:
    attacks = ("FGSM", f"PGD-{STEPS}, {'its last' if target.random else 'every'} iterate,")
    return _compared("one step beats many", target, attacks, (target.broken_by(target.fgsm()), strong))


def _zero_gradients(target: _Target) -> Sign:
    """Found if significantly more than a share `_FLAT` of the images has no gradient (exact binomial test)."""
    flat, count = int(vanishing(_gradient(target)).sum()), len(target.split)
    p = binomial_p(flat, count, _FLAT, "greater")
    evidence = f"the input gradient of the cross-entropy is zero, or below the smallest normal number, for {flat} of "
    evidence += f"{count} images; p = {p:.2g} (exact binomial test against {_FLAT:.0%}; level {LEVEL:g})"
    return Sign(name="zero gradients", found=p < LEVEL, evidence=evidence)


def _gradient(target: _Target) -> Tensor:
    device, split = device_of(target.network), target.split
    pairs = zip(torch.split(split.images, target.batch_size), torch.split(split.labels, target.batch_size), strict=True)
    with evaluating(target.network):
        return torch.cat(
            [scored_gradient(target.network, cross_entropy, x.to(device), y.to(device))[0].cpu() for x, y in pairs]
        )


def _other_losses(target: _Target, strong: Tensor) -> Sign:
    """PGD on the margin loss, and on the cross-entropy of logits / median |margin|, which does not saturate."""
    logits = predict(target.network, target.split.images, target.batch_size)
    unit = float(margin(logits, target.split.labels).abs().median()) or 1.0
    losses: dict[str, Loss] = {
        "the margin": margin,
        f"the cross-entropy of logits / {unit:.3g}": lambda z, y: cross_entropy(z / unit, y),
    }
    compared = {name: _alone(target.broken_by(target.pgd(loss)), strong) for name, loss in losses.items()}
    best = min(compared, key=lambda name: compared[name][2])
    other, plain, p = compared[best]
    p = min(1.0, len(losses) * p)  # Bonferroni
    found = p < LEVEL and other - plain > _BETTER * len(target.split)
    attacks = (f"PGD-{STEPS} on {best}", "on the cross-entropy")
    evidence = _evidence(target, attacks, (other, plain), f"{_p(p)}, the better of {len(losses)} losses; ")
    return Sign(name="other losses beat cross-entropy", found=found, evidence=f"{evidence}found above {_BETTER:.0%}")


def _transfer(target: _Target, strong: Tensor, train: Split, classes: int) -> Sign:
    if not len(train):
        return Sign(name="transfer beats white box", found=None, evidence="there are no training images")
    if len(train.shape) != 3:
        return Sign(name="transfer beats white box", found=None, evidence="inputs are no images: there is no surrogate")
    name, network = surrogate(train, classes, target.seed, device_of(target.network))
    clean = float(clean_flags(network, target.split, target.batch_size).double().mean())
    broken = target.broken_by(target.transferred(network))
    attacks = (f"PGD-{STEPS} on a surrogate ({name}, clean {clean:.0%})", f"PGD-{STEPS} on the network")
    return _compared("transfer beats white box", target, attacks, (broken, strong))


def surrogate(train: Split, classes: int, seed: int, device: torch.device | str = "cpu") -> tuple[str, nn.Module]:
    """Train a small network for the transfer attack; returns (its registry name, the network in eval mode, frozen).

    It is the first of three small networks that accepts images of this size, trained without adversaries: 4 epochs of
    Adam on the first 2,000 of `train`. The same seed gives the same network.
    """
    with seeded(seed):
        name, network = _small(train.images, classes)
        network.to(device)
        optimizer = torch.optim.Adam(network.parameters(), 1e-3)
        batches = Batches(train.take(min(_TRAINING, len(train))), 64, device=device)
        for epoch in range(_EPOCHS):
            for batch in batches.epoch(seeds.derived(seed + epoch)):
                optimizer.zero_grad()
                cross_entropy(network(batch.images), batch.labels).mean().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        optimizer.zero_grad()
    return name, network.eval().requires_grad_(False)


def _small(images: Tensor, classes: int) -> tuple[str, nn.Module]:
    for name in _SURROGATES:
        try:
            return name, networks.build_for(name, images, classes)
        except BadInput:  # it takes images of another size
            continue
    return _ANY_SIZE, networks.build_for(_ANY_SIZE, images, classes)


def black_box(report: Report) -> Sign:
    """Whether Square breaks more of the images that AutoAttack's gradient attacks leave than is normal (`_SQUARE`)."""
    name = BLACK_BOX
    counts = report.autoattack.robust_after if report.autoattack else {}
    if "square" not in counts:
        return Sign(name=name, found=None, evidence="there is no Square in AutoAttack's counts")
    order = list(counts)
    left, after, count = counts[order[order.index("square") - 1]], counts["square"], report.results[0].n
    p = binomial_p(left - after, count, _SQUARE, "greater")
    evidence = (
        f"of {count} images AutoAttack's gradient attacks left {left}, and Square broke {left - after} of these; "
    )
    evidence += f"p = {p:.2g} (exact binomial test against {_SQUARE:.1%} of the images; level {LEVEL:g})"
    return Sign(name=name, found=p < LEVEL, evidence=evidence)


# ---- growing radii


def radii(threat: Threat, shape: tuple[int, ...]) -> list[float]:
    """0, fractions and multiples of eps, and a radius at which every ball contains the gray image: 1/2 in ℓ∞, half the
    diagonal of the box in ℓ2. At that radius no network can be right for images of more than one class."""
    far = max(threat.eps, 0.5 if norm_called(threat.norm) == LINF else 0.5 * math.sqrt(math.prod(shape)))
    others = (round(factor * threat.eps, 12) for factor in (0.5, 1.5, 2))
    return sorted({0.0, threat.eps, far, *(eps for eps in others if eps < far)})


def _curve(whole: _Target) -> tuple[Curve, Sign]:
    target = replace(whole, split=whole.split.take(min(CURVE_IMAGES, len(whole.split))))
    grid = radii(target.threat, tuple(target.split.images.shape[1:]))
    by_noise = [target.broken_by(target.noise(eps), eps) for eps in grid]
    by_pgd = [target.broken_by(target.pgd(cross_entropy, eps), eps) for eps in grid[1:]]
    by_pgd = [by_noise[0], *by_pgd]  # eps 0: clean accuracy
    shares = {f"PGD-{STEPS}": _accuracies(by_pgd), "random noise": _accuracies(by_noise)}
    curve = {"n": len(target.split), "eps": grid, "accuracy": shares}
    gray = target.broken_by(lambda model, x, y: torch.full_like(x, 0.5), grid[-1])
    # The union over many attacks would contain chance errors of a random network.
    known = gray if target.random else reduce(torch.logical_or, [*by_pgd[:-1], *by_noise, gray])
    return curve, _large_radius(target, grid, known, by_pgd[-1])


def _accuracies(broken: list[Tensor]) -> list[float]:
    return [float((~flags).double().mean()) for flags in broken]


def _large_radius(target: _Target, grid: list[float], known: Tensor, last: Tensor) -> Sign:
    """At the largest radius PGD should break all images that it, noise or the gray image breaks elsewhere."""
    others = "the gray image breaks" if target.random else "smaller radii, noise or the gray image break"
    missed, new, p = _alone(known, last)
    evidence = f"at {target.threat.norm} eps {grid[-1]:.4g} PGD-{STEPS} leaves {int((~last).sum())} of "
    evidence += f"{len(last)} images; it misses {missed} that {others}, and alone breaks {new}; {_p(p)}"
    return Sign(name="accuracy does not go to zero with eps", found=p < LEVEL, evidence=evidence)
