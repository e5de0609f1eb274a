"""What a user typed, as a subject."""

from pathlib import Path

from atent_ext.core.errors import BadInput
from atent_ext.evaluation.scoring import Subject
from atent_ext.subjects import zoo
from atent_ext.subjects.base import threat_model, under
from atent_ext.subjects.robustbench import from_zoo
from atent_ext.subjects.run_folder import from_run
from atent_ext.subjects.weights_file import from_weights
from atent_ext.subjects.zoo import from_card

_ZOO = "robustbench:"


def load(
    path: Path,
    model: str | None = None,
    dataset: str | None = None,
    norm: str | None = None,
    eps: float | None = None,
    root: Path | None = None,
    download: bool = False,
    model_dir: Path | None = None,
    held_out: bool = False,
) -> Subject:
    """A run folder, a name of our zoo, or a weights file with its network and data set; norm and eps override theirs.

    held_out: as in `from_run`, which alone has such images. `robustbench:NAME` is a model of RobustBench's zoo; its
    checkpoint lies in `model_dir` (None: "models"), and without `eps` it is scored at the radius of RobustBench's
    leaderboard. Raises BadInput where something is missing or does not fit.
    """
    if held_out and (str(path).startswith(_ZOO) or (not path.exists() and str(path) in zoo.names())):
        raise BadInput(
            f"{path} is a model of a zoo, and only a run says which images it held out; leave out --held-out"
        )
    if str(path).startswith(_ZOO):
        if model or dataset is None:
            raise BadInput(f"{path} is a model of RobustBench's zoo; it needs --dataset, and no --model")
        return from_zoo(
            str(path).removeprefix(_ZOO), dataset, norm or "Linf", eps, root, download, model_dir or Path("models")
        )
    if model_dir is not None:
        raise BadInput(f"--model-dir is {model_dir}, but {path} is no {_ZOO}NAME; drop it")
    if not path.exists() and str(path) in zoo.names():
        if model or dataset:
            raise BadInput(
                f"{path} is a model of the zoo, whose card names model and data set; drop --model and --dataset"
            )
        return from_card(str(path), norm, eps, root, download)
    if not path.exists():
        raise zoo.unknown(f"{path} does not exist; give a run folder or a weights file", str(path))
    if held_out and not path.is_dir():
        raise BadInput(f"{path} is no run folder, whose recipe says which images were held out; leave out --held-out")
    if path.is_dir():
        if model or dataset:
            raise BadInput(f"{path} is a run folder, whose recipe names model and data set; drop --model and --dataset")
        return under(from_run(path, root, download, held_out), norm, eps)
    if model is None or dataset is None or eps is None:
        raise BadInput(f"{path} is no run folder; a weights file needs --model, --dataset and --eps")
    return from_weights(path, model, dataset, threat_model(norm or "Linf", eps), root, download)
