"""The figures of both papers by name: `draw` reads run folders, draws, and returns the paths that it wrote."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from atent_ext.core import registry, validate
from atent_ext.core.errors import BadInput
from atent_ext.storage import files
from atent_ext.subjects import run_folder

if TYPE_CHECKING:
    from atent_ext.evaluation.scoring import Subject

KINDS: Mapping[str, str] = {
    "history": "loss, clean and robust validation accuracy by epoch, with learning-rate decays and the selected epoch",
    "landscape": "loss around a test image, in the plane of its adversary and of a random direction",
    "probabilities": "class probabilities of a test image and of its adversary, one row per run",
    "curve": "accuracy under PGD at 9 radii from 0 to twice the radius of the runs",
    "plane": "decision boundaries of small nets trained on two classes in a t-SNE plane; takes no runs",
    "density": "samples of the Langevin kernel on a one-dimensional loss against their density; takes no runs",
}
"""Kind of figure -> what it shows."""

_WITHOUT_RUNS = ("plane", "density")
_POINTS = 9


@dataclass(frozen=True)
class _Request:
    """The arguments of `draw`."""

    runs: Sequence[Path]
    out: Path
    data_root: Path | None
    index: int
    n: int
    seed: int
    dataset: str
    updates: int


def draw(
    kind: str,
    runs: Sequence[Path],
    out: Path,
    *,
    data_root: Path | None = None,
    index: int = 0,
    n: int = 200,
    seed: int = 0,
    dataset: str = "digits",
    updates: int = 400,
) -> list[Path]:
    """Draw one figure of `KINDS` from run folders into `out` (.png, .pdf or .svg) and the `.svg` beside it.

    data_root: the folder of the data sets, as in `datasets.load`. index: the test image of "landscape" and
    "probabilities", from 0. n: test images of "curve"; images per class of "plane", at most those available. seed: of
    all random draws. dataset, updates: only for "plane": "digits" or "mnist", and the optimizer steps of each net.
    "plane" and "density" also write their numbers to the `.json` beside `out`. Returns the paths written, `out` first.
    Existing pictures, and existing numbers of the same kind of figure, are replaced.
    Raises BadInput for an unknown kind, a folder that holds no run, runs on different data sets or threat models,
    values out of range, or an existing `.json` with other content, such as a report. Nothing is written then.
    """
    from atent_ext.figures import plots

    if kind not in KINDS:
        raise registry.nearest("figure", kind, KINDS)
    if bool(runs) == (kind in _WITHOUT_RUNS):
        message = f"figure {kind!r} is given {len(runs)} runs; it {'takes none' if runs else 'needs at least one'}"
        raise BadInput(message, code="unused" if runs else "missing", field="runs")
    validate.steps("n", n)
    validate.steps("updates", updates)
    validate.seed(seed)
    plots.both(out)
    if kind in _WITHOUT_RUNS:
        _check_numbers(out.with_suffix(".json"), kind)
    return _DRAWERS[kind](_Request(runs, out, data_root, index, n, seed, dataset, updates))


def _check_numbers(path: Path, kind: str) -> None:
    """Raise BadInput if the file exists and does not hold the numbers of this kind of figure."""
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("figure") != kind:
        raise BadInput(
            f"{path} exists and holds something else than the numbers of a figure {kind!r}, which are written there; "
            "name another --out",
            code="exists",
            field="out",
        )


def _history(request: _Request) -> list[Path]:
    from atent_ext.figures import history

    names = _names(request.runs)
    records = [history.read(path) for path in request.runs]
    return history.draw(list(zip(names, records, strict=True)), request.out)


def _landscape(request: _Request) -> list[Path]:
    from atent_ext.figures import landscape

    maps = [
        landscape.around(name, run.model, run.test, request.index, run.threat, seed=request.seed)
        for name, run in _subjects(request)
    ]
    return landscape.draw(maps, request.out)


def _probabilities(request: _Request) -> list[Path]:
    from atent_ext.figures import probabilities

    subjects = _subjects(request)
    rows = [
        probabilities.attacked(name, run.model, run.test, request.index, run.threat, seed=request.seed)
        for name, run in subjects
    ]
    return probabilities.draw(rows, _classes(request), request.out)


def _curve(request: _Request) -> list[Path]:
    from atent_ext.figures import plots

    subjects = _subjects(request)
    threat = subjects[0][1].threat
    if any(run.threat != threat for _, run in subjects):
        message = "the runs have different threat models; draw one curve figure per norm and eps"
        raise BadInput(message, code="conflict", field="runs")
    if not threat.eps:
        message = "the runs' eps is 0; a curve needs runs of a threat model with eps > 0"
        raise BadInput(message, code="bad-value", field="runs")
    radii = [2 * threat.eps * k / (_POINTS - 1) for k in range(_POINTS)]
    count = min(request.n, *(len(run.test) for _, run in subjects))
    curves = [
        plots.accuracy_curve(name, run.model, run.test.take(count), threat, radii, seed=request.seed)
        for name, run in subjects
    ]
    title = f"{subjects[0][1].about.data}: PGD-20 on the first {count} test images, seed {request.seed}"
    for path in plots.both(request.out):
        plots.draw_curves(curves, threat, title, path)
    return plots.both(request.out)


def _plane(request: _Request) -> list[Path]:
    from atent_ext.figures import plane

    pair = plane.two_classes(request.dataset, request.n, request.data_root)
    study = plane.study(pair, plane.Setting(updates=request.updates), request.seed)
    numbers = request.out.with_suffix(".json")
    written = plane.draw(study, request.out)
    files.write(numbers, json.dumps(study.report, indent=1) + "\n")
    return [*written, numbers]


def _density(request: _Request) -> list[Path]:
    from atent_ext.figures import density

    setting = density.Setting()
    samples = density.samples(setting, request.seed)
    numbers = request.out.with_suffix(".json")
    written = density.draw(setting, samples, request.out)
    files.write(numbers, json.dumps(density.report(setting, samples, request.seed), indent=1) + "\n")
    return [*written, numbers]


_DRAWERS: Mapping[str, Callable[[_Request], list[Path]]] = {
    "history": _history,
    "landscape": _landscape,
    "probabilities": _probabilities,
    "curve": _curve,
    "plane": _plane,
    "density": _density,
}


def _names(runs: Sequence[Path]) -> list[str]:
    """The names of the recipes, or of the folders if two runs share a recipe. Raises BadInput for what is not a run."""
    from atent_ext.training.run_folder import RunFolder

    ways = [RunFolder(path).recipe().name for path in runs], [path.name for path in runs]
    return next((names for names in ways if len(set(names)) == len(names)), [str(path) for path in runs])


def _subjects(request: _Request) -> list[tuple[str, "Subject"]]:
    names = _names(request.runs)
    subjects = [run_folder.from_run(path, request.data_root) for path in request.runs]
    data = sorted({subject.about.data for subject in subjects})
    if len(data) > 1:
        message = f"the runs are on the data sets {', '.join(data)}; draw runs on one data set together"
        raise BadInput(message, code="conflict", field="runs")
    return list(zip(names, subjects, strict=True))


def _classes(request: _Request) -> tuple[str, ...]:
    from atent_ext.training.run_folder import RunFolder, load_data

    return load_data(RunFolder(request.runs[0]).recipe(), request.data_root).classes
