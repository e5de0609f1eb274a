"""Registers our models in RobustBench's zoo, so that its `load_model` and `benchmark` find them.

Importing this module changes nothing in RobustBench; `register` and `register_run` do.
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

_FILES = ("folder", "npz", "npy", "hf-dataset")


class _Entry(dict[str, Any]):
    """A zoo entry made by `register`. Only such entries may be replaced."""


class _NoDownload(str):
    """The `gdrive_id` of a model that cannot be downloaded.

    RobustBench formats it for the message "Downloading ..." directly before a download; this raises BadInput instead.
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

    dataset: a name that `data.load` takes; it is added to RobustBench's data sets if it is not one of them.
    threat_model: "Linf" or "L2". model: a network's registry name, or a function that returns a network.
    trained: the function returns the network with its weights. Otherwise RobustBench reads the weights, a plain state
    dict, from model_dir/DATASET/threat_model/name.pt, where DATASET is `folder_name(dataset)`.

    `robustbench.eval.benchmark` then gets its images from `data.load`: those below `data_root`, or else below
    the `data_dir` of `benchmark`, or else in the default folder of `data.load`. RobustBench's own loaders, which
    download, are replaced only if `data_root` is given. RobustBench runs the published AutoAttack, which needs 10
    classes or more; `atent eval` also scores models with fewer classes.

    A second call replaces the entry of the first. Raises BadInput for a name that RobustBench's own zoo has or that is
    not valid as a file name, and for an unknown data set, threat model or network; MissingExtra if robustbench is not
    installed.
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
    member = _member(dataset, data_root)
    factory = partial(_untrained, model, _absolute(dataset), data_root) if isinstance(model, str) else model
    # An empty list is an ensemble without files: load_model then returns the factory's network.
    source = [] if trained else _NoDownload(f"{member.value}/{threat_model}/{name}.pt")
    zoo = model_dicts.setdefault(member, OrderedDict()).setdefault(ThreatModel(threat_model), OrderedDict())
    zoo[name] = _Entry(model=factory, gdrive_id=source)


def register_run(run: Path | str, name: str | None = None, data_root: Path | str | None = None) -> None:
    """`register` the model of a run folder under the name, data set and threat model of its recipe.

    RobustBench's `load_model` then returns it with the run's weights and reads no file of `model_dir`.
    Raises BadInput if the folder holds no run, and what `register` raises.
    """
    folder = RunFolder(Path(run).absolute())
    recipe = folder.recipe()
    source = _absolute(recipe.dataset)
    register(
        name or recipe.name,
        dataset=recipe.dataset,
        threat_model=recipe.threat.norm,
        model=lambda: folder.load_model(datasets.load(source, data_root, classes=recipe.classes)),
        data_root=data_root,
        trained=True,
    )


def check_name(name: str) -> None:
    """Raise BadInput for a name that is not valid as a file name or that RobustBench's own zoo has."""
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
    """RobustBench's name of a data set and of its folder in `model_dir`: npz-FILE for `npz:some/FILE.npz`."""
    kind, _, path = _absolute(dataset).partition(":")
    return f"{kind}-{Path(path).name.removesuffix('.npz')}" if kind in _FILES else dataset


def _absolute(dataset: str) -> str:
    """The data set's name with an absolute path, if it has a path, so that it is valid in any working folder."""
    kind, _, path = dataset.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if kind in _FILES else dataset


def _member(dataset: str, data_root: Path | str | None) -> Any:
    """RobustBench's enumeration member for a data set; it is added if it does not exist."""
    from robustbench.data import _clean_dataset_loaders as loaders
    from robustbench.model_zoo.enums import BenchmarkDataset

    datasets.check_name(dataset)
    source, known = _absolute(dataset), BenchmarkDataset._value2member_map_
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
    """A loader with RobustBench's signature: the first `n_examples` test images and labels, at most all."""
    root = data_root or (None if data_dir == "./data" else data_dir)  # "./data" is RobustBench's default
    test = datasets.load(source, root).test
    return test[:n_examples].images, test.labels[:n_examples]


def _untrained(model: str, dataset: str, data_root: Path | str | None) -> nn.Module:
    images = datasets.load(dataset, data_root)
    with seeded(0):  # the fresh weights are replaced, and the caller's random state stays as it is
        return networks.build_for(model, images.test[:1].images, len(images.classes))
