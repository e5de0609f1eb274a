"""Inference that may stop at any moment: closed forms, limits, and how often it fails."""

import numpy as np
import pytest
from scipy.stats import binom, hypergeom

from atent_ext.core.errors import BadInput
from atent_ext.core.statistics import confidence_sequence, sequential_mcnemar


@pytest.mark.parametrize("total", [1, 7, 40])
def test_the_interval_holds_what_the_martingale_does_not_refute(total):
    """The prior-posterior ratio at K is 1 / ((t + 1) h), which must stay below 1 / 0.05."""
    possible = np.arange(total + 1)
    for scored in range(total + 1):
        right = np.arange(scored + 1)
        found = np.stack(confidence_sequence(right, np.full_like(right, scored), total), 1)
        kept = (scored + 1) * hypergeom.pmf(right[:, None], total, possible, scored) > 0.05 - 1e-9
        expected = [(possible[row].min() / total, possible[row].max() / total) for row in kept]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_numbers_give_floats_and_level_widens():
    low, high = confidence_sequence(57, 100, 10_000)
    assert type(low) is type(high) is float
    assert 0.40 < low < 0.57 < high < 0.74
    wider = confidence_sequence(57, 100, 10_000, level=0.999)
    assert wider[0] < low
    assert high < wider[1]


def test_nothing_scored_says_nothing_and_everything_scored_is_exact():
    assert confidence_sequence(0, 0, 500) == (0.0, 1.0)
    assert confidence_sequence(285, 500, 500) == (0.57, 0.57)


def test_a_network_without_a_right_image_is_soon_refuted():
    assert confidence_sequence(0, 12, 10_000)[1] < 0.6


def orders(right, total, streams):
    """Running counts of right images in random orders, (streams, total)."""
    flags = np.tile(np.arange(total) < right, (streams, 1))
    return np.random.default_rng(0).permuted(flags, axis=1).cumsum(1)


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_the_interval_ever_misses_in_at_most_its_share_of_evaluations(share):
    total, streams = 300, 400
    right = round(share * total)
    seen = orders(right, total, streams)
    low, high = confidence_sequence(seen, np.broadcast_to(np.arange(1, total + 1), seen.shape), total)
    missed = int(((low > right / total + 1e-9) | (high < right / total - 1e-9)).any(1).sum())
    assert missed <= binom.ppf(0.999, streams, 0.05)


def test_equal_models_are_ever_called_different_in_at_most_the_level():
    mine, streams = orders(100, 200, 400), 400
    p = sequential_mcnemar(mine, np.arange(1, 201) - mine)
    assert int((p <= 0.05).any(1).sum()) <= binom.ppf(0.999, streams, 0.05)


def test_a_one_sided_stream_is_decided_as_the_closed_form_says():
    counts = np.arange(12)
    np.testing.assert_allclose(sequential_mcnemar(counts, 0 * counts), np.minimum(1, (counts + 1) / 2.0**counts))
    assert sequential_mcnemar(3, 3) == 1.0
    assert sequential_mcnemar(0, 9) == pytest.approx(10 / 512)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ((-1, 5, 10), "right"),
        ((6, 5, 10), "scored"),
        ((5, 11, 10), "right"),
        ((0.5, 5, 10), "right"),
        ((0, 0, 0), "total"),
        ((5, 5, 10, 1.0), "level"),
    ],
)
def test_counts_that_make_no_sense_are_refused(arguments, field):
    with pytest.raises(BadInput) as error:
        confidence_sequence(*arguments)
    assert (error.value.code, error.value.field) == ("bad-value", field)
