"""Checks a registry: its cards, whose counts are recomputed, hashes, recipes, and the tables of its README."""

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import escaped
from atent_ext.core.statistics import interval, running_interval
from atent_ext.data import datasets
from atent_ext.evaluation.report import Report, Result
from atent_ext.leaderboard import site
from atent_ext.leaderboard.ranking import Entry, measured
from atent_ext.submissions import claims, masking, sanity
from atent_ext.submissions.cards import PROGRAM, read_card
from atent_ext.training import recipes

_LARGEST = 1_000_000
"""Bytes of a card or a gallery: the flags of 10,000 images under ten attacks are a tenth of it."""
_MAY_LACK = ("report.content_sha256", "report.data_sha256")
"""Hashes that reports of older versions do not have."""
_REFRESH = "run python eval/pages/write_registry.py"


def check(root: Path) -> list[str]:
    """The problems of the registry in the folder `root`, one line each; an empty list if there are none.

    root: a folder with cards/, recipes/, README.md and weights/; parts that are missing are not checked.
    Raises BadInput if `root` has neither cards nor recipes.
    """
    if not any((root / part).is_dir() for part in ("cards", "recipes")):
        message = f"{root} holds no registry: it has neither cards nor recipes; give the folder registry"
        raise BadInput(message, code="missing", field="root")
    entries: list[Entry] = []
    problems = list(_files(root / "cards", entries))
    problems += [f"{entry.path}: {problem}" for entry in entries for problem in _card(entry, root)]
    problems += _names(entries)
    problems += _recipes(root / "recipes")
    # The tables can be compared only if all cards can be read.
    return [escaped(problem) for problem in problems or _page(root)]


def _files(folder: Path, entries: list[Entry]) -> Iterator[str]:
    """Read every card below `folder` into `entries`; yields a problem for each file that is not a valid card."""
    for path in sorted(path for path in folder.rglob("*") if not path.is_dir() and path.name != ".gitkeep"):
        try:
            _plain(path)
            if path.suffix == ".json":
                entries.append(measured(read_card(path), path))
        except BadInput as error:
            yield str(error)


def _plain(path: Path) -> None:
    """Raise BadInput unless `path` is a regular file, a card or the gallery of one, of at most `_LARGEST` bytes."""
    if path.is_symlink() or not path.is_file():
        raise BadInput(f"{path} is a link or a device; put the file itself there", code="unsafe", field="cards")
    if path.suffix == ".png" and not path.with_suffix(".json").is_file():
        message = f"{path} is the gallery of no card; name it like its card, or remove it"
        raise BadInput(message, code="unused", field="cards")
    if path.suffix not in (".json", ".png"):
        message = f"{path} is neither a card (.json) nor its gallery (.png); remove it"
        raise BadInput(message, code="unused", field="cards")
    if path.suffix == ".png":
        site.picture(path)
    if path.stat().st_size > _LARGEST:
        message = f"{path} has {path.stat().st_size} bytes; at most {_LARGEST} are taken"
        raise BadInput(message, code="too-large", field="cards")


# ---- one card


def _card(entry: Entry, root: Path) -> Iterator[str]:
    yield from _place(entry, root / "cards")
    yield from _known(entry)
    yield from _origin(entry, root / "weights")
    for result in entry.results:
        yield from (f"{result.attack}: {problem}" for problem in _counts(result, entry.report))
    yield from _worst(entry)
    yield from _evidence(entry)
    yield from _claims(entry)
    yield from _checks(entry)
    yield from _autoattack(entry)


def _place(entry: Entry, folder: Path) -> Iterator[str]:
    expected, actual = entry.card.place.as_posix(), entry.path.relative_to(folder).as_posix()
    if expected != actual:
        yield f"it lies at {actual} and belongs to {expected}; move it there"


def _known(entry: Entry) -> Iterator[str]:
    submission = entry.card.submission
    for kind, name in (("data set", submission.dataset), ("model", submission.architecture.name)):
        known = registry.entries(kind)
        if name not in known and (kind, name) != ("model", PROGRAM):
            yield str(registry.nearest(kind, name, known))
    if submission.resize is not None:
        yield f"test images were {submission.resize}, and eps is of those; the board is of images as they are"
    scored, submitted = entry.report.threat, submission.threat
    if scored != submitted:
        yield f"it was scored under {scored} and is submitted for {submitted}; score it anew"


def _origin(entry: Entry, weights: Path) -> Iterator[str]:
    """Hashes, also of fields of the file that nobody reads, and the date."""
    card, raw = entry.card, json.loads(entry.path.read_text(encoding="utf-8"))
    for name, digest in _hashes({"weights": raw["weights"], "report": raw["report"]}):
        lacking = digest is None and name in _MAY_LACK
        if not lacking and not re.fullmatch(r"[0-9a-f]{64}", str(digest)):
            yield f"{name} is {digest!r}, and a SHA-256 has 64 digits 0 to f; score it anew"
    declared, scored = card.weights.get("sha256"), entry.report.weights_sha256
    if entry.report.part != datasets.TEST:
        yield f"report.part is {entry.report.part!r}; cards are of {datasets.TEST!r} images, so score it anew"
    if declared is None or declared != scored:
        yield f"weights.sha256 is {declared}, and the report is of {scored}; score these weights"
    file = weights / f"{card.submission.name}.safetensors"
    if file.is_file() and (actual := hashlib.sha256(file.read_bytes()).hexdigest()) != declared:
        yield f"weights.sha256 is {declared}, and {file} has {actual}; put the file there that was scored"
    try:
        datetime.fromisoformat(card.date)
    except ValueError:
        yield f"date is {card.date!r}; an ISO date such as 2026-01-31 is needed"


def _hashes(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The full name and value of every key of nested mappings that ends with sha256."""
    for key, child in value.items():
        full = f"{name}.{key}".lstrip(".")
        if key.endswith("sha256"):
            yield full, child
        elif isinstance(child, dict):
            yield from _hashes(child, full)


def _counts(result: Result, report: Report) -> Iterator[str]:
    """Counts, accuracy and interval that do not agree with the flags."""
    right = result.flags.count("1")
    if (result.kind == "autoattack") != ("package" in result.settings):
        yield f"kind is {result.kind!r}, and only AutoAttack has a package in its settings; score it anew"
    if len(result.flags) != result.n or result.flags.strip("01"):
        yield f"flags need {result.n} digits 0 or 1, and have {len(result.flags)}; score it anew"
    if result.correct != right:
        yield f"correct is {result.correct}, and {right} flags are 1; score it anew"
    if result.proven > right:
        yield f"proven is {result.proven}, and {right} flags are 1; score it anew"
    if not math.isclose(result.accuracy, right / result.n, abs_tol=1e-9):
        yield f"accuracy is {result.accuracy:g}, and the flags say {right / result.n:g}; score it anew"
    expected, actual = _interval(result, report), result.interval95
    if not all(math.isclose(*bounds, abs_tol=1e-6) for bounds in zip(actual, expected, strict=True)):
        name = "interval95_wilson" if report.drawn is None else "interval95_anytime"
        yield f"{name} is {_pair(actual)}, and the flags say {_pair(expected)}; score it anew"


def _interval(result: Result, report: Report) -> tuple[float, float]:
    if report.drawn is None:
        return interval(min(result.flags.count("1"), result.n), result.n)
    return running_interval(np.array([flag == "1" for flag in result.flags[: report.total]] or [False]), report.total)


def _pair(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def _worst(entry: Entry) -> Iterator[str]:
    """Flags of the worst case must be 1 exactly where those of all attacks are."""
    others = [result.flags for result in entry.results if result.kind != "worst_case"]
    if {len(flags) for flags in others} == {len(entry.worst.flags)}:  # otherwise `_counts` reports it
        expected = map(min, *others)
        wrong = sum(flag != right for flag, right in zip(entry.worst.flags, expected, strict=True))
        if wrong:
            yield f"worst case: {wrong} flags are not what the attacks together say; score it anew"


def _evidence(entry: Entry) -> Iterator[str]:
    """Evidence that does not say whose it is, or of which file."""
    for result in entry.report.evidence:
        by, digest = result.settings.get("by"), str(result.settings.get("sha256"))
        if not by or not re.fullmatch(r"[0-9a-f]{64}", digest):
            yield f"{result.attack}: it lacks by whom or the SHA-256 of its file; add it by `atent adversaries add`"


def _claims(entry: Entry) -> Iterator[str]:
    verdicts = claims.verdicts(entry.card.submission.claims, entry.report, entry.random)
    if entry.card.verdicts != verdicts:
        text = ", ".join(f"{verdict.claim.what} {verdict.verdict} ({verdict.points:+.1f})" for verdict in verdicts)
        yield f"verdicts are not those of its claims and figures, which are: {text or 'none'}; write the card anew"


def _checks(entry: Entry) -> Iterator[str]:
    names = tuple(check.name for check in entry.card.checks)
    if names != sanity.NAMES:
        yield f"its checks are {', '.join(names) or 'none'}, and {', '.join(sanity.NAMES)} are needed; score it anew"


def _autoattack(entry: Entry) -> Iterator[str]:
    """AutoAttack's counts that do not agree with its flags, or the sign "black box" with the counts."""
    result = entry.autoattack
    left = list(result.robust_after.values()) if result else []
    if result and left and left[-1] != result.flags.count("1"):
        yield f"{result.attack}: robust_after ends with {left[-1]}, which the flags do not say; score it anew"
    if result and any(after > before for before, after in pairwise([result.n, *left])):
        yield f"{result.attack}: robust_after rises ({', '.join(map(str, left))} of {result.n}); score it anew"
        return
    expected = masking.black_box(entry.report)
    if [sign for sign in entry.card.signs if sign.name == expected.name] != [expected]:
        yield f"the sign {expected.name!r} is not what AutoAttack's counts say: {expected.evidence}; score it anew"


# ---- all cards, recipes, the page


def _names(entries: Iterable[Entry]) -> Iterator[str]:
    """Cards with one name, ignoring case, must have the same weights (one model under several threat models)."""
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
        if path.name.startswith("_"):  # a base, which is read with the recipes that name it
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
