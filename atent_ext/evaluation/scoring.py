"""From a run folder or a weights file to a report: everything that a reader needs to know about each number."""

import importlib.metadata
import platform
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import PartialState
from torch import Tensor, nn

from atent_ext.attacks.spec import Setting
from atent_ext.core import processes
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.core.version import __version__
from atent_ext.data import datasets
from atent_ext.data.datasets import Split
from atent_ext.evaluation import chunks, engine
from atent_ext.evaluation.chunks import Chunk
from atent_ext.evaluation.journal import Journal, Record, Standing, outcomes, smaller_batches
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.report import About, Report, result_of
from atent_ext.models.speed import Prepared, prepare
from atent_ext.storage import files

Facts = dict[str, Any]
"""What decides the flags of an evaluation, as plain data."""
_CHUNK = {"cpu": 100, "cuda": 250}
"""Images in a chunk: enough to keep the device busy, few enough that an interruption costs minutes."""


@dataclass(frozen=True)
class Subject:
    """A model, the images it is scored on, the threat model, and `about`: where each comes from.

    part: what the images are of their data set, `data.TEST` or `data.HELD_OUT`.
    """

    model: nn.Module
    test: Split
    threat: Threat
    about: About
    part: str = datasets.TEST


def score(
    subject: Subject,
    protocol: Protocol,
    *,
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    chunk: int | None = None,
    speed: str = "channels-last",
    path: Path | None = None,
    busy: Callable[[str], None] = lambda text: None,
    progress: Callable[[Standing], None] = lambda standing: None,
) -> Report:
    """Run `protocol` on the first `n` test images (None: all), in chunks of `chunk` images (None: 100, on a GPU 250).

    Chunk k is scored with `seed + k`, in batches of at most `batch_size`, by the network as `speed.prepare` makes it.
    With a `path` the report is written there; until then the finished chunks lie in the folder `path`.chunks, and a
    call with the same setting goes on with the others. Several processes of torchrun or `accelerate launch` share the
    chunks through that folder; each returns the report. In the first one `busy` hears what is being done, and
    `progress` how far all are.
    Raises BadInput for a folder of another setting, for several processes without a path or without a folder in common,
    and where memory does not reach for a single image.
    """
    team = processes.processes()
    if path is None and team.num_processes > 1:
        raise BadInput(
            f"{team.num_processes} processes share the chunks through a folder; give a path, the same to all"
        )
    if path is not None:
        files.replaceable(path)
    split = subject.test.take(n)
    device = team.device if team.device.type == "cuda" else torch.device("cpu")
    size = _CHUNK[device.type] if chunk is None else chunk
    pieces = chunks.cut(len(split), size, seed)
    journal = Journal(pieces, None if path is None else path.with_name(f"{path.name}.chunks"))
    setting = Setting(subject.threat, seed, min(batch_size, size), busy)
    facts = _facts(subject, split, protocol, setting, size) | {"device": device.type}
    report: Report | None = None
    with journal.held() if team.is_main_process else nullcontext():
        prepared, missing = _begin(subject.model.to(device), split, journal, facts, speed, team)
        engine.share(prepared.model, split, protocol, setting, journal, missing, team, progress)
        if team.is_main_process:
            report = _report(subject, protocol, facts, prepared, journal.collect(), team.num_processes)
            if path is not None:
                report.save(path)
            journal.discard()
    return cast(Report, processes.told(team, report))


def _facts(subject: Subject, split: Split, protocol: Protocol, setting: Setting, chunk: int) -> Facts:
    """What decides the flags, as plain data."""
    # Buffers besides: a normalisation may be left out of the state dict.
    held = [*subject.model.state_dict().values(), *subject.model.buffers()]
    weights = [value for value in held if isinstance(value, Tensor)]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "pyautoattack")}
    return {
        **subject.about.model_dump(include={"weights_sha256", "model", "data"}),
        "test_images": len(subject.test),
        "n": len(split),
        "content_sha256": datasets.digest(*weights, split.images, split.labels),
        "threat": subject.threat.model_dump(),
        "protocol": protocol.model_dump(mode="json"),
        "seed": setting.seed,
        "chunk": chunk,
        "batch_size": setting.batch_size,
        "versions": {"atent-ext": __version__} | versions,
    }


def _begin(
    model: nn.Module, split: Split, journal: Journal, facts: Facts, speed: str, team: PartialState
) -> tuple[Prepared, list[Chunk]]:
    """The network as it is to be scored and the chunks to do: the main process decides, the others do as it says."""
    images = split.images[: facts["batch_size"]]
    if not team.is_main_process:
        theirs, missing = processes.told(team, (facts, list[Chunk]()))
        prepared = prepare(model, images, theirs["speed"], theirs["folded"])
        return _same(facts | _choice(prepared), theirs, team.process_index, prepared), missing
    earlier = journal.setting() or {"speed": speed, "folded": None}
    prepared = prepare(model, images, earlier["speed"] if speed == "auto" else speed, earlier["folded"])
    facts = facts | _choice(prepared)
    journal.claim(facts)
    missing = journal.missing()
    processes.told(team, (facts, missing))
    return prepared, missing


def _choice(prepared: Prepared) -> Facts:
    return {"speed": prepared.speed, "folded": prepared.folded}


def _same(mine: Facts, theirs: Facts, process: int, prepared: Prepared) -> Prepared:
    """Raise BadInput if this process would score something else than the main one."""
    for name in (name for name in mine if mine[name] != theirs[name]):
        raise BadInput(
            f"process {process} has {name} = {mine[name]!r} and the main one {theirs[name]!r}; "
            "give all processes the same files and packages"
        )
    return prepared


def _report(
    subject: Subject, protocol: Protocol, facts: Facts, prepared: Prepared, records: list[Record], processes: int
) -> Report:
    same = {key: facts[key] for key in ("threat", "seed", "batch_size", "chunk", "versions")}
    threads = torch.get_num_threads()
    return Report(
        **subject.about.model_dump(),
        part=subject.part,
        n=facts["n"],
        total=facts["test_images"],
        protocol=protocol.name,
        **same,
        smaller_batches=smaller_batches(records),
        speed=prepared.speed,
        folded=prepared.folded,
        prepared=prepared.notes,
        processes=processes,
        machine={"device": facts["device"], "threads": threads, "python": platform.python_version()},
        results=tuple(result_of(outcome) for outcome in outcomes(records)),
    )


def default_path(subject: Path, loaded: Subject, protocol: Protocol, n: int | None, seed: int) -> Path:
    """Where a report goes: into the run folder, or for other subjects into runs/; named after its setting."""
    count = len(loaded.test) if n is None else n
    protocol_name = re.sub(r"[^\w.+ -]", "-", protocol.name)  # of a file, it may say anything
    protocol_name += "" if loaded.part == datasets.TEST else "-held-out"
    name = f"eval-{protocol_name}-{loaded.threat.norm}-{loaded.threat.eps:g}-n{count}-seed{seed}.json"
    digest = str(loaded.about.weights_sha256)[:8]
    return (subject if subject.is_dir() else Path("runs") / f"{loaded.about.name}-{digest}") / name
