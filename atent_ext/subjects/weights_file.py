"""A weights file with its network and data set as a subject."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atent_ext.core.around import Around
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.data.resizing import as_taken, resized
from atent_ext.evaluation.scoring import Subject
from atent_ext.models import weights
from atent_ext.subjects import base, python_code

_NOTHING = Around()


def from_weights(
    path: Path,
    model: str,
    dataset: str,
    threat: Threat,
    root: Path | None = None,
    download: bool = False,
    classes: int | None = None,
    key: str | None = None,
    around: Around = _NOTHING,
    arguments: Mapping[str, Any] | None = None,
) -> Subject:
    """A weights file for a network of the registry or of code (`python_code.build`), made with `arguments`.

    The file is read as `weights.fill` does; what is stated around the network is applied. classes: as in
    `datasets.load`. Raises BadInput for a file that holds no weights, does not fit or is ambiguous, and what
    `wrappers.surrounded` raises.
    """
    images = resized(datasets.load(dataset, root, download, classes), around.resize)
    network = python_code.build(model, arguments or {}, images.test[:1].images, len(images.classes))
    with images.explaining():
        key, notes = weights.load_weights(network, path, key=key, normalisation=around.normalisation)
    images = as_taken(network, images)
    about = base.about(path.stem, python_code.shown(model, arguments), [path], images)
    about = about.model_copy(update={"weights_notes": notes})
    subject = base.surrounded(Subject(network.eval(), images.test, threat, about), around, key)
    base.check_classes(subject.model, images)
    return subject
