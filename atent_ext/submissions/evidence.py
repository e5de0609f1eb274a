"""Evidence from outside: adversarial images of a third party are checked again, and lower a card's worst case.

An adversary counts if it is an image in [0, 1] within the card's ball around its test image, the network is right on
that image and wrong on the adversary. Everything else is not counted, and the note says how many for which reason.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from atent_ext.attacks.accuracy import elected, votes
from atent_ext.attacks.restarts import allowed
from atent_ext.attacks.spec import Note, Outcome
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.core.norms import Ball
from atent_ext.core.norms import ball as ball_called
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.data.datasets import Split
from atent_ext.evaluation.report import Report, Result, result_of
from atent_ext.evaluation.run import worst_of
from atent_ext.storage import untrusted, untrusted_arrays
from atent_ext.storage.untrusted_arrays import Header
from atent_ext.submissions import claims as claims_of
from atent_ext.submissions import sanity
from atent_ext.submissions.cards import Card
from atent_ext.submissions.folder import Opened

DRAWS = 21
"""Of a random network the majority of so many draws decides, for the clean image and for the adversary."""
_LARGEST = 4 * 2**30
_SEARCHED = 500
"""Images outside the ball, at most, whose own image is looked for among the others."""
NAMES = ("x_adv", "y", "index")


@dataclass(frozen=True, eq=False)
class Adversaries:
    """Adversarial images (k, C, H, W) in float32, the positions (k,) of their test images, and the file they are of."""

    images: Tensor
    index: Tensor
    file: str
    sha256: str

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, eq=False)
class Checked:
    """Which adversaries count, (k,) bool, and how many do not for which reason."""

    adversaries: Adversaries
    counts: Tensor
    reasons: Mapping[str, int]
    seconds: float

    def __str__(self) -> str:
        others = ", ".join(f"{count} {reason}" for reason, count in self.reasons.items() if count)
        text = f"of {len(self.counts)} adversarial images of {self.adversaries.file} {int(self.counts.sum())} count"
        return f"{text}; not counted: {others}" if others else text


# ---- reading


def read(path: Path, test: Split) -> Adversaries:
    """Read an .npz file of a stranger: x_adv (k, C, H, W), and if they are there, y and index.

    x_adv: floats in [0, 1] or uint8; its row i is of test image `index[i]`, without an index of test image i. y (k,):
    labels, which have to be those of the test images. Nothing of the file is run, and no array is unpacked before its
    shape fits. Raises BadInput for everything else.
    """
    content = untrusted.read(path, _LARGEST)
    arrays = untrusted_arrays.read(content, path, NAMES, lambda headers: _fitting(headers, path, test))
    found = arrays["x_adv"]
    images = torch.from_numpy(np.ascontiguousarray(found, found.dtype.newbyteorder("=")))
    images = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    index = torch.from_numpy(arrays["index"].astype(np.int64)) if "index" in arrays else torch.arange(len(images))
    if not len(index) or int(index.min()) < 0 or int(index.max()) >= len(test) or len(set(index.tolist())) < len(index):
        message = f"{path}: index is not {len(images)} different positions from 0 to {len(test) - 1}; correct it"
        raise BadInput(message, code="bad-value", field="index")
    if "y" in arrays:
        _same_labels(torch.from_numpy(arrays["y"].astype(np.int64)), test.labels[index], path)
    return Adversaries(images, index, path.name, hashlib.sha256(content).hexdigest())


def _fitting(headers: Mapping[str, Header], path: Path, test: Split) -> None:
    """Raise BadInput unless the arrays of the file have the shapes and types that `read` wants."""
    shape = tuple(test.images.shape[1:])
    if "x_adv" not in headers:
        message = f"{path} has no array x_adv, (k, {', '.join(map(str, shape))}); name the adversarial images so"
        raise BadInput(message, code="missing", field="x_adv")
    images = headers["x_adv"]
    count = images.shape[0] if images.shape else 0
    if images.shape[1:] != shape or not 1 <= count <= len(test):
        message = f"{path}: x_adv is {images.shape}; (k, {', '.join(map(str, shape))}) with k from 1 to {len(test)}, "
        raise BadInput(f"{message}in the order of the test images, is needed", code="bad-shape", field="x_adv")
    floating = images.dtype.kind == "f" and images.dtype.itemsize in (2, 4, 8)
    if not floating and images.dtype != np.uint8:
        message = f"{path}: x_adv is {images.dtype}; floats in [0, 1] of 2, 4 or 8 bytes, or uint8, are needed"
        raise BadInput(message, code="bad-type", field="x_adv")
    for name in headers.keys() - {"x_adv"}:
        header = headers[name]
        if header.shape != (count,) or header.dtype.kind not in "iu":
            message = f"{path}: {name} is {header.dtype} {header.shape}; ({count},) whole numbers are needed"
            raise BadInput(message, code="bad-shape", field=name)


def _same_labels(given: Tensor, labels: Tensor, path: Path) -> None:
    wrong = (given != labels).nonzero().flatten()
    if len(wrong):
        first = int(wrong[0])
        message = f"{path}: y has {int(given[first])} in row {first} and the test image {int(labels[first])}, "
        message += f"{len(wrong)} rows differ; put the rows into the order of the test images, or give their index"
        raise BadInput(message, code="conflict", field="y")


# ---- checking


def check(model: nn.Module, found: Adversaries, test: Split, threat: Threat, batch_size: int, random: bool) -> Checked:
    """Check every adversary on the model, which is in eval mode and maps images in [0, 1] to logits.

    random: whether it is a random network, of which the majority of `DRAWS` draws is taken, with one seed.
    """
    start = time.perf_counter()
    ball, draws = ball_called(threat.norm), DRAWS if random else 1
    clean, labels = test.images[found.index], test.labels[found.index]
    left = torch.ones(len(found), dtype=torch.bool)
    reasons: dict[str, int] = {}

    def drop(reason: str, rows: Tensor) -> None:
        reasons[reason] = int((left & rows).sum())
        left.logical_and_(~rows)

    drop("not a number", ~found.images.flatten(1).isfinite().all(1))
    images = found.images.nan_to_num()
    drop("outside [0, 1]", ~allowed(ball, float("inf"), clean, images))
    outside = left & ~allowed(ball, threat.eps, clean, images)
    drop("in the ball of another test image, so their order is wrong", _of_another(ball, found, test, threat, outside))
    drop(f"outside the ball of {threat.norm} eps {threat.eps:.4g}", outside)

    def correct(images: Tensor) -> Tensor:
        """Which of those that are left are classified correctly, (k,) bool."""
        rows, right = left.nonzero().flatten(), torch.zeros_like(left)
        right[rows] = elected(votes(model, images[rows], draws, batch_size)) == labels[rows]
        return right

    with seeded(0):
        drop("of images that are misclassified already", ~correct(clean))
        drop("classified correctly", correct(found.images))
    return Checked(found, left, reasons, time.perf_counter() - start)


def _of_another(ball: Ball, found: Adversaries, test: Split, threat: Threat, outside: Tensor) -> Tensor:
    """Which of the adversaries outside their ball, (k,) bool, lie in that of another test image of the file."""
    others, wrong = test.images[found.index], torch.zeros_like(outside)
    for row in outside.nonzero().flatten()[:_SEARCHED].tolist():
        wrong[row] = bool((ball.size(others - found.images[row]) <= threat.eps).any())
    return wrong


# ---- the card


def add(card: Card, checked: Checked, by: str) -> Card:
    """The card with the adversaries as a result of their own, by whom and of which file, and the worst case with them.

    It is the same card if its report has this file already, or if no counted adversary is of an image that stayed right
    under all attacks. Raises BadInput for a card that was not scored.
    """
    report = scored(card)
    flags = report.of_kind("clean")
    if flags is None or any(one.settings.get("sha256") == checked.adversaries.sha256 for one in report.evidence):
        return card
    lowered = _with(card, [_result(checked, by, flags.robust(), report)])
    return card if scored(lowered).worst.correct == report.worst.correct else lowered


def kept(before: Card, opened: Opened, images: Callable[[], Split]) -> Report | None:
    """The report of the card `before` if it has evidence that a new card of the submission has to keep, else None.

    It has to where the network, the threat model and the images are the same; `images` are all test images, in order.
    """
    report, submission = before.report, opened.submission
    if report is None or not report.evidence or report.threat != submission.threat:
        return None
    if (report.weights_sha256, report.model) != (opened.sha256, submission.described(opened.key)):
        return None
    test = images()
    return report if report.n <= len(test) and _same_images(report, test) else None


def carried(card: Card, before: Report) -> Card:
    """The card with the evidence of a report that is `kept`, and the worst case with it.

    Images that only the card has are left as they are without adversaries.
    """
    new, old = scored(card), before.of_kind("clean")
    clean = new.of_kind("clean")
    right = torch.ones(new.n, dtype=torch.bool) if clean is None else clean.robust()
    shared = min(new.n, before.n)
    results = []
    for one in before.evidence:
        flags = right.clone()
        stood = one.robust() if old is None else one.robust() | ~old.robust()  # wrong without adversaries is no break
        flags[:shared] &= stood[:shared]
        results.append(result_of(Outcome("evidence", one.attack, one.settings, flags, one.seconds, one.notes)))
    return _with(card, results)


def _with(card: Card, results: Sequence[Result]) -> Card:
    """The card with further results, and the worst case and the verdicts with them."""
    report = scored(card)
    others = [one for one in report.results if one.kind != "worst_case"]
    lowered = report.model_copy(update={"results": (*others, *results, worst_of([*others, *results]))})
    random = sanity.is_random(card.checks, card.submission.random)
    verdicts = claims_of.verdicts(card.submission.claims, lowered, random)
    return card.model_copy(update={"report": lowered, "verdicts": verdicts})


def scored(card: Card) -> Report:
    """The report of a card. Raises BadInput for a card without one."""
    if card.report is None:
        message = f"the card of {card.submission.name} was not scored; score it first"
        raise BadInput(message, code="missing", field="report")
    if card.report.drawn is not None:
        message = f"the card of {card.submission.name} stopped early, in a drawn order of the images; score a fixed --n"
        raise BadInput(message, code="unsupported", field="report")
    return card.report


def require_same_images(card: Card, test: Split) -> None:
    """Raise BadInput unless the first n of the test images are those of the card's report."""
    report = scored(card)
    if not _same_images(report, test):
        message = f"the card of {card.submission.name} is of other images than these {report.n}; name its --dataset"
        raise BadInput(message, code="other-content", field="dataset")


def _same_images(report: Report, test: Split) -> bool:
    first = test.take(report.n)
    return report.data_sha256 in (None, datasets.digest(first.images, first.labels))


def _result(checked: Checked, by: str, clean: Tensor, report: Report) -> Result:
    found = checked.adversaries
    broken = found.index[checked.counts]
    flags = clean.clone()
    flags[broken[broken < report.n]] = False
    settings = {
        "by": by,
        "file": found.file,
        "sha256": found.sha256,
        "images": len(found),
        "counted": int(checked.counts.sum()),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    alike = sum(one.settings.get("by") == by for one in report.evidence)
    name = f"adversaries by {by}" + (f" ({alike + 1})" if alike else "")
    note = Note(kind="other", text=f"{name}: {checked}")
    return result_of(Outcome("evidence", name, settings, flags, checked.seconds, (note,)))
