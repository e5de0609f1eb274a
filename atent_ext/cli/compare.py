"""`atent compare`: tests whether models differ in robust accuracy."""

from pathlib import Path
from typing import Annotated

import typer

from atent_ext.cli.options import print_line, print_table


def add(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(compare)


def compare(
    reports: Annotated[list[Path], typer.Argument(help="Two or more JSON files of `atent eval`.")],
    attack: Annotated[
        str, typer.Option(help="worst_case, autoattack, clean, or the name of an attack in the reports.")
    ] = "worst_case",
    until_decided: Annotated[
        bool, typer.Option("--until-decided", help="Look at the images in random order and stop when it is decided.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random order of --until-decided.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """Compare reports of the same images pair by pair: McNemar's exact test, several pairs corrected by Holm.

    With --until-decided it is a sequential McNemar test, which may stop at any image.
    """
    from atent_ext.evaluation.comparison import compare as run

    comparison = run(*reports, attack=attack, until_decided=until_decided, seed=seed)
    if as_json:
        print(comparison.to_json(), end="")
        return
    print_table(comparison.table())
    for note in comparison.notes:
        print_line(f"note: {note}")
