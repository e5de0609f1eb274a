"""When claims are decided, and what is said of those that are not."""

import pytest
import reports

from atent_ext.cli import card_text
from atent_ext.core.errors import BadInput
from atent_ext.evaluation.drawn import Drawn
from atent_ext.submissions import claims
from atent_ext.submissions.cards import Claim


def claim(percent, what="robust"):
    return Claim(what=what, percent=percent)


def stopped(flags, total=1000, tolerance=1.0, **fields):
    return reports.drawn("a", flags, total, drawn=Drawn(tolerance=tolerance, ended="it stopped"), **fields)


@pytest.mark.parametrize(
    ("percent", "flags", "tolerance", "verdict"),
    [
        (60, "0" * 10, 1, "overstated"),  # masked: it claims 60 and has nothing
        (60, "0" * 5, 1, None),
        (60, "10" * 10, 1, None),
        (60, "1" * 20, 1, "understated"),
        (99.9, "1" * 990, 1, "confirmed"),  # the lower end is at least 99.0, not 99.9
        (99.9, "1" * 990, 0.1, None),
        (50, "10" * 500, 1, "confirmed"),
        (50.004, "10" * 500, 1, "confirmed"),  # all images are scored, and a claim is rounded
        (50.1, "10" * 500, 0.01, "overstated"),
    ],
)
def test_a_claim_is_decided_once_the_interval_is_below_it_or_above_it_less_the_tolerance(
    percent, flags, tolerance, verdict
):
    report = stopped(flags, tolerance=tolerance)
    found = claims.verdicts([claim(percent)], report)
    assert [one.verdict for one in found] == ([verdict] if verdict else [])
    assert all(one.interval == tuple(round(100 * b, 4) for b in report.worst.interval95) for one in found)
    reached = claims.until_decided([claim(percent)], tolerance).reached(stopped(flags, tolerance=None))
    assert bool(reached) == bool(verdict)


def test_all_claims_have_to_be_decided_and_clean_accuracy_is_one():
    both = [claim(95, "clean"), claim(60)]
    until = claims.until_decided(both, 1)
    open_clean = stopped("0" * 20, clean="1" * 19 + "0")
    assert until.reached(open_clean) == ""
    assert until.reached(stopped("0" * 20, clean="0" * 20)) == "each claim is refuted, or confirmed within 1 points"
    assert claims.until_decided([claim(60)], 1).reached(open_clean)


def test_without_autoattack_it_stops_where_no_refutation_can_come_and_confirms_nothing():
    report = stopped("1" * 990, attack="PGD-20")
    assert claims.until_decided([claim(99.5)], 1).reached(report)
    assert claims.verdicts([claim(99.5)], report) == ()


def test_what_the_images_do_not_decide_is_said():
    report = stopped("10" * 10)
    content = {
        **{"checks": [], "signs": [], "verdicts": [], "report": report.model_dump(mode="json")},
        "submission": {"claims": [claim(60).model_dump()]},
    }
    assert list(card_text.remarks(content)) == [
        "claim of 60 % (robust): not decided; 20 of 1000 images do not decide it"
    ]


@pytest.mark.parametrize(
    ("given", "tolerance", "code", "field"),
    [((), 1, "missing", "claims")]
    + [((claim(60),), bad, "bad-value", "tolerance") for bad in (0, -1, 101, float("nan"))],
)
def test_there_have_to_be_claims_and_a_tolerance(given, tolerance, code, field):
    from sample_cards import card

    submission = card(claims=given).submission
    with pytest.raises(BadInput) as error:
        claims.check(submission, tolerance)
    assert (error.value.code, error.value.field) == (code, field)
