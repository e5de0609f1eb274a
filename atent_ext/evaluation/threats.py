"""Several threat models at once: an evaluation of each, and their union, where an image counts if it is right in all.

Each part is what an evaluation of its threat model alone gives with the same seed; it resumes from its own file.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from atent_ext.core import processes, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.fraction import fraction
from atent_ext.core.norms import ball as norm_called
from atent_ext.core.norms import norm as attacked_by_all
from atent_ext.core.schema import Threat
from atent_ext.evaluation import earlier, scoring
from atent_ext.evaluation.journal import Difference, Progress
from atent_ext.evaluation.protocol import Protocol, load_protocol
from atent_ext.evaluation.report import Report
from atent_ext.evaluation.scoring import Subject
from atent_ext.evaluation.union import UnionReport, called
from atent_ext.storage import files, locks

ThreatLike: TypeAlias = Threat | str | tuple[str, float]
"""A threat model, as a text such as "Linf:8/255", or as norm and radius."""
_IN_L1 = {"clean", "autoattack", "square"}
"""Attacks that run in every norm."""


def parse(value: ThreatLike) -> Threat:
    """The threat model of a `Threat`, of "NORM:RADIUS" such as "Linf:8/255", or of a pair. Raises BadInput."""
    if isinstance(value, Threat):
        return value
    norm, radius = _parted(value) if isinstance(value, str) else value
    norm_called(norm)
    validate.radius("eps", radius)
    return Threat.model_validate({"norm": norm, "eps": float(radius)})


def _parted(text: str) -> tuple[str, float]:
    norm, _, radius = text.partition(":")
    try:
        parts = fraction(radius, "threat")
        return norm, float(radius) if parts is None else parts
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        message = f"threat is {text[:100]!r}; give NORM:RADIUS, such as Linf:8/255 or L2:0.5"
        raise BadInput(message, code="bad-value", field="threat") from None


def parse_all(values: Sequence[ThreatLike]) -> tuple[Threat, ...]:
    """The threat models of one evaluation. Raises BadInput for none, and for one that is there twice."""
    if isinstance(values, str) or not values:
        message = f"threats is {values!r}; give a list of threat models, such as ['Linf:8/255', 'L2:0.5']"
        raise BadInput(message, code="bad-value", field="threats")
    threats = tuple(map(parse, values))
    names = list(map(called, threats))
    for name in (name for name in names if names.count(name) > 1):
        raise BadInput(f"the threat model {name} is given twice; give it once", code="conflict", field="threats")
    return threats


def protocol_of(protocol: Protocol, threat: Threat) -> Protocol:
    """The protocol under a threat model: for `autoattack` in L1 it is `autoattack-l1`.

    Raises BadInput for a protocol with an attack that does not run in this norm.
    """
    if threat.norm == "L1" and protocol == load_protocol("autoattack"):
        return load_protocol("autoattack-l1")
    if not {attack.attack for attack in protocol.attacks} <= _IN_L1:
        attacked_by_all(threat.norm)
    return protocol


def score(
    subject: Subject,
    protocol: Protocol,
    threats: Sequence[Threat],
    *,
    path: Path | None = None,
    overwrite: bool = False,
    busy: Callable[[str], None] = lambda text: None,
    progress: Callable[[Progress], None] = lambda current: None,
    **how: Any,
) -> UnionReport:
    """Score `subject` under each of the threat models in turn, each as `scoring.score` does with the arguments `how`.

    protocol: as in `protocol_of`. path: the JSON file of the report. Until it is written, finished parts are in the
    folder `path`.parts, from which a call with the same setting resumes. `busy` and `progress`: as in `scoring.score`,
    over all parts. Raises BadInput as `scoring.score` does, and for a report of other threat models at `path`.
    """
    team = processes.state()
    parts = [(replace(subject, threat=threat), protocol_of(protocol, threat)) for threat in threats]
    if path is None:
        scored = _scored(parts, None, overwrite, busy, progress, how)
        return UnionReport.of(list(scored))
    files.replaceable(path)
    files.folder(path.parent)
    folder = path.with_name(f"{path.name}.parts")
    held = locks.held(path, "wait for it, or name another --out") if team.is_main_process else nullcontext()
    with held:
        report = None if overwrite else _finished(path, parts, how)
        if report is None:
            report = UnionReport.of(list(_scored(parts, folder, overwrite, busy, progress, how)))
            if team.is_main_process:
                report.save(path)
        if team.is_main_process and folder.exists():
            shutil.rmtree(folder)
    return report


Part: TypeAlias = tuple[Subject, Protocol]


def _scored(
    parts: Sequence[Part],
    folder: Path | None,
    overwrite: bool,
    busy: Callable[[str], None],
    progress: Callable[[Progress], None],
    how: dict[str, Any],
) -> Iterator[Report]:
    done, seconds = 0, 0.0
    for part, protocol in parts:
        place = None if folder is None else folder / f"{part.threat.norm}-{part.threat.eps:g}.json"

        def show(text: str, threat: Threat = part.threat) -> None:
            busy(f"{called(threat)}: {text}" if text else "")

        def add(current: Progress, done: int = done, seconds: float = seconds) -> None:
            before = done * current.chunks
            chunks, spent = current.chunks * len(parts), seconds + current.seconds
            progress(replace(current, done=before + current.done, chunks=chunks, seconds=spent))

        anew = overwrite and not _same(place, part, protocol, how)
        report = scoring.score(part, protocol, path=place, overwrite=anew, busy=show, progress=add, **how)
        yield report
        done, seconds = done + 1, seconds + report.worst.seconds


def _same(place: Path | None, part: Subject, protocol: Protocol, how: dict[str, Any]) -> bool:
    """Whether a part is there, finished with this setting by a call that was interrupted. The main process looks."""
    same = False
    if place is not None and processes.state().is_main_process and place.exists():
        try:
            scoring.require_same(Report.load(place), str(place), part, protocol, **how)
            same = True
        except BadInput:
            same = False
    return processes.from_main(processes.state(), same)


def _finished(path: Path, parts: Sequence[Part], how: dict[str, Any]) -> UnionReport | None:
    """The report of this setting at `path`; None if there is no file. Raises BadInput for a file of other content."""
    team = processes.state()
    report = _read(path) if team.is_main_process and path.exists() else None
    if report is not None:
        names = [[called(threat) for threat in threats] for threats in (report.threats, [p.threat for p, _ in parts])]
        earlier.refuse([Difference("threats", *names)] if names[0] != names[1] else [], str(path))
        for before, (part, protocol) in zip(report.reports, parts, strict=True):
            scoring.require_same(before, str(path), part, protocol, **how)
    return processes.from_main(team, report)


def _read(path: Path) -> UnionReport:
    try:
        return UnionReport.load(path)
    except BadInput as error:
        message = f"{path} is there and no report of several threat models ({error}); {earlier.REMEDY}"
        raise BadInput(message, code="exists", field="out") from None
