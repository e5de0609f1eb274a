"""`atent quickstart`: train five methods on handwritten digits, score them with AutoAttack, draw table and pictures."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from atent_ext.attacks.accuracy import clean_flags
from atent_ext.core import validate
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet
from atent_ext.evaluation.protocol import load_protocol
from atent_ext.evaluation.report import Report, Result
from atent_ext.experiments.runner import Runner
from atent_ext.figures import plots
from atent_ext.storage import files
from atent_ext.training import recipes
from atent_ext.training.loop import Reporter

METHODS = ("sgd", "pgd-at", "trades", "mart", "atent")
_SHOWN = 2
SCORED = 200
"""Test digits scored by default, of 360: all of them take two cores more than four minutes."""


def quickstart(
    out: Path,
    *,
    seed: int = 0,
    overrides: tuple[str, ...] = (),
    n: int | None = SCORED,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    scoring_begins: Callable[[str], None] = lambda name: None,
    notice: Callable[[str], None] = lambda text: None,
) -> list[Report]:
    """Train, score and draw into `out`; returns one report per method.

    n: score on the first n test digits (None: all). scoring_begins: called with the name of each recipe after its
    training. notice: called with the messages of `recipes.load`. Resumes an interrupted call with the same settings;
    existing reports are reused. Raises BadInput if `out` holds runs or reports of other settings and `overwrite` is
    False.
    """
    validate.seed(seed)
    changes = [f"seed={seed}", *overrides]
    methods = {method: recipes.load(f"digits-linf-{method}", changes, notice) for method in METHODS}
    protocol = load_protocol("autoattack")
    digits = datasets.load("digits")
    count = len(digits.test.take(n))  # raises for an invalid n before any training
    runner = Runner(out, reporter=reporter)
    subjects, reports = {}, []
    for method, recipe in methods.items():
        folder = runner.train(recipe, f"runs/{recipe.name}", overwrite=overwrite)
        scoring_begins(recipe.name)
        subjects[method] = runner.subject(folder)
        report = runner.score(
            subjects[method], protocol, f"scores/{recipe.name}", n=n, seed=seed, chunk=count, overwrite=overwrite
        )
        reports.append(report)
    plain = [report.model_dump(mode="json") for report in reports]
    files.write(out / "results.json", json.dumps(plain, indent=1) + "\n")
    files.write(out / "leaderboard.md", markdown(reports))
    _draw({method: subject.model for method, subject in subjects.items()}, digits, recipe.threat, n, out)
    return reports


def _draw(models: dict[str, nn.Module], digits: DataSet, threat: Threat, n: int | None, out: Path) -> None:
    test = digits.test.take(n)
    radii = [threat.eps * share / 4 for share in range(9)]
    curves = [plots.accuracy_curve(name, model, test, threat, radii) for name, model in models.items()]
    title = f"Digits, {len(test)} test images, PGD-20: an upper bound of robust accuracy"
    plots.draw_curves(curves, threat, title, out / "accuracy_vs_eps.png")
    # Prefer digits that most models classify correctly: an attack on a misclassified digit shows nothing.
    right = torch.stack([clean_flags(model, test) for model in models.values()]).sum(0)
    shown = right.argsort(descending=True, stable=True)[:_SHOWN]
    rows = {
        name: [plots.portrait(model, test, int(position), threat) for position in shown]
        for name, model in models.items()
    }
    title = f"PGD-40 at eps {threat.eps:g} on test digits: predicted class (probability), bold if fooled"
    plots.draw_portraits(rows, digits.classes, title, out / "adversaries.png")


def markdown(reports: Sequence[Report]) -> str:
    """A Markdown table of reports with the same data, threat model and protocol, sorted by worst case, best first."""
    ranked = sorted(reports, key=lambda report: -report.worst.correct)
    attacks = [result.attack for result in ranked[0].results]
    lines = ["| rank | model | " + " | ".join(attacks) + " |", "|---|---|" + "---|" * len(attacks)]
    for rank, report in enumerate(ranked, 1):
        cells = " | ".join(_cell(result) for result in report.results)
        lines.append(f"| {rank} | {report.name} | {cells} |")
    notes = sorted({note for report in ranked for note in report.notes})
    return "\n".join(["# Leaderboard", "", " ".join([_setting(ranked[0]), *notes]), "", *lines, ""])


def _cell(result: Result) -> str:
    low, high = result.interval95
    return f"{100 * result.accuracy:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def _setting(report: Report) -> str:
    threat = report.threat
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return (
        f"Accuracy in % (95 % Wilson interval) on {report.data}, {report.split}, under {threat.norm} eps "
        f"{threat.eps:g}, protocol {report.protocol}; seed {report.seed}, batches of {report.batch_size}; "
        f"{versions}. "
        f"The worst case counts an image only if it stays right under every attack listed. {report.data_note}"
    ).strip()
