"""From a subject to a report: plan the chunks, resume, score, and record everything that decides the flags."""

import importlib.metadata
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from torch import Tensor, nn

from atent_ext.attacks.spec import Setting
from atent_ext.core import compat, processes
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.core.version import __version__
from atent_ext.data import datasets
from atent_ext.data.datasets import Split
from atent_ext.evaluation import anytime, chunks, earlier, engine
from atent_ext.evaluation import drawn as in_order
from atent_ext.evaluation.adversaries import check_place, found_earlier, write
from atent_ext.evaluation.anytime import Until
from atent_ext.evaluation.chunks import Chunk
from atent_ext.evaluation.drawn import Drawn
from atent_ext.evaluation.journal import Journal, Progress, Record, differences, outcomes, smaller_batches
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.report import About, Report, result_of
from atent_ext.models.speed import Prepared, prepare
from atent_ext.storage import files

Facts = dict[str, Any]
"""Everything that decides the flags of an evaluation, as plain data."""
_CHUNK = {"cpu": 100, "cuda": 250}
"""Images per chunk: enough to use the device fully, few enough that an interruption costs only minutes."""


@dataclass(frozen=True)
class Subject:
    """A model, the images it is scored on, the threat model, and `about`: where each comes from.

    part: which part of the data set the images are, `datasets.TEST` or `datasets.HELD_OUT`. notes: what is to be said
    about how the model was read; the report has them.
    """

    model: nn.Module
    test: Split
    threat: Threat
    about: About
    part: str = datasets.TEST
    notes: tuple[str, ...] = ()


def score(
    subject: Subject,
    protocol: Protocol,
    *,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    chunk: int | None = None,
    speed: str = "channels-last",
    device: torch.device | None = None,
    path: Path | None = None,
    overwrite: bool = False,
    until: Until | None = None,
    adversaries: Path | None = None,
    busy: Callable[[str], None] = lambda text: None,
    progress: Callable[[Progress], None] = lambda current: None,
) -> Report:
    """Run `protocol` on the first `n` test images (None: all), in chunks of `chunk` images (None: 100, on a GPU 250).

    device: where to compute (None: this process's GPU if there is one). Chunk k is scored with `seed + k`, in batches
    of at most `batch_size`, with the model that `speed.prepare` returns.
    path: the JSON file of the report. Until it is written, the finished chunks are in the folder `path`.chunks, and a
    call with the same setting resumes from them. Several processes of torchrun or `accelerate launch` share the chunks
    through that folder; each returns the report. Only the main process calls `busy` (a text: the current attack) and
    `progress` (the finished chunks of all processes).
    If `path` already holds a report of the same setting, it is returned and nothing is scored. overwrite: score anyway,
    and replace a report or chunks of another setting.
    until: score the images in an order drawn from `seed`, at most `n` of them, in chunks that grow to `chunk` images,
    until a report is enough; a report that is not enough yet is continued, from the chunks that stay beside it, and
    one that is has `drawn` of this `until`, while its file stays.
    adversaries: an .npz file to write (`evaluation.adversaries`); chunks that lack theirs are scored anew.
    Raises BadInput for a report or a folder of another setting (the message names what differs), for several processes
    without a path or a common folder, if memory runs out with one image, and if finished `adversaries` are not there.
    """
    team = processes.state()
    if path is None and team.num_processes > 1:
        message = f"{team.num_processes} processes share the chunks through a folder; give a path, the same to all"
        raise BadInput(message, code="missing", field="path")
    if path is not None:
        files.replaceable(path)
    check_place(adversaries, stops=until is not None)
    plan = planned(subject, protocol, n, seed, batch_size, chunk, team, device, busy, drawn=until is not None)
    model = subject.model.to(plan.device)
    folder = None if path is None else path.with_name(f"{path.name}.chunks")
    journal = Journal(plan.chunks, folder, adversaries is not None)
    report: Report | None = None
    with journal.held() if team.is_main_process else nullcontext():
        if path is not None and not overwrite:
            finished = _finished(path, model, plan, journal, speed, team)
            if finished is not None and until is not None:
                finished = anytime.as_ended(finished, until, len(plan.split))
            if finished is not None:
                found_earlier(adversaries, path)
                return finished
        elif path is not None and until is not None and team.is_main_process and path.exists():
            journal.clear()  # left by an evaluation that stopped
        prepared, missing = _begin(model, plan, journal, speed, team, overwrite)
        make = partial(_report, subject, protocol, plan.facts, prepared, team.num_processes)
        share = partial(engine.share, prepared.model, plan.split, protocol, plan.setting, journal)
        if until is None:
            share(missing, team, progress)
            report = make(journal.collect()) if team.is_main_process else None
        else:
            report = _until(journal, missing, share, make, until, team, progress)
        if report is not None:
            if adversaries is not None:
                write(adversaries, [journal.images(one) for one in plan.chunks], plan.split)
            if path is not None:
                report.save(path)
            if report.drawn is None or report.n == report.total:
                journal.discard()
    return cast(Report, processes.from_main(team, report))


def _until(
    journal: Journal,
    missing: list[Chunk],
    share: Callable[..., None],
    make: Callable[..., Report],
    until: Until,
    team: PartialState,
    progress: Callable[[Progress], None],
) -> Report | None:
    """The main process's report, once it is enough. `progress` is called after every look at the interval."""

    def look(report: Report) -> None:
        progress(replace(journal.progress(team.num_processes), worst=report.worst.interval95))

    return anytime.score(
        journal,
        missing,
        lambda chunks: share(chunks, team, lambda current: None),
        partial(make, drawn=until.drawn()),
        until,
        team,
        look,
    )


def require_same(
    report: Report,
    source: str,
    subject: Subject,
    protocol: Protocol,
    *,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    chunk: int | None = None,
    speed: str = "channels-last",
    device: torch.device | None = None,
    drawn: bool = False,
) -> None:
    """Raise BadInput, which names what differs, unless `score` with the other arguments would give the same report.

    source: the name of the report's file, for the error. drawn: whether `score` would be given an `until`.
    """
    plan = planned(subject, protocol, n, seed, batch_size, chunk, processes.state(), device, drawn=drawn)
    _require(report, source, subject.model.to(plan.device), plan, speed)


@dataclass(frozen=True)
class Planned:
    """The images and their chunks, the setting, and `facts`, which decide the flags, as plain data.

    `facts` lack `speed` and `folded`, which are known once the model is prepared.
    """

    split: Split
    chunks: list[Chunk]
    setting: Setting
    device: torch.device
    facts: Facts

    @property
    def sample(self) -> Tensor:
        """The images that the model is prepared on."""
        return self.split[: self.setting.batch_size].images


def planned(
    subject: Subject,
    protocol: Protocol,
    n: int | None,
    seed: int,
    batch_size: int,
    chunk: int | None,
    team: PartialState,
    device: torch.device | None = None,
    busy: Callable[[str], None] = lambda text: None,
    drawn: bool = False,
) -> Planned:
    """What `score` does with these arguments."""
    split = in_order.first(subject.test, n, seed) if drawn else subject.test.take(n)
    if device is None:
        device = team.device if team.device.type == "cuda" else torch.device("cpu")
    size = _CHUNK.get(device.type, _CHUNK["cpu"]) if chunk is None else chunk
    pieces = chunks.cut(len(split), size, seed, growing=drawn)
    setting = Setting(subject.threat, seed, min(batch_size, size), busy)
    facts = _facts(subject, subject.test if drawn else split, protocol, setting, size) | {"device": device.type}
    facts |= {"n": in_order.AS_MANY} if drawn else {}
    return Planned(split, pieces, setting, device, facts)


def _facts(subject: Subject, split: Split, protocol: Protocol, setting: Setting, chunk: int) -> Facts:
    """Everything that decides the flags, as plain data."""
    # Buffers too: the state dict may lack those of a normalisation.
    tensors = [*subject.model.state_dict().values(), *subject.model.buffers()]
    weights = [value for value in tensors if isinstance(value, Tensor)]
    of_data, of_content = datasets.digests(split, *weights)
    versions = dict((("torch", importlib.metadata.version("torch")), compat.autoattack_package()))
    return {
        **subject.about.model_dump(include={"weights_sha256", "model", "data"}),
        "test_images": len(subject.test),
        "n": len(split),
        "data_sha256": of_data,
        "content_sha256": of_content,
        "threat": subject.threat.model_dump(),
        "protocol": protocol.model_dump(mode="json"),
        "seed": setting.seed,
        "chunk": chunk,
        "batch_size": setting.batch_size,
        "versions": {"atent-ext": __version__} | versions,
    }


def _finished(
    path: Path, model: nn.Module, plan: Planned, journal: Journal, speed: str, team: PartialState
) -> Report | None:
    """The report of this setting at `path`; None if there is no file. Only the main process reads it.

    Raises BadInput for a file with other content.
    """
    report = earlier.read(path) if team.is_main_process else None
    if report is not None:
        facts = _require(report, str(path), model, plan, speed)
        # Left by a kill after the report was written.
        if report.drawn is None and journal.has(facts):
            journal.discard()
    return processes.from_main(team, report)


def _require(report: Report, source: str, model: nn.Module, plan: Planned, speed: str) -> Facts:
    """The facts of a report that matches the plan. Raises BadInput for any other, early if it can."""
    known = earlier.setting(report)
    earlier.require(known, plan.facts, source)
    chosen = known["speed"] if speed == "auto" else speed
    facts = plan.facts | _choice(prepare(model, plan.sample, chosen, known["folded"]))
    earlier.require(known, facts, source)
    return facts


def _begin(
    model: nn.Module, plan: Planned, journal: Journal, speed: str, team: PartialState, overwrite: bool
) -> tuple[Prepared, list[Chunk]]:
    """The prepared model and the missing chunks. The main process decides; the others use its choices."""
    if not team.is_main_process:
        theirs, missing = processes.from_main(team, (plan.facts, list[Chunk]()))
        prepared = prepare(model, plan.sample, theirs["speed"], theirs["folded"])
        return _same(plan.facts | _choice(prepared), theirs, team.process_index, prepared), missing
    before = journal.setting(overwrite)
    if before is None or (overwrite and differences({key: before.get(key) for key in plan.facts}, plan.facts)):
        before = {"speed": speed, "folded": None}
    prepared = prepare(model, plan.sample, before["speed"] if speed == "auto" else speed, before["folded"])
    facts = plan.facts | _choice(prepared)
    journal.claim(facts, overwrite)
    missing = journal.missing()
    processes.from_main(team, (facts, missing))
    return prepared, missing


def _choice(prepared: Prepared) -> Facts:
    return {"speed": prepared.speed, "folded": prepared.folded}


def _same(mine: Facts, theirs: Facts, process: int, prepared: Prepared) -> Prepared:
    """Raise BadInput if the facts of this process differ from those of the main process."""
    for name in (name for name in mine if mine[name] != theirs[name]):
        raise BadInput(
            f"process {process} has {name} = {mine[name]!r} and the main one {theirs[name]!r}; "
            "give all processes the same files and packages",
            code="conflict",
            field=name,
        )
    return prepared


def _report(
    subject: Subject,
    protocol: Protocol,
    facts: Facts,
    prepared: Prepared,
    processes: int,
    records: list[Record],
    drawn: Drawn | None = None,
) -> Report:
    found = outcomes(records)
    total = facts["test_images"]
    same = {key: facts[key] for key in ("content_sha256", "threat", "seed", "batch_size", "chunk", "versions")}
    threads = torch.get_num_threads()
    return Report(
        **subject.about.model_dump(exclude={"data_sha256"}),
        data_sha256=facts["data_sha256"],
        part=subject.part,
        n=len(found[0].flags),
        total=total,
        protocol=protocol.name,
        protocol_attacks=tuple(facts["protocol"]["attacks"]),
        **same,
        smaller_batches=smaller_batches(records),
        speed=prepared.speed,
        folded=prepared.folded,
        prepared=(*subject.notes, *prepared.notes),
        processes=processes,
        machine={"device": facts["device"], "threads": threads, "python": platform.python_version()},
        drawn=drawn,
        results=tuple(result_of(outcome, None if drawn is None else total) for outcome in found),
    )
