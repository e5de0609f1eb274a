"""The commands that run experiments: quickstart, reproduce, plot."""

from pathlib import Path
from typing import Annotated

import typer

from atent_ext.cli.options import (
    Changes,
    DataRoot,
    Download,
    Seed,
    console,
    notice,
    print_line,
    print_notes,
    print_table,
)
from atent_ext.core.errors import BadInput


def add(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    for command in (quickstart, reproduce, plot):
        app.command()(command)


def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("quickstart"),
    seed: Seed = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.")] = False,
    overrides: Changes = None,
    n: Annotated[int, typer.Option("--n", min=1, max=360, help="Score on the first N of the 360 test digits.")] = 200,
) -> None:
    """Train SGD, PGD-AT, TRADES, MART and ATENT on digits, score them by AutoAttack, write table and pictures."""
    from atent_ext.cli.console import TrainingBar, board_table
    from atent_ext.experiments.quickstart import quickstart as run

    with TrainingBar(console) as bar:
        reports = run(
            out,
            seed=seed or 0,
            overrides=tuple(overrides or ()),
            n=n,
            overwrite=overwrite,
            reporter=bar,
            scoring_begins=bar.scoring,
            notice=notice,
        )
    print_table(board_table(reports))
    print_notes(reports)
    print_line(f"written: {out}/results.json, leaderboard.md, accuracy_vs_eps.png, adversaries.png")


def reproduce(
    name: Annotated[str | None, typer.Argument(help="A table or figure of the papers; see --list.")] = None,
    scale: Annotated[
        str, typer.Option(help="smoke (minutes), cpu (hours on 2 cores) or full (the paper's).")
    ] = "smoke",
    show: Annotated[bool, typer.Option("--list", help="List all tables and figures with their scales.")] = False,
    rows: Annotated[list[str] | None, typer.Option("--row", help="Only this row; may be repeated.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the results; runs lie in OUT/runs.")] = Path(
        "reproduce"
    ),
    seed: Seed = None,
    data_root: DataRoot = None,
    download: Download = False,
) -> None:
    """Train, attack and tabulate what a table or figure of the papers needs; goes on where it was interrupted."""
    from atent_ext.cli.console import TrainingBar
    from atent_ext.experiments import report, study
    from atent_ext.experiments.reproduce import reproduce as run
    from atent_ext.experiments.rows import Context

    if show:
        print_table(report.listing())
        return
    if name is None:
        message = "no table or figure is named; `atent reproduce --list` shows them all"
        raise BadInput(message, code="missing", field="name")
    chosen = study.load(name)
    chosen.at(scale)
    target = out / f"{name}-{scale}.json"
    with TrainingBar(console) as bar:
        context = Context(scale, out / "runs", seed or 0, data_root, download, bar, bar.busy)  # type: ignore[arg-type]
        result = run(chosen, context, target, rows or ())
    print_table(report.table(result))
    for label in ("differs", "notes"):
        if result[label]:
            print_line(f"{label}: {result[label]}")
    print_line(f"written: {target}")


def plot(
    kind: Annotated[str, typer.Argument(help="history, landscape, probabilities, curve, plane or density.")],
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders; plane and density take none.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Picture to write [default: KIND.png]; an SVG beside it.")
    ] = None,
    index: Annotated[
        int, typer.Option("--index", min=0, help="Index of the test image, for figures of a single image.")
    ] = 0,
    n: Annotated[int, typer.Option("--n", min=1, help="Test images of a curve, images per class of a plane.")] = 200,
    dataset: Annotated[str, typer.Option(help="For a plane: digits or mnist.")] = "digits",
    seed: Seed = None,
    data_root: DataRoot = None,
) -> None:
    """Draw a figure of the papers from run folders, as a picture and as vectors."""
    from atent_ext.experiments.drawing import draw

    target = out or Path(f"{kind}.png")
    with console.status("drawing"):
        files = draw(kind, runs or [], target, data_root=data_root, index=index, n=n, seed=seed or 0, dataset=dataset)
    print_line(f"written: {', '.join(map(str, files))}")
