"""Ranks the cards of the registry: one table for each data set and threat model."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from atent_ext.attacks.spec import Kind
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Count, Share, Threat
from atent_ext.evaluation.report import Report, Result
from atent_ext.submissions.cards import Card, Sign, Verdict, read_card
from atent_ext.submissions.sanity import is_random

_NORMS = {"Linf": "ℓ∞", "L2": "ℓ2"}
Tone = Literal["good", "bad", "plain"]
TONES: Mapping[str, Tone] = {"overstated": "bad", "understated": "plain", "confirmed": "good"}
_FEW = 100
"""Number of images below which the interval of an accuracy is too wide to rank by."""
_LONGEST = 120
"""Characters of a page's name, at most: file names are limited to 255 bytes."""


class Curve(BaseModel):
    """A card's curves from `masking.signs`: the accuracy in [0, 1] under each attack at each `eps`, on `n` images."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False, strict=True)

    n: Count
    eps: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=1)]
    accuracy: Annotated[dict[str, tuple[Share, ...]], Field(min_length=1)]

    @model_validator(mode="after")
    def _as_long(self) -> "Curve":
        if any(len(shares) != len(self.eps) for shares in self.accuracy.values()):
            raise ValueError(f"each attack needs {len(self.eps)} accuracies, one for each eps")
        return self


@dataclass(frozen=True)
class Badge:
    """A short label beside a model's name. detail: the text of its tooltip."""

    text: str
    tone: Tone
    detail: str = ""


@dataclass(frozen=True)
class Strongest:
    """The best known attack, and the accuracy in [0, 1] that it leaves."""

    attack: str
    accuracy: float


@dataclass(frozen=True)
class Entry:
    """A card on the leaderboard. page: the name of its page without a suffix; rank: from 1, the best of its table."""

    card: Card
    path: Path
    report: Report
    curve: Curve | None
    page: str = ""
    rank: int = 0

    @property
    def results(self) -> tuple[Result, ...]:
        """All results of the report."""
        return self.report.results

    @property
    def clean(self) -> Result:
        """The result without an attack."""
        return self.report.result("clean")

    @property
    def worst(self) -> Result:
        """The worst case over all attacks, by which models are ranked."""
        return self.report.worst

    @property
    def autoattack(self) -> Result | None:
        """The result of AutoAttack, also of a changed one; None if it was not run."""
        return self.report.autoattack

    @property
    def strongest(self) -> Strongest:
        """The attack that was run with the lowest accuracy, and adversarial images added to the card that break more.

        Raises BadInput where there are such, and they or that attack do not have a flag for each image; `measured` has
        made sure that they do.
        """
        run = [result for result in self.report.attacks if result.kind != "evidence"]
        best = min(run or self.report.attacks, key=lambda result: result.accuracy)
        if not self.report.evidence:
            return Strongest(best.attack, best.accuracy)
        left, names = best.robust(), [best.attack]
        for result in self.report.evidence:
            without = left & result.robust()
            names += [result.attack] if bool((without != left).any()) else []
            left = without
        return Strongest(" + ".join(names), float(left.double().mean()))

    @property
    def masking(self) -> tuple[Sign, ...]:
        """The signs of gradient masking that were found."""
        return tuple(sign for sign in self.card.signs if sign.found)

    @property
    def random(self) -> bool:
        """Whether the network was scored as a random one."""
        return is_random(self.card.checks, self.card.submission.random)

    @property
    def link(self) -> str:
        """The card's link if it is a web address, else ""."""
        return web_address(self.card.submission.link)

    @property
    def warned(self) -> bool:
        """Whether the card has a warning: a badge with the tone "bad"."""
        return any(badge.tone == "bad" for badge in self.badges)

    @property
    def badges(self) -> tuple[Badge, ...]:
        """Labels for signs of masking, failed checks, verdicts on claims, proven images, and unusual settings."""
        verdicts = _verdicts(self.card.verdicts)
        return (*_masking(self.masking), *_failures(self.card), *verdicts, *_proven(self.report), *_unusual(self))


@dataclass(frozen=True)
class Table:
    """The models of one data set and threat model, best first."""

    dataset: str
    threat: Threat
    entries: tuple[Entry, ...]

    @property
    def threat_text(self) -> str:
        """The threat model as text, such as ℓ∞ ≤ 8/255."""
        return f"{_NORMS[self.threat.norm]} ≤ {eps_text(self.threat.eps)}"

    @property
    def images(self) -> str:
        """The number of scored test images as text, a range if it differs between entries."""
        counts = sorted({entry.worst.n for entry in self.entries})
        return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def read(cards_folder: Path) -> tuple[Table, ...]:
    """Read and rank all cards below `cards_folder`, also in hidden folders.

    Raises BadInput for a missing folder, and for a file that is not a card or lacks clean accuracy, attacks or the
    worst case.
    """
    if not cards_folder.is_dir():
        message = f"there is no folder {cards_folder}; give the folder of the cards, registry/cards"
        raise BadInput(message, code="missing", field="cards_folder")
    entries = _named([measured(read_card(path), path) for path in sorted(cards_folder.rglob("*.json"))])
    return tuple(_table(list(group)) for _, group in groupby(sorted(entries, key=_setting), key=_setting))


def measured(card: Card, path: Path) -> Entry:
    """The entry of a card that was scored, without rank and page. Raises BadInput as `read` does; it names `path`.

    It also does where adversarial images were added to the card, and flags are missing that tell what they break.
    """
    if not card.report:
        message = f"{path}: the card was not scored and cannot be ranked; leave it out of the registry"
        raise BadInput(message, code="missing", field="report")
    try:
        curve = Curve.model_validate_json(json.dumps(card.curve)) if card.curve else None
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "curve"
        message = f"{path}: the card's figures cannot be read, {name}: {first['msg']}; measure it anew"
        raise BadInput(message, code="bad-value", field=".".join(("curve", *map(str, first["loc"])))) from None
    kinds = [result.kind for result in card.report.results]
    names: Mapping[Kind, str] = {"clean": "clean", "worst_case": "worst case"}
    for needed, name in names.items():
        if kinds.count(needed) != 1:
            message = f"{path}: the report has {kinds.count(needed)} results {name!r}; exactly one is needed"
            raise BadInput(message, code="conflict" if needed in kinds else "missing", field="report")
    if not card.report.attacks:
        message = f"{path}: the report has no attack beside 'clean' and 'worst case'; score it with a protocol"
        raise BadInput(message, code="missing", field="report")
    entry = Entry(card, path, card.report, curve)
    try:
        entry.strongest  # noqa: B018 -- it needs the flags
    except BadInput as error:
        raise BadInput(f"{path}: {error}", code=error.code, field=error.field) from None
    return entry


def eps_text(eps: float) -> str:
    """A radius as text: 8/255 rather than 0.031373, but 0.3."""
    levels = round(eps * 255)
    return f"{levels}/255" if levels and len(f"{eps:g}") > 5 and abs(eps * 255 - levels) < 1e-3 else f"{eps:.4g}"


def web_address(link: str) -> str:
    """`link` if it is a web address (http or https), else ""."""
    try:
        parts = urlsplit(link)
    except ValueError:
        return ""
    return link if parts.scheme in ("http", "https") and parts.netloc and not re.search(r"\s", link) else ""


def _setting(entry: Entry) -> tuple[str, str, float]:
    """Data set, norm and eps of the entry's table; eps is rounded as in `Card.place`."""
    submission = entry.card.submission
    return submission.dataset, submission.threat.norm, float(f"{submission.threat.eps:.4g}")


def _table(entries: list[Entry]) -> Table:
    submission = entries[0].card.submission
    best = sorted(entries, key=lambda entry: (-entry.worst.accuracy, -entry.clean.accuracy, entry.card.submission.name))
    worst = [entry.worst.accuracy for entry in best]
    # Equal accuracies share a rank.
    ranked = tuple(replace(entry, rank=1 + worst.index(entry.worst.accuracy)) for entry in best)
    return Table(submission.dataset, submission.threat, ranked)


def _named(entries: Iterable[Entry]) -> list[Entry]:
    """Give each entry a page name; names that differ only in case or special characters get a number."""
    taken: set[str] = set()
    named = []
    for entry in entries:
        dataset, norm, eps = _setting(entry)
        text = f"{dataset}-{norm}-{eps:g}-{entry.card.submission.name}".lower()
        stem = re.sub(r"[^a-z0-9.]+", "-", text)[-_LONGEST:].strip("-.")
        page = next(name for name in _numbered(stem) if name not in taken)
        taken.add(page)
        named.append(replace(entry, page=page))
    return named


def _numbered(stem: str) -> Iterable[str]:
    yield stem
    number = 1
    while True:
        number += 1
        yield f"{stem}-{number}"


def _masking(signs: tuple[Sign, ...]) -> Iterable[Badge]:
    if signs:
        count = f"{len(signs)} sign" + "s" * (len(signs) > 1)
        yield Badge(f"masked gradients: {count}", "bad", "; ".join(f"{sign.name}: {sign.evidence}" for sign in signs))


def _failures(card: Card) -> Iterable[Badge]:
    failed = [check for check in card.checks if check.passed is False]
    if failed:
        count = f"{len(failed)} check" + "s" * (len(failed) > 1)
        yield Badge(f"{count} failed", "bad", "; ".join(f"{check.name}: {check.said}" for check in failed))


def _verdicts(verdicts: tuple[Verdict, ...]) -> Iterable[Badge]:
    """One badge for each kind of verdict, with the largest difference; overstated claims first."""
    for kind, tone in TONES.items():
        group = [verdict for verdict in verdicts if verdict.verdict == kind]
        if group:
            several = f"{len(group)} claims" if len(group) > 1 else "claim"
            by = "" if kind == "confirmed" else f" by {max(abs(verdict.points) for verdict in group):.1f}"
            yield Badge(f"{several} {kind}{by}", tone, "; ".join(map(_comparison, group)))


def _comparison(verdict: Verdict) -> str:
    claim = verdict.claim
    by = f" under {claim.attack}" if claim.attack else ""
    return f"{claim.what}: {claim.percent:g} % claimed{by}, {verdict.measured:.1f} % measured ({verdict.attack})"


def _proven(report: Report) -> Iterable[Badge]:
    if report.proven:
        share = 100 * report.proven / report.n
        detail = f"interval bounds prove {report.proven} of {report.n} images robust"
        yield Badge(f"{share:.1f} % proven", "good", detail)


def _unusual(entry: Entry) -> Iterable[Badge]:
    if entry.worst.n < _FEW:
        yield Badge(f"only {entry.worst.n} images", "bad", "the interval is wide; the rank says little")
    if entry.report.drawn is not None:
        yield Badge("stopped early", "plain", entry.report.drawn.note(entry.report.n, entry.report.total))
    if entry.random:
        yield Badge("random", "plain", 'the network answers at random; AutoAttack\'s "rand" version scored it')
    for result in entry.report.evidence:
        detail = "; ".join(note.text for note in result.notes)
        yield Badge(f"worst case lowered by {result.settings.get('by')}", "plain", detail)
    report = entry.report
    if report.data != entry.card.submission.dataset:
        yield Badge("other test images", "plain", f"{report.data}. {report.data_note}".strip())
    if entry.autoattack is None:
        yield Badge("no AutoAttack", "bad", "AutoAttack was not run")
    elif entry.autoattack.changed:
        yield Badge("AutoAttack changed", "plain", "; ".join(note.text for note in entry.autoattack.notes))
