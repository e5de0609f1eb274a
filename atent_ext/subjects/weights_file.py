"""A weights file with its network and data set as a subject."""

from pathlib import Path

from atent_ext.core.model_state import seeded
from atent_ext.core.schema import StatedNormalisation, Threat
from atent_ext.data import datasets
from atent_ext.evaluation.scoring import Subject
from atent_ext.models import networks, weights, wrappers
from atent_ext.subjects import base


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
) -> Subject:
    """A weights file for a registered model, read as `weights.fill` does; a stated normalisation is applied.

    classes: as in `datasets.load`. Raises BadInput for a file that holds no weights or does not fit, and where nothing
    decides what is meant.
    """
    images = datasets.load(dataset, root, download, classes)
    with seeded(0):  # the fresh weights are replaced, and the caller's random state stays as it is
        network = networks.build_for(model, images.test.images, len(images.classes))
    with images.explaining():
        key, notes = weights.load_weights(network, path, key=key, normalisation=normalisation)
    network = wrappers.normalised(network, normalisation, images.test.images.shape[1]).eval()
    about = base.about(path.stem, wrappers.described(model, normalisation, key), [path], images)
    return Subject(network, images.test, threat, about.model_copy(update={"weights_notes": notes}))
