"""Randomized smoothing (Cohen et al. 2019, arXiv:1902.02918): certified radii of the classifier under Gaussian noise.

The smoothed classifier answers argmax_c P(f(x + sigma N) = c). With p a lower bound of the probability of its answer at
confidence 1 - alpha, nothing in the ℓ2 ball of radius sigma * Phi^-1(p) changes the answer (Theorem 1).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest, norm
from torch import Tensor, nn

from atent_ext.core import seeds, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import device_of, evaluating
from atent_ext.data.datasets import Split

ABSTAIN = -1


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """How to certify: `n0` draws choose the class, `n` fresh ones bound its probability at confidence 1 - alpha.

    sigma: standard deviation of the noise, in units of the images. batch_size: noisy images in one pass.
    Raises BadInput for values that make no sense.
    """

    sigma: float
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    batch_size: int = 1000

    def __post_init__(self) -> None:
        for name in ("n0", "n", "batch_size"):
            validate.steps(name, getattr(self, name))
        validate.radius("sigma", self.sigma)
        if self.sigma == 0:
            raise BadInput("sigma is 0; randomized smoothing needs noise")
        if not 0 < self.alpha < 1:
            raise BadInput(f"alpha is {self.alpha}; it must lie between 0 and 1")

    @property
    def largest(self) -> float:
        """The radius if all n draws agree: no larger one can be certified."""
        return self.radius(self.n)

    def radius(self, hits: int) -> float:
        """The certified ℓ2 radius after `hits` of n draws gave the class, 0 where it must abstain."""
        bound = lower_bound(hits, self.n, self.alpha)
        return self.sigma * float(norm.ppf(bound)) if bound > 0.5 else 0.0

    def require(self, radius: float) -> None:
        """Raise BadInput, naming an n that is enough, if no outcome of n draws could certify `radius`."""
        validate.radius("radius", radius)
        if self.largest < radius:
            raise BadInput(
                f"n is {self.n}, with which no radius above {self.largest:.4g} can be certified at sigma "
                f"{self.sigma:g} and alpha {self.alpha:g}; radius {radius:g} needs n >= {self.least_n(radius)}"
            )

    def least_n(self, radius: float) -> int:
        """The smallest n with which `radius` can be certified: alpha^(1/n) > Phi(radius / sigma)."""
        logarithm = float(norm.logcdf(radius / self.sigma))  # keeps its digits where Phi rounds to 1
        if logarithm > -1e-300:
            raise BadInput(
                f"radius is {radius:g}, {radius / self.sigma:.4g} sigma; no n is enough, choose a larger sigma"
            )
        return max(1, math.ceil(math.log(self.alpha) / logarithm))


def lower_bound(hits: int, n: int, alpha: float) -> float:
    """The one-sided Clopper-Pearson bound: P(at least `hits` of n) = alpha for this probability."""
    if not 0 <= hits <= n:
        raise BadInput(f"hits is {hits}; it must lie in [0, n], and n is {n}")
    return float(binomtest(hits, n, alternative="greater").proportion_ci(1 - alpha, method="exact").low)


def l2_radius_for_linf(eps: float, dimension: int) -> float:
    """The ℓ2 radius whose ball holds the ℓ∞ ball of radius eps: eps * sqrt(dimension) (v2, Table 5)."""
    return eps * math.sqrt(dimension)


@dataclass(frozen=True)
class Certificate:
    """The verdict on one image: its class (ABSTAIN where the draws leave it open), the ℓ2 radius, the hits."""

    prediction: int
    radius: float
    hits: int


def certify(model: nn.Module, x: Tensor, smoothing: Smoothing, seed: int) -> Certificate:
    """Certify one image (...), without the batch's dimension. All draws come from `seed`: give each image its own.

    Raises BadInput for what is no seed, and if the model's outputs are not finite.
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
    done: Sequence[Certificate] = (),
    report: Callable[[list[Certificate]], None] = lambda found: None,
) -> list[Certificate]:
    """Certify every image of `split` in order, after those that are `done`; `report` hears of all after each.

    Each image's draws follow from `seed` and its position alone, so that an interrupted call goes on as if it had not
    been, and the first n images get the same certificates whatever comes after them. Raises BadInput as `certify` does.
    """
    validate.seed(seed)
    found, first = list(done), 1_000_003 * int(seed)
    for position in range(len(found), len(split)):
        found.append(certify(model, split.images[position], smoothing, seeds.derived(first + position)))
        report(found)
    return found


def certified_flags(certificates: Sequence[Certificate], labels: Tensor, radius: float) -> list[bool]:
    """Whose class is right and certified at `radius` or more; to abstain is to be wrong (Cohen et al.)."""
    return [
        verdict.prediction == int(label) and verdict.radius >= radius
        for verdict, label in zip(certificates, labels, strict=True)
    ]


def certified_accuracy(certificates: Sequence[Certificate], labels: Tensor, radius: float) -> float:
    """The share of `certified_flags`."""
    right = certified_flags(certificates, labels, radius)
    return sum(right) / len(right)


def predict(model: nn.Module, x: Tensor, smoothing: Smoothing, seed: int) -> int:
    """The smoothed classifier's answer for one image, from n draws, or ABSTAIN (Cohen et al. 2019, PREDICT)."""
    device = device_of(model)
    generator = seeds.generator(seed, device)
    with evaluating(model), torch.inference_mode():
        counts = _counts(model, x.to(device), smoothing, smoothing.n, generator)
    (first, second), best = (v.tolist() for v in counts.topk(2))
    clear = binomtest(first, first + second, 0.5).pvalue <= smoothing.alpha
    return int(best[0]) if clear else ABSTAIN


def _counts(model: nn.Module, x: Tensor, smoothing: Smoothing, draws: int, generator: torch.Generator) -> Tensor:
    """How often each class is predicted in `draws` noisy copies of `x`, (classes,)."""
    counts: Tensor | int = 0
    for size in _sizes(draws, smoothing.batch_size):
        noise = torch.randn((size, *x.shape), generator=generator, device=x.device, dtype=x.dtype)
        logits = model(x + smoothing.sigma * noise)
        if not bool(torch.isfinite(logits).all()):  # argmax takes NaN for the largest: a broken model would look robust
            raise BadInput("the model's outputs are not finite under noise; train it anew, there is nothing to certify")
        counts = counts + torch.bincount(logits.argmax(1), minlength=logits.shape[1])
    return torch.as_tensor(counts)


def _sizes(total: int, most: int) -> Iterator[int]:
    while total > 0:
        yield min(total, most)
        total -= most
