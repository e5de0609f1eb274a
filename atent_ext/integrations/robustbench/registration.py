"""Our models in RobustBench's zoo: its own `load_model` and `benchmark` find them after `register` or `register_run`.

Nothing in RobustBench changes before one of them is called.
"""

import re
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from atent_ext.core import compat, registry
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.core.norms import norm as norm_called
from atent_ext.data import datasets
from atent_ext.models import networks
from atent_ext.training.run_folder import RunFolder

_FILES = ("folder", "npz")


class _Entry(dict[str, Any]):
    """An entry of the zoo that we made: these, and no others, may be replaced."""


class _NoDownload(str):
    """The `gdrive_id` of a model that lies nowhere on the web.

    RobustBench formats it for the message "Downloading ...", its last act before it downloads.
    """

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        message = f"there is no {self!s} in model_dir; write it there (`atent export` does) or name its folder"
        raise BadInput(message, code="missing", field="model_dir")


def register(
    name: str,
    *,
    dataset: str,
    threat_model: str,
    model: str | Callable[[], nn.Module],
    data_root: Path | str | None = None,
    trained: bool = False,
) -> None:
    """Make `robustbench.utils.load_model(name, model_dir, dataset, threat_model)` find a model of ours.

    `dataset`: a name that `data.load` takes; RobustBench takes the same text from now on, also for data sets that it
    did not know. `threat_model`: "Linf" or "L2". `model`: a network's registry name, or a function that returns one.
    `trained`: that function returns the network with its weights. Otherwise RobustBench reads them, as a plain state
    dict, from `model_dir`/DATASET/`threat_model`/`name`.pt, where DATASET is `folder_name(dataset)`.

    `robustbench.eval.benchmark` then takes the images from `data.load`, with their own preprocessing: those below
    `data_root`; without it below the `data_dir` that `benchmark` is given; without that where `data.load` looks.
    RobustBench's loaders of its own data sets, which download, are replaced only if `data_root` is given. It runs
    AutoAttack as published, which needs 10 classes or more; `atent eval` scores models of fewer classes.

    A second call replaces the entry of the first. Raises BadInput for a name that RobustBench's own zoo has or that no
    file can have, for an unknown data set, threat model or network; MissingExtra where robustbench is not installed.
    """
    compat.robustbench()
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import ThreatModel

    check_name(name)
    norm_called(threat_model)
    if trained and isinstance(model, str):
        message = f"trained is True, but model {model!r} is only a network's name; give a function that returns it"
        raise BadInput(message, code="conflict", field="model")
    if isinstance(model, str) and model not in registry.entries("model"):
        raise registry.nearest("model", model, registry.entries("model"))
    member = _joined(dataset, data_root)
    factory = partial(_fresh, model, _anywhere(dataset), data_root) if isinstance(model, str) else model
    # An empty list is an ensemble without files: load_model then returns what the factory made.
    source = [] if trained else _NoDownload(f"{member.value}/{threat_model}/{name}.pt")
    zoo = model_dicts.setdefault(member, OrderedDict()).setdefault(ThreatModel(threat_model), OrderedDict())
    zoo[name] = _Entry(model=factory, gdrive_id=source)


def register_run(run: Path | str, name: str | None = None, data_root: Path | str | None = None) -> None:
    """`register` the model of a run folder under the name, data set and threat model of its recipe.

    RobustBench's `load_model` then returns it with the run's weights; there need be no file in `model_dir`.
    Raises BadInput if the folder holds no run, and what `register` raises.
    """
    folder = RunFolder(Path(run).absolute())
    recipe = folder.recipe()
    source = _anywhere(recipe.dataset)
    register(
        name or recipe.name,
        dataset=recipe.dataset,
        threat_model=recipe.threat.norm,
        model=lambda: folder.load_model(datasets.load(source, data_root)),
        data_root=data_root,
        trained=True,
    )


def check_name(name: str) -> None:
    """Refuse a name that cannot be a file's or that is a model of RobustBench's own zoo."""
    from robustbench.model_zoo import model_dicts

    if not re.fullmatch(r"\w[\w.+-]*", name):
        message = f"name is {name!r}; letters, digits and . + - _ are needed, for it names a file"
        raise BadInput(message, code="bad-value", field="name")
    for member, threats in model_dicts.items():
        for zoo in threats.values():
            if name in zoo and not isinstance(zoo[name], _Entry):
                message = f"{name!r} is a model of RobustBench's own zoo ({member.value}); choose another name"
                raise BadInput(message, code="exists", field="name")


def folder_name(dataset: str) -> str:
    """What RobustBench calls the data set, and its folder in a `model_dir`: `npz:some/FILE.npz` is npz-FILE."""
    kind, _, path = _anywhere(dataset).partition(":")
    return f"{kind}-{Path(path).name.removesuffix('.npz')}" if kind in _FILES else dataset


def _anywhere(dataset: str) -> str:
    """The name of the data set with its path, if it has one, absolute: it stays right where the folder changes."""
    kind, _, path = dataset.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if kind in _FILES else dataset


def _joined(dataset: str, data_root: Path | str | None) -> Any:
    """RobustBench's member for a data set of ours, after it was added where there was none."""
    from robustbench.data import _clean_dataset_loaders as loaders
    from robustbench.model_zoo.enums import BenchmarkDataset

    if dataset not in registry.entries("data set") and not dataset.startswith(("folder:", "npz:")):
        raise registry.nearest("data set", dataset, [*registry.entries("data set"), "folder:PATH", "npz:FILE"])
    source, known = _anywhere(dataset), BenchmarkDataset._value2member_map_
    member = known.get(folder_name(dataset)) or _add_member(BenchmarkDataset, folder_name(dataset))
    if member.value != dataset and member in loaders and loaders[member].args[0] != source:
        taken = loaders[member].args[0]
        message = f"{dataset!r} is {member.value!r} to RobustBench, as is {taken!r}; rename one of the two"
        raise BadInput(message, code="conflict", field="dataset")
    if member not in loaders or data_root is not None:
        loaders[member] = partial(_test_images, source, data_root)
    known[dataset] = member
    return member


def _add_member(kind: Any, value: str) -> Any:
    """A new member of an Enum, which has no function for that; its name is its value."""
    member = object.__new__(kind)
    member._name_ = member._value_ = value
    member.__objclass__, member._sort_order_ = kind, len(kind)
    kind._member_names_.append(value)
    kind._member_map_[value] = kind._value2member_map_[value] = member
    return member


def _test_images(
    source: str,
    data_root: Path | str | None,
    n_examples: int | None,
    data_dir: str = "./data",
    transform: object = None,
) -> tuple[Tensor, Tensor]:
    """A loader of RobustBench: the first test images and labels, all where there are fewer."""
    root = data_root or (None if data_dir == "./data" else data_dir)  # "./data": the caller said nothing
    test = datasets.load(source, root).test
    return test.images[:n_examples], test.labels[:n_examples]


def _fresh(model: str, dataset: str, data_root: Path | str | None) -> nn.Module:
    images = datasets.load(dataset, data_root)
    with seeded(0):  # the fresh weights are replaced, and the caller's random state stays as it is
        return networks.build_for(model, images.test.images, len(images.classes))
