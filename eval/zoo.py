"""Train and score the zoo of eval/zoo.yaml, entry by entry; what is there already is not done again.

python eval/zoo.py linf-wide-long-eps-0.36 mnist-linf-atent-48 --out zoo        (no name: all)
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
import yaml
from pydantic import BaseModel, ConfigDict

from atent_ext import data, recipes, submissions
from atent_ext.papers.rows import finished
from atent_ext.papers.study import run_name
from atent_ext.runs import RunFolder
from atent_ext.training import fit

ZOO = Path(__file__).resolve().with_suffix(".yaml")
Group = Literal["models", "search", "ablation"]


class Entry(BaseModel):
    """A training: a recipe, what is set in it, its seed, on how many images it is scored.

    against: the models of the file that docs/zoo.md compares a model with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    recipe: str
    set: tuple[str, ...] = ()
    seed: int = 0
    n: int = 500
    against: tuple[str, ...] = ()

    def load(self) -> recipes.Recipe:
        return recipes.load(self.recipe, [*self.set, f"seed={self.seed}"])


def entries(file: Path = ZOO) -> dict[tuple[Group, str], Entry]:
    """(group, name) -> entry, in the order of the file."""
    raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    return {(group, name): Entry.model_validate(one) for group, found in raw.items() for name, one in found.items()}


def train(entry: Entry, out: Path) -> Path:
    """The run folder of an entry, trained to its end; recipes that decide the same weights share one."""
    recipe = entry.load()
    folder = RunFolder(out / "runs" / run_name(recipe).rpartition("-")[2])  # the digest without the recipe's name
    if not finished(folder, recipe):
        fit(recipe, data.load(recipe.dataset), folder.path, resume=folder.exists())
    return folder.path


def score(group: Group, name: str, entry: Entry, run: Path, out: Path, batch: int, speed: str) -> None:
    """Score a run by the command that its group is scored by, unless the file is there; never in TF32."""
    target = out / group / (f"{name}.card.json" if group == "models" else f"{name}.json")
    if target.is_file():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if group == "models":
        folder = out / "submissions" / name
        if not folder.is_dir():
            submissions.new(run, folder, authors="The atent-ext authors", license="MIT", name=name)
        asked = ["verify", str(folder), "--protocol", "zoo"]
    else:
        asked = ["eval", str(run), *(["--held-out"] if group == "search" else [])]
    asked += ["--n", str(entry.n), "--batch-size", str(batch), "--chunk", str(batch), "--speed", speed]
    exact = os.environ | {"NVIDIA_TF32_OVERRIDE": "0"}
    subprocess.run([sys.executable, "-m", "atent_ext", *asked, "--out", str(target)], check=True, env=exact)


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
            raise typer.BadParameter(f"{name} is no entry of {file.name}")
    for (group, name), entry in known.items():
        if not names or name in names:
            score(group, name, entry, train(entry, out), out, batch, speed)


if __name__ == "__main__":
    typer.run(main)
