"""A model of RobustBench's zoo as a subject."""

import importlib.metadata
from pathlib import Path

from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import norm as norm_called
from atent_ext.data import datasets
from atent_ext.evaluation.scoring import Subject
from atent_ext.subjects import base
from atent_ext.subjects.base import threat_model


def from_zoo(
    name: str,
    dataset: str,
    norm: str,
    eps: float | None,
    root: Path | None,
    download: bool,
    model_dir: Path,
    classes: int | None = None,
) -> Subject:
    """A model of RobustBench's zoo from the files in `model_dir`, on the test split of `dataset`.

    eps: the radius; None: that of RobustBench's leaderboard. classes: as in `datasets.load`. Arguments are checked
    before files. Raises BadInput for an unknown name, a file that is missing or holds more than tensors, and for `eps`
    None if the leaderboard has no radius for the data set and norm; MissingExtra if robustbench is not installed.
    """
    from atent_ext.integrations.robustbench import zoo

    norm_called(norm)
    validate.radius("eps", 0.0 if eps is None else eps)
    datasets.check_name(dataset)
    zoo.check(name, dataset=dataset, threat_model=norm)
    eps = zoo.LEADERBOARD_EPS.get((dataset, norm)) if eps is None else eps
    if eps is None:
        message = f"there is no usual radius for {dataset} and {norm}; give --eps"
        raise BadInput(message, code="missing", field="eps")
    threat = threat_model(norm, eps)
    files = zoo.zoo_files(name, dataset=dataset, threat_model=norm, model_dir=model_dir)
    images = datasets.load(dataset, root, download, classes)
    network = zoo.load_zoo(name, dataset=dataset, threat_model=norm, model_dir=model_dir)
    package = f"robustbench {importlib.metadata.version('robustbench')}"
    return Subject(network, images.test, threat, base.about(name, package, files, images))
