"""What the commands share: where they print, and the options that mean the same everywhere."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from atent_ext.core import processes

# Under torchrun every process runs this; the first one speaks.
console = Console(markup=False, highlight=False, quiet=not processes.is_main())

Out = Annotated[Path | None, typer.Option("--out", help="Folder to write to.")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Folder with the data sets [default: $ATENT_DATA].")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision fetch missing data.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of every random draw.")]
