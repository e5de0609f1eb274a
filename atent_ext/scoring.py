"""From a run folder or a weights file to a report: everything that a reader needs to know about each number."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn

from atent_ext import __version__, checkpoints, checks, chunks, data, models, teams, zoo
from atent_ext.chunks import Chunk, Journal, Standing
from atent_ext.data import Split
from atent_ext.errors import BadInput
from atent_ext.evaluation import Protocol, Setting
from atent_ext.modes import seeded
from atent_ext.norms import norm as norm_called
from atent_ext.recipes import Threat
from atent_ext.runs import RunFolder
from atent_ext.speed import Prepared, prepare

Report = dict[str, Any]
_ZOO = "robustbench:"
_CHUNK = {"cpu": 100, "cuda": 250}
"""Images in a chunk: enough to keep the device busy, few enough that an interruption costs minutes."""


@dataclass(frozen=True)
class Subject:
    """A model, the images it is scored on, the threat model, and `about`: where each comes from, as plain data.

    part: what the images are of their data set, `data.TEST` or `data.HELD_OUT`.
    """

    model: nn.Module
    test: Split
    threat: Threat
    about: Report
    part: str = data.TEST


def load(
    path: Path,
    model: str | None = None,
    dataset: str | None = None,
    norm: str | None = None,
    eps: float | None = None,
    root: Path | None = None,
    download: bool = False,
    model_dir: Path | None = None,
    held_out: bool = False,
) -> Subject:
    """A run folder, a name of our zoo, or a weights file with its network and data set; norm and eps override theirs.

    held_out: as in `from_run`, which alone has such images. `robustbench:NAME` is a model of RobustBench's zoo; its
    checkpoint lies in `model_dir` (None: "models"), and without `eps` it is scored at the radius of RobustBench's
    leaderboard. Raises BadInput where something is missing or does not fit.
    """
    if held_out and (str(path).startswith(_ZOO) or (not path.exists() and str(path) in zoo.names())):
        raise BadInput(
            f"{path} is a model of a zoo, and only a run says which images it held out; leave out --held-out"
        )
    if str(path).startswith(_ZOO):
        if model or dataset is None:
            raise BadInput(f"{path} is a model of RobustBench's zoo; it needs --dataset, and no --model")
        return from_zoo(
            str(path).removeprefix(_ZOO), dataset, norm or "Linf", eps, root, download, model_dir or Path("models")
        )
    if model_dir is not None:
        raise BadInput(f"--model-dir is {model_dir}, but {path} is no {_ZOO}NAME; drop it")
    if not path.exists() and str(path) in zoo.names():
        if model or dataset:
            raise BadInput(
                f"{path} is a model of the zoo, whose card names model and data set; drop --model and --dataset"
            )
        return from_card(str(path), norm, eps, root, download)
    if not path.exists():
        raise zoo.unknown(f"{path} does not exist; give a run folder or a weights file", str(path))
    if held_out and not path.is_dir():
        raise BadInput(f"{path} is no run folder, whose recipe says which images were held out; leave out --held-out")
    if path.is_dir():
        if model or dataset:
            raise BadInput(f"{path} is a run folder, whose recipe names model and data set; drop --model and --dataset")
        return _at(from_run(path, root, download, held_out), norm, eps)
    if model is None or dataset is None or eps is None:
        raise BadInput(f"{path} is no run folder; a weights file needs --model, --dataset and --eps")
    return from_weights(path, model, dataset, _threat(norm or "Linf", eps), root, download)


def _at(subject: Subject, norm: str | None, eps: float | None) -> Subject:
    """The subject under another threat model, where one is asked for."""
    own = subject.threat
    if norm_called(norm or own.norm).name != own.norm and eps is None:
        raise BadInput(f"norm is {norm}, and the radius at hand, {own.eps:g}, is of {own.norm}; give --eps, too")
    return replace(subject, threat=_threat(norm or own.norm, own.eps if eps is None else eps))


def _threat(norm: str, eps: float) -> Threat:
    norm_called(norm)
    checks.radius("eps", eps)
    return Threat.model_validate({"norm": norm, "eps": eps})


def from_run(path: Path, root: Path | None = None, download: bool = False, held_out: bool = False) -> Subject:
    """The selected weights of a run folder, on the test split of its data set. Raises BadInput if it holds no run.

    held_out: on the training images that the run did not train on instead, which runs are to be chosen by.
    """
    folder = RunFolder(path)
    recipe = folder.recipe()
    images = data.load(recipe.dataset, root, download)
    judged = data.hold_out(images.train, recipe.validation.count, recipe.seed)[1] if held_out else images.test
    about = _about(recipe.name, recipe.model.name, [folder.weights], images)
    about |= {"recipe": recipe.model_dump(mode="json")}
    return Subject(folder.load_model(images), judged, recipe.threat, about, data.HELD_OUT if held_out else data.TEST)


def from_weights(
    path: Path, model: str, dataset: str, threat: Threat, root: Path | None = None, download: bool = False
) -> Subject:
    """A weights file for a network of the registry. Raises BadInput for a file that is none or does not fit."""
    images = data.load(dataset, root, download)
    with seeded(0):  # the fresh weights are replaced, and the caller's random state stays as it is
        network = models.build_for(model, images.test.images, len(images.classes))
    checkpoints.load_weights(network, path)
    return Subject(network.eval(), images.test, threat, _about(path.stem, model, [path], images))


def from_card(
    name: str, norm: str | None = None, eps: float | None = None, root: Path | None = None, download: bool = False
) -> Subject:
    """A model of our zoo (`atent_ext.load`), on the test split of its card's data set, under its card's threat model.

    norm, eps: another threat model. Raises what `zoo.load` raises, and BadInput for data that is not there and where
    the model has cards under several threat models and none is asked for.
    """
    cards, weights = zoo.find(name)
    submission = cards[0].submission
    if len(cards) > 1 and (norm is None or eps is None):
        threats = ", ".join(f"{one.submission.threat.norm} {one.submission.threat.eps:g}" for one in cards)
        raise BadInput(f"{name} has cards under {threats}; give --norm and --eps")
    images = data.load(submission.dataset, root, download)
    about = _about(name, submission.architecture.name, [weights], images)
    return _at(Subject(zoo.load(name), images.test, submission.threat, about), norm, eps)


def from_zoo(
    name: str, dataset: str, norm: str, eps: float | None, root: Path | None, download: bool, model_dir: Path
) -> Subject:
    """A model of RobustBench's zoo from the files in `model_dir`, on our test split of `dataset`.

    Raises BadInput for an unknown name, a file that is missing or holds more than tensors, and for `eps` None where
    we know no usual radius; MissingExtra where robustbench is not installed.
    """
    from atent_ext.adapters import robustbench

    norm_called(norm)
    checks.radius("eps", 0.0 if eps is None else eps)
    files = robustbench.zoo_files(name, dataset=dataset, threat_model=norm, model_dir=model_dir)
    eps = robustbench.LEADERBOARD_EPS.get((dataset, norm)) if eps is None else eps
    if eps is None:
        raise BadInput(f"there is no usual radius for {dataset} and {norm}; give --eps")
    threat = _threat(norm, eps)
    network = robustbench.load_zoo(name, dataset=dataset, threat_model=norm, model_dir=model_dir)
    images = data.load(dataset, root, download)
    package = f"robustbench {importlib.metadata.version('robustbench')}"
    return Subject(network, images.test, threat, _about(name, package, files, images))


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
    team = teams.processes()
    if path is None and team.num_processes > 1:
        raise BadInput(
            f"{team.num_processes} processes share the chunks through a folder; give a path, the same to all"
        )
    if path is not None:
        checkpoints.replaceable(path)
    split = subject.test.take(n)
    device = team.device if team.device.type == "cuda" else torch.device("cpu")
    size = _CHUNK[device.type] if chunk is None else chunk
    pieces = chunks.cut(len(split), size, seed)
    journal = Journal(pieces, None if path is None else path.with_name(f"{path.name}.chunks"))
    setting = Setting(subject.threat, seed, min(batch_size, size), busy)
    facts = _facts(subject, split, protocol, setting, size) | {"device": device.type}
    report: Report = {}
    with journal.held() if team.is_main_process else nullcontext():
        prepared, missing = _begin(subject.model.to(device), split, journal, facts, speed, team)
        chunks.share(prepared.model, split, protocol, setting, journal, missing, team, progress)
        if team.is_main_process:
            report = _report(subject, protocol, facts, prepared, journal.collect(), team.num_processes)
            if path is not None:
                save(report, path)
            journal.discard()
    return teams.told(team, report)


def _facts(subject: Subject, split: Split, protocol: Protocol, setting: Setting, chunk: int) -> Report:
    """What decides the flags, as plain data."""
    # Buffers besides: a normalisation may be left out of the state dict.
    held = [*subject.model.state_dict().values(), *subject.model.buffers()]
    weights = [value for value in held if isinstance(value, Tensor)]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "pyautoattack")}
    return {
        **{key: subject.about.get(key) for key in ("weights_sha256", "model", "data")},
        "test_images": len(subject.test),
        "n": len(split),
        "content_sha256": data.digest(*weights, split.images, split.labels),
        "threat": subject.threat.model_dump(),
        "protocol": protocol.model_dump(mode="json"),
        "seed": setting.seed,
        "chunk": chunk,
        "batch_size": setting.batch_size,
        "versions": {"atent-ext": __version__} | versions,
    }


def _begin(
    model: nn.Module, split: Split, journal: Journal, facts: Report, speed: str, team: PartialState
) -> tuple[Prepared, list[Chunk]]:
    """The network as it is to be scored and the chunks to do: the main process decides, the others do as it says."""
    images = split.images[: facts["batch_size"]]
    if not team.is_main_process:
        theirs, missing = teams.told(team, (facts, list[Chunk]()))
        prepared = prepare(model, images, theirs["speed"], theirs["folded"])
        return _same(facts | _choice(prepared), theirs, team.process_index, prepared), missing
    earlier = journal.setting() or {"speed": speed, "folded": None}
    prepared = prepare(model, images, earlier["speed"] if speed == "auto" else speed, earlier["folded"])
    facts = facts | _choice(prepared)
    journal.claim(facts)
    missing = journal.missing()
    teams.told(team, (facts, missing))
    return prepared, missing


def _choice(prepared: Prepared) -> Report:
    return {"speed": prepared.speed, "folded": prepared.folded}


def _same(mine: Report, theirs: Report, process: int, prepared: Prepared) -> Prepared:
    """Raise BadInput if this process would score something else than the main one."""
    for name in (name for name in mine if mine[name] != theirs[name]):
        raise BadInput(
            f"process {process} has {name} = {mine[name]!r} and the main one {theirs[name]!r}; "
            "give all processes the same files and packages"
        )
    return prepared


def _report(
    subject: Subject, protocol: Protocol, facts: Report, prepared: Prepared, records: list[Report], processes: int
) -> Report:
    same = {key: facts[key] for key in ("threat", "seed", "batch_size", "chunk", "versions")}
    threads = torch.get_num_threads()
    return subject.about | {
        "split": f"{subject.part}, the first {facts['n']} of {facts['test_images']}",
        "protocol": protocol.name,
        **same,
        "smaller_batches": chunks.smaller_batches(records),
        "speed": prepared.speed,
        "folded": prepared.folded,
        "prepared": list(prepared.notes),
        "processes": processes,
        "machine": {"device": facts["device"], "threads": threads, "python": platform.python_version()},
        "results": [outcome.report() for outcome in chunks.outcomes(records)],
    }


def default_path(subject: Path, loaded: Subject, protocol: Protocol, n: int | None, seed: int) -> Path:
    """Where a report goes: into the run folder, or for other subjects into runs/; named after its setting."""
    count = len(loaded.test) if n is None else n
    protocol_name = protocol.name if loaded.part == data.TEST else f"{protocol.name}-held-out"
    name = f"eval-{protocol_name}-{loaded.threat.norm}-{loaded.threat.eps:g}-n{count}-seed{seed}.json"
    digest = str(loaded.about["weights_sha256"])[:8]
    return (subject if subject.is_dir() else Path("runs") / f"{loaded.about['name']}-{digest}") / name


def save(report: Report, path: Path) -> None:
    """Write a report as JSON."""
    checkpoints.write(path, json.dumps(report, indent=1) + "\n")


def _about(name: str, model: str, weights: list[Path], images: data.DataSet) -> Report:
    found = bool(weights) and all(path.is_file() for path in weights)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest() if found else None
    return {"name": name, "model": model, "weights_sha256": digest, "data": images.name, "data_note": images.note}
