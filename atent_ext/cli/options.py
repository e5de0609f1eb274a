"""What the commands share: where and how they print, and the options that mean the same everywhere."""

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
        "hf:OWNER/NAME[@REVISION][/FILE] of the Hugging Face hub, or code that is run to make a network: timm:NAME, "
        "torchvision:NAME, FILE.py:callable, package.module:callable. "
        "Where a folder is called like a model: ./NAME is the folder, zoo:NAME the model."
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="For a weights file: the network's registry name, or code that is run to make it, as for SOURCE.",
    ),
]
ModelArguments = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="KEY=VALUE", help="An argument of the network; may be repeated."),
]
Weights = Annotated[Path | None, typer.Option("--weights", help="For code: the weights of the network that it makes.")]
Dataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        help="For a source that does not say its data set: code, a weights file, a program, robustbench:NAME.",
    ),
]
Classes = Annotated[
    int | None,
    typer.Option("--classes", min=1, help="For npz:FILE: the number of classes [default: the largest label plus one]."),
]
Norm = Annotated[
    str | None, typer.Option("--norm", help="Linf, L2, or for AutoAttack L1 [default for a run: its recipe's].")
]
Eps = Annotated[
    float | None,
    typer.Option("--eps", parser=number("--eps"), metavar="NUMBER", help="Radius, such as 8/255 [default: the run's]."),
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
    Path | None, typer.Option("--model-dir", help="For robustbench:NAME: its model_dir [default: models].")
]
Changes = Annotated[
    list[str] | None,
    typer.Option("--set", help="key=value, e.g. objective.steps=10; an objective.eps equal to threat.eps follows it."),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write to.")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="Folder with the data sets [default: $ATENT_DATA].")]
Download = Annotated[bool, typer.Option("--download", help="Let torchvision fetch missing data.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, max=2**64 - 1, help="Seed of every random draw.")]
WeightsKey = Annotated[
    str | None, typer.Option("--weights-key", help="For a weights file with several networks: which, ema.shadow say.")
]
StatedNormalisation = Annotated[
    str | None,
    typer.Option(
        "--normalisation",
        help="In front of the network: none, imagenet, cifar10, cifar100, mnist, fashion-mnist, or "
        "'{mean: [0.5], std: [0.25]}' by channel.",
    ),
]
Mean = Annotated[
    str | None, typer.Option("--mean", metavar="NUMBERS", help="With --std: a normalisation, 0.5,0.5,0.5 say.")
]
Std = Annotated[str | None, typer.Option("--std", metavar="NUMBERS", help="See --mean.")]
Output = Annotated[
    str | None,
    typer.Option("--output", metavar="KEY", help="Which of several results has the logits: a key, or 0, 1, ..."),
]
Resize = Annotated[
    str | None,
    typer.Option(
        "--resize",
        metavar="PIXELS",
        help="Resize the test images first (bilinear): eps is of resized ones. 224, or '{size: 256, crop: 224}'.",
    ),
]
ResizeInside = Annotated[
    str | None,
    typer.Option("--resize-inside", metavar="PIXELS", help="The network resizes: eps is of the images before that."),
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
    """Print how the arrays or the folder of a subject's images were read; nothing for data sets with a name."""
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
