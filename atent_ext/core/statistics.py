"""Intervals and tests for counts of images."""

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
