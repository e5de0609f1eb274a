"""A weights file with its network and data set as a subject."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.evaluation.scoring import Subject
from atent_ext.models import weights
from atent_ext.subjects import base, python_code


def from_weights(
    path: Path,
    model: str,
    dataset: str,
    threat: Threat,
    root: Path | None = None,
    download: bool = False,
    classes: int | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Subject:
    """A weights file for a network of the registry or of code (`python_code.build`), made with `arguments`.

    classes: as in `datasets.load`. Raises BadInput for a file that holds no weights or does not fit.
    """
    images = datasets.load(dataset, root, download, classes)
    network = python_code.build(model, arguments or {}, images.test.images, len(images.classes))
    with images.explaining():
        weights.load_weights(network, path)
    return Subject(network.eval(), images.test, threat, base.about(path.stem, python_code.shown(model), [path], images))
