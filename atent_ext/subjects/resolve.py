"""Resolve a reference that a user typed to a subject.

zoo:NAME or NAME         a model of the zoo         robustbench:NAME        a model of RobustBench's zoo
timm:NAME                a network of timm          torchvision:NAME        a network of torchvision
FILE.py:NAME             the user's own code        package.module:NAME     the same
hf:OWNER/NAME[@REVISION][/FILE]                     a repository of the Hugging Face hub
PATH                     a run folder, a weights file or an exported program (.pt2); ./NAME where the zoo has a model of
                         that name, too
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from atent_ext.core import registry, validate
from atent_ext.core.around import Around, refuse
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import ball as norm_called
from atent_ext.data import datasets
from atent_ext.evaluation.scoring import Subject
from atent_ext.subjects import zoo
from atent_ext.subjects.base import threat_model, under
from atent_ext.subjects.exported_program import SUFFIX, from_program
from atent_ext.subjects.hub import from_hub
from atent_ext.subjects.python_code import from_code, is_code
from atent_ext.subjects.robustbench import from_zoo
from atent_ext.subjects.run_folder import from_run
from atent_ext.subjects.weights_file import from_weights
from atent_ext.subjects.zoo import from_card

_ZOO, _ROBUSTBENCH, _HUB = "zoo:", "robustbench:", "hf:"
_NOTHING = Around()


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
    classes: int | None = None,
    weights_key: str | None = None,
    around: Around = _NOTHING,
    weights: Path | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> Subject:
    """The subject of a run folder, of a name of the zoo, of a program, or of a weights file with model and data set.

    reference: what the user typed. With a path separator ("./NAME") it is always a path; note that a `Path` drops the
    "./". "zoo:NAME" is always a model of the zoo. `robustbench:NAME` is a model of RobustBench; its checkpoint is in
    `model_dir` (None: "models"), and without `eps` it is scored at the radius of RobustBench's leaderboard. "hf:...":
    as in `from_hub`.
    model, dataset: needed for a weights file; a program needs a dataset. norm, eps: override the threat model.
    held_out: as in `from_run`; only for run folders. classes: as in `datasets.load`; only where `dataset` is given.
    weights_key: as in `from_weights`; only for weights files. around: what stands around the network; recipes and cards
    decide it, and networks of RobustBench hold it. weights: of the network that the code of `reference` makes.
    arguments: of that code, or of `model`.
    Raises BadInput for a name or a value that is not valid, before any file is looked at; for an argument that is
    missing or does not apply; and for a name that is both a model of the zoo and an existing path.
    """
    check_values(model, dataset, norm, eps, classes)
    if model_dir is not None and not str(reference).startswith(_ROBUSTBENCH):
        message = f"--model-dir is {model_dir}, but {reference} is no {_ROBUSTBENCH}NAME; drop it"
        raise BadInput(message, code="unused", field="model_dir")
    code = is_code(str(reference)) and not Path(reference).exists()
    _check_of_code(reference, code or model is not None, code, weights, arguments)
    if str(reference).startswith(_HUB):
        if held_out:
            message = f"{reference} is a repository, and only a run says which images it held out; leave out --held-out"
            raise BadInput(message, code="unused", field="held_out")
        named = (str(reference), model, dataset, norm, eps)
        return from_hub(*named, root, download, classes, weights_key, around, arguments)
    if code:
        place = (root, download, classes)
        stated = (weights_key, around)
        if weights is None and weights_key is not None:
            message = f"--weights-key is {weights_key}, and no --weights are given; drop it"
            raise BadInput(message, code="unused", field="weights_key")
        return _of_code(str(reference), weights, arguments, (model, dataset, norm, eps), held_out, *place, *stated)
    name, path = _zoo_name(str(reference)), Path(reference)
    robustbench = str(reference).startswith(_ROBUSTBENCH)
    if held_out and (robustbench or name is not None):
        raise BadInput(
            f"{reference} is a model of a zoo, and only a run says which images it held out; leave out --held-out",
            code="unused",
            field="held_out",
        )
    known = robustbench or name is not None or path.is_dir()
    if weights_key is not None and (known or path.suffix == SUFFIX):
        message = f"{reference} is no weights file, whose weights can be named; leave out --weights-key"
        raise BadInput(message, code="unused", field="weights_key")
    if known:
        refuse(around, f"{reference} says what stands around its network")
    if robustbench:
        if model or dataset is None:
            message = f"{reference} is a model of RobustBench's zoo; it needs --dataset, and no --model"
            raise BadInput(message, code="unused" if model else "missing", field="model" if model else "dataset")
        theirs = str(reference).removeprefix(_ROBUSTBENCH)
        return from_zoo(theirs, dataset, norm or "Linf", eps, root, download, model_dir or Path("models"), classes)
    if name is not None:
        _refuse(f"{reference} is a model of the zoo, whose card", model, dataset, classes)
        return from_card(name, norm, eps, root, download)
    if not path.exists():
        raise zoo.unknown(f"{reference} does not exist; give a run folder or a weights file", str(reference))
    if held_out and not path.is_dir():
        message = f"{reference} is no run folder, whose recipe says which images were held out; leave out --held-out"
        raise BadInput(message, code="unused", field="held_out")
    if path.is_dir():
        _refuse(f"{reference} is a run folder, whose recipe", model, dataset, classes)
        return under(from_run(path, root, download, held_out), norm, eps)
    if path.suffix == SUFFIX:
        return from_program(path, model, dataset, norm, eps, root, download, classes, around)
    if model is None or dataset is None or eps is None:
        message = f"{reference} is no run folder; a weights file needs --model, --dataset and --eps"
        missing = next(name for name, value in (("model", model), ("dataset", dataset), ("eps", eps)) if value is None)
        raise BadInput(message, code="missing", field=missing)
    threat = threat_model(norm or "Linf", eps)
    return from_weights(path, model, dataset, threat, root, download, classes, weights_key, around, arguments)


def _check_of_code(
    reference: Path | str, made: bool, code: bool, weights: Path | None, arguments: Mapping[str, Any] | None
) -> None:
    """Raise BadInput for weights without code that makes a network, and for arguments that no network takes."""
    if weights is not None and not code:
        message = f"--weights is {weights}, and {reference} is no code that makes a network; drop it"
        raise BadInput(message, code="unused", field="weights")
    if arguments and not made:
        message = f"--model-arg {', '.join(arguments)} is given, and no code or --model takes it; drop it"
        raise BadInput(message, code="unused", field="model_arg")


def _of_code(
    reference: str,
    weights: Path | None,
    arguments: Mapping[str, Any] | None,
    named: tuple[str | None, str | None, str | None, float | None],
    held_out: bool,
    root: Path | None,
    download: bool,
    classes: int | None,
    weights_key: str | None,
    around: Around,
) -> Subject:
    model, dataset, norm, eps = named
    if model is not None or held_out:
        message = f"{reference} is the code of a network; leave out {'--held-out' if held_out else '--model'}"
        raise BadInput(message, code="unused", field="held_out" if held_out else "model")
    if eps is None:
        raise BadInput(f"{reference} is the code of a network; it needs --eps", code="missing", field="eps")
    threat = threat_model(norm or "Linf", eps)
    place = (root, download, classes)
    return from_code(reference, weights, arguments or {}, dataset, threat, *place, weights_key, around)


def check_values(
    model: str | None, dataset: str | None, norm: str | None, eps: float | None, classes: int | None
) -> None:
    """Raise BadInput for an argument of `load` that is wrong whatever the reference is. No file is looked at."""
    models = registry.entries("model")
    if model is not None and model not in models and not is_code(model):
        raise registry.nearest("model", model, models)
    if dataset is not None:
        datasets.check_name(dataset)
    if norm is not None:
        norm_called(norm)
    if eps is not None:
        validate.radius("eps", eps)
    if classes is not None:
        validate.steps("classes", classes)


def _refuse(who: str, model: str | None, dataset: str | None, classes: int | None) -> None:
    """Raise BadInput for the options of weights files where a card or a recipe decides. who: the start of the error."""
    given = {"model": model, "dataset": dataset, "classes": classes}
    field = next((name for name, value in given.items() if value), None)
    if field is not None:
        drop = "--classes" if field == "classes" else "--model and --dataset"
        message = f"{who} names model and data set; drop {drop}"
        raise BadInput(message, code="unused", field=field)


def _zoo_name(reference: str) -> str | None:
    """The name of a zoo model that a reference means; None for a path. Raises BadInput if it could be both."""
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
