"""The command `atent`: parses, calls, prints. Errors that we raise on purpose are one line and exit code 2."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from atent_ext import __version__
from atent_ext.errors import AtentError

app = typer.Typer(
    name="atent", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)
console = Console()

Out = Annotated[Path | None, typer.Option("--out", help="Folder to write to.")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Folder with the data sets [default: $ATENT_DATA].")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision fetch missing data.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random draw.")]


def main() -> None:
    """Run the command line."""
    try:
        app()
    except (AtentError, OSError) as error:
        print(f"atent: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """ATENT: adversarial training by entropic regularization, trained and scored beside its rivals."""
    if show:
        console.print(f"atent-ext {__version__}", highlight=False)
        raise typer.Exit


@app.command()
def recipes() -> None:
    """List the training recipes."""
    from rich.table import Table

    from atent_ext import recipes as all_recipes

    table = Table("recipe", "data", "threat", "what it trains")
    for name in all_recipes.names():
        recipe = all_recipes.load(name)
        threat = f"{recipe.threat.norm} {recipe.threat.eps:.4g}"
        table.add_row(name, recipe.dataset, threat, recipe.description)
    console.print(table)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A name from `atent recipes`, or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. objective.steps=10.")] = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    seed: Seed = None,
    data_root: DataRoot = None,
    download: Download = False,
) -> None:
    """Train a model by a recipe; the run folder is runs/RECIPE unless --out says otherwise."""
    from atent_ext import data
    from atent_ext import recipes as all_recipes
    from atent_ext.console import TrainingBar
    from atent_ext.training import fit

    chosen = all_recipes.load(recipe, [*(overrides or []), *([] if seed is None else [f"seed={seed}"])])
    images = data.load(chosen.dataset, data_root, download)
    folder = out or Path("runs") / chosen.name
    with TrainingBar(console, chosen.name) as bar:
        fit(chosen, images, folder, resume=resume, overwrite=overwrite, reporter=bar)
    console.print(f"trained: {folder}; score it with: atent eval {folder}", highlight=False, soft_wrap=True)
