"""Exports a trained run for RobustBench's `load_model`: a checkpoint and its model-zoo entry."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from atent_ext.core import compat
from atent_ext.core.errors import BadInput
from atent_ext.core.version import __version__
from atent_ext.data.datasets import DataSet
from atent_ext.integrations.robustbench import registration
from atent_ext.integrations.robustbench.source import robustbench_source
from atent_ext.storage import files
from atent_ext.training.recipes import Recipe
from atent_ext.training.run_folder import RunFolder, load_data

MEMBERS = {"cifar10": "cifar_10", "cifar100": "cifar_100"}
"""Our data sets that RobustBench has: name -> member of its enumeration."""

_HEAD = """\
# RobustBench model-zoo entry of {name}, written by atent-ext {version}.
# Trained by the recipe {recipe!r} on {data!r} for {norm}, eps {eps!r}.
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

register(
    {name!r},
    dataset={dataset!r},
    threat_model={norm!r},
    model=partial(models.build, {model!r}, classes={classes}, channels={channels}{arguments}),
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
    registration.check_name(name)
    weights = out / registration.folder_name(recipe.dataset) / recipe.threat.norm / f"{name}.pt"
    entry = weights.with_name(f"{name}.py.txt")
    for path in (weights, entry):
        if path.exists() and not overwrite:
            message = f"{path} exists; give --overwrite to replace it, or another --name"
            raise BadInput(message, code="exists", field="out")
    images = load_data(recipe, data_root)
    state = folder.load_model(images).state_dict()
    files.save_state(with_prefix(state), weights)
    files.write(entry, _entry(name, recipe, images, weights.relative_to(out)))
    return weights, entry


def with_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with the prefix "module.model." where `load_model` would cut letters off the keys.

    It cuts the first letters off every key that contains "module." or "model." anywhere; so it cuts the prefix.
    """
    cut = any("module." in key or "model." in key for key in state)
    return {("module.model." if cut else "") + key: tensor for key, tensor in state.items()}


def _entry(name: str, recipe: Recipe, images: DataSet, file: Path) -> str:
    fields = {
        "name": name,
        "version": __version__,
        "recipe": recipe.name,
        "data": images.name,
        "dataset": recipe.dataset,
        "norm": recipe.threat.norm,
        "eps": recipe.threat.eps,
        "file": f"MODEL_DIR/{file.as_posix()}",
        "model": recipe.model.name,
        "arguments": "".join(f", {key}={value!r}" for key, value in recipe.model.arguments.items()),
        "classes": len(images.classes),
        "channels": images.test.images.shape[1],
    }
    head = _HEAD.format(**fields)
    network = robustbench_source(recipe.model.name, len(images.classes))
    if network is None or recipe.dataset not in MEMBERS:
        return head + _REGISTRATION.format(**fields)
    member = MEMBERS[recipe.dataset]
    return head + _ENTRY.format(imported=network.imported, call=network.call, member=member, **fields)
