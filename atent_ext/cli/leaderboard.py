"""The commands around the registry of cards: board, registry check."""

from pathlib import Path
from typing import Annotated

import typer

from atent_ext.cli.exit import Group
from atent_ext.cli.options import print_line
from atent_ext.core.errors import BadInput

registry = typer.Typer(cls=Group, no_args_is_help=True, help="The cards, recipes and weights of the registry.")


def add(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(board)
    app.add_typer(registry, name="registry")


def board(
    out: Annotated[Path, typer.Option("--out", help="Folder to write the site to.")],
    cards: Annotated[
        Path | None, typer.Option(help="Folder of the cards [default: those that atent-ext brings].")
    ] = None,
) -> None:
    """Write the leaderboard of all cards as pages that open without a network."""
    from atent_ext.core.registry import folder as registry_folder
    from atent_ext.leaderboard.site import build

    folder = registry_folder("card") if cards is None else cards
    if not folder.is_dir():
        message = f"there are no cards in {folder}; name their folder with --cards"
        raise BadInput(message, code="missing", field="cards")
    written = build(folder, out)
    print_line(f"written: {written[0]} and {len(written) - 1} more files")


@registry.command("check")
def check(
    root: Annotated[Path, typer.Argument(help="Folder with cards/, recipes/ and README.md.")] = Path("registry"),
) -> None:
    """Check all cards, hashes, counts and recipes; exit code 1 and a line for each fault if there are any."""
    from atent_ext.leaderboard.check import check as run

    problems = run(root)
    for problem in problems:
        print_line(problem)
    if problems:
        raise typer.Exit(1)
    print_line(f"{root}: all cards and recipes are in order")


# A typer app with a single command needs a callback; otherwise the command's name is read as its argument.
@registry.callback()
def _registry() -> None:
    pass
