"""From an opened submission to its card: checks, signs of gradient masking, scores, and each claim against them."""

import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timezone
from pathlib import Path

from torch import nn

from atent_ext.core import processes
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet, Split
from atent_ext.evaluation import scoring
from atent_ext.evaluation.journal import Standing
from atent_ext.evaluation.protocol import Protocol, load_protocol
from atent_ext.evaluation.report import About, Report, Result
from atent_ext.evaluation.scoring import Subject
from atent_ext.models.speed import prepare
from atent_ext.submissions import masking, sanity
from atent_ext.submissions.cards import Card, Check, Claim, Sign, Submission, Verdict
from atent_ext.submissions.folder import Opened

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
    draw: Callable[[nn.Module, Split, Sequence[str]], None] | None = None,
    command: str = "",
    busy: Callable[[str], None] = lambda text: None,
    progress: Callable[[Standing], None] = lambda standing: None,
) -> Card:
    """The card of a submission, scored on the first `n` test images (None: all); it is returned, not written.

    dataset: the name to load the data set by, None for the submission's; `npz:FILE` for the lossless part of CIFAR-10,
    say. protocol: a name, or a protocol; its AutoAttack becomes the "rand" version where the network is found to answer
    at random. out: the file for the report of the scores, whose finished chunks lie beside it, so that the same call
    goes on after a kill; no place for it is below registry/cards. draw: called once with the network, the images and
    the names of their classes, before any attack, in the first process alone. command: what the card is to name.
    n, seed, batch_size, chunk, speed, progress: as in `scoring.score`. busy hears what is being done.
    Several processes share the scores, and each looks for the signs.
    Where a check is fatal, nothing is scored, and signs, verdicts, report and curve are empty.
    Raises BadInput for data that is not there or not to be had so, and for what `scoring.score` refuses.
    """
    begin = time.perf_counter()
    plan = load_protocol(protocol) if isinstance(protocol, str) else protocol
    images = datasets.load(dataset or opened.submission.dataset, data_root, download)
    test = images.test.take(n)
    busy("checks")
    checks = _checks(opened, images.test, seed)
    if sanity.fatal(checks):
        return _card(opened, checks, (), {}, None, (), command, time.perf_counter() - begin)
    random = sanity.is_random(checks, opened.submission.random)
    team = processes.processes()
    network = opened.network.to(team.device if team.device.type == "cuda" else "cpu")
    network = prepare(network, test.images[:batch_size], speed).model
    if draw is not None and team.is_main_process:
        busy("gallery")
        draw(network, test, images.classes)
    signs, curve = masking.signs(
        network,
        test,
        opened.submission.threat,
        train=images.train,
        classes=len(images.classes),
        random=random,
        seed=seed,
        batch_size=batch_size,
        busy=busy,
    )
    looked = time.perf_counter() - begin
    report = scoring.score(
        _subject(opened, images, test),
        fitting(plan, random),
        n=n,
        seed=seed,
        batch_size=batch_size,
        chunk=chunk,
        speed=speed,
        path=out,
        busy=busy,
        progress=progress,
    )
    signs = (*signs, masking.black_box(report))
    judged = verdicts(opened.submission.claims, report, random)
    return _card(opened, checks, signs, curve, report, judged, command, looked + _seconds(report))


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
