"""RobustBench 1.1.1 (Croce et al. 2021, arXiv:2010.09670): our models in its zoo, and its models in our evaluation.

`register` and `register_run` put an entry into RobustBench's tables; its own `load_model` and `benchmark` do the rest.
Nothing in RobustBench changes before one of them is called. `export` writes a run as a checkpoint for its zoo.
"""

import io
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from atent_ext import checkpoints, compat, data, models, registry
from atent_ext.errors import BadInput
from atent_ext.modes import seeded
from atent_ext.norms import norm as norm_called
from atent_ext.runs import RunFolder

LEADERBOARD_EPS: Mapping[tuple[str, str], float] = {
    ("cifar10", "Linf"): 8 / 255,
    ("cifar10", "L2"): 0.5,
    ("cifar100", "Linf"): 8 / 255,
}
"""The radii of RobustBench's leaderboards, by data set and threat model."""

_FILES = ("folder", "npz")


class _Entry(dict[str, Any]):
    """An entry of the zoo that we made: these, and no others, may be replaced."""


class _NoDownload(str):
    """The `gdrive_id` of a model that lies nowhere on the web.

    RobustBench formats it for the message "Downloading ...", its last act before it downloads.
    """

    __slots__ = ()

    def __format__(self, spec: str) -> str:
        raise BadInput(f"there is no {self!s} in model_dir; write it there (`atent export` does) or name its folder")


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
        raise BadInput(
            f"trained is True, but model {model!r} is only a network's name; give a function that returns it"
        )
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
        model=lambda: folder.load_model(data.load(source, data_root)),
        data_root=data_root,
        trained=True,
    )


def check_name(name: str) -> None:
    """Refuse a name that cannot be a file's or that is a model of RobustBench's own zoo."""
    from robustbench.model_zoo import model_dicts

    if not re.fullmatch(r"\w[\w.+-]*", name):
        raise BadInput(f"name is {name!r}; letters, digits and . + - _ are needed, for it names a file")
    for member, threats in model_dicts.items():
        for zoo in threats.values():
            if name in zoo and not isinstance(zoo[name], _Entry):
                raise BadInput(f"{name!r} is a model of RobustBench's own zoo ({member.value}); choose another name")


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
        raise BadInput(f"{dataset!r} is {member.value!r} to RobustBench, as is {taken!r}; rename one of the two")
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
    test = data.load(source, root).test
    return test.images[:n_examples], test.labels[:n_examples]


def _fresh(model: str, dataset: str, data_root: Path | str | None) -> nn.Module:
    images = data.load(dataset, data_root)
    with seeded(0):  # the fresh weights are replaced, and the caller's random state stays as it is
        return models.build_for(model, images.test.images, len(images.classes))


def load_zoo(name: str, *, dataset: str, threat_model: str, model_dir: Path | str = "models") -> nn.Module:
    """A model of RobustBench's zoo, in eval mode, from checkpoints that lie in `model_dir`; nothing is downloaded.

    RobustBench's own `load_model` loads it, after it is known that the files hold tensors and no code.
    Raises BadInput for an unknown name, data set or threat model, for a missing file (with its path), for one that
    holds more than tensors or does not fit; MissingExtra where robustbench is not installed.
    """
    for path in zoo_files(name, dataset=dataset, threat_model=threat_model, model_dir=model_dir):
        checkpoints.tensors(path)
    from robustbench.utils import load_model

    try:
        with redirect_stdout(io.StringIO()), seeded(0):  # it says what it does, and draws weights that it replaces
            network: nn.Module = load_model(name, Path(model_dir), dataset, threat_model)
    except BadInput:
        raise
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BadInput(f"RobustBench cannot make its model {name!r} of the file in {model_dir}: {reason}") from None
    return network


def zoo_files(name: str, *, dataset: str, threat_model: str, model_dir: Path | str = "models") -> list[Path]:
    """The checkpoints that RobustBench reads for a model of its zoo. Raises BadInput if one is not there."""
    entry, member = _zoo_entry(name, dataset, threat_model)
    file = Path(model_dir) / member.value / threat_model / f"{name}.pt"
    source = entry.get("gdrive_id")
    if source is None or (member.value == "imagenet" and "Standard" in name):
        raise BadInput(f"RobustBench reads {name!r} from no model_dir: another package downloads it; choose another")
    parts = range(len(source)) if isinstance(source, list) else None
    files = [file] if parts is None else [file.with_name(f"{file.name}_m{part}.pt") for part in parts]
    for path in files:
        if not path.is_file():
            raise BadInput(f"there is no checkpoint {path}; put it there, or name the model_dir that has it")
    return files


def _zoo_entry(name: str, dataset: str, threat_model: str) -> tuple[Mapping[str, Any], Any]:
    compat.robustbench()
    from robustbench.model_zoo import model_dicts
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    norm_called(threat_model)
    known = BenchmarkDataset._value2member_map_
    if dataset not in known:
        raise registry.nearest("data set of RobustBench", dataset, known)
    zoo = model_dicts[known[dataset]].get(ThreatModel(threat_model), {})
    if not zoo:
        raise BadInput(f"RobustBench has no {threat_model} models for {dataset}; choose another norm or data set")
    if name not in zoo:
        raise registry.nearest(f"{threat_model} model of RobustBench for {dataset}", name, zoo)
    return zoo[name], known[dataset]
