"""Train and score the zoo of eval/experiments/zoo.yaml, entry by entry; what is there already is not done again.

python eval/experiments/zoo.py linf-wide-long-eps-0.36 mnist-linf-atent-48 --out zoo        (no name: all)
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from atent_ext.cli import exit
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.evaluation.report import Report
from atent_ext.experiments.rows import finished
from atent_ext.experiments.study import run_name
from atent_ext.submissions.cards import read_card
from atent_ext.submissions.folder import new as write_submission
from atent_ext.training import recipes
from atent_ext.training.loop import fit
from atent_ext.training.run_folder import RunFolder

ZOO = Path(__file__).resolve().with_suffix(".yaml")
Group = Literal["models", "search", "ablation", "cifar10"]


class Entry(BaseModel):
    """A training: a recipe, what is set in it, how many seeds (0, 1, ...), on how many images it is scored.

    against: the entries of the file that docs/zoo.md compares it with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    recipe: str
    set: tuple[str, ...] = ()
    seeds: int = Field(default=1, ge=1)
    n: int = Field(default=500, ge=1)
    against: tuple[str, ...] = ()

    def load(self, seed: int = 0) -> recipes.Recipe:
        return recipes.load(self.recipe, [*self.set, f"seed={seed}"])

    def files(self, name: str) -> list[str]:
        """What the files of the trainings of the entry `name` are called, in the order of the seeds."""
        return [name] if self.seeds == 1 else [f"{name}-seed{seed}" for seed in range(self.seeds)]


Known = dict[tuple[Group, str], Entry]


def entries(file: Path = ZOO) -> Known:
    """(group, name) -> entry, in the order of the file. Raises BadInput where the file holds anything else."""
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        groups = TypeAdapter(dict[Group, dict[str, Entry]]).validate_python(raw)
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        raise BadInput(f"{file} does not fit: {error}") from None
    found = {(group, name): entry for group, those in groups.items() for name, entry in those.items()}
    _check_names(found, file)
    return found


def _check_names(found: Known, file: Path) -> None:
    names = [name for _, name in found]
    seeds = {name: entry.seeds for (_, name), entry in found.items()}
    for (_, name), entry in found.items():
        if names.count(name) > 1:
            raise BadInput(f"{file} has two entries {name}; rename one")
        for rival in entry.against:
            if rival not in seeds:
                raise BadInput(f"{file}: {name} is to be compared with {rival}, which is no entry; name one")
            if entry.seeds != seeds[rival]:
                raise BadInput(f"{file}: {name} has {entry.seeds} seeds and {rival} {seeds[rival]}; make them alike")


def digest(recipe: recipes.Recipe) -> str:
    """Of what decides the weights, and so not of the recipe's name."""
    return run_name(recipe).rpartition("-")[2]


def train(recipe: recipes.Recipe, known: Known, out: Path) -> Path:
    """The run folder of a recipe, trained to its end; recipes that decide the same weights share one.

    Where it starts from the run of an entry of `known`, that is trained first.
    """
    folder = RunFolder(out / "runs" / digest(recipe))
    if not finished(folder, recipe):
        for base in _bases(recipe, known):
            train(base, known, out)
        fit(recipe, datasets.load(recipe.dataset), folder.path, resume=folder.exists())
    return folder.path


def _bases(recipe: recipes.Recipe, known: Known) -> list[recipes.Recipe]:
    run = Path(recipe.init_from or "").name
    return [base for base in (entry.load() for entry in known.values()) if digest(base) == run]


def score(group: Group, name: str, n: int, run: Path, out: Path, batch: int, speed: str) -> None:
    """Score a run by the command that its group is scored by, unless that was done; never in TF32.

    Raises BadInput where the file at hand is of other weights or another number of images.
    """
    target = out / group / (f"{name}.card.json" if group == "models" else f"{name}.json")
    if target.is_file():
        return _check(target, n, run)
    target.parent.mkdir(parents=True, exist_ok=True)
    if group == "models":
        folder = out / "submissions" / name
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier training, or half of one
        write_submission(run, folder, authors="The atent-ext authors", license="MIT", name=name)
        asked = ["verify", str(folder), "--protocol", "zoo"]
    else:
        asked = ["eval", str(run), *(["--held-out"] if group == "search" else [])]
    asked += ["--n", str(n), "--batch-size", str(batch), "--chunk", str(batch), "--speed", speed]
    exact = os.environ | {"NVIDIA_TF32_OVERRIDE": "0"}
    done = subprocess.run([sys.executable, "-m", "atent_ext", *asked, "--out", str(target)], env=exact)
    if done.returncode:  # it has said why
        raise typer.Exit(done.returncode)


def _check(target: Path, n: int, run: Path) -> None:
    found = read_card(target).report if target.name.endswith(".card.json") else Report.load(target)
    weights = hashlib.sha256(RunFolder(run).weights.read_bytes()).hexdigest()
    if found is None or found.weights_sha256 != weights or found.n != n:
        raise BadInput(f"{target} is not of {n} images and the weights in {run}; move it away")


app = typer.Typer(add_completion=False)


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(help="Entries [default: all].")] = None,
    file: Annotated[Path, typer.Option(help="The entries.")] = ZOO,
    out: Annotated[Path, typer.Option(help="Folder of runs, submissions, cards and reports.")] = Path("zoo"),
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch and a chunk of the scores.")] = 250,
    speed: Annotated[str, typer.Option(help="Of the scores: plain, channels-last, ...")] = "channels-last",
) -> None:
    known = entries(file)
    for name in names or ():
        if name not in {one for _, one in known}:
            raise BadInput(f"{name} is no entry of {file.name}; it has: {', '.join(one for _, one in known)}")
    for (group, name), entry in known.items():
        if not names or name in names:
            for seed, stem in enumerate(entry.files(name)):
                score(group, stem, entry.n, train(entry.load(seed), known, out), out, batch, speed)


if __name__ == "__main__":
    exit.run(app)
