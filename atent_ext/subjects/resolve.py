"""What a user typed, as a subject.

zoo:NAME or NAME         a model of our zoo        robustbench:NAME        a model of RobustBench's zoo
PATH                     a run folder or a weights file; ./NAME where the zoo has a model of that name, too
"""

import os
from pathlib import Path

from atent_ext.core.errors import BadInput
from atent_ext.evaluation.scoring import Subject
from atent_ext.subjects import zoo
from atent_ext.subjects.base import threat_model, under
from atent_ext.subjects.robustbench import from_zoo
from atent_ext.subjects.run_folder import from_run
from atent_ext.subjects.weights_file import from_weights
from atent_ext.subjects.zoo import from_card

_ZOO, _ROBUSTBENCH = "zoo:", "robustbench:"


def load(
    reference: Path | str,
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

    reference: what was typed. With a separator in it ("./NAME") it is always a path; a `Path` forgets the "./".
    "zoo:NAME" is always a model of our zoo. `robustbench:NAME` is a model of RobustBench's; its checkpoint lies in
    `model_dir` (None: "models"), and without `eps` it is scored at the radius of RobustBench's leaderboard.
    held_out: as in `from_run`, which alone has such images.
    Raises BadInput where something is missing or does not fit, and for a name that is a model of our zoo and a file or
    folder, too.
    """
    name, path = _zoo_name(str(reference)), Path(reference)
    robustbench = str(reference).startswith(_ROBUSTBENCH)
    if held_out and (robustbench or name is not None):
        raise BadInput(
            f"{reference} is a model of a zoo, and only a run says which images it held out; leave out --held-out",
            code="unused",
            field="held_out",
        )
    if robustbench:
        if model or dataset is None:
            raise BadInput(f"{reference} is a model of RobustBench's zoo; it needs --dataset, and no --model")
        theirs = str(reference).removeprefix(_ROBUSTBENCH)
        return from_zoo(theirs, dataset, norm or "Linf", eps, root, download, model_dir or Path("models"))
    if model_dir is not None:
        raise BadInput(f"--model-dir is {model_dir}, but {reference} is no {_ROBUSTBENCH}NAME; drop it")
    if name is not None:
        if model or dataset:
            raise BadInput(
                f"{reference} is a model of the zoo, whose card names model and data set; drop --model and --dataset"
            )
        return from_card(name, norm, eps, root, download)
    if not path.exists():
        raise zoo.unknown(f"{reference} does not exist; give a run folder or a weights file", str(reference))
    if held_out and not path.is_dir():
        raise BadInput(
            f"{reference} is no run folder, whose recipe says which images were held out; leave out --held-out"
        )
    if path.is_dir():
        if model or dataset:
            raise BadInput(
                f"{reference} is a run folder, whose recipe names model and data set; drop --model and --dataset"
            )
        return under(from_run(path, root, download, held_out), norm, eps)
    if model is None or dataset is None or eps is None:
        raise BadInput(f"{reference} is no run folder; a weights file needs --model, --dataset and --eps")
    return from_weights(path, model, dataset, threat_model(norm or "Linf", eps), root, download)


def _zoo_name(reference: str) -> str | None:
    """The model of our zoo that was typed; None for anything else. Raises BadInput where it may be a path as well."""
    if reference.startswith(_ZOO):
        return reference.removeprefix(_ZOO)
    if _is_path(reference) or reference not in zoo.names():
        return None
    if Path(reference).exists():
        kind = "folder" if Path(reference).is_dir() else "file"
        raise BadInput(
            f"{reference} is a {kind} here and a model of the zoo; say {os.curdir}{os.sep}{reference} for the {kind}, "
            f"or {_ZOO}{reference} for the model",
            code="conflict",
            field="subject",
        )
    return reference


def _is_path(reference: str) -> bool:
    return any(separator in reference for separator in (os.sep, os.altsep) if separator)
