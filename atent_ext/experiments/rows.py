"""A row of a study: its model, trained unless a finished run of the same recipe exists, and its cells."""

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.attacks.spec import Outcome
from atent_ext.certification.intervals import certified_linf
from atent_ext.certification.smoothing import Certificate, Smoothing, certified_flags, certify_all, l2_radius_for_linf
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import device_of
from atent_ext.data import datasets
from atent_ext.data.datasets import Split
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.report import Result, result_of
from atent_ext.evaluation.scoring import Subject
from atent_ext.experiments.runner import Runner
from atent_ext.experiments.study import (
    Certify,
    Column,
    Row,
    Scale,
    ScaleName,
    Shipped,
    Study,
    recipe_of,
    resolved,
    run_name,
)
from atent_ext.subjects import run_folder, weights_file
from atent_ext.training.loop import Reporter
from atent_ext.training.recipes import Recipe

Cell = dict[str, Any]
Certified = dict[tuple[Smoothing, int], list[Certificate]]


@dataclass(frozen=True)
class Context:
    """The context of a reproduction, shared by all rows: scale, folders, seed, data root, and the runner.

    out: folder of the run folders. root, download: as in `datasets.load`. reporter: of the trainings. busy: called with
    a text about the current step.
    """

    scale: ScaleName
    out: Path
    seed: int = 0
    root: Path | None = None
    download: bool = False
    reporter: Reporter | None = None
    busy: Callable[[str], None] = lambda text: None

    @property
    def runner(self) -> Runner:
        """The runner that trains and scores."""
        return Runner(self.out, self.root, self.download, self.reporter, self.busy)

    def recipe(self, study: Study, row: Row) -> Recipe:
        """The recipe of a row. `init_from` is the run folder of the row whose weights it starts from, if any."""
        study, row = resolved(study, row)
        recipe = recipe_of(study, row, self.scale, self.seed)
        if row.after is None:
            return recipe
        return recipe.model_copy(update={"init_from": str(self.folder(study, study.row(row.after)))})

    def folder(self, study: Study, row: Row) -> Path:
        """The run folder of a row, whether or not it exists."""
        return self.out / run_name(self.recipe(study, row))

    def train(self, study: Study, row: Row) -> Path:
        """Train a row to the last epoch, or resume its training. Returns the run folder."""
        study, row = resolved(study, row)
        if row.after is not None:
            self.train(study, study.row(row.after))
        recipe = self.recipe(study, row)
        return self.runner.train(recipe, run_name(recipe)).path

    def subject(self, study: Study, row: Row) -> Subject:
        """The model of a row, trained or shipped with a package, with its test images."""
        if row.weights is not None:
            return _shipped(row.weights, self.root, self.download)
        return run_folder.from_run(self.train(study, row), self.root, self.download)


def history(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run folder, one mapping per finished epoch."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _shipped(weights: Shipped, root: Path | None, download: bool) -> Subject:
    package, _, inside = weights.file.partition(":")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        message = f"{package}, which ships {inside}, is not installed; install it, or leave this row out"
        raise BadInput(message, code="missing", field="weights")
    dataset = weights.dataset.format(root=datasets.home(root))
    return weights_file.from_weights(
        Path(spec.origin).parent / inside, weights.model, dataset, weights.threat, root, download
    )


def images(column: Column, row: Row, scale: Scale) -> int:
    """The number of test images of a cell."""
    count = scale.images.get(column.name) or (scale.slow if column.slow else scale.n)
    return min(count, row.n or count)


def measure(
    subject: Subject, column: Column, row: Row, scale: Scale, seed: int, known: Certified, runner: Runner, name: str
) -> Cell:
    """One cell as plain data: the result of an attack or a certificate on the first test images.

    known: the certificates of this row so far, shared by columns with different radii. name: of the report in the
    folder of the runner, from which an interrupted score resumes.
    """
    count = min(images(column, row, scale), len(subject.test))
    if column.certify is not None:
        return _certified(subject, column.certify, count, scale, seed, known)
    threat = column.threat(subject.threat)
    protocol = Protocol(name=column.name, description="", attacks=(column.spec(subject.threat),))
    under = replace(subject, threat=threat)
    # A cell that is missing in the results is scored; the report of another setting was left by an earlier version.
    report = runner.score(under, protocol, name, n=count, seed=seed, batch_size=scale.batch_size, overwrite=True)
    scored = report.model_dump(mode="json", include={"batch_size", "chunk", "speed", "folded"})
    return {**cell(report.results[0]), "threat": threat.model_dump(), "scored": scored}


def _certified(subject: Subject, spec: Certify, count: int, scale: Scale, seed: int, known: Certified) -> Cell:
    split, start = subject.test.take(count), time.perf_counter()
    model = subject.model.to("cuda" if torch.cuda.is_available() else "cpu")
    if spec.by == "intervals":
        flags, settings = _by_intervals(model, split, spec)
    else:
        flags, settings = _by_smoothing(model, split, spec, scale.certificates, seed, known)
    outcome = Outcome("certified", "certified", settings, flags, time.perf_counter() - start)
    return cell(result_of(outcome))


def cell(result: Result) -> Cell:
    """A result as a cell, whose fields include the settings; `Result.of_cell` reads it back."""
    plain: Cell = result.model_dump(mode="json")
    settings, robust_after = plain.pop("settings"), plain.pop("robust_after")
    return {**settings, **plain, **({"robust_after": robust_after} if robust_after else {})}


def _by_smoothing(
    model: nn.Module, split: Split, spec: Certify, draws: int, seed: int, known: Certified
) -> tuple[Tensor, Cell]:
    smoothing = Smoothing(sigma=spec.sigma or 0.0, n0=spec.n0, n=draws, alpha=spec.alpha)
    radius = spec.radius if spec.norm == "L2" else l2_radius_for_linf(spec.radius, split.images[0].numel())
    smoothing.require(radius)
    if (smoothing, len(split)) not in known:
        known[smoothing, len(split)] = certify_all(model, split, smoothing, seed=seed)
    flags = certified_flags(known[smoothing, len(split)], split.labels, radius)
    settings = {"sigma": spec.sigma, "draws": draws, "n0": spec.n0, "alpha": spec.alpha, "l2_radius": radius}
    return torch.tensor(flags), settings


def _by_intervals(model: nn.Module, split: Split, spec: Certify) -> tuple[Tensor, Cell]:
    device = device_of(model)
    flags = certified_linf(model, split.images.to(device), split.labels.to(device), spec.radius)
    return flags.cpu(), {"by": "interval bounds", "linf_radius": spec.radius}
