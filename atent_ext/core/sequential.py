"""Inference that is valid at whatever moment one stops: a confidence sequence, and a sequential McNemar test."""

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln

from atent_ext.core.errors import BadInput

_ROUNDING = 1e-9
"""Where the ratio is exactly at its limit, rounding must not shorten the interval."""
Counts: TypeAlias = int | NDArray[np.int64]
Shares: TypeAlias = Any
"""Floats, or arrays of the shape of the counts."""


def confidence_sequence(right: Counts, scored: Counts, total: int, level: float = 0.95) -> tuple[Shares, Shares]:
    """The interval (low, high) for the accuracy on all `total` images, in [0, 1], after `right` of `scored` images.

    The images are drawn at random without replacement, for example in the order of a random permutation. With
    probability at least `level`, the accuracy on all `total` images lies in the intervals of all moments at once, so
    that one may look after every image and stop whenever one likes. The intersection of the intervals so far is valid
    as well; the caller keeps it.

    right, scored: numbers, or integer arrays of one shape. This is the prior-posterior-ratio martingale of Waudby-Smith
    & Ramdas 2020 (arXiv:2006.04347, Theorem 3.1) for the hypergeometric with a uniform prior: the posterior is
    beta-binomial, and the ratio at K right images in total is 1 / ((scored + 1) h), h the hypergeometric probability
    of `right`. Raises BadInput unless 0 <= right <= scored <= total, total >= 1 and 0 < level < 1.
    """
    s, t = np.broadcast_arrays(np.asarray(right), np.asarray(scored))
    _check(s, t, total, level)
    rest = total - t
    mode = np.clip(s * (rest + 1) // np.maximum(t, 1), 0, rest)
    threshold = math.log(1 - level)

    def inside(unseen: NDArray[np.int64]) -> Any:
        """Whether `unseen` right images among the rest are compatible with what was seen."""
        return _log_posterior(unseen, s, t, rest) > threshold - _ROUNDING

    low = s + _first(inside, np.zeros_like(mode), mode)
    high = s + rest - _first(lambda place: inside(rest - place), np.zeros_like(mode), rest - mode)
    shares = low / total, high / total
    return (float(shares[0]), float(shares[1])) if s.ndim == 0 else shares


def running_interval(right: NDArray[np.bool_], total: int, level: float = 0.95) -> tuple[float, float]:
    """The intersection of the confidence sequence's intervals after every image so far, (low, high) in [0, 1].

    right: (n,) bool, n >= 1, for the first n of `total` images in random order. Once all are scored, it is their
    accuracy. Where intervals exclude each other, which at most 1 - level of all orders do, it is the last that agrees
    with all before it.
    """
    counts, scored = np.cumsum(right, dtype=np.int64), np.arange(1, len(right) + 1)
    lows, highs = confidence_sequence(counts, scored, total, level)
    if len(right) == total:
        return float(lows[-1]), float(highs[-1])
    lows, highs = np.maximum.accumulate(lows), np.minimum.accumulate(highs)
    last = int((lows <= highs).sum()) - 1
    return float(lows[last]), float(highs[last])


def _check(s: NDArray[Any], t: NDArray[Any], total: int, level: float) -> None:
    if not 0 < level < 1:
        raise BadInput(f"level is {level}; it must lie between 0 and 1", code="bad-value", field="level")
    if total < 1:
        raise BadInput(f"total is {total}; at least one image is needed", code="bad-value", field="total")
    whole = np.issubdtype(s.dtype, np.integer) and np.issubdtype(t.dtype, np.integer)
    if not whole or bool(((s < 0) | (s > t) | (t > total)).any()):
        message = f"right and scored must be whole numbers with 0 <= right <= scored <= total, and total is {total}"
        raise BadInput(message, code="bad-value", field="right" if bool((s <= t).all()) else "scored")


def _log_posterior(unseen: Any, s: Any, t: Any, rest: Any) -> Any:
    """log(posterior / prior) of s + `unseen` right images in total: log((t + 1) h), see `confidence_sequence`."""
    choices = _log_choose(s + unseen, s) + _log_choose(t - s + rest - unseen, t - s) - _log_choose(t + rest, t)
    return choices + np.log(t + 1)


def _log_choose(n: Any, k: Any) -> Any:
    return -np.log(n + 1) - betaln(n - k + 1, k + 1)


def _first(good: Any, low: NDArray[np.int64], high: NDArray[np.int64]) -> NDArray[np.int64]:
    """The smallest number in [low, high] for which `good` holds, elementwise.

    `good` must hold for `high`, and for every number above one for which it holds.
    """
    while bool((low < high).any()):
        middle = (low + high) // 2
        found = good(middle)
        low, high = np.where(found, low, np.minimum(middle + 1, high)), np.where(found, middle, high)
    return high


def sequential_mcnemar(mine: Counts, theirs: Counts) -> Shares:
    """The p-value of a McNemar test that is valid whenever one stops, after `mine` and `theirs` discordant images.

    mine, theirs: how many images only one, only the other model gets right so far; numbers or integer arrays. It is
    1 / E, at most 1, with the beta-binomial mixture E = 2^n B(mine + 1, theirs + 1), n = mine + theirs: a martingale
    where a discordant image is as likely to be of either kind, and a supermartingale where images are drawn without
    replacement from a set on which both models are equally accurate. Under either, the chance that the p-value is ever
    at most alpha is at most alpha. The smallest p-value so far is valid as well.
    """
    both = np.asarray(mine) + np.asarray(theirs)
    log_e = both * math.log(2) + betaln(np.asarray(mine) + 1, np.asarray(theirs) + 1)
    p = np.exp(-np.maximum(log_e, 0.0))
    return float(p) if p.ndim == 0 else p
