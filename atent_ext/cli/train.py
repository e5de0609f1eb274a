"""The command train."""

from pathlib import Path
from typing import Annotated

import typer

from atent_ext.cli.options import Changes, DataRoot, Download, Out, Seed, console, notice, print_line


def add(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(train)


def train(
    recipe: Annotated[str, typer.Argument(help="A name from `atent ls recipes`, or a YAML file.")],
    overrides: Changes = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    seed: Seed = None,
    data_root: DataRoot = None,
    download: Download = False,
) -> None:
    """Train a model by a recipe; the run folder is runs/RECIPE unless --out says otherwise.

    --resume without --set and --seed takes those that the run was started with.
    """
    from atent_ext.cli.console import TrainingBar
    from atent_ext.training import recipes as all_recipes
    from atent_ext.training.loop import fit
    from atent_ext.training.run_folder import RunFolder, load_data, not_both

    not_both(resume, overwrite)
    changes = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
    chosen = all_recipes.load(recipe, changes, notice)
    folder = out or Path("runs") / chosen.name
    if resume and not changes:  # the options of the first call need not be given again
        stored = RunFolder(folder).to_resume()
        chosen = stored if stored.name == chosen.name else chosen
    images = load_data(chosen, data_root, download)
    if ":" in chosen.dataset:
        notice(images.note)
    with TrainingBar(console) as bar:
        fit(chosen, images, folder, resume=resume, overwrite=overwrite, reporter=bar)
    print_line(f"trained: {folder}; score it with: atent eval {folder}")
