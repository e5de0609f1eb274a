"""Randomized smoothing (Cohen et al. 2019, arXiv:1902.02918): certified ℓ2 radii of the smoothed classifier.

The smoothed classifier predicts argmax_c P(f(x + sigma N) = c). If p is a lower bound of the probability of this class
at confidence 1 - alpha, the prediction is constant in the ℓ2 ball of radius sigma * Phi^-1(p) (Theorem 1).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy.special import log_ndtr, ndtri
from torch import Tensor, nn

from atent_ext.core import seeds, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import device_of, evaluating
from atent_ext.core.statistics import binomial_p
from atent_ext.data.datasets import Split

ABSTAIN = -1
"""The prediction where the samples do not decide for a class."""


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """Settings of the certification: `n0` samples select the class, `n` new samples bound its probability.

    sigma: standard deviation of the noise, > 0, in units of the images. n0, n: whole numbers >= 1. alpha: upper bound,
    in (0, 1), of the probability that a certificate is wrong. batch_size: noisy images per forward pass.
    Raises BadInput for other values.
    """

    sigma: float
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    batch_size: int = 1000

    def __post_init__(self) -> None:
        for name in ("n0", "n", "batch_size"):
            validate.steps(name, getattr(self, name))
        validate.number("sigma", self.sigma)
        if self.sigma == 0:
            message = "sigma is 0; randomized smoothing needs noise, a standard deviation above 0"
            raise BadInput(message, code="bad-value", field="sigma")
        if not 0 < self.alpha < 1:
            raise BadInput(f"alpha is {self.alpha}; it must lie between 0 and 1", code="bad-value", field="alpha")

    @property
    def largest(self) -> float:
        """The largest radius that can be certified: the radius if all n samples give the same class."""
        return self.radius(self.n)

    def radius(self, hits: int) -> float:
        """The certified ℓ2 radius if `hits` of n samples give the class; 0 means abstain."""
        bound = lower_bound(hits, self.n, self.alpha)
        return self.sigma * float(ndtri(bound)) if bound > 0.5 else 0.0

    def require(self, radius: float) -> None:
        """Raise BadInput, which names a sufficient n, if n samples cannot certify `radius`."""
        validate.number("radius", radius)
        if self.largest < radius:
            message = (
                f"n is {self.n}, with which no radius above {self.largest:.4g} can be certified at sigma "
                f"{self.sigma:g} and alpha {self.alpha:g}; radius {radius:g} needs n >= {self.least_n(radius)}"
            )
            raise BadInput(message, code="bad-value", field="n")

    def least_n(self, radius: float) -> int:
        """The smallest n that can certify `radius`: alpha^(1/n) > Phi(radius / sigma).

        Raises BadInput if the radius is too many sigma for any n.
        """
        logarithm = float(log_ndtr(radius / self.sigma))  # accurate also where Phi rounds to 1
        if logarithm > -1e-300:
            message = f"radius is {radius:g}, {radius / self.sigma:.4g} sigma; no n is enough, choose a larger sigma"
            raise BadInput(message, code="bad-value", field="radius")
        return max(1, math.ceil(math.log(self.alpha) / logarithm))


def lower_bound(hits: int, n: int, alpha: float) -> float:
    """The one-sided Clopper-Pearson lower bound of a probability, in [0, 1], at confidence 1 - alpha.

    With this probability, at least `hits` of n samples are hits with probability alpha. Raises BadInput unless
    0 <= hits <= n.
    """
    if not 0 <= hits <= n:
        raise BadInput(f"hits is {hits}; it must lie in [0, n], and n is {n}", code="bad-value", field="hits")
    from scipy.stats import binomtest  # which is slow to import

    return float(binomtest(hits, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low)


def l2_radius_for_linf(eps: float, dimension: int) -> float:
    """Radius of the smallest ℓ2 ball that contains the ℓ∞ ball of radius eps: eps * sqrt(dimension) (v2, Table 5)."""
    return eps * math.sqrt(dimension)


@dataclass(frozen=True)
class Certificate:
    """The certificate of one image: predicted class or ABSTAIN, certified ℓ2 radius, hits of the class in n samples."""

    prediction: int
    radius: float
    hits: int


def certify(model: nn.Module, x: Tensor, smoothing: Smoothing, seed: int) -> Certificate:
    """Certify one image (...), without batch dimension. All samples follow from `seed`: give each image another.

    Raises BadInput for an invalid seed and for model outputs that are NaN or infinite.
    """
    device = device_of(model)
    generator = seeds.generator(seed, device)
    with evaluating(model), torch.inference_mode():
        guess = int(_counts(model, x.to(device), smoothing, smoothing.n0, generator).argmax())
        hits = int(_counts(model, x.to(device), smoothing, smoothing.n, generator)[guess])
    radius = smoothing.radius(hits)
    return Certificate(guess if radius > 0 else ABSTAIN, radius, hits)


def certify_all(
    model: nn.Module,
    split: Split,
    smoothing: Smoothing,
    *,
    seed: int = 0,
    skip: int = 1,
    done: Sequence[Certificate] = (),
    report: Callable[[list[Certificate]], None] = lambda certificates: None,
) -> list[Certificate]:
    """Certify the images 0, skip, 2 skip, ... of `split`, in order. done: the first certificates, of an earlier call.

    `report` is called with all certificates after each image. The samples of an image depend only on `seed` and its
    position, so that a resumed call gives the same certificates as an uninterrupted one. Raises BadInput as `certify`.
    """
    validate.seed(seed)
    validate.steps("skip", skip)
    certificates, first = list(done), 1_000_003 * int(seed)
    for position in range(0, len(split), skip)[len(certificates) :]:
        certificates.append(
            certify(model, split[position : position + 1].images[0], smoothing, seeds.derived(first + position))
        )
        report(certificates)
    return certificates


def certified_flags(certificates: Sequence[Certificate], labels: Tensor, radius: float) -> list[bool]:
    """Which predictions are correct and certified at `radius` or more; ABSTAIN counts as wrong (Cohen et al. 2019)."""
    return [
        certificate.prediction == int(label) and certificate.radius >= radius
        for certificate, label in zip(certificates, labels, strict=True)
    ]


def certified_accuracy(certificates: Sequence[Certificate], labels: Tensor, radius: float) -> float:
    """The share of `certified_flags` that are True, in [0, 1]."""
    flags = certified_flags(certificates, labels, radius)
    return sum(flags) / len(flags)


def predict(model: nn.Module, x: Tensor, smoothing: Smoothing, seed: int) -> int:
    """The smoothed classifier's class for one image (...) from n samples, or ABSTAIN (Cohen et al. 2019, PREDICT).

    Raises BadInput as `certify`.
    """
    device = device_of(model)
    generator = seeds.generator(seed, device)
    with evaluating(model), torch.inference_mode():
        counts = _counts(model, x.to(device), smoothing, smoothing.n, generator)
    (first, second), best = (v.tolist() for v in counts.topk(2))
    clear = binomial_p(first, first + second) <= smoothing.alpha
    return int(best[0]) if clear else ABSTAIN


def _counts(model: nn.Module, x: Tensor, smoothing: Smoothing, draws: int, generator: torch.Generator) -> Tensor:
    """How often each class is predicted for `draws` noisy copies of `x`, (classes,)."""
    counts: Tensor | int = 0
    for size in _sizes(draws, smoothing.batch_size):
        noise = torch.randn((size, *x.shape), generator=generator, device=x.device, dtype=x.dtype)
        logits = validate.logits(model(x + smoothing.sigma * noise), size)
        if logits.shape[1] < 2:
            message = "the model has one logit, of which no class follows; return one of each class"
            raise BadInput(message, code="bad-shape", field="model")
        if not bool(torch.isfinite(logits).all()):  # argmax prefers NaN: a broken model would look robust
            message = "the model's outputs are not finite under noise; it cannot be certified, train it again"
            raise BadInput(message, code="broken-model", field="model")
        counts = counts + torch.bincount(logits.argmax(1), minlength=logits.shape[1])
    return torch.as_tensor(counts)


def _sizes(total: int, largest: int) -> Iterator[int]:
    while total > 0:
        yield min(total, largest)
        total -= largest
