"""Claims compared with measurements, and when enough images were scored to decide them."""

import math
from collections.abc import Iterable, Mapping

from atent_ext.core.errors import BadInput
from atent_ext.evaluation.anytime import Until
from atent_ext.evaluation.report import Report, Result
from atent_ext.submissions.cards import Claim, Submission, Verdict

_DIGITS = 4
"""Decimals of a percentage: enough for a million images, and few enough to hide rounding errors of floats."""
_ROUNDED = 0.01
"""Points by which a claim may be rounded. It matters where all images were drawn and the interval is one number."""


def verdicts(claims: Iterable[Claim], report: Report, random: bool = False) -> tuple[Verdict, ...]:
    """A verdict for each claim that the report covers, by clean accuracy or by the worst case over all attacks.

    Without AutoAttack the worst case is too loose an upper bound to confirm a robust claim: only "overstated" is
    returned then. random: compare with the strongest single attack instead, because the worst case of a random network
    decreases by chance with every further attack, even with attacks that change nothing. If an evaluation stopped
    early, claims that are still undecided have no verdict.
    """
    compared = [
        _verdict(claim, result, kind)
        for claim, result in _covered(claims, report, random)
        if (kind := _kind(claim, result, report))
    ]
    thorough = report.autoattack is not None
    return tuple(
        verdict for verdict in compared if thorough or verdict.claim.what == "clean" or verdict.verdict == "overstated"
    )


def until_decided(claims: Iterable[Claim], tolerance: float, random: bool = False) -> Until:
    """Stop when each claim that the report covers is refuted, or confirmed within `tolerance` points."""
    known = tuple(claims)

    def reached(report: Report) -> str:
        tolerant = report.model_copy(update={"drawn": Until(lambda _: "", tolerance=tolerance).drawn()})
        kinds = [_kind(claim, result, tolerant) for claim, result in _covered(known, report, random)]
        decided = f"each claim is refuted, or confirmed within {tolerance:g} points"
        return decided if kinds and all(kinds) else ""

    return Until(reached, tolerance=float(tolerance))


def check(submission: Submission, tolerance: float) -> None:
    """Raise BadInput unless there are claims to decide, and for a tolerance outside (0, 100]."""
    if not submission.claims:
        message = f"{submission.name} makes no claims that could be decided; add claims to card.yaml, or give --n"
        raise BadInput(message, code="missing", field="claims")
    if not (math.isfinite(tolerance) and 0 < tolerance <= 100):
        message = f"tolerance is {tolerance:g}; it is in points, above 0 and at most 100"
        raise BadInput(message, code="bad-value", field="tolerance")


def _covered(claims: Iterable[Claim], report: Report, random: bool) -> list[tuple[Claim, Result]]:
    measured: Mapping[str, Result | None] = {
        "clean": report.of_kind("clean"),
        "robust": _strongest(report) if random else report.of_kind("worst_case"),
    }
    return [(claim, result) for claim in claims if (result := measured[claim.what])]


def _strongest(report: Report) -> Result | None:
    return min(report.attacks, key=lambda result: result.accuracy, default=None)


def _kind(claim: Claim, result: Result, report: Report) -> str:
    """The verdict's kind, "" if it is undecided.

    Confirmed if the claim lies in the 95 % Wilson interval. If images were scored in random order: confirmed if it lies
    at most `tolerance` points above the lower end.
    """
    low, high = (100 * bound for bound in result.interval95)
    slack = _ROUNDED if report.drawn else 0.0
    if claim.percent > high + slack:
        return "overstated"
    if claim.percent < low - slack:
        return "understated"
    within = None if report.drawn is None else report.drawn.tolerance
    return "confirmed" if report.drawn is None or (within and claim.percent - within < low) else ""


def _verdict(claim: Claim, result: Result, kind: str) -> Verdict:
    low, high = (100 * bound for bound in result.interval95)
    measured = 100 * result.accuracy
    over = f" over {result.over}" if result.over else ""
    return Verdict.model_validate(
        {
            "claim": claim,
            "measured": round(measured, _DIGITS),
            "interval": (round(low, _DIGITS), round(high, _DIGITS)),
            "attack": f"{result.attack}{over}",
            "points": round(claim.percent - measured, _DIGITS),
            "verdict": kind,
        }
    )
