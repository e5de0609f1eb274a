"""The command that writes a trained model for others: export."""

from pathlib import Path
from typing import Annotated, Any

import typer

from atent_ext.cli.options import (
    Classes,
    DataRoot,
    Dataset,
    Download,
    Eps,
    Mean,
    Model,
    ModelArguments,
    ModelDir,
    Norm,
    Output,
    Resize,
    ResizeInside,
    StatedNormalisation,
    Std,
    Weights,
    WeightsKey,
    notice,
    print_line,
    print_weights_notes,
)
from atent_ext.core.errors import BadInput

_NOT_THERE = ("output", "resize", "resize_inside")
"""Options that RobustBench cannot express."""


def add(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command()(export)


def export(
    subject: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A run folder or a weights file; with --to pt2 any source."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the library's models, or with --to pt2 the file.")],
    to: Annotated[str, typer.Option("--to", help="robustbench, or pt2, a program of torch.export.")] = "robustbench",
    name: Annotated[
        str | None,
        typer.Option("--name", help="The model's name in the library [default: that of the recipe or file]."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model of that name in --out.")] = False,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    dataset: Dataset = None,
    classes: Classes = None,
    weights_key: WeightsKey = None,
    normalisation: StatedNormalisation = None,
    mean: Mean = None,
    std: Std = None,
    output: Output = None,
    resize: Resize = None,
    resize_inside: ResizeInside = None,
    norm: Norm = None,
    eps: Eps = None,
    data_root: DataRoot = None,
    download: Download = False,
    model_dir: ModelDir = None,
) -> None:
    """Write a trained model for another library, or as a program that needs no source code.

    A program (.pt2) holds the operators and weights of the network, with its normalisation. `atent eval FILE.pt2`
    scores it, and a submission with a model.pt2 needs no architecture in its card.
    """
    from atent_ext.core.around import parse
    from atent_ext.core.registry import nearest

    if to not in ("robustbench", "pt2"):
        raise nearest("library to export to", to, ["robustbench", "pt2"])
    around = parse(normalisation, mean, std, output, resize, resize_inside)
    of_file: dict[str, Any] = {"model": model, "dataset": dataset, "norm": norm, "eps": eps, "classes": classes}
    of_file |= {"weights_key": weights_key, "around": around}
    if to == "pt2":
        theirs = subject.startswith("robustbench:")  # its models have names per norm
        _refuse_given({"name": name, "eps": eps} | ({} if theirs else {"norm": norm}), "--to pt2 does not take it")
        # The radius plays no role here; without one some sources would ask for it.
        of_file |= {"norm": norm or "Linf", "eps": 0.0, "root": data_root, "download": download, "model_dir": model_dir}
        _export_program(subject, out, overwrite, of_file | {"weights": weights}, model_arg)
        return
    _refuse_given({"model_arg": model_arg, "weights": weights, "model_dir": model_dir}, "only --to pt2 takes it")
    written = _export_robustbench(subject, out, name, overwrite, of_file, data_root)
    print_line(f"written: {written[0]}; how RobustBench finds it: {written[1]}")


def _refuse_given(given: dict[str, Any], why: str) -> None:
    for option, value in given.items():
        if value is not None:
            message = f"--{option.replace('_', '-')} is {value}, and {why}; drop it"
            raise BadInput(message, code="unused", field=option)


def _export_program(
    subject: str, out: Path, overwrite: bool, source: dict[str, Any], model_arg: list[str] | None
) -> None:
    from atent_ext import subjects
    from atent_ext.models import programs

    programs.check(out, overwrite)
    loaded = subjects.load(subject, **source, arguments=subjects.parse_arguments(model_arg or ()))
    print_weights_notes(loaded.about.weights_notes)
    program = programs.export(loaded.model, loaded.test[:4].images, out, overwrite=overwrite)
    for note in program.notes:
        notice(note)
    print_line(f"written: {out}, {program.operators} operators; `atent eval {out}` scores it")


def _export_robustbench(
    subject: str, out: Path, name: str | None, overwrite: bool, of_file: dict[str, Any], data_root: Path | None
) -> tuple[Path, Path]:
    from atent_ext import subjects
    from atent_ext.core.around import refuse
    from atent_ext.integrations.robustbench import export as robustbench

    around = of_file["around"]
    if not Path(subject).is_file():
        given = {name: value for name, value in of_file.items() if name != "around"}
        _refuse_given(given | around.stated, f"{subject} is no weights file")
        return robustbench.export(Path(subject), out, name, data_root=data_root, overwrite=overwrite)
    if subjects.is_code(str(of_file["model"])) or Path(subject).suffix == ".pt2":
        message = f"RobustBench cannot build the network of {subject}; use one of `atent ls models`, or --to pt2"
        raise BadInput(message, code="unsupported", field="model")
    refuse(around, "RobustBench loads networks of logits for images as they are", _NOT_THERE)
    loaded = subjects.load(Path(subject).absolute(), root=data_root, **of_file)  # a path, and no name
    print_weights_notes(loaded.about.weights_notes)
    return robustbench.export_network(
        loaded.model,
        out,
        name or loaded.about.name,
        model=str(of_file["model"]),
        dataset=str(of_file["dataset"]),
        classes=of_file["classes"],
        threat=loaded.threat,
        data_root=data_root,
        overwrite=overwrite,
    )
