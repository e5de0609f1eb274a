"""Train and score the entries of eval/experiments/zoo.yaml one by one, seed after seed; finished ones are skipped.

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
from atent_ext.evaluation.protocol import load_protocol
from atent_ext.experiments.runner import Runner, finished
from atent_ext.experiments.study import run_name
from atent_ext.submissions.cards import read_card
from atent_ext.submissions.folder import new as write_submission
from atent_ext.training import recipes
from atent_ext.training.run_folder import RunFolder

ZOO = Path(__file__).resolve().with_suffix(".yaml")
Group = Literal["models", "search", "ablation", "cifar10"]


class Entry(BaseModel):
    """A training: a recipe, what is set in it, how many seeds (0, 1, ...), and how many images it is scored on.

    against: the entries of the file that docs/log/zoo.md compares it with. protocol: that of one of the models.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    recipe: str
    set: tuple[str, ...] = ()
    seeds: int = Field(default=1, ge=1)
    n: int = Field(default=500, ge=1)
    against: tuple[str, ...] = ()
    protocol: str = "zoo"

    def load(self, seed: int = 0) -> recipes.Recipe:
        return recipes.load(self.recipe, [*self.set, f"seed={seed}"])

    def files(self, name: str) -> list[str]:
        """The names of the files of the entry `name`, one a seed."""
        return [name] if self.seeds == 1 else [f"{name}-seed{seed}" for seed in range(self.seeds)]


Known = dict[tuple[Group, str], Entry]


def entries(file: Path = ZOO) -> Known:
    """(group, name) -> entry, in the order of the file. Raises BadInput for a file that is not one of entries."""
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        groups = TypeAdapter(dict[Group, dict[str, Entry]]).validate_python(raw)
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError) as error:
        raise BadInput(f"{file} does not fit: {error}", code="unreadable", field="file") from None
    known = {(group, name): entry for group, members in groups.items() for name, entry in members.items()}
    _check_names(known, file)
    return known


def _check_names(known: Known, file: Path) -> None:
    names = [name for _, name in known]
    seeds = {name: entry.seeds for (_, name), entry in known.items()}
    for (_, name), entry in known.items():
        if names.count(name) > 1:
            raise BadInput(f"{file} has two entries {name}; rename one", code="conflict", field="name")
        for rival in entry.against:
            if rival not in seeds:
                message = f"{file}: {name} is to be compared with {rival}, which is no entry; name one"
                raise BadInput(message, code="unknown-name", field="against")
            if entry.seeds != seeds[rival]:
                message = f"{file}: {name} has {entry.seeds} seeds and {rival} {seeds[rival]}; make them alike"
                raise BadInput(message, code="conflict", field="seeds")


def digest(recipe: recipes.Recipe) -> str:
    """A hash of everything that decides the weights; the recipe's name is no part of it."""
    return run_name(recipe).rpartition("-")[2]


def train(recipe: recipes.Recipe, known: Known, runner: Runner) -> RunFolder:
    """Train a recipe to its end and return its run folder; recipes that decide the same weights share one.

    If it starts from the run of an entry of `known`, that entry is trained first.
    """
    name = f"runs/{digest(recipe)}"
    folder = RunFolder(runner.out / name)
    if finished(folder, recipe):
        return folder
    for base in _bases(recipe, known):
        train(base, known, runner)
    return runner.train(recipe, name)


def _bases(recipe: recipes.Recipe, known: Known) -> list[recipes.Recipe]:
    run = Path(recipe.init_from or "").name
    return [base for base in (entry.load() for entry in known.values()) if digest(base) == run]


def score(group: Group, name: str, entry: Entry, run: RunFolder, runner: Runner, batch: int, speed: str) -> None:
    """Score a run as its group is scored, unless its report is there: the models by `atent verify`.

    Raises BadInput for a report of other weights, images or settings.
    """
    if group == "models":
        return _verify(name, entry, run, runner.out, batch, speed)
    subject = runner.subject(run, held_out=group == "search")
    protocol = load_protocol("autoattack")
    runner.score(subject, protocol, f"{group}/{name}", n=entry.n, batch_size=batch, chunk=batch, speed=speed)


def _verify(name: str, entry: Entry, run: RunFolder, out: Path, batch: int, speed: str) -> None:
    target = out / "models" / f"{name}.card.json"
    if target.is_file():
        return _check(target, entry, run)
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = out / "submissions" / name
    shutil.rmtree(folder, ignore_errors=True)  # it may be of an earlier training, or incomplete
    write_submission(run.path, folder, authors="The atent-ext authors", license="MIT", name=name)
    verify(folder, target, entry.protocol, entry.n, batch, speed)


def verify(folder: Path, target: Path, protocol: str, n: int, batch: int, speed: str = "channels-last") -> None:
    """Run `atent verify` in a process of its own; it resumes, and leaves a finished card as it is."""
    command = ["verify", str(folder), "--protocol", protocol, "--n", str(n), "--out", str(target)]
    command += ["--batch-size", str(batch), "--chunk", str(batch), "--speed", speed]
    process = subprocess.run([sys.executable, "-m", "atent_ext", *command])
    if process.returncode:  # it has printed why
        raise typer.Exit(process.returncode)


def _check(target: Path, entry: Entry, run: RunFolder) -> None:
    report = read_card(target).report
    weights = hashlib.sha256(run.weights.read_bytes()).hexdigest()
    if report is None or report.weights_sha256 != weights or (report.n, report.protocol) != (entry.n, entry.protocol):
        message = f"{target} is not of {entry.n} images, {entry.protocol} and the weights in {run.path}; move it away"
        raise BadInput(message, code="other-content", field="out")


app = typer.Typer(add_completion=False)


@app.command()
def main(
    names: Annotated[list[str] | None, typer.Argument(help="Entries [default: all].")] = None,
    file: Annotated[Path, typer.Option(help="The entries.")] = ZOO,
    out: Annotated[Path, typer.Option(help="Folder of runs, submissions, cards and reports.")] = Path("zoo"),
    seeds: Annotated[int | None, typer.Option(min=1, help="At most so many seeds [default: all].")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch and a chunk of the scores.")] = 250,
    speed: Annotated[str, typer.Option(help="Of the scores: plain, channels-last, ...")] = "channels-last",
) -> None:
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"  # read by CUDA when it starts, here and in `atent verify`
    runner = Runner(out)
    known = entries(file)
    there = [name for _, name in known]
    for name in names or ():
        if name not in there:
            message = f"{name} is no entry of {file.name}; it has: {', '.join(there)}"
            raise BadInput(message, code="unknown-name", field="names")
    chosen = {place: entry for place, entry in known.items() if not names or place[1] in names}
    for seed in range(min(max(entry.seeds for entry in chosen.values()), seeds or sys.maxsize)):
        for (group, name), entry in chosen.items():
            if seed < entry.seeds:
                stem = entry.files(name)[seed]
                score(group, stem, entry, train(entry.load(seed), known, runner), runner, batch, speed)


if __name__ == "__main__":
    exit.run(app)
