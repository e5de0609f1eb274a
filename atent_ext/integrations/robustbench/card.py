"""A card in RobustBench's formats: the JSON of its leaderboard, its form "New Model(s)", and obstacles to a listing."""

from collections.abc import Iterator
from typing import Any

from atent_ext.core.errors import BadInput
from atent_ext.evaluation.report import Result
from atent_ext.integrations.robustbench import zoo
from atent_ext.integrations.robustbench.source import Source
from atent_ext.submissions.cards import Card

_IMAGES = {"imagenet": 5_000}
"""Number of images of RobustBench's leaderboards; of the others, which are of CIFAR, the whole test split."""
_ALL = 10_000

_FORM = """\
# [New Model] {name}

# Paper Information

- **Paper Title**: {name} (fill in: a card has no title)
- **Paper URL**: {url}
- **Paper authors**: {authors}
- **Venue**: {venue}

# Leaderboard Claim(s)

## Model 1

- **Architecture**: {architecture}
- **Dataset**: {dataset}
- **Threat Model**: {threat}
- **eps**: {eps}
- **Clean accuracy**: {clean_acc}
- **Robust accuracy**: {autoattack_acc}
- **Additional data**: {additional}
- **Evaluation method**: {method}
- **Checkpoint and code**: (fill in: the address of `{name}.pt`, and of the code)

# Model Zoo

- [x] The model is meant for the Model Zoo.
- [{known}] Its architecture is RobustBench's or a library's that RobustBench needs anyway.{attached}
- [{mit}] It is released under the MIT license.{license}
"""


def percent(result: Result) -> str:
    """An accuracy as RobustBench writes it."""
    return str(round(result.accuracy * 100, 2))


def autoattack(card: Card) -> Result:
    """The card's result of standard AutoAttack. Raises BadInput if there is none."""
    for result in _results(card):
        if result.kind == "autoattack" and result.settings.get("version") == "standard" and not result.changed:
            return result
    attacks = ", ".join(result.attack for result in _results(card)) or "nothing was scored"
    message = f"the card of {card.submission.name} has no standard AutoAttack ({attacks}), by which RobustBench "
    message += "ranks; measure it with `atent verify`"
    raise BadInput(message, code="missing", field="report")


def model_info(card: Card, architecture: str) -> dict[str, Any]:
    """The fields of RobustBench's leaderboard and tables; accuracies are texts in percent, as RobustBench writes them.

    reported: the first claimed robust accuracy. external: the worst case over all attacks, if it is lower than
    AutoAttack; RobustBench then ranks by it. unreliable: whether a sign of gradient masking was found.
    Raises BadInput for a card without clean accuracy or AutoAttack.
    """
    submission, lower = card.submission, _lower(card)
    claimed = [claim.percent for claim in submission.claims if claim.what == "robust"]
    return {
        "link": submission.link,
        "name": submission.name,
        "authors": _line(submission.authors),
        "additional_data": submission.extra_data,
        "number_forward_passes": 1,
        "dataset": submission.dataset,
        "venue": _line(submission.venue),
        "architecture": architecture,
        "eps": radius(submission.threat.eps),
        "clean_acc": percent(_clean(card)),
        "reported": f"{claimed[0]:g}" if claimed else None,
        "autoattack_acc": percent(autoattack(card)),
        **({"external": percent(lower)} if lower else {}),
        "footnote": " ".join(_footnotes(card)),
        "unreliable": any(sign.found for sign in card.signs),
    }


def radius(eps: float) -> str:
    """eps as RobustBench writes it: 8/255 for a multiple of 1/255 that is not a short decimal, else a decimal."""
    steps = round(eps * 255)
    short = float(f"{eps:.2g}") == eps
    return f"{eps:g}" if short or not steps or abs(eps * 255 - steps) > 1e-3 else f"{steps}/255"


def scored_images(card: Card) -> str:
    """The scored images of the card as text; they can be a part of the data set."""
    data = card.report.data if card.report else card.submission.dataset
    drawn = card.report is not None and card.report.drawn is not None
    chosen = (
        f"{autoattack(card).n} test images, drawn at random,"
        if drawn
        else f"the first {autoattack(card).n} test images"
    )
    return f"{chosen} of {_line(str(data))}"


def form(card: Card, network: Source) -> str:
    """The filled form "New Model(s)", as Markdown."""
    submission, info = card.submission, model_info(card, network.title)
    method = f"AutoAttack, standard ({autoattack(card).settings.get('package')}), on {scored_images(card)}"
    mit = submission.license.upper() in ("MIT", "MIT LICENSE")
    return _FORM.format(
        **info,
        url=submission.link or "(fill in: the card has no link)",
        threat=submission.threat.norm,
        additional=str(submission.extra_data).lower(),
        method=method,
        known=" " if network.file else "x",
        attached=f" It is in `{network.module}.py`." if network.file else "",
        mit="x" if mit else " ",
        license="" if mit else f" Its license: {_line(submission.license)}",
    )


def remarks(card: Card) -> Iterator[str]:
    """Reasons for which RobustBench's maintainers may refuse the bundle, one sentence each."""
    submission = card.submission
    place = (submission.dataset, submission.threat.norm)
    usual = zoo.LEADERBOARD_EPS.get(place)
    if usual is None:
        yield (
            f"RobustBench has no leaderboard for {place[0]} and {place[1]}; it has CIFAR-10, CIFAR-100 (Linf) and "
            "ImageNet (Linf). This model can be loaded by RobustBench, but not listed."
        )
    elif abs(usual - submission.threat.eps) > 1e-5:
        yield f"eps is {radius(submission.threat.eps)}; the leaderboard is for {radius(usual)}."
    if autoattack(card).n < (needed := _needed(card)):
        yield f"It was measured on {scored_images(card)}; a leaderboard takes {needed:,}."
    if not submission.link:
        yield "The card has no link; a paper or a report is needed."
    for sign in card.signs:
        if sign.found:
            yield f"A sign of gradient masking was found: {_line(sign.name)} ({_line(sign.evidence)})."
    for check in card.checks:
        if check.passed is False:
            yield f"A check of the network failed: {_line(check.name)} ({_line(check.said)})."
    for verdict in card.verdicts:
        if verdict.verdict == "overstated":
            claim = f"{verdict.claim.percent:g} % ({verdict.claim.what})"
            yield f"A claim is overstated: {claim}, measured {verdict.measured:.1f} %."


def _needed(card: Card) -> int:
    return _IMAGES.get(card.submission.dataset, _ALL)


def _results(card: Card) -> tuple[Result, ...]:
    return card.report.results if card.report else ()


def _clean(card: Card) -> Result:
    for result in _results(card):
        if result.kind == "clean":
            return result
    message = f"the card of {card.submission.name} has no clean accuracy; measure it with `atent verify`"
    raise BadInput(message, code="missing", field="report")


def _lower(card: Card) -> Result | None:
    """The worst case over all attacks, if it is lower than AutoAttack alone."""
    bound = autoattack(card).accuracy
    worst = (result for result in _results(card) if result.kind == "worst_case")
    return next((result for result in worst if result.accuracy < bound), None)


def _footnotes(card: Card) -> Iterator[str]:
    if autoattack(card).n < _needed(card):
        yield f"Measured on {scored_images(card)}."
    if lower := _lower(card):
        yield f"External: an image counts only if it withstands each of {lower.over}."


def _line(text: str) -> str:
    return " ".join(text.split())
