"""The folder of one training run: its files, and the lock that lets one process at a time write them.

recipe.yaml           the complete recipe, with defaults        metrics.jsonl   one line per finished epoch
weights.safetensors   the weights of the selected epoch         state.pt        the training state for --resume
tracker.json          which log a tracker keeps of the run      tensorboard/    the log, if the tracker is TensorBoard
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from atent_ext.core import processes
from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.data import datasets
from atent_ext.data.datasets import DataSet
from atent_ext.models import networks, weights
from atent_ext.storage import files, locks
from atent_ext.training import recipes
from atent_ext.training.recipes import Recipe

_log = logging.getLogger(__name__)
# In the order of deletion. The state comes first: without the other files it would claim epochs that are gone.
_RESULTS = ("state.pt", "metrics.jsonl", "weights.safetensors", "tracker.json")
_MEASURED = ("eval-*.json", "union-*.json", "certify-*.json", "eval-*.json.chunks", "union-*.json.parts")


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of one run."""

    path: Path

    @property
    def weights(self) -> Path:
        """The weights of the selected epoch, as safetensors."""
        return self.path / "weights.safetensors"

    @property
    def state(self) -> Path:
        """The training state after the last finished epoch."""
        return self.path / "state.pt"

    @property
    def tracker(self) -> Path:
        """Which log a tracker keeps of the run, as JSON."""
        return self.path / "tracker.json"

    def exists(self) -> bool:
        """Whether the folder already holds a run."""
        return (self.path / "recipe.yaml").is_file()

    @contextmanager
    def claimed(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """Lock the folder for this process and prepare it for a run of `recipe`.

        resume: continue the run in the folder. overwrite: delete the files of an earlier run, and no others.
        Raises BadInput if both are given; if neither is given and the folder holds a run, weights, a state, metrics or
        reports; if there is no run to resume, its state is missing, or another recipe trained it; and if another
        process holds the lock. Raises NotWritten if the system refuses to write.
        """
        not_both(resume, overwrite)
        if resume:
            self.to_resume()  # before anything is written
        self.path.mkdir(parents=True, exist_ok=True)
        with locks.held(self.path, "wait for it, or name another --out"):
            self._make_ready(recipe, resume, overwrite)
            yield

    def _make_ready(self, recipe: Recipe, resume: bool, overwrite: bool) -> None:
        self._remove_temporary_files()
        if resume:
            return self._check_same(self.recipe(), recipe)
        if self.exists() and not overwrite:
            message = f"{self.path} already holds a run; give --resume to go on or --overwrite to start anew"
            raise BadInput(message, code="exists", field="out")
        for path in self._results():
            if not overwrite:
                message = f"{path} is there already; name another --out, or give --overwrite to replace it"
                raise BadInput(message, code="exists", field="out")
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if overwrite:
            shutil.rmtree(self.path / "tensorboard", ignore_errors=True)  # otherwise both runs were in one curve
        files.write(self.path / "recipe.yaml", recipes.dump(recipe))

    def recipe(self) -> Recipe:
        """The recipe of the run. Raises BadInput if the folder holds no run."""
        if not self.exists():
            message = f"{self.path} holds no run: there is no recipe.yaml in it"
            raise BadInput(message, code="missing", field="path")
        return recipes.load(str(self.path / "recipe.yaml"))

    def to_resume(self) -> Recipe:
        """The recipe of the run to resume. Raises BadInput if the folder holds no run."""
        if not self.exists():
            message = f"{self.path} holds no run to go on with: there is no recipe.yaml in it; leave out --resume"
            raise BadInput(message, code="missing", field="resume")
        return self.recipe()

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write the metrics of all epochs, one JSON object per line."""
        files.write(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in history))

    def load_model(self, data: DataSet) -> nn.Module:
        """Load the network of the selected epoch, in eval mode. Raises BadInput if there is no finished epoch."""
        with seeded(0):  # keeps the caller's random state; the initial weights are replaced
            model = build_model(self.recipe(), data)
        weights.load_weights(model, self.weights)
        return model.eval()

    def _remove_temporary_files(self) -> None:
        """Remove the temporary files of writes during which a process was killed."""
        for name in ("recipe.yaml", *_RESULTS):
            for path in self.path.glob(f".{name}.*"):
                path.unlink()

    def _results(self) -> list[Path]:
        """The files of a run and of what was measured of it, without its recipe."""
        return [path for name in (*_RESULTS, *_MEASURED) for path in sorted(self.path.glob(name))]

    def _check_same(self, old: Recipe, new: Recipe) -> None:
        """Raise BadInput if the run cannot be resumed by the recipe `new`."""
        if (self.path / "metrics.jsonl").exists() and not self.state.exists():  # the state is written first
            message = f"{self.path} has finished epochs and no {self.state.name}; --overwrite starts the run anew"
            raise BadInput(message, code="missing", field="resume")
        texts = {"description", "differs"}  # a later version may reword them
        before, now = old.model_dump(exclude=texts), new.model_dump(exclude=texts)
        for field in (field for field in before | now if before.get(field) != now.get(field)):
            value, other = before.get(field, getattr(old, field)), now.get(field, getattr(new, field))
            difference = f"{self.path} was trained with {field} = {value!r}, not {other!r}"
            remedy = "go on with the recipe, --set and --seed that it was started with"
            message = f"{difference}; {remedy}, or give --overwrite to start anew"
            raise BadInput(message, code="other-content", field=field)


def not_both(resume: bool, overwrite: bool) -> None:
    """Raise BadInput if a run is to be resumed and replaced."""
    if resume and overwrite:
        message = "--resume and --overwrite exclude each other; give one of them"
        raise BadInput(message, code="conflict", field="resume")


def load_data(recipe: Recipe, root: Path | str | None = None, download: bool = False) -> DataSet:
    """The data set of a recipe, with the number of classes that it states. Raises BadInput as `datasets.load`."""
    return datasets.load(recipe.dataset, root, download, recipe.classes)


def build_model(recipe: Recipe, data: DataSet) -> nn.Module:
    """Build the recipe's network, newly initialised, for the classes and channels of `data`."""
    return networks.build_for(recipe.model.name, data.train[:1].images, len(data.classes), **recipe.model.arguments)


def initialise(model: nn.Module, recipe: Recipe) -> None:
    """Load the weights of `recipe.init_from` into `model`; logs what was guessed. Raises BadInput as `weights.fill`."""
    source = Path(str(recipe.init_from))
    path = RunFolder(source).weights if source.is_dir() else source
    stated = recipe.init_normalisation
    for note in weights.load_weights(model, path, key=recipe.init_weights_key, normalisation=stated)[1]:
        if processes.is_main():
            _log.warning("%s: %s", path, note)
