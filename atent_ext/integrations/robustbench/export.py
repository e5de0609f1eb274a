"""Exports a trained run for RobustBench's `load_model`: a checkpoint and its model-zoo entry."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from atent_ext.core import compat
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import Network, Threat
from atent_ext.core.version import __version__
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet
from atent_ext.integrations.robustbench import registration
from atent_ext.integrations.robustbench.source import robustbench_source
from atent_ext.models.wrappers import Normalised
from atent_ext.storage import files
from atent_ext.training.run_folder import RunFolder, load_data

MEMBERS = {"cifar10": "cifar_10", "cifar100": "cifar_100", "imagenet": "imagenet"}
"""Our data sets that RobustBench has: name -> member of its enumeration."""

_HEAD = """\
# RobustBench model-zoo entry of {name}, written by atent-ext {version}.
# {origin}
# The checkpoint is {file!r}. Run the lines below, then
#     robustbench.utils.load_model({name!r}, MODEL_DIR, {dataset!r}, {norm!r})
# robustbench 1.1.1 does not import alone: call atent_ext.core.compat.robustbench() first.
"""

_ENTRY = """\
from robustbench.model_zoo import model_dicts
from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
{imported}

# For RobustBench itself: the same entry belongs into robustbench/model_zoo/{dataset}.py, with the id of the upload.
model_dicts[BenchmarkDataset.{member}][ThreatModel.{norm}][{name!r}] = {{
    "model": lambda: {call},
    "gdrive_id": "ID_OF_THE_UPLOAD",
}}
"""

_REGISTRATION = """\
from functools import partial

from atent_ext import models
from atent_ext.integrations.robustbench import register

network = partial(models.build, {model!r}, classes={classes}, channels={channels}{arguments})
register(
    {name!r},
    dataset={dataset!r},
    threat_model={norm!r},
    model={factory},
)
"""


def export(
    run: Path, out: Path, name: str | None = None, *, data_root: Path | str | None = None, overwrite: bool = False
) -> tuple[Path, Path]:
    """Write the selected weights of a run folder for `load_model(model_dir=out)`; return (checkpoint, entry).

    `out`/DATASET/THREAT/NAME.pt is a plain state dict. NAME.py.txt beside it is Python code that adds NAME to
    RobustBench's zoo: with RobustBench alone if it has the data set and the network, else with `robustbench.register`.
    name: default the recipe's. data_root: the folder of the data sets, from which the number of classes is read.

    Raises BadInput if the folder holds no run, for a name that RobustBench's own zoo has, and if a file exists and
    `overwrite` is False; MissingExtra if robustbench is not installed.
    """
    compat.robustbench()
    if name is not None:
        registration.check_name(name)
    folder = RunFolder(run)
    recipe = folder.recipe()
    name = name or recipe.name
    origin = f"Trained by the recipe {recipe.name!r}"
    files_of = _new_files(out, name, recipe.dataset, recipe.threat, overwrite)
    images = load_data(recipe, data_root)
    model = _Model(name, recipe.model, recipe.dataset, recipe.threat, images, origin)
    return _write(model, folder.load_model(images), out, *files_of)


def export_network(
    network: nn.Module,
    out: Path,
    name: str,
    *,
    model: str,
    dataset: str,
    threat: Threat,
    classes: int | None = None,
    data_root: Path | str | None = None,
    overwrite: bool = False,
) -> tuple[Path, Path]:
    """`export` for a network in memory, such as that of a weights file; a `Normalised` one keeps its normalisation.

    model: the network's registry name. dataset, threat: what it was trained for. classes: as in `datasets.load`.
    Raises what `export` raises for names and files.
    """
    compat.robustbench()
    files_of = _new_files(out, name, dataset, threat, overwrite)
    images = datasets.load(dataset, data_root, classes=classes)
    described = _Model(name, Network(name=model), dataset, threat, images, "From a weights file, for models")
    return _write(described, network, out, *files_of)


@dataclass(frozen=True)
class _Model:
    """What an entry says of a model. origin: how it was made, the start of a sentence."""

    name: str
    network: Network
    dataset: str
    threat: Threat
    images: DataSet
    origin: str


def _new_files(out: Path, name: str, dataset: str, threat: Threat, overwrite: bool) -> tuple[Path, Path]:
    """The paths of the checkpoint and the entry. Raises BadInput for a bad name, and for files that exist."""
    registration.check_name(name)
    weights = out / registration.folder_name(dataset) / threat.norm / f"{name}.pt"
    entry = weights.with_name(f"{name}.py.txt")
    for path in (weights, entry):
        if path.exists() and not overwrite:
            message = f"{path} exists; give --overwrite to replace it, or another --name"
            raise BadInput(message, code="exists", field="out")
    return weights, entry


def _write(model: _Model, network: nn.Module, out: Path, weights: Path, entry: Path) -> tuple[Path, Path]:
    files.save_state(with_prefix(network.state_dict()), weights)
    files.write(entry, _entry(model, network, weights.relative_to(out)))
    return weights, entry


def with_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the prefix "module.model." where `load_model` would cut letters off the keys.

    It cuts the first letters off every key that contains "module." or "model." anywhere; so it cuts the prefix.
    """
    cut = any("module." in key or "model." in key for key in state)
    return {("module.model." if cut else "") + key: tensor for key, tensor in state.items()}


def _entry(model: _Model, network: nn.Module, file: Path) -> str:
    classes = len(model.images.classes)
    fields = {
        "name": model.name,
        "version": __version__,
        "origin": f"{model.origin} on {model.images.name!r} for {model.threat.norm}, eps {model.threat.eps!r}.",
        "dataset": model.dataset,
        "norm": model.threat.norm,
        "file": f"MODEL_DIR/{file.as_posix()}",
        "model": model.network.name,
        "arguments": "".join(f", {key}={value!r}" for key, value in model.network.arguments.items()),
        "classes": classes,
        "channels": model.images.test.shape[0],
        "factory": "network",
    }
    head = _HEAD.format(**fields)
    if isinstance(network, Normalised):
        scale = ", ".join(str(buffer.flatten().tolist()) for buffer in (network.mean, network.std))
        return head + _REGISTRATION.format(**fields | {"factory": f"lambda: models.Normalised(network(), {scale})"})
    source = robustbench_source(model.network.name, classes, model.network.arguments)
    if source is None or model.dataset not in MEMBERS:
        return head + _REGISTRATION.format(**fields)
    return head + _ENTRY.format(imported=source.imported, call=source.call, member=MEMBERS[model.dataset], **fields)
