"""The folder of one training run: what lies in it, and who may write there.

recipe.yaml      the whole recipe, defaults included          metrics.jsonl   one line per finished epoch
weights.safetensors   the weights of the selected epoch       state.pt        what --resume goes on from
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import seeded
from atent_ext.data.datasets import DataSet
from atent_ext.models import networks, weights
from atent_ext.storage import files, locks
from atent_ext.training import recipes
from atent_ext.training.recipes import Recipe

# The state first, as a run is cleared: without the others it would claim epochs of which nothing is left.
_RESULTS = ("state.pt", "metrics.jsonl", "weights.safetensors")


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

    def exists(self) -> bool:
        """Whether the folder already holds a run."""
        return (self.path / "recipe.yaml").is_file()

    @contextmanager
    def claimed(self, recipe: Recipe, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """Have the folder, made ready for `recipe`, for this process alone.

        Raises BadInput if it already holds a run, or weights, states, metrics or reports, and neither `resume` nor
        `overwrite` is given, if there is no run to resume, or none with a state after finished epochs, if that was made
        by another recipe, or if another process trains there, which it names. `overwrite` removes these files and no
        others.
        """
        if resume and overwrite:
            raise BadInput("--resume and --overwrite exclude each other; give one of them")
        if resume:
            self.to_resume()  # nothing is made where there is no run
        self.path.mkdir(parents=True, exist_ok=True)
        with locks.held(self.path, "wait for it, or name another --out"):
            self._make_ready(recipe, resume, overwrite)
            yield

    def _make_ready(self, recipe: Recipe, resume: bool, overwrite: bool) -> None:
        self._tidy()
        if resume:
            return self._same(self.recipe(), recipe)
        if self.exists() and not overwrite:
            raise BadInput(f"{self.path} already holds a run; give --resume to go on or --overwrite to start anew")
        for left in self._results():
            if not overwrite:
                raise BadInput(f"{left} is there already; name another --out, or give --overwrite to replace it")
            left.unlink()
        files.write(self.path / "recipe.yaml", recipes.dump(recipe))

    def recipe(self) -> Recipe:
        """The recipe that the run was made by. Raises BadInput if the folder holds no run."""
        if not self.exists():
            raise BadInput(f"{self.path} holds no run: there is no recipe.yaml in it")
        return recipes.load(str(self.path / "recipe.yaml"))

    def to_resume(self) -> Recipe:
        """The recipe of the run to go on with. Raises BadInput if there is none yet, which says how to begin one."""
        if not self.exists():
            raise BadInput(f"{self.path} holds no run to go on with: there is no recipe.yaml in it; leave out --resume")
        return self.recipe()

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Write all epochs' metrics, one JSON object a line."""
        files.write(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in history))

    def load_model(self, data: DataSet) -> nn.Module:
        """The trained network of the selected epoch, in eval mode."""
        with seeded(0):  # the fresh weights are replaced, and the caller's random state stays as it is
            model = build_model(self.recipe(), data)
        weights.load_weights(model, self.weights)
        return model.eval()

    def _tidy(self) -> None:
        """Remove what is left of a write in which a process was killed."""
        for name in ("recipe.yaml", *_RESULTS):
            for left in self.path.glob(f".{name}.*"):
                left.unlink()

    def _results(self) -> list[Path]:
        """What a run leaves, but for its recipe."""
        return [found for name in (*_RESULTS, "eval-*.json") for found in sorted(self.path.glob(name))]

    def _same(self, old: Recipe, new: Recipe) -> None:
        if (self.path / "metrics.jsonl").exists() and not self.state.exists():  # written after it
            raise BadInput(f"{self.path} has finished epochs and no {self.state.name}; --overwrite starts the run anew")
        said = {"description", "differs"}  # words, which a later version may put better
        was, now = old.model_dump(exclude=said), new.model_dump(exclude=said)
        for field in (field for field in was if was[field] != now[field]):
            raise BadInput(
                f"{self.path} was trained with {field} = {was[field]!r}, not {now[field]!r}; "
                "go on with the recipe, --set and --seed that it was started with, or give --overwrite to start anew"
            )


def build_model(recipe: Recipe, data: DataSet) -> nn.Module:
    """The recipe's network, fresh, for the classes and channels of `data`."""
    return networks.build_for(recipe.model.name, data.train.images, len(data.classes), **recipe.model.arguments)
