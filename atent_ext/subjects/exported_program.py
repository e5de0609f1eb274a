"""An exported program (.pt2) as a subject. The file holds the network; no code of the file is run."""

from pathlib import Path

from atent_ext.core.around import Around
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.data.resizing import as_taken, resized
from atent_ext.evaluation.scoring import Subject
from atent_ext.storage import untrusted, untrusted_program
from atent_ext.storage.untrusted_program import Program
from atent_ext.subjects import base
from atent_ext.subjects.base import threat_model
from atent_ext.submissions.cards import PROGRAM

SUFFIX = ".pt2"
_NOTHING = Around()


def from_program(
    path: Path,
    model: str | None,
    dataset: str | None,
    norm: str | None,
    eps: float | None,
    root: Path | None = None,
    download: bool = False,
    classes: int | None = None,
    around: Around = _NOTHING,
) -> Subject:
    """The program of a .pt2 file, on the test split of `dataset`. norm: None is "Linf". classes: as in `datasets.load`.
    around: what is stated, and applied; outputs are called "0", "1", ...

    Raises BadInput for a `model`, for a missing `dataset` or `eps`, what `untrusted_program.read` raises, and for
    images or classes that are not the program's.
    """
    if model is not None or dataset is None or eps is None:
        field = "model" if model is not None else "dataset" if dataset is None else "eps"
        message = f"{path} is an exported program, which holds its network; give --dataset and --eps, and no --model"
        raise BadInput(message, code="unused" if model is not None else "missing", field=field)
    threat = threat_model(norm or "Linf", eps)
    # The user's own path may be a link, as in the cache of a download.
    program = untrusted_program.read(untrusted.read(path.resolve(), untrusted_program.MOST), path, around.output)
    images = resized(datasets.load(dataset, root, download, classes), around.resize)
    images = as_taken(program.network, images)
    _check(program, images, around, path)
    if around.resize_inside is None:
        base.check_classes(program.network, images)
    about = base.about(path.stem, PROGRAM, [path], images)
    return base.behind(Subject(program.network, images.test, threat, about, notes=program.notes), around)


def _check(program: Program, images: datasets.DataSet, around: Around, path: Path) -> None:
    shape = images.test.shape
    if around.resize_inside is not None:
        shape = around.resize_inside.shape(shape)
    if shape != program.shape:
        message = f"{path} takes images {program.shape}, and those of {images.name} are {shape}; name its data set, "
        message += "or resize: --resize or --resize-inside"
        raise BadInput(message, code="bad-shape", field="dataset")
    if program.classes < len(images.classes):
        message = f"{path} has {program.classes} logits, and {images.name} {len(images.classes)} classes; "
        raise BadInput(f"{message}name its data set", code="bad-shape", field="dataset")
