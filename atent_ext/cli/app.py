"""The command `atent`. An AtentError is printed as one line and ends it with exit code 2."""

import os
from typing import Annotated

import typer

from atent_ext.cli import (
    adversaries,
    check,
    compare,
    evaluate,
    exit,
    experiments,
    export,
    leaderboard,
    listing,
    show,
    submissions,
    train,
    view,
)
from atent_ext.cli.options import AsJson, console, print_json, print_line, print_table
from atent_ext.core.version import __version__

app = typer.Typer(
    cls=exit.Commands,
    name="atent",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for _part in (
    listing,
    show,
    train,
    check,
    evaluate,
    export,
    compare,
    experiments,
    submissions,
    adversaries,
    leaderboard,
    view,
):
    _part.add(app)


def main() -> None:
    """Run the command line."""
    # torch reads it at its first large tensor. Large pages avoid most page faults of a training step on the CPU.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    app()


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """ATENT: adversarial training by entropic regularization, trained and scored beside its rivals."""
    if show:
        print_line(f"atent-ext {__version__}")
        raise typer.Exit


@app.command()
def doctor(
    neighbours: Annotated[list[str] | None, typer.Argument(help="Which to check [default: all].")] = None,
    as_json: AsJson = False,
) -> None:
    """Use torch, AutoAttack, RobustBench and others once each; exit code 1 if something installed cannot be used."""
    from atent_ext.cli import doctor as checks
    from atent_ext.cli.console import doctor_table

    if as_json:
        report = checks.check(neighbours or ())
        print_json(report)
    else:
        with console.status("using each neighbour once, which takes about half a minute"):
            report = checks.check(neighbours or ())
        print_table(doctor_table(report))
    if not checks.healthy(report):
        raise typer.Exit(1)
