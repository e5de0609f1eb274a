"""Verification of a submission: checks, signs of gradient masking, scores, verdicts on the claims, and the card."""

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar, cast

from accelerate import PartialState
from torch import nn

from atent_ext.attacks.spec import parse
from atent_ext.core import processes, registry
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet, Split
from atent_ext.data.resizing import as_taken, resized
from atent_ext.evaluation import anytime, earlier, scoring
from atent_ext.evaluation.anytime import Until
from atent_ext.evaluation.journal import Progress, differences
from atent_ext.evaluation.protocol import Protocol, load_protocol
from atent_ext.evaluation.report import About, Report
from atent_ext.evaluation.scoring import Subject
from atent_ext.models.speed import prepare
from atent_ext.submissions import claims, masking, sanity
from atent_ext.submissions.cards import Card, Check, Sign, Submission, Verdict
from atent_ext.submissions.folder import Opened, shape

T = TypeVar("T")
CHECKED = 64
"""Number of images for the checks."""
_ROOT = Path(__file__).resolve().parents[2]


def verify(
    opened: Opened,
    *,
    n: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    protocol: str | Protocol = "verify",
    dataset: str | None = None,
    data_root: Path | None = None,
    download: bool = False,
    batch_size: int = 250,
    chunk: int | None = None,
    speed: str = "channels-last",
    card: Card | None = None,
    overwrite: bool = False,
    tolerance: float | None = None,
    draw: Callable[[nn.Module, Split, Sequence[str]], None] | None = None,
    command: str = "",
    busy: Callable[[str], None] = lambda text: None,
    progress: Callable[[Progress], None] = lambda current: None,
) -> Card:
    """The card of a submission, scored on the first `n` test images (None: all); it is returned, not written.

    dataset: the data set to load instead of the submission's, for example `npz:FILE`. protocol: a name or a protocol;
    if the network is random, its AutoAttack becomes the "rand" version, and where a sign of gradient masking is found,
    annealed ATENT joins it (`adapted`). out: the file of the report; finished chunks
    are stored beside it, so that the same call resumes after an interruption. It must not be below registry/cards.
    card: the card at the path where the new card will be written; if it is of this submission and setting, it is
    returned and nothing is measured. overwrite: measure again and replace that card and the report at `out`.
    tolerance: score images in random order, at most `n`, until every claim is refuted or confirmed within so many
    percentage points (see `claims`); a card on which that is not decided yet is measured further.
    draw: called once in the main process with the network, the images and the class names, before any attack.
    command: the text of `Card.command`. n, seed, batch_size, chunk, speed, progress: as in `scoring.score`.
    busy: called with a text on the current step.

    Several processes share the scores; checks, signs and the card are computed in the main process, and every process
    returns that card. If a check is fatal, nothing is scored, and signs, verdicts, report and curve are empty.
    Raises BadInput, before any attack, for missing data and for a card or report of another submission or setting
    (naming what differs); and what `scoring.score` raises.
    """
    start = time.perf_counter()
    if tolerance is not None:
        claims.check(opened.submission, tolerance)
    plan = load_protocol(protocol) if isinstance(protocol, str) else protocol
    images = images_of(opened, dataset, data_root, download)
    team = processes.state()
    setting: dict[str, Any] = {"n": n, "seed": seed, "batch_size": batch_size, "chunk": chunk, "speed": speed}
    job = _Job(opened, images, images.test.take(n), plan, setting, busy, tolerance)
    existing = (None, None) if overwrite else (card, out)
    inspection = _in_main(team, lambda: _inspect(job, *existing, draw))
    if inspection.finished is not None:
        return inspection.finished
    seconds = time.perf_counter() - start
    random, checks = inspection.random, inspection.checks
    if sanity.fatal(checks):
        return _in_main(team, lambda: _card(opened, checks, (), {}, None, (), command, seconds))
    report = scoring.score(
        job.subject,
        job.fitting(random, inspection.signs),
        **setting,
        path=out,
        overwrite=overwrite,
        until=job.until(random),
        busy=busy,
        progress=progress,
    )
    signs = (*inspection.signs, masking.black_box(report))
    compared = claims.verdicts(opened.submission.claims, report, random)
    seconds += _seconds(report)
    return _in_main(team, lambda: _card(opened, checks, signs, inspection.curve, report, compared, command, seconds))


def images_of(opened: Opened, dataset: str | None, root: Path | None, download: bool = False) -> DataSet:
    """The submission's data set, or another one of as many classes."""
    own = opened.submission.dataset
    known = own in registry.entries("data set")  # a program may be for another one, whose labels are counted
    classes = shape(own, root)[0] if dataset is not None and known else None
    images = resized(datasets.load(dataset or own, root, download, classes), opened.submission.resize)
    return as_taken(opened.network, images)


# ---- before the scores, in the main process only


@dataclass(frozen=True)
class _Job:
    """The arguments of `verify`. test: the first `n` images. setting: keyword arguments of `scoring.score`."""

    opened: Opened
    images: DataSet
    test: Split
    protocol: Protocol
    setting: dict[str, Any]
    busy: Callable[[str], None]
    tolerance: float | None = None

    def until(self, random: bool) -> Until | None:
        """When the claims are decided; None if a fixed number of images is scored."""
        if self.tolerance is None:
            return None
        return claims.until_decided(self.opened.submission.claims, self.tolerance, random)

    def finished(self, card: Card, random: bool) -> Card | None:
        """A card of this submission and setting as it is asked for; None if it needs further measurement."""
        until = self.until(random)
        if card.report is None or until is None:
            return card
        report = anytime.as_ended(card.report, until, len(self.test))
        if report is None:
            return None
        if report == card.report:
            return card
        compared = claims.verdicts(self.opened.submission.claims, report, random)
        return card.model_copy(update={"report": report, "verdicts": compared})

    @property
    def drawn(self) -> bool:
        """Whether images are scored in random order."""
        return self.tolerance is not None

    @property
    def subject(self) -> Subject:
        """The subject that is scored."""
        return _subject(self.opened, self.images)

    def fitting(self, random: bool, signs: Sequence[Sign]) -> Protocol:
        """The protocol for a random or a deterministic network, with or without signs of gradient masking."""
        return fitting(adapted(self.protocol, signs), random)

    def fitting_as(self, report: Report, random: bool) -> Protocol:
        """The protocol that the report should be of, whose signs are not known: the adapted one if it is so long."""
        both = [fitting(one, random) for one in (self.protocol, _with_annealed(self.protocol))]
        return next((one for one in both if len(one.attacks) == len(report.protocol_attacks or ())), both[0])


@dataclass(frozen=True)
class _Inspection:
    """The results before the scores. finished: the existing card of the same submission and setting, if any."""

    checks: tuple[Check, ...]
    random: bool
    signs: tuple[Sign, ...] = ()
    curve: masking.Curve = field(default_factory=dict)
    finished: Card | None = None


def _in_main(team: PartialState, work: Callable[[], T]) -> T:
    """Run `work` in the main process and return its result in every process."""
    return processes.from_main(team, cast(T, work() if team.is_main_process else None))


def _inspect(
    job: _Job, card: Card | None, out: Path | None, draw: Callable[[nn.Module, Split, Sequence[str]], None] | None
) -> _Inspection:
    """Checks and signs. Raises BadInput if `card` or the report at `out` is of another submission or setting."""
    opened, seed, batch_size = job.opened, job.setting["seed"], job.setting["batch_size"]
    job.busy("checks")
    checks = _checks(opened, job.images.test, seed)
    random = sanity.is_random(checks, opened.submission.random)
    if card is not None:
        _require_same(card, job, checks, random)
        finished = job.finished(card, random)
        if finished is not None:
            return _Inspection(checks, random, finished=finished)
    if sanity.fatal(checks):
        return _Inspection(checks, random)
    report = None if out is None else earlier.read(out)
    if report is not None:
        scoring.require_same(
            report, str(out), job.subject, job.fitting_as(report, random), **job.setting, drawn=job.drawn
        )
    device = processes.state().device
    network = opened.network.to(device if device.type == "cuda" else "cpu")
    network = prepare(network, job.test[:batch_size].images, job.setting["speed"]).model
    if draw is not None:
        job.busy("gallery")
        draw(network, job.test, job.images.classes)
    signs, curve = masking.signs(
        network,
        job.test,
        opened.submission.threat,
        train=job.images.train,
        classes=len(job.images.classes),
        random=random,
        seed=seed,
        batch_size=batch_size,
        busy=job.busy,
    )
    return _Inspection(checks, random, signs, curve)


def _require_same(card: Card, job: _Job, checks: tuple[Check, ...], random: bool) -> None:
    """Raise BadInput, which names what differs, unless the card is of this submission and was measured as in `job`."""
    source = f"the card of {card.submission.name}"
    stored = _identity(card.submission, card.weights.get("sha256"), card.checks)
    current = _identity(job.opened.submission, job.opened.sha256, checks)
    earlier.refuse(differences(stored, current), source)
    if card.report:
        scoring.require_same(
            card.report, source, job.subject, job.fitting_as(card.report, random), **job.setting, drawn=job.drawn
        )


def _identity(submission: Submission, sha256: Any, checks: Sequence[Check]) -> dict[str, Any]:
    fatal = [check.name for check in sanity.fatal(checks)]
    return {"weights_sha256": sha256, "submission": submission.model_dump(mode="json"), "fatal": fatal}


def _checks(opened: Opened, test: Split, seed: int) -> tuple[Check, ...]:
    shown = test[:CHECKED]
    return sanity.check(opened.network, shown.images, shown.labels, seed, opened.submission.random)


def _subject(opened: Opened, images: DataSet) -> Subject:
    submission = opened.submission
    about = About(
        name=submission.name,
        model=submission.described(opened.key),
        weights_sha256=opened.sha256,
        # Paths of this machine stay out of reports.
        data=images.name if ":" not in images.name else f"{submission.dataset} ({_file(images.name)})",
        data_note=images.note,
    )
    return Subject(opened.network, images.test, submission.threat, about)


def _file(dataset: str) -> str:
    return Path(dataset.partition(":")[2]).name


def fitting(protocol: Protocol, random: bool) -> Protocol:
    """The protocol for a random or a deterministic network.

    A random network gets AutoAttack's "rand" version and only last iterates count, since an earlier iterate that
    succeeded once may fail when it is evaluated again.
    """
    if not random:
        return protocol
    return protocol.model_copy(update={"attacks": tuple(spec.for_random_network() for spec in protocol.attacks)})


ANNEALED: dict[str, Any] = {"attack": "atent", "steps": 100, "restarts": 9, "keep": "success"}
"""Annealed ATENT: its restarts take several losses, and points without a gradient are left (`attacks.uphill`)."""


def adapted(protocol: Protocol, signs: Sequence[Sign]) -> Protocol:
    """The protocol, with annealed ATENT besides if a sign of gradient masking was found before the scores."""
    found = any(sign.found for sign in signs if sign.name != masking.BLACK_BOX)
    return _with_annealed(protocol) if found else protocol


def _with_annealed(protocol: Protocol) -> Protocol:
    return protocol.model_copy(update={"attacks": (*protocol.attacks, parse(ANNEALED))})


# ---- the card


def _card(
    opened: Opened,
    checks: tuple[Check, ...],
    signs: tuple[Sign, ...],
    curve: masking.Curve,
    report: Report | None,
    compared: tuple[Verdict, ...],
    command: str,
    seconds: float,
) -> Card:
    weights = {
        "file": opened.weights.name,
        "sha256": opened.sha256,
        "bytes": opened.bytes,
        "parameters": opened.parameters,
        **({} if opened.key is None else {"key": opened.key}),
        "notes": list(opened.notes),
    }
    return Card(
        submission=opened.submission,
        weights=weights,
        checks=checks,
        signs=signs,
        verdicts=compared,
        report=report,
        curve=curve,
        command=command,
        commit=_commit(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
    )


def _seconds(report: Report) -> float:
    """The sum over all processes and interrupted calls, without the worst case, whose seconds are the attacks' sum."""
    return sum(result.seconds for result in report.results if result.kind != "worst_case")


def _commit() -> str:
    """The commit of the checkout of this module, with "-dirty" if tracked files differ; "" outside a checkout."""
    if not (_ROOT / ".git").exists():  # an installed package may lie inside somebody else's repository
        return ""
    command = ["git", "--no-optional-locks", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        result = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout.strip()
