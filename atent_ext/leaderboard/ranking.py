"""The cards of the registry, ranked: one table for each data set and threat model."""

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
"""Images below which an accuracy says little."""
_LONGEST = 120
"""Characters of a page's name: file systems end at 255 bytes."""


class Curve(BaseModel):
    """A card's curves, as `masking.signs` measures them: accuracy under each attack at each of `eps`, on `n` images."""

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
    """A short label beside a model's name; `detail` says more."""

    text: str
    tone: Tone
    detail: str = ""


@dataclass(frozen=True)
class Entry:
    """One card among the others. page: the name of its page without a suffix; rank: 1 is the best of its table."""

    card: Card
    path: Path
    report: Report
    curve: Curve | None
    page: str = ""
    rank: int = 0

    @property
    def results(self) -> tuple[Result, ...]:
        """All that was measured."""
        return self.report.results

    @property
    def clean(self) -> Result:
        """Without an attack."""
        return self.report.result("clean")

    @property
    def worst(self) -> Result:
        """The worst case over all attacks, by which models are ranked."""
        return self.report.worst

    @property
    def autoattack(self) -> Result | None:
        """AutoAttack, also a changed one, unless it was not run."""
        return self.report.autoattack

    @property
    def strongest(self) -> Result:
        """The attack that leaves the lowest accuracy."""
        return min(self.report.attacks, key=lambda result: result.accuracy)

    @property
    def found(self) -> tuple[Sign, ...]:
        """The signs of gradient masking that are there."""
        return tuple(sign for sign in self.card.signs if sign.found)

    @property
    def random(self) -> bool:
        """Whether the network was found to answer at random, whatever was declared."""
        return is_random(self.card.checks, self.card.submission.random)

    @property
    def link(self) -> str:
        """The address that the card gives, "" unless it is one of the web."""
        return web_address(self.card.submission.link)

    @property
    def warned(self) -> bool:
        """Whether something of the card is to be read with care."""
        return any(badge.tone == "bad" for badge in self.badges)

    @property
    def badges(self) -> tuple[Badge, ...]:
        """What has to be seen beside the figures: signs of masking, failed checks, verdicts, what is unusual."""
        return (*_masking(self.found), *_failures(self.card), *_verdicts(self.card.verdicts), *_unusual(self))


@dataclass(frozen=True)
class Table:
    """The models of one data set and threat model, best first."""

    dataset: str
    threat: Threat
    entries: tuple[Entry, ...]

    @property
    def threat_text(self) -> str:
        """The threat model in the field's notation."""
        return f"{_NORMS[self.threat.norm]} ≤ {eps_text(self.threat.eps)}"

    @property
    def images(self) -> str:
        """How many test images were scored, a range if that differs."""
        counts = sorted({entry.worst.n for entry in self.entries})
        return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def read(cards_folder: Path) -> tuple[Table, ...]:
    """All cards below `cards_folder`, hidden ones as well, ranked.

    Raises BadInput for a folder that is not there, and for a file that is no card or has no clean accuracy, no attack
    or no worst case.
    """
    if not cards_folder.is_dir():
        raise BadInput(f"there is no folder {cards_folder}; give the folder of the cards, registry/cards")
    found = _named([measured(read_card(path), path) for path in sorted(cards_folder.rglob("*.json"))])
    return tuple(_table(list(group)) for _, group in groupby(sorted(found, key=_setting), key=_setting))


def measured(card: Card, path: Path) -> Entry:
    """A card with its figures checked. Raises BadInput, which names `path`, as `read` does."""
    if not card.report:
        raise BadInput(f"{path}: the card was not scored and cannot be ranked; leave it out of the registry")
    try:
        curve = Curve.model_validate_json(json.dumps(card.curve)) if card.curve else None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "curve"
        raise BadInput(f"{path}: the card's figures cannot be read, {where}: {first['msg']}; measure it anew") from None
    kinds = [result.kind for result in card.report.results]
    names: Mapping[Kind, str] = {"clean": "clean", "worst_case": "worst case"}
    for needed, name in names.items():
        if kinds.count(needed) != 1:
            raise BadInput(f"{path}: the report has {kinds.count(needed)} results {name!r}; exactly one is needed")
    if not card.report.attacks:
        raise BadInput(f"{path}: the report has no attack beside 'clean' and 'worst case'; score it with a protocol")
    return Entry(card, path, card.report, curve)


def eps_text(eps: float) -> str:
    """A radius as the field writes it: 8/255 rather than 0.031373, but 0.3."""
    levels = round(eps * 255)
    return f"{levels}/255" if levels and len(f"{eps:g}") > 5 and abs(eps * 255 - levels) < 1e-3 else f"{eps:.4g}"


def web_address(link: str) -> str:
    """`link` if it is an address of the web, else ""."""
    try:
        parts = urlsplit(link)
    except ValueError:
        return ""
    return link if parts.scheme in ("http", "https") and parts.netloc and not re.search(r"\s", link) else ""


def _setting(entry: Entry) -> tuple[str, str, float]:
    """What a table has in common; eps as rounded as it is in `Card.place`."""
    asked = entry.card.submission
    return asked.dataset, asked.threat.norm, float(f"{asked.threat.eps:.4g}")


def _table(entries: list[Entry]) -> Table:
    asked = entries[0].card.submission
    best = sorted(entries, key=lambda one: (-one.worst.accuracy, -one.clean.accuracy, one.card.submission.name))
    worst = [entry.worst.accuracy for entry in best]
    # Equals share the rank of the first of them.
    return Table(
        asked.dataset, asked.threat, tuple(replace(one, rank=1 + worst.index(one.worst.accuracy)) for one in best)
    )


def _named(entries: Iterable[Entry]) -> list[Entry]:
    """Give each entry a page's name of its own, also where case or odd letters do not tell two apart."""
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
        yield Badge(f"masked gradients: {count}", "bad", "; ".join(f"{one.name}: {one.evidence}" for one in signs))


def _failures(card: Card) -> Iterable[Badge]:
    failed = [check for check in card.checks if check.passed is False]
    if failed:
        count = f"{len(failed)} check" + "s" * (len(failed) > 1)
        yield Badge(f"{count} failed", "bad", "; ".join(f"{one.name}: {one.said}" for one in failed))


def _verdicts(verdicts: tuple[Verdict, ...]) -> Iterable[Badge]:
    """One badge for each kind of verdict, with the largest difference; overstated claims first."""
    for kind, tone in TONES.items():
        found = [one for one in verdicts if one.verdict == kind]
        if found:
            several = f"{len(found)} claims" if len(found) > 1 else "claim"
            by = "" if kind == "confirmed" else f" by {max(abs(one.points) for one in found):.1f}"
            yield Badge(f"{several} {kind}{by}", tone, "; ".join(map(_told, found)))


def _told(one: Verdict) -> str:
    by = f" under {one.claim.attack}" if one.claim.attack else ""
    return f"{one.claim.what}: {one.claim.percent:g} % claimed{by}, {one.measured:.1f} % measured ({one.attack})"


def _unusual(entry: Entry) -> Iterable[Badge]:
    if entry.worst.n < _FEW:
        yield Badge(f"only {entry.worst.n} images", "bad", "the interval is wide; the rank says little")
    if entry.random:
        yield Badge("random", "plain", 'the network answers at random; AutoAttack\'s "rand" version scored it')
    report = entry.report
    if report.data != entry.card.submission.dataset:
        yield Badge("other test images", "plain", f"{report.data}. {report.data_note}".strip())
    if entry.autoattack is None:
        yield Badge("no AutoAttack", "bad", "AutoAttack was not run")
    elif entry.autoattack.changed:
        yield Badge("AutoAttack changed", "plain", "; ".join(note.text for note in entry.autoattack.notes))
