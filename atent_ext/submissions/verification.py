"""From an opened submission to its card: checks, signs of gradient masking, scores, and each claim against them."""

import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar, cast

from accelerate import PartialState
from torch import nn

from atent_ext.core import processes
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet, Split
from atent_ext.evaluation import earlier, scoring
from atent_ext.evaluation.journal import Progress, differences
from atent_ext.evaluation.protocol import Protocol, load_protocol
from atent_ext.evaluation.report import About, Report, Result
from atent_ext.evaluation.scoring import Subject
from atent_ext.models.speed import prepare
from atent_ext.submissions import masking, sanity
from atent_ext.submissions.cards import Card, Check, Claim, Sign, Submission, Verdict
from atent_ext.submissions.folder import Opened

T = TypeVar("T")
CHECKED = 64
"""Images that the network is checked on."""
_ROOT = Path(__file__).resolve().parents[2]
_DIGITS = 4
"""Decimals of a percentage: enough for a million images, and 0.1 + 0.2 looks like 0.3."""


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
    draw: Callable[[nn.Module, Split, Sequence[str]], None] | None = None,
    command: str = "",
    busy: Callable[[str], None] = lambda text: None,
    progress: Callable[[Progress], None] = lambda current: None,
) -> Card:
    """The card of a submission, scored on the first `n` test images (None: all); it is returned, not written.

    dataset: the name to load the data set by, None for the submission's; `npz:FILE` for the lossless part of CIFAR-10,
    say. protocol: a name, or a protocol; its AutoAttack becomes the "rand" version where the network is found to answer
    at random. out: the file for the report of the scores, whose finished chunks lie beside it, so that the same call
    goes on after a kill; no place for it is below registry/cards. card: what lies where the card is to go. If it is of
    this submission and setting, it is returned and nothing is measured. overwrite: measure anew, whatever lies there or
    at `out`. draw: called once with the network, the images and the names of their classes, before any attack, in the
    first process alone. command: what the card is to name.
    n, seed, batch_size, chunk, speed, progress: as in `scoring.score`. busy hears what is being done.
    Several processes share the scores; checks, signs and the card are those of the first, and each returns that card.
    Where a check is fatal, nothing is scored, and signs, verdicts, report and curve are empty.
    Raises BadInput for data that is not there or not to be had so, for a card or a report of something else, before any
    attack and with what differs, and for what `scoring.score` refuses.
    """
    begin = time.perf_counter()
    plan = load_protocol(protocol) if isinstance(protocol, str) else protocol
    images = datasets.load(dataset or opened.submission.dataset, data_root, download)
    team = processes.state()
    setting: dict[str, Any] = {"n": n, "seed": seed, "batch_size": batch_size, "chunk": chunk, "speed": speed}
    job = _Job(opened, images, images.test.take(n), plan, setting, busy)
    lying = (None, None) if overwrite else (card, out)
    inspection = _in_main(team, lambda: _inspect(job, *lying, draw))
    if inspection.finished is not None:
        return inspection.finished
    seconds = time.perf_counter() - begin
    random, checks = inspection.random, inspection.checks
    if sanity.fatal(checks):
        return _in_main(team, lambda: _card(opened, checks, (), {}, None, (), command, seconds))
    report = scoring.score(
        job.subject,
        job.fitting(random),
        **setting,
        path=out,
        overwrite=overwrite,
        busy=busy,
        progress=progress,
    )
    signs = (*inspection.signs, masking.black_box(report))
    judged = verdicts(opened.submission.claims, report, random)
    seconds += _seconds(report)
    return _in_main(team, lambda: _card(opened, checks, signs, inspection.curve, report, judged, command, seconds))


# ---- what the main process does alone, before the scores


@dataclass(frozen=True)
class _Job:
    """What is asked for. test: the images to be scored. setting: the arguments of `scoring.score` by their names."""

    opened: Opened
    images: DataSet
    test: Split
    protocol: Protocol
    setting: dict[str, Any]
    busy: Callable[[str], None]

    @property
    def subject(self) -> Subject:
        """What is scored."""
        return _subject(self.opened, self.images, self.test)

    def fitting(self, random: bool) -> Protocol:
        """The protocol for a network that answers at random or does not."""
        return fitting(self.protocol, random)


@dataclass(frozen=True)
class _Inspection:
    """What was found before the scores. finished: the card that lay there, of this very submission and setting."""

    checks: tuple[Check, ...]
    random: bool
    signs: tuple[Sign, ...] = ()
    curve: masking.Curve = field(default_factory=dict)
    finished: Card | None = None


def _in_main(team: PartialState, work: Callable[[], T]) -> T:
    """What `work` returns in the main process, in every process."""
    return processes.from_main(team, cast(T, work() if team.is_main_process else None))


def _inspect(
    job: _Job, card: Card | None, out: Path | None, draw: Callable[[nn.Module, Split, Sequence[str]], None] | None
) -> _Inspection:
    """Checks and signs. Raises BadInput where `card`, or the report at `out`, is of something else."""
    opened, seed, batch_size = job.opened, job.setting["seed"], job.setting["batch_size"]
    job.busy("checks")
    checks = _checks(opened, job.images.test, seed)
    random = sanity.is_random(checks, opened.submission.random)
    if card is not None:
        _require_same(card, job, checks, random)
        return _Inspection(checks, random, finished=card)
    if sanity.fatal(checks):
        return _Inspection(checks, random)
    report = None if out is None else earlier.read(out)
    if report is not None:
        scoring.require_same(report, str(out), job.subject, job.fitting(random), **job.setting)
    device = processes.state().device
    network = opened.network.to(device if device.type == "cuda" else "cpu")
    network = prepare(network, job.test.images[:batch_size], job.setting["speed"]).model
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
    """Raise BadInput, which names what differs, unless the card is of this submission, measured by this setting."""
    source = f"the card of {card.submission.name}"
    held = _identity(card.submission, card.weights.get("sha256"), card.checks)
    asked = _identity(job.opened.submission, job.opened.sha256, checks)
    earlier.refuse(differences(held, asked), source)
    if card.report:
        scoring.require_same(card.report, source, job.subject, job.fitting(random), **job.setting)


def _identity(submission: Submission, sha256: Any, checks: Sequence[Check]) -> dict[str, Any]:
    fatal = [check.name for check in sanity.fatal(checks)]
    return {"weights_sha256": sha256, "submission": submission.model_dump(mode="json"), "fatal": fatal}


def _checks(opened: Opened, test: Split, seed: int) -> tuple[Check, ...]:
    shown = test.take(min(CHECKED, len(test)))
    return sanity.check(opened.network, shown.images, shown.labels, seed, opened.submission.random)


def _subject(opened: Opened, images: DataSet, test: Split) -> Subject:
    submission = opened.submission
    about = About(
        name=submission.name,
        model=_model(submission),
        weights_sha256=opened.sha256,
        # The path of a file says nothing to others.
        data=images.name if ":" not in images.name else f"{submission.dataset} ({_file(images.name)})",
        data_note=images.note,
        data_sha256=datasets.digest(test.images, test.labels),
    )
    return Subject(opened.network, images.test, submission.threat, about)


def _model(submission: Submission) -> str:
    """The network in words; a journal goes on only with the same one, and its weights do not tell a normalisation."""
    name, scale = submission.architecture.name, submission.normalisation
    return name if scale is None else f"{name}, images normalised by mean {scale.mean} and std {scale.std}"


def _file(dataset: str) -> str:
    return Path(dataset.partition(":")[2]).name


def fitting(protocol: Protocol, random: bool) -> Protocol:
    """The protocol as a network is to be scored by it: for one that answers at random, AutoAttack's "rand" version, and
    last iterates only, for what succeeded once on the way may not do so again."""
    if not random:
        return protocol
    return protocol.model_copy(update={"attacks": tuple(spec.for_random_network() for spec in protocol.attacks)})


# ---- claims


def verdicts(claims: Iterable[Claim], report: Report, random: bool = False) -> tuple[Verdict, ...]:
    """Each claim that the report measured something for: clean accuracy, or the worst case over all attacks.

    Without AutoAttack the worst case is an upper bound too loose to confirm anything: it can only refute.
    random: for a network that answers at random, the strongest single attack: with every further attack, the worst
    case loses images by chance, also under attacks that do nothing.
    """
    measured = {
        "clean": report.of_kind("clean"),
        "robust": _strongest(report) if random else report.of_kind("worst_case"),
    }
    found = [_verdict(claim, result) for claim in claims if (result := measured[claim.what])]
    thorough = report.autoattack is not None
    return tuple(one for one in found if thorough or one.claim.what == "clean" or one.verdict == "overstated")


def _strongest(report: Report) -> Result | None:
    return min(report.attacks, key=lambda result: result.accuracy, default=None)


def _verdict(claim: Claim, result: Result) -> Verdict:
    """Confirmed where the claim lies in the 95 % Wilson interval of what was measured."""
    low, high = (100 * bound for bound in result.interval95_wilson)
    kind = "overstated" if claim.percent > high else "understated" if claim.percent < low else "confirmed"
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


# ---- the card


def _card(
    opened: Opened,
    checks: tuple[Check, ...],
    signs: tuple[Sign, ...],
    curve: masking.Curve,
    report: Report | None,
    judged: tuple[Verdict, ...],
    command: str,
    seconds: float,
) -> Card:
    weights = {
        "file": opened.weights.name,
        "sha256": opened.sha256,
        "bytes": opened.bytes,
        "parameters": opened.parameters,
        "notes": list(opened.notes),
    }
    return Card(
        submission=opened.submission,
        weights=weights,
        checks=checks,
        signs=signs,
        verdicts=judged,
        report=report,
        curve=curve,
        command=command,
        commit=_commit(),
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        seconds=round(seconds, 1),
    )


def _seconds(report: Report) -> float:
    """Of all processes and interrupted calls together; the worst case repeats the attacks' sum."""
    return sum(result.seconds for result in report.results if result.kind != "worst_case")


def _commit() -> str:
    """The commit of the checkout that this module lies in, with "-dirty" where files differ; "" outside of one."""
    if not (_ROOT / ".git").exists():  # an installed package may lie inside somebody else's repository
        return ""
    asked = ["git", "--no-optional-locks", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        told = subprocess.run(asked, cwd=_ROOT, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()
