"""Intervals and tests for counts of images."""

from collections.abc import Sequence

from scipy.stats import binomtest


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share."""
    found = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def paired(mine: str, theirs: str) -> tuple[int, int, float]:
    """Images right by the first flags alone, by the second alone, and McNemar's exact two-sided p-value.

    Flags are "1" for right and "0" for wrong, of the same images. Raises ValueError where one are more than the other.
    """
    both = list(zip(mine, theirs, strict=True))
    own, other = both.count(("1", "0")), both.count(("0", "1"))
    return own, other, float(binomtest(own, own + other).pvalue) if own + other else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in their order (Holm 1979): each times the number of those not smaller.

    The family-wise error is at most the level at which they are compared.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
