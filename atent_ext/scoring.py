"""From a run folder or a weights file to a report: everything that a reader needs to know about each number."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atent_ext import __version__, checkpoints, checks, data, models
from atent_ext.certification import Certificate, Smoothing, certified_accuracy, certify_all
from atent_ext.data import Split
from atent_ext.errors import BadInput
from atent_ext.evaluation import Protocol, Setting, evaluate
from atent_ext.norms import norm as norm_called
from atent_ext.recipes import Threat
from atent_ext.runs import RunFolder

Report = dict[str, Any]
_ZOO = "robustbench:"


@dataclass(frozen=True)
class Subject:
    """A model, the test images it is scored on, the threat model, and `about`: where each comes from, as plain data."""

    model: nn.Module
    test: Split
    threat: Threat
    about: Report


def load(
    path: Path,
    model: str | None = None,
    dataset: str | None = None,
    norm: str | None = None,
    eps: float | None = None,
    root: Path | None = None,
    download: bool = False,
    model_dir: Path | None = None,
) -> Subject:
    """A run folder, or a weights file with the names of its network and data set; norm and eps override the run's.

    `robustbench:NAME` is a model of RobustBench's zoo; its checkpoint lies in `model_dir` (None: "models"), and without
    `eps` it is scored at the radius of RobustBench's leaderboard. Raises BadInput where something is missing or does
    not fit.
    """
    if str(path).startswith(_ZOO):
        if model or dataset is None:
            raise BadInput(f"{path} is a model of RobustBench's zoo; it needs --dataset, and no --model")
        zoo = str(path).removeprefix(_ZOO)
        return from_zoo(zoo, dataset, norm or "Linf", eps, root, download, model_dir or Path("models"))
    if model_dir is not None:
        raise BadInput(f"--model-dir is {model_dir}, but {path} is no {_ZOO}NAME; drop it")
    if not path.exists():
        raise BadInput(f"{path} does not exist; give a run folder or a weights file")
    if path.is_dir():
        if model or dataset:
            raise BadInput(f"{path} is a run folder, whose recipe names model and data set; drop --model and --dataset")
        run = from_run(path, root, download)
        asked = _threat(norm or run.threat.norm, run.threat.eps if eps is None else eps)
        return replace(run, threat=asked)
    if model is None or dataset is None or eps is None:
        raise BadInput(f"{path} is no run folder; a weights file needs --model, --dataset and --eps")
    return from_weights(path, model, dataset, _threat(norm or "Linf", eps), root, download)


def _threat(norm: str, eps: float) -> Threat:
    norm_called(norm)
    checks.radius("eps", eps)
    return Threat.model_validate({"norm": norm, "eps": eps})


def from_run(path: Path, root: Path | None = None, download: bool = False) -> Subject:
    """The selected weights of a run folder, on the test split of its data set. Raises BadInput if it holds no run."""
    folder = RunFolder(path)
    recipe = folder.recipe()
    images = data.load(recipe.dataset, root, download)
    about = _about(recipe.name, recipe.model.name, [folder.weights], images)
    about |= {"recipe": recipe.model_dump(mode="json")}
    return Subject(folder.load_model(images), images.test, recipe.threat, about)


def from_weights(
    path: Path, model: str, dataset: str, threat: Threat, root: Path | None = None, download: bool = False
) -> Subject:
    """A weights file for a network of the registry. Raises BadInput for a file that is none or does not fit."""
    images = data.load(dataset, root, download)
    network = models.build_for(model, images.test.images, len(images.classes))
    checkpoints.load_weights(network, path)
    return Subject(network.eval(), images.test, threat, _about(path.stem, model, [path], images))


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
    busy: Callable[[str], None] = lambda text: None,
) -> Report:
    """Run `protocol` on the first `n` test images (None: all); `busy` hears what is being done."""
    split = subject.test.take(n)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    setting = Setting(subject.threat, seed, batch_size, busy)
    versions = {"atent-ext": __version__} | {
        name: importlib.metadata.version(name) for name in ("torch", "pyautoattack")
    }
    outcomes = evaluate(
        subject.model.to(device), split, protocol, setting, lambda o: busy(f"{o.attack}: {o.accuracy:.2%}")
    )
    return subject.about | {
        "split": f"test, the first {len(split)} of {len(subject.test)}",
        "threat": subject.threat.model_dump(),
        "protocol": protocol.name,
        "seed": seed,
        "batch_size": batch_size,
        "machine": {"device": device, "threads": torch.get_num_threads(), "python": platform.python_version()},
        "versions": versions,
        "results": [outcome.report() for outcome in outcomes],
    }


def certify(
    subject: Subject, smoothing: Smoothing, path: Path, images: int, seed: int, progress: Callable[[int], None]
) -> Report:
    """Certify the first `images` test images into the JSON file `path`, written after each; goes on with what it holds.

    Raises BadInput if `path` holds certificates of another setting.
    """
    split = subject.test.take(images)
    setting = {key: value for key, value in asdict(smoothing).items() if key != "batch_size"}
    about = subject.about | {"smoothing": setting, "seed": seed}
    old = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else about | {"certificates": []}
    for key in ("weights_sha256", "data", "smoothing", "seed"):
        if old.get(key) != about[key]:
            raise BadInput(f"{path} holds another {key}: {old.get(key)!r}, not {about[key]!r}; name another file")
    done = [Certificate(**row) for row in old["certificates"]][:images]

    def keep(found: list[Certificate]) -> None:
        labels = split.labels[: len(found)]
        radii = [smoothing.sigma * share / 4 for share in range(17)]
        curve = {f"{radius:g}": certified_accuracy(found, labels, radius) for radius in radii}
        report.update(images=len(found), certified_accuracy=curve, certificates=[asdict(one) for one in found])
        save(report, path)
        progress(len(found))

    report: Report = dict(about)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    keep(certify_all(subject.model.to(device), split, smoothing, seed=seed, done=done, report=keep))
    return report


def default_path(subject: Path, loaded: Subject, protocol: Protocol, n: int | None, seed: int) -> Path:
    """Where a report goes: into the run folder, or for other subjects into runs/; named after its setting."""
    count = len(loaded.test) if n is None else n
    name = f"eval-{protocol.name}-{loaded.threat.norm}-{loaded.threat.eps:g}-n{count}-seed{seed}.json"
    digest = str(loaded.about["weights_sha256"])[:8]
    return (subject if subject.is_dir() else Path("runs") / f"{loaded.about['name']}-{digest}") / name


def save(report: Report, path: Path) -> None:
    """Write a report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write(path, json.dumps(report, indent=1) + "\n")


def _about(name: str, model: str, weights: list[Path], images: data.DataSet) -> Report:
    found = bool(weights) and all(path.is_file() for path in weights)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest() if found else None
    return {"name": name, "model": model, "weights_sha256": digest, "data": images.name, "data_note": images.note}
