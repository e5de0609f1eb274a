"""`atent reproduce`: a study at a scale, cell by cell, into one JSON file that an interrupted call goes on with."""

import importlib.metadata
import json
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from atent_ext import __version__, checkpoints, figures, plots
from atent_ext.errors import BadInput
from atent_ext.papers import timing
from atent_ext.papers.rows import Workshop, history, images, measure
from atent_ext.papers.study import CurveAxis, Row, Study
from atent_ext.recipes import Threat
from atent_ext.scoring import Subject

Result = dict[str, Any]


def reproduce(study: Study, shop: Workshop, target: Path, rows: Sequence[str] = ()) -> Result:
    """Train or load what the study needs, measure every cell, and write the result to `target` after each.

    Goes on with the cells that `target` already holds for the same weights, seed and scale. rows: only these (none:
    all), the others of `target` are kept. Figures are drawn beside `target`. Raises BadInput for a scale that the study
    does not have, and for a `target` of another study.
    """
    study.at(shop.scale)
    for name in rows:
        study.row(name)
    result = _header(study, shop)
    old = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
    for key in ("study", "scale", "seed"):
        if old and old.get(key) != result[key]:
            raise BadInput(f"{target} holds {key} {old.get(key)!r}, not {result[key]!r}; name another --out")
    known = {row["name"]: row for row in old.get("rows", [])}
    for row in study.rows_at(shop.scale):
        if rows and row.name not in rows:
            result["rows"] += [known[row.name]] if row.name in known else []
            continue
        shop.busy(f"{study.name}: {row.name}")
        entry: Result = {"name": row.name, "paper": row.paper, "note": row.note, "quoted": row.quoted}
        result["rows"].append(entry)
        if row.quoted is None and study.kind == "accuracy":
            _fill(entry, study, row, shop, known.get(row.name, {}), lambda: _write(result, target))
        elif row.quoted is None and study.kind == "figure":
            entry["run"] = shop.train(study, row).name
        _write(result, target)
    if study.kind == "times":
        timing.fill(result, study, shop)
    pictures = _pictures(result, study, shop, target)
    if target in pictures:  # where a figure writes its numbers, which become part of the result
        result["numbers"] = json.loads(target.read_text(encoding="utf-8"))
    result["files"] = [path.name for path in pictures if path != target]
    _write(result, target)
    return result


def _pictures(result: Result, study: Study, shop: Workshop, target: Path) -> list[Path]:
    """Draw what the study has to show beside `target`: its figure, or the curves of its table."""
    out, scale = target.with_suffix(".png"), study.at(shop.scale)
    if study.draws is not None:
        runs = [shop.out / row["run"] for row in result["rows"]]
        plane = {"dataset": scale.dataset, "updates": scale.updates}
        return figures.draw(study.draws, runs, out, data_root=shop.root, n=scale.n, seed=shop.seed, **plane)
    return [path for axis in study.curves for path in _curves(result, axis, out.with_stem(f"{out.stem}-{axis.norm}"))]


def _curves(result: Result, axis: CurveAxis, out: Path) -> list[Path]:
    names = [column.name for column in axis.columns()]
    measured = [row for row in result["rows"] if all(name in row.get("cells", {}) for name in names)]
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
    # Smoke runs are trained for radii of their own.
    threat = Threat(norm=axis.norm, eps=0.0 if result["scale"] == "smoke" else axis.trained)
    for path in plots.both(out):
        plots.draw_curves(curves, threat, title, path)
    return plots.both(out)


def _header(study: Study, shop: Workshop) -> Result:
    names = ("torch", "pyautoattack", "foolbox", "adversarial-robustness-toolbox")
    return {
        "study": study.name,
        "title": study.title,
        "kind": study.kind,
        "scale": shop.scale,
        "differs": study.at(shop.scale).differs,
        "notes": study.notes,
        "command": f"atent reproduce {study.name} --scale {shop.scale} --seed {shop.seed}",
        "seed": shop.seed,
        "batch_size": study.at(shop.scale).batch_size,
        "machine": {
            "device": "cuda" if torch.cuda.is_available() else "cpu",
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


def _fill(entry: Result, study: Study, row: Row, shop: Workshop, old: Result, keep: Any) -> None:
    """The cells of one row, those that `old` holds for the same weights taken over."""
    subject, scale = shop.subject(study, row), study.at(shop.scale)
    entry |= _about(subject, shop, study, row)
    cells = dict(old.get("cells", {})) if old.get("weights_sha256") == entry["weights_sha256"] else {}
    entry["cells"] = {}
    for column in study.measured():
        reason = row.skip.get(column.name) or ("left out at this scale" if column.name in scale.leave_out else None)
        if reason:
            entry["cells"][column.name] = {"skipped": reason}
            continue
        shop.busy(f"{study.name}: {row.name}, {column.name}")
        asked = column.model_dump(mode="json", exclude={"slow"}) | {"n": images(column, row, scale)}
        done = cells.get(column.name, {})
        same = done.get("asked") == asked
        entry["cells"][column.name] = (
            done if same else measure(subject, column, row, scale, shop.seed) | {"asked": asked}
        )
        keep()


def _about(subject: Subject, shop: Workshop, study: Study, row: Row) -> Result:
    about = {key: subject.about[key] for key in ("model", "weights_sha256", "data", "data_note")}
    about |= {"threat": subject.threat.model_dump()}
    if row.weights is not None:
        return about | {"data": row.weights.dataset}
    recipe, epochs = shop.recipe(study, row).model_dump(mode="json"), history(shop.folder(study, row))
    recipe["init_from"] = Path(recipe["init_from"]).name if recipe["init_from"] else None  # no path of a machine
    seconds = round(sum(epoch["seconds"] for epoch in epochs), 1)
    return about | {"recipe": recipe, "training_seconds": seconds, "validation": epochs}


def _write(result: Result, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write(target, json.dumps(result, indent=1) + "\n")
