"""What is wrong with a registry: its cards, which are counted again, their hashes, the recipes, the README's tables."""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.core.statistics import interval
from atent_ext.evaluation.report import Result
from atent_ext.leaderboard import site
from atent_ext.leaderboard.ranking import Entry, measured
from atent_ext.submissions import masking, sanity, verification
from atent_ext.submissions.cards import read_card
from atent_ext.training import recipes

_LARGEST = 1_000_000
"""Bytes of a card or a gallery: the flags of 10,000 images under ten attacks are a tenth of it."""
_REFRESH = "run python eval/pages/write_registry.py"


def check(root: Path) -> list[str]:
    """All that is wrong with the registry in the folder `root`, one line each; an empty list if nothing is.

    root holds cards/, recipes/, README.md, and weights/ if there are any; what it lacks is not looked at.
    Raises BadInput if `root` is no folder, or has neither cards nor recipes.
    """
    if not any((root / part).is_dir() for part in ("cards", "recipes")):
        raise BadInput(f"{root} holds no registry: it has neither cards nor recipes; give the folder registry")
    entries: list[Entry] = []
    problems = list(_files(root / "cards", entries))
    problems += [f"{entry.path}: {told}" for entry in entries for told in _card(entry, root)]
    problems += _names(entries)
    problems += _recipes(root / "recipes")
    # A card that cannot be read is said already; without it the tables cannot be compared.
    return [_in_one_line(told) for told in problems or _page(root)]


def _in_one_line(text: str) -> str:
    """A card is a stranger's: nothing of it starts a line of its own or steers a terminal."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _files(folder: Path, entries: list[Entry]) -> Iterator[str]:
    """Read every card below `folder` into `entries`; say what cannot be read and what is no card."""
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir() and path.name != ".gitkeep"):
        try:
            _plain(path)
            if path.suffix == ".json":
                entries.append(measured(read_card(path), path))
        except BadInput as error:
            yield str(error)


def _plain(path: Path) -> None:
    """Raise BadInput unless it is a file of sensible size that belongs among the cards."""
    if path.is_symlink() or not path.is_file():
        raise BadInput(f"{path} is a link or a device; put the file itself there")
    if path.suffix == ".png" and not path.with_suffix(".json").is_file():
        raise BadInput(f"{path} is the gallery of no card; name it like its card, or remove it")
    if path.suffix not in (".json", ".png"):
        raise BadInput(f"{path} is neither a card (.json) nor its gallery (.png); remove it")
    if path.suffix == ".png":
        site.picture(path)
    if path.stat().st_size > _LARGEST:
        raise BadInput(f"{path} has {path.stat().st_size} bytes; at most {_LARGEST} are taken")


# ---- one card


def _card(entry: Entry, root: Path) -> Iterator[str]:
    yield from _place(entry, root / "cards")
    yield from _known(entry)
    yield from _origin(entry, root / "weights")
    for result in entry.results:
        yield from (f"{result.attack}: {told}" for told in _counts(result, entry.clean.n))
    yield from _worst(entry)
    yield from _claims(entry)
    yield from _looked(entry)


def _place(entry: Entry, folder: Path) -> Iterator[str]:
    place, lies = entry.card.place.as_posix(), entry.path.relative_to(folder).as_posix()
    if place != lies:
        yield f"it lies at {lies} and belongs to {place}; move it there"


def _known(entry: Entry) -> Iterator[str]:
    asked = entry.card.submission
    for kind, name in (("data set", asked.dataset), ("model", asked.architecture.name)):
        known = registry.entries(kind)
        if name not in known:
            yield str(registry.nearest(kind, name, known))
    scored, submitted = entry.report.threat, asked.threat
    if scored != submitted:
        yield f"it was scored under {scored} and is submitted for {submitted}; score it anew"


def _origin(entry: Entry, weights: Path) -> Iterator[str]:
    """Hashes, also of fields of the file that nobody reads, and the date."""
    card, raw = entry.card, json.loads(entry.path.read_text(encoding="utf-8"))
    for name, digest in _hashes({"weights": raw["weights"], "report": raw["report"]}):
        if not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
            yield f"{name} is {digest!r}, and a SHA-256 has 64 digits 0 to f; score it anew"
    stated, scored = card.weights.get("sha256"), entry.report.weights_sha256
    if stated is None or stated != scored:
        yield f"weights.sha256 is {stated}, and the report is of {scored}; score these weights"
    file = weights / f"{card.submission.name}.safetensors"
    if file.is_file() and (found := hashlib.sha256(file.read_bytes()).hexdigest()) != stated:
        yield f"weights.sha256 is {stated}, and {file} has {found}; put the file there that was scored"
    try:
        datetime.fromisoformat(card.date)
    except ValueError:
        yield f"date is {card.date!r}; an ISO date such as 2026-01-31 is needed"


def _hashes(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every entry of nested mappings that is named as a SHA-256."""
    for key, below in value.items():
        full = f"{name}.{key}".lstrip(".")
        if key.endswith("sha256"):
            yield full, below
        elif isinstance(below, dict):
            yield from _hashes(below, full)


def _counts(result: Result, n: int) -> Iterator[str]:
    """Do the flags say what the counts say?"""
    right = result.flags.count("1")
    if result.n != n:
        yield f"it is of {result.n} images, and clean accuracy of {n}; score all attacks on the same"
    if len(result.flags) != result.n or result.flags.strip("01"):
        yield f"flags need {result.n} digits 0 or 1, and have {len(result.flags)}; score it anew"
    if result.correct != right:
        yield f"correct is {result.correct}, and {right} flags are 1; score it anew"
    if not math.isclose(result.accuracy, right / result.n, abs_tol=1e-9):
        yield f"accuracy is {result.accuracy:g}, and the flags say {right / result.n:g}; score it anew"
    again = interval(min(right, result.n), result.n)
    if not all(map(_close, result.interval95_wilson, again)):
        yield f"interval95_wilson is {_pair(result.interval95_wilson)}, and the flags say {_pair(again)}; score it anew"


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, abs_tol=1e-6)


def _pair(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def _worst(entry: Entry) -> Iterator[str]:
    """An image counts in the worst case if it is right under all the others."""
    others = [result.flags for result in entry.results if result.kind != "worst_case"]
    if {len(flags) for flags in others} == {len(entry.worst.flags)}:  # else `_counts` says so
        again = map(min, *others)
        wrong = sum(stated != found for stated, found in zip(entry.worst.flags, again, strict=True))
        if wrong:
            yield f"worst case: {wrong} flags are not what the attacks together say; score it anew"


def _claims(entry: Entry) -> Iterator[str]:
    asked = entry.card.submission
    random = sanity.is_random(entry.card.checks, asked.random)
    again = verification.verdicts(asked.claims, entry.report, random)
    if entry.card.verdicts != again:
        told = ", ".join(f"{one.claim.what} {one.verdict} ({one.points:+.1f})" for one in again) or "none"
        yield f"verdicts are not those of its claims and figures, which are: {told}; write the card anew"


def _looked(entry: Entry) -> Iterator[str]:
    """Are all checks there, and does AutoAttack's count say what is told of it?"""
    names = tuple(check.name for check in entry.card.checks)
    if names != sanity.NAMES:
        yield f"its checks are {', '.join(names) or 'none'}, and {', '.join(sanity.NAMES)} are needed; score it anew"
    result = entry.autoattack
    left = list(result.robust_after.values())[-1:] if result else []
    if result and left and left != [result.flags.count("1")]:
        yield f"{result.attack}: robust_after ends with {left[0]}, which the flags do not say; score it anew"
    again = masking.black_box(entry.report)
    if [sign for sign in entry.card.signs if sign.name == again.name] != [again]:
        yield f"the sign {again.name!r} is not what AutoAttack's counts say: {again.evidence}; score it anew"


# ---- the cards together, recipes, the page


def _names(entries: Iterable[Entry]) -> Iterator[str]:
    """Cards of one name are of one model, under several threat models; case does not tell names apart."""
    groups: defaultdict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[entry.card.submission.name.casefold()].append(entry)
    for group in groups.values():
        first, *others = group
        for other in others:
            if _identity(other) != _identity(first):
                yield f"{other.path}: {first.path} has this name, and is of other weights; give each a name of its own"


def _identity(entry: Entry) -> tuple[str, Any]:
    return entry.card.submission.name, entry.card.weights.get("sha256")


def _recipes(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.yaml")):
        if path.name.startswith("_"):  # a base, which is read with those that name it
            continue
        try:
            name = recipes.load(str(path)).name
        except BadInput as error:
            yield str(error)
        else:
            if name != path.stem:
                yield f"{path}: name is {name!r}, and the file is called {path.stem!r}; give both one name"


def _page(root: Path) -> Iterator[str]:
    page, cards = root / "README.md", root / "cards"
    if not page.is_file() or not cards.is_dir():
        return
    text = page.read_text(encoding="utf-8")
    try:
        if text != site.inserted(text, site.markdown(cards)):
            yield f"{page}: its tables are not those of the cards; {_REFRESH}"
    except BadInput as error:
        yield f"{page}: {error}"
