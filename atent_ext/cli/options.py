"""Shared by all commands: printing, and the options that mean the same everywhere."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, RenderableType

from atent_ext.core import processes
from atent_ext.core.fraction import fraction

if TYPE_CHECKING:  # it imports torch
    from atent_ext.evaluation.report import About, Report
    from atent_ext.evaluation.union import UnionReport

# Under torchrun only the main process prints.
console = Console(markup=False, emoji=False, highlight=False, quiet=not processes.is_main())


def number(option: str) -> Callable[[str], float]:
    """A parser of the numbers of an option: 0.031, 1e-2 or 8/255."""

    def parse(text: str) -> float:
        value = fraction(text, option)
        return float(text) if value is None else value

    return parse


Source = Annotated[
    str,
    typer.Argument(
        help="A run folder, a weights file, a program (.pt2), a name of `atent ls zoo`, robustbench:NAME, "
        "hf:OWNER/NAME[@REVISION][/FILE] of the Hugging Face hub, or code, which is run to build a network: timm:NAME, "
        "torchvision:NAME, FILE.py:callable, package.module:callable. "
        "If a folder has the name of a model, write ./NAME for the folder or zoo:NAME for the model."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="For a weights file: its network, a name of `atent ls models` or code such as timm:NAME.",
    ),
]
ModelArguments = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="KEY=VALUE", help="An argument of the network; may be repeated."),
]
Weights = Annotated[Path | None, typer.Option("--weights", help="For code: the weights file of its network.")]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="Data set, for sources that do not name it: code, a weights file, a program, robustbench:NAME.",
    ),
]
Classes = Annotated[
    int | None,
    typer.Option("--classes", min=1, help="For npz:FILE: the number of classes [default: the largest label plus one]."),
]
Norm = Annotated[
    str | None,
    typer.Option("--norm", help="Linf, L2, or L1 for AutoAttack [default: that of the recipe or card, or Linf]."),
]
Eps = Annotated[
    float | None,
    typer.Option(
        "--eps",
        parser=number("--eps"),
        metavar="NUMBER",
        help="Radius, such as 8/255 [default: that of the recipe, the card or RobustBench].",
    ),
]
Threats = Annotated[
    list[str] | None,
    typer.Option(
        "--threat",
        metavar="NORM:RADIUS",
        help="Instead of --norm and --eps, such as Linf:8/255; repeated, each and their union are reported.",
    ),
]
ModelDir = Annotated[
    Path | None, typer.Option("--model-dir", help="For robustbench:NAME: the folder of its weights [default: models].")
]
Changes = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A field of the recipe as key=value: objective.steps=10. An objective.eps equal to threat.eps follows it.",
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write to.")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Folder with the data sets [default: $ATENT_DATA].")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision fetch missing data.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, max=2**64 - 1, help="Seed of every random draw.")]
WeightsKey = Annotated[
    str | None,
    typer.Option("--weights-key", help="For a weights file with several networks: the key of one, such as ema.shadow."),
]
StatedNormalisation = Annotated[
    str | None,
    typer.Option(
        "--normalisation",
        help="Normalisation in front of the network: none, imagenet, cifar10, cifar100, mnist, fashion-mnist, or "
        "'{mean: [0.5], std: [0.25]}' with a number per channel.",
    ),
]
Mean = Annotated[
    str | None,
    typer.Option("--mean", metavar="NUMBERS", help="Means of a normalisation, such as 0.5,0.5,0.5; needs --std."),
]
Std = Annotated[
    str | None, typer.Option("--std", metavar="NUMBERS", help="Standard deviations of a normalisation; needs --mean.")
]
Output = Annotated[
    str | None,
    typer.Option("--output", metavar="KEY", help="For several outputs: which are the logits, by key or position."),
]
Resize = Annotated[
    str | None,
    typer.Option(
        "--resize",
        metavar="PIXELS",
        help="Resize the test images (bilinear) before they are attacked: 224, or '{size: 256, crop: 224}'.",
    ),
]
ResizeInside = Annotated[
    str | None,
    typer.Option(
        "--resize-inside", metavar="PIXELS", help="Resize inside the network; eps applies to the original images."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead.")]


def print_line(text: str, style: str | None = None) -> None:
    """Print a text as one line without markup; rich does not wrap it."""
    console.print(text, style=style, soft_wrap=True)


def print_table(table: RenderableType) -> None:
    """Print a table, uncropped if it is wider than the console."""
    console.print(table, crop=False)


def print_notes(reports: "Sequence[Report | UnionReport]") -> None:
    """Print the distinct notes of the reports' results, sorted."""
    for note in sorted({note for report in reports for note in report.notes}):
        print_line(f"note: {note}")


def print_data(about: "About") -> None:
    """Print how a subject's arrays or image folder were read; nothing for data sets of the registry."""
    if ":" in about.data and about.data_note:
        print_line(f"note: {about.data_note}")


def print_weights_notes(notes: Sequence[str]) -> None:
    """Print what was guessed while a weights file was read."""
    for note in notes:
        print_line(f"weights: {note}")


def print_json(content: Any) -> None:
    """Print plain data as one JSON document."""
    print(json.dumps(content, indent=1, default=str))


def notice(text: str) -> None:
    """Print a note on the user's options."""
    print_line(f"note: {text}")
