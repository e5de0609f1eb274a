"""`atent view`: a report, a card or a run as one HTML page."""

from pathlib import Path
from typing import Annotated

import typer

from atent_ext.cli.options import DataRoot, console, print_line
from atent_ext.core.errors import BadInput


def add(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(view)


def view(
    reports: Annotated[list[Path], typer.Argument(help="A report of `atent eval`, a card or a run folder; or two.")],
    out: Annotated[Path | None, typer.Option("--out", help="Page to write [default: beside the first].")] = None,
    subject: Annotated[
        str | None, typer.Option(help="The model that was scored, as `atent eval` takes it: shows images, too.")
    ] = None,
    data_root: DataRoot = None,
) -> None:
    """Write one HTML page that opens without a network: accuracy by attack, what fell to which, curves, images."""
    from atent_ext.leaderboard import view as pages

    if len(reports) > 2:
        message = f"{len(reports)} are named; a page shows one, or two side by side"
        raise BadInput(message, code="bad-value", field="reports")
    shown = [pages.read(path) for path in reports]
    images = None
    if subject is not None:
        from atent_ext import subjects
        from atent_ext.leaderboard.view_images import look

        if shown[0].union is not None:
            message = f"--subject is given, but {reports[0]} is of several threat models; name a report of one"
            raise BadInput(message, code="conflict", field="subject")
        if shown[0].report is None:
            message = f"--subject is given, but {reports[0]} has no report; run `atent eval` first"
            raise BadInput(message, code="missing", field="subject")
        with console.status("attacking the images"):
            images = look(subjects.load(subject, root=data_root), shown[0].report)
    first = reports[0]
    target = out or (first / "view.html" if first.is_dir() else first.with_suffix(".html"))
    pages.write(shown, target, images)
    print_line(f"written: {target}")
