"""The command ls: lists recipes, models, cards, ... It does not import torch."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.cells import cell_len

from atent_ext.cli import catalog
from atent_ext.cli.catalog import Entry
from atent_ext.cli.options import AsJson, console, print_json, print_line
from atent_ext.core import registry

_LEAST = 12
"""Least length of a shortened description; with less room it is left out."""


def add(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(ls)


def ls(
    kind: Annotated[str | None, typer.Argument(help=f"{', '.join(catalog.KINDS)} [default: how many].")] = None,
    as_json: AsJson = False,
) -> None:
    """List what there is by name: recipes, models, data sets, protocols and so on, and trained models (zoo)."""
    if kind is None:
        return _overview(as_json)
    if kind not in catalog.KINDS:
        raise registry.nearest("kind", kind, catalog.KINDS)
    entries = catalog.KINDS[kind][0]()
    if as_json:
        return print_json(entries)
    columns = _COLUMNS[kind]
    rows = [columns.cells(entry) for entry in entries if "fault" not in entry]
    _print_lines(columns.headings, rows, columns.figures, columns.described)
    faults = [f"{entry['name']} cannot be used: {entry['fault']}" for entry in entries if "fault" in entry]
    for fault in [*faults, *(registry.faults() if kind == "recipes" else ())]:
        print_line(f"note: {fault}")


def _overview(as_json: bool) -> None:
    counts = {kind: len(entries()) for kind, (entries, _) in catalog.KINDS.items()}
    if as_json:
        return print_json(counts)
    rows = [(kind, str(counts[kind]), purpose) for kind, (_, purpose) in catalog.KINDS.items()]
    _print_lines(("kind", "number", "what they are for"), rows)
    print_line("atent ls KIND lists them, atent show NAME shows a recipe, a protocol or a card.")


# ---- lines


def _print_lines(
    headings: Sequence[str], rows: Iterable[Sequence[str]], figures: int = 0, described: bool = False
) -> None:
    """Print a line for each row, in columns; the last `figures` columns are aligned on the right.

    described: the last column is a text, which is shortened to the console's width. Other cells are never shortened.
    """
    rows = [headings, *rows]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    gaps = len(widths) - 1
    if described:
        room = max(0, console.width - sum(widths[:-1]) - 2 * gaps)
        rows, widths[-1] = [(*row[:-1], _shortened(row[-1], room)) for row in rows], 0
    gap = " " * (2 if sum(widths) + 2 * gaps <= console.width else 1)
    for number, row in enumerate(rows):
        padded = [(cell, " " * (width - cell_len(cell))) for cell, width in zip(row, widths, strict=True)]
        texts = [cell + fill for cell, fill in padded[: len(row) - figures]]
        numbers = [fill + cell for cell, fill in padded[len(row) - figures :]]
        print_line(gap.join([*texts, *numbers]).rstrip(), style="bold" if number == 0 else None)


def _shortened(text: str, room: int) -> str:
    return textwrap.shorten(text, room, placeholder=" ...") if room >= _LEAST else ""


# ---- columns


def _threat(threat: Mapping[str, Any]) -> str:
    return f"{threat['norm']} {threat['eps']:.4g}"


def _from(entry: Entry) -> str:
    return f"(from {entry['package']})" if entry["package"] else ""


def _recipe(entry: Entry) -> tuple[str, ...]:
    return entry["name"], entry["dataset"], _threat(entry["threat"]), f"{_from(entry)} {entry['description']}".strip()


def _registered(entry: Entry) -> tuple[str, ...]:
    return entry["name"], f"{entry['target']} {_from(entry)}".strip()


def _accuracies(entry: Entry) -> tuple[str, str]:
    return f"{entry['clean']:.1%}", f"{entry['worst']:.1%}"


def _card(entry: Entry) -> tuple[str, ...]:
    return (entry["name"], entry["dataset"], _threat(entry["threat"]), *_accuracies(entry), str(entry["images"]))


def _zoo(entry: Entry) -> tuple[str, ...]:
    return (entry["name"], entry["recipe"] or "-", _threat(entry["threat"]), *_accuracies(entry))


@dataclass(frozen=True)
class _Columns:
    """The columns of a kind. figures: number of numeric columns at the end. described: the last column is a text."""

    headings: tuple[str, ...]
    cells: Callable[[Entry], tuple[str, ...]]
    figures: int = 0
    described: bool = False


_COLUMNS: Mapping[str, _Columns] = {
    "recipes": _Columns(("recipe", "data", "threat", "what it trains"), _recipe, described=True),
    "models": _Columns(("model", "where it is"), _registered),
    "datasets": _Columns(("data set", "where it is"), _registered),
    "objectives": _Columns(("objective", "where it is"), _registered),
    "protocols": _Columns(
        ("protocol", "what is measured"), lambda entry: (entry["name"], entry["description"]), described=True
    ),
    "attacks": _Columns(("attack", "where it is"), _registered),
    "zoo": _Columns(("model", "recipe", "threat", "clean", "worst"), _zoo, figures=2),
    "cards": _Columns(("card", "data", "threat", "clean", "worst", "images"), _card, figures=3),
}
