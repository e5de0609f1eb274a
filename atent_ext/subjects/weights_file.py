"""A weights file with its network and data set as a subject."""

from pathlib import Path

from atent_ext.core.model_state import seeded
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.evaluation.scoring import Subject
from atent_ext.models import networks, weights
from atent_ext.subjects import base


def from_weights(
    path: Path,
    model: str,
    dataset: str,
    threat: Threat,
    root: Path | None = None,
    download: bool = False,
    classes: int | None = None,
) -> Subject:
    """A weights file for a registered model. classes: as in `datasets.load`.

    Raises BadInput for a file that holds no weights or does not fit.
    """
    images = datasets.load(dataset, root, download, classes)
    with seeded(0):  # the fresh weights are replaced, and the caller's random state stays as it is
        network = networks.build_for(model, images.test.images, len(images.classes))
    with images.explaining():
        weights.load_weights(network, path)
    return Subject(network.eval(), images.test, threat, base.about(path.stem, model, [path], images))
