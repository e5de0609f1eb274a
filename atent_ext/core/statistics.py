"""Confidence intervals and paired tests for accuracies."""

from collections.abc import Sequence

from scipy.stats import binomtest

from atent_ext.core.sequential import confidence_sequence as confidence_sequence
from atent_ext.core.sequential import running_interval as running_interval
from atent_ext.core.sequential import sequential_mcnemar as sequential_mcnemar


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval (low, high) of the proportion `right` / `count`, in [0, 1]."""
    result = binomtest(right, count).proportion_ci(0.95, method="wilson")
    return float(result.low), float(result.high)


def paired(mine: str, theirs: str) -> tuple[int, int, float]:
    """Images that only `mine` or only `theirs` gets right, and the p-value of McNemar's exact two-sided test.

    Both are flags of the same images, "1" for right and "0" for wrong. Raises ValueError if their lengths differ.
    """
    both = list(zip(mine, theirs, strict=True))
    own, other = both.count(("1", "0")), both.count(("0", "1"))
    return own, other, float(binomtest(own, own + other).pvalue) if own + other else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values for multiple comparisons (Holm 1979), in the order given.

    Rejecting those that are at most alpha keeps the family-wise error rate at most alpha.
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    corrected, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return corrected
