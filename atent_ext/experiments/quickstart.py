"""`atent quickstart`: the five methods trained on handwritten digits, scored by AutoAttack, as a table and pictures."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from atent_ext.attacks.accuracy import clean_flags
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet
from atent_ext.evaluation import earlier, scoring
from atent_ext.evaluation.protocol import load_protocol
from atent_ext.evaluation.scoring import Report
from atent_ext.experiments import table
from atent_ext.figures import plots
from atent_ext.storage import files
from atent_ext.subjects import run_folder
from atent_ext.training import recipes
from atent_ext.training.loop import Reporter, fit
from atent_ext.training.run_folder import RunFolder

METHODS = ("sgd", "pgd-at", "trades", "mart", "atent")
_SHOWN = 2
SCORED = 200
"""How many of the 360 test digits are scored by default: with all of them two cores need more than four minutes."""


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

    `n`: score on the first n test digits (None: all). `scoring_begins` hears the name of each recipe once it is
    trained, `notice` what `recipes.load` has to say of the overrides. Goes on where an earlier call with the same
    settings stopped; scores that are there already are taken as they are. Raises BadInput if `out` holds runs or
    scores of other settings and `overwrite` is not given.
    """
    protocol = load_protocol("autoattack")
    digits = datasets.load("digits")
    count = len(digits.test.take(n))  # refuses an impossible n before anything is trained
    results = out / "results.json"
    if overwrite:
        results.unlink(missing_ok=True)
    known = {report["name"]: report for report in earlier.read_all(results)}
    subjects, reports = {}, []
    for method in METHODS:
        recipe = recipes.load(f"digits-linf-{method}", [f"seed={seed}", *overrides], notice)
        folder = RunFolder(out / "runs" / recipe.name)
        again = folder.exists() and not overwrite  # a quickstart that was interrupted goes on
        fit(recipe, digits, folder.path, resume=again, overwrite=overwrite, reporter=reporter)
        scoring_begins(recipe.name)
        subjects[method] = run_folder.from_run(folder.path)
        report = known.get(recipe.name)
        if report is None:
            report = scoring.score(subjects[method], protocol, n=n, seed=seed, chunk=count)
        else:
            scoring.require_same(report, str(results), subjects[method], protocol, n=n, seed=seed, chunk=count)
        reports.append(report)
    files.write(results, json.dumps(reports, indent=1) + "\n")
    files.write(out / "leaderboard.md", table.markdown(reports))
    _draw({method: subject.model for method, subject in subjects.items()}, digits, recipe.threat, n, out)
    return reports


def _draw(models: dict[str, nn.Module], digits: DataSet, threat: Threat, n: int | None, out: Path) -> None:
    test = digits.test.take(n)
    radii = [threat.eps * share / 4 for share in range(9)]
    curves = [plots.accuracy_curve(name, model, test, threat, radii) for name, model in models.items()]
    title = f"Digits, {len(test)} test images, PGD-20: an upper bound of robust accuracy"
    plots.draw_curves(curves, threat, title, out / "accuracy_vs_eps.png")
    # Those that most models get right first: a digit that is wrong anyway shows nothing.
    right = torch.stack([clean_flags(model, test) for model in models.values()]).sum(0)
    shown = right.argsort(descending=True, stable=True)[:_SHOWN]
    rows = {
        name: [plots.portrait(model, test, int(position), threat) for position in shown]
        for name, model in models.items()
    }
    title = f"PGD-40 at eps {threat.eps:g} on test digits: predicted class (probability), bold if fooled"
    plots.draw_portraits(rows, digits.classes, title, out / "adversaries.png")
