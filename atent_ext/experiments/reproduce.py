"""`atent reproduce`: measure a study at a scale, cell by cell, in one JSON file from which it resumes."""

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from atent_ext.core import compat, registry
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Threat
from atent_ext.core.version import __version__
from atent_ext.evaluation.scoring import Subject
from atent_ext.experiments import drawing, timing
from atent_ext.experiments.rows import Certified, Context, history, images, measure
from atent_ext.experiments.study import CurveAxis, Row, Scale, ScaleName, Study
from atent_ext.figures import plots
from atent_ext.storage import files, locks

Result = dict[str, Any]


def reproduce(study: Study, context: Context, target: Path, rows: Sequence[str] = ()) -> Result:
    """Train or load the models of the study, measure every cell, and write the result to `target` after each cell.

    Cells in `target` of the same weights, data and settings are reused; other cells stay until they are measured again.
    rows: measure only these (empty: all). Figures are drawn beside `target`. Raises BadInput for a scale or a row that
    the study does not have, for a `target` of another study, seed, machine or version, and if another process works on
    it.
    """
    study.at(context.scale)
    _check_rows(study, context.scale, rows)
    files.replaceable(target)
    files.folder(target.parent)
    with locks.held(target, "wait for it, or name another --out"):
        return _reproduced(study, context, target, rows)


def _reproduced(study: Study, context: Context, target: Path, rows: Sequence[str]) -> Result:
    scale, result = study.at(context.scale), _opened(study, context, target)
    for row, entry in zip(study.rows_at(context.scale), result["rows"], strict=True):
        if row.quoted is not None or (rows and row.name not in rows):
            continue
        context.busy(f"{study.name}: {row.name}")
        if study.kind == "accuracy":
            _fill(entry, study, row, context, target, lambda: _write(result, target))
        elif study.kind == "figure":
            entry["run"] = context.train(study, row).name
    if study.kind == "times":
        timing.fill(result, study, context)
    result["files"] = [path.name for path in _pictures(result, study, context, scale, target)]
    _write(result, target)
    return result


def _check_rows(study: Study, scale: ScaleName, rows: Sequence[str]) -> None:
    known = [row.name for row in study.rows_at(scale)]
    for name in rows:
        if name not in known:
            raise registry.nearest(f"row of {study.name} at scale {scale}", name, known)
    if rows and study.kind == "times":
        message = f"--row is {', '.join(rows)}, but the rows of {study.name} are timed in turns; leave it out"
        raise BadInput(message, code="unused", field="rows")


def _opened(study: Study, context: Context, target: Path) -> Result:
    """The result with all its rows, read from `target` if it exists, else without cells."""
    result, known = _header(study, context), {}
    if target.is_file():
        try:
            old = json.loads(target.read_text(encoding="utf-8"))
            known = {row["name"]: row for row in old["rows"]}
        except (ValueError, TypeError, KeyError) as error:
            message = f"{target} is no result of `atent reproduce` ({error!r}); name another --out"
            raise BadInput(message, code="unreadable", field="out") from None
        for key in ("study", "scale", "seed", "batch_size", "machine", "versions"):
            if old.get(key) != result[key]:
                message = f"{target} holds {key} {old.get(key)!r}, not {result[key]!r}; name another --out"
                raise BadInput(message, code="other-content", field=key)
    for row in study.rows_at(context.scale):
        about = {"name": row.name, "paper": dict(row.paper), "note": row.note, "quoted": row.quoted}
        result["rows"].append(known.get(row.name, {}) | about)
    return result


def _pictures(result: Result, study: Study, context: Context, scale: Scale, target: Path) -> list[Path]:
    """Draw the figure of the study, or the curves of its table, beside `target`. Returns the paths."""
    if study.draws is not None:
        return drawing.draw(
            study.draws,
            [context.out / row["run"] for row in result["rows"]],
            target.with_name(f"{target.stem}-{study.draws}.png"),
            data_root=context.root,
            n=scale.n,
            seed=context.seed,
            dataset=scale.dataset,
            updates=scale.updates,
        )
    out = target.with_suffix(".png")
    return [path for axis in study.curves for path in _curves(result, axis, out.with_stem(f"{out.stem}-{axis.norm}"))]


def _curves(result: Result, axis: CurveAxis, out: Path) -> list[Path]:
    names = [column.name for column in axis.columns()]
    measured = [
        row for row in result["rows"] if all("accuracy" in row.get("cells", {}).get(name, {}) for name in names)
    ]
    if not measured:
        return []
    curves = [
        plots.Curve(row["name"], axis.radii(), [row["cells"][name]["accuracy"] for name in names]) for row in measured
    ]
    cell = measured[0]["cells"][names[0]]
    title = (
        f"{result['title']}\n{cell['attack']}, scale {result['scale']}: {measured[0]['data']}, the first {cell['n']} "
        f"test images, seed {result['seed']}"
    )
    # Runs of the smoke scale are trained at other radii.
    threat = Threat(norm=axis.norm, eps=0.0 if result["scale"] == "smoke" else axis.trained)
    for path in plots.both(out):
        plots.draw_curves(curves, threat, title, path)
    return plots.both(out)


def _header(study: Study, context: Context) -> Result:
    names = ("torch", compat.autoattack_package()[0], "foolbox", "adversarial-robustness-toolbox")
    return {
        "study": study.name,
        "title": study.title,
        "kind": study.kind,
        "scale": context.scale,
        "differs": study.at(context.scale).differs,
        "notes": study.notes,
        "command": f"atent reproduce {study.name} --scale {context.scale} --seed {context.seed}",
        "seed": context.seed,
        "batch_size": study.at(context.scale).batch_size,
        "machine": {
            "device": "cuda" if torch.cuda.is_available() and study.kind != "figure" else "cpu",
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
        },
        "versions": {"atent-ext": __version__} | {name: _version(name) for name in names},
        "columns": [column.name for column in study.measured()],
        "rows": [],
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fill(entry: Result, study: Study, row: Row, context: Context, target: Path, keep: Callable[[], None]) -> None:
    """Measure the cells of a row. Existing cells of the same weights, data and settings are reused."""
    subject, scale = context.subject(study, row), study.at(context.scale)
    about = _about(subject, context, study, row)
    same = all(entry.get(key) == about[key] for key in ("weights_sha256", "data", "threat"))
    cells = entry.get("cells", {}) if same else {}
    entry |= about | {"cells": cells}
    known: Certified = {}
    for column in study.measured():
        reason = row.skip.get(column.name) or ("left out at this scale" if column.name in scale.leave_out else None)
        setting = column.model_dump(mode="json", exclude={"slow"}) | {"n": images(column, row, scale)}
        if column.certify is not None:
            setting |= {"draws": scale.certificates}
        if reason:
            cells[column.name] = {"skipped": reason}
        elif cells.get(column.name, {}).get("asked") != setting:
            context.busy(f"{study.name}: {row.name}, {column.name}")
            runner = replace(context.runner, out=target.parent)
            name = f".{target.stem}-{digest(row.name, column.name)}"  # holds the report until the cell is in `target`
            cell = measure(subject, column, row, scale, context.seed, known, runner, name)
            cells[column.name] = cell | {"asked": setting}
            keep()
            (target.parent / f"{name}.json").unlink(missing_ok=True)


def digest(*texts: str) -> str:
    """The first 12 hex digits of the SHA-256 of some texts, for file names."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


def _about(subject: Subject, context: Context, study: Study, row: Row) -> Result:
    about = subject.about.model_dump(include={"model", "weights_sha256", "data", "data_note"})
    about |= {"threat": subject.threat.model_dump()}
    if row.weights is not None:
        return about | {"data": row.weights.dataset}
    recipe, epochs = context.recipe(study, row).model_dump(mode="json"), history(context.folder(study, row))
    recipe["init_from"] = (
        recipe["init_from"] and Path(recipe["init_from"]).name
    )  # the name alone: results are published
    seconds = round(sum(epoch["seconds"] for epoch in epochs), 1)
    return about | {"recipe": recipe, "training_seconds": seconds, "validation": epochs}


def _write(result: Result, target: Path) -> None:
    files.write(target, json.dumps(result, indent=1) + "\n")
