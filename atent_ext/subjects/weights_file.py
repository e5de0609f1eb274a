"""A weights file with its network and data set as a subject."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atent_ext.core.schema import StatedNormalisation, Threat
from atent_ext.data import datasets
from atent_ext.evaluation.scoring import Subject
from atent_ext.models import weights, wrappers
from atent_ext.subjects import base, python_code


def from_weights(
    path: Path,
    model: str,
    dataset: str,
    threat: Threat,
    root: Path | None = None,
    download: bool = False,
    classes: int | None = None,
    key: str | None = None,
    normalisation: StatedNormalisation = None,
    arguments: Mapping[str, Any] | None = None,
) -> Subject:
    """A weights file for a network of the registry or of code (`python_code.build`), made with `arguments`.

    The file is read as `weights.fill` does; a stated normalisation is applied. classes: as in `datasets.load`. Raises
    BadInput for a file that holds no weights or does not fit, and where nothing decides what is meant.
    """
    images = datasets.load(dataset, root, download, classes)
    network = python_code.build(model, arguments or {}, images.test[:1].images, len(images.classes))
    with images.explaining():
        key, notes = weights.load_weights(network, path, key=key, normalisation=normalisation)
    network = wrappers.normalised(network, normalisation, images.test.shape[0]).eval()
    base.check_classes(network, images)
    name = wrappers.described(python_code.shown(model, arguments), normalisation, key)
    about = base.about(path.stem, name, [path], images)
    return Subject(network, images.test, threat, about.model_copy(update={"weights_notes": notes}))
