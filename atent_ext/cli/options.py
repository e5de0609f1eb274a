"""What the commands share: where they print, and the options that mean the same everywhere."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

# Under torchrun every process runs this; the first one speaks.
console = Console(markup=False, highlight=False, quiet=os.environ.get("RANK", "0") != "0")

Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value, e.g. objective.steps=10; an objective.eps equal to threat.eps follows it."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write to.")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Folder with the data sets [default: $ATENT_DATA].")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision fetch missing data.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of every random draw.")]


def notice(text: str) -> None:
    """Print what a user has to know of what was asked for."""
    console.print(f"note: {text}", soft_wrap=True)
