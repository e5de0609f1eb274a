"""One row of a study: its network, trained where there is no finished run of the same recipe, and each of its cells."""

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.attacks.spec import Outcome, Setting
from atent_ext.certification.intervals import certified_linf
from atent_ext.certification.smoothing import Certificate, Smoothing, certified_flags, certify_all, l2_radius_for_linf
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import device_of
from atent_ext.data import datasets
from atent_ext.data.datasets import Split
from atent_ext.evaluation.protocol import Protocol
from atent_ext.evaluation.report import result_of
from atent_ext.evaluation.run import evaluate
from atent_ext.evaluation.scoring import Subject
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
from atent_ext.training.loop import Reporter, fit
from atent_ext.training.recipes import Recipe
from atent_ext.training.run_folder import RunFolder

Cell = dict[str, Any]
Certified = dict[tuple[Smoothing, int], list[Certificate]]


@dataclass(frozen=True)
class Workshop:
    """Where runs lie and how their training is told: what every row of a reproduction shares.

    out: folder of the run folders. root, download: of the data sets. busy hears what is being done.
    """

    scale: ScaleName
    out: Path
    seed: int = 0
    root: Path | None = None
    download: bool = False
    reporter: Reporter | None = None
    busy: Callable[[str], None] = lambda text: None

    def recipe(self, study: Study, row: Row) -> Recipe:
        """The recipe of a row, its starting weights named where it has any."""
        study, row = resolved(study, row)
        recipe = recipe_of(study, row, self.scale, self.seed)
        if row.after is None:
            return recipe
        return recipe.model_copy(update={"init_from": str(self.folder(study, study.row(row.after)))})

    def folder(self, study: Study, row: Row) -> Path:
        """Where the run of a row lies or will lie."""
        return self.out / run_name(self.recipe(study, row))

    def train(self, study: Study, row: Row) -> Path:
        """The run folder of a row, trained to its end; a run that was interrupted goes on."""
        study, row = resolved(study, row)
        if row.after is not None:
            self.train(study, study.row(row.after))
        recipe, folder = self.recipe(study, row), RunFolder(self.folder(study, row))
        if not finished(folder, recipe):
            images = datasets.load(recipe.dataset, self.root, self.download)
            fit(recipe, images, folder.path, resume=folder.exists(), reporter=self.reporter)
        return folder.path

    def subject(self, study: Study, row: Row) -> Subject:
        """The network of a row, trained or shipped, and its test images."""
        if row.weights is not None:
            return _shipped(row.weights, self.root, self.download)
        return run_folder.from_run(self.train(study, row), self.root, self.download)


def finished(folder: RunFolder, recipe: Recipe) -> bool:
    """Whether every epoch of the recipe is behind the run."""
    return len(history(folder.path)) == recipe.epochs and folder.weights.is_file()


def history(run: Path) -> list[dict[str, Any]]:
    """The metrics of a run folder, one mapping an epoch; none where it has no finished epoch."""
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _shipped(weights: Shipped, root: Path | None, download: bool) -> Subject:
    package, _, inside = weights.file.partition(":")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise BadInput(f"{package}, which ships {inside}, is not installed; install it, or leave this row out")
    dataset = weights.dataset.format(root=datasets.home(root))
    return weights_file.from_weights(
        Path(spec.origin).parent / inside, weights.model, dataset, weights.threat, root, download
    )


def images(column: Column, row: Row, scale: Scale) -> int:
    """How many test images a cell is measured on."""
    count = scale.images.get(column.name) or (scale.slow if column.slow else scale.n)
    return min(count, row.n or count)


def measure(subject: Subject, column: Column, row: Row, scale: Scale, seed: int, known: Certified) -> Cell:
    """One cell as plain data: the outcome of an attack or of a certification on the first images of the test set.

    known: the certificates of this row so far, which columns of several radii share.
    """
    split = subject.test.take(min(images(column, row, scale), len(subject.test)))
    model = subject.model.to("cuda" if torch.cuda.is_available() else "cpu")
    if column.certify is not None:
        start = time.perf_counter()
        if column.certify.by == "intervals":
            flags, settings = _by_intervals(model, split, column.certify)
        else:
            flags, settings = _by_smoothing(model, split, column.certify, scale.certificates, seed, known)
        return cell(Outcome("certified", "certified", settings, flags, time.perf_counter() - start))
    threat = column.threat(subject.threat)
    protocol = Protocol(name=column.name, description="", attacks=(column.spec(subject.threat),))
    (outcome,) = evaluate(model, split, protocol, Setting(threat, seed, scale.batch_size))
    return {"threat": threat.model_dump(), **cell(outcome)}


def cell(outcome: Outcome) -> Cell:
    """An outcome as a cell holds it: settings beside figures, notes as texts; `Result.of_cell` reads it back."""
    result: Cell = result_of(outcome).model_dump(mode="json")
    settings, robust_after = result.pop("settings"), result.pop("robust_after")
    counts = {"robust_after": robust_after} if robust_after else {}
    texts = [note["text"] for note in result["notes"]]
    return {**result, **settings, **counts, "notes": texts}


def _by_smoothing(
    model: nn.Module, split: Split, asked: Certify, draws: int, seed: int, known: Certified
) -> tuple[Tensor, Cell]:
    smoothing = Smoothing(sigma=asked.sigma or 0.0, n0=asked.n0, n=draws, alpha=asked.alpha)
    radius = asked.radius if asked.norm == "L2" else l2_radius_for_linf(asked.radius, split.images[0].numel())
    smoothing.require(radius)
    if (smoothing, len(split)) not in known:
        known[smoothing, len(split)] = certify_all(model, split, smoothing, seed=seed)
    flags = certified_flags(known[smoothing, len(split)], split.labels, radius)
    settings = {"sigma": asked.sigma, "draws": draws, "n0": asked.n0, "alpha": asked.alpha, "l2_radius": radius}
    return torch.tensor(flags), settings


def _by_intervals(model: nn.Module, split: Split, asked: Certify) -> tuple[Tensor, Cell]:
    device = device_of(model)
    flags = certified_linf(model, split.images.to(device), split.labels.to(device), asked.radius)
    return flags.cpu(), {"by": "interval bounds", "linf_radius": asked.radius}
