"""`atent check`: quick checks of a model before a long evaluation."""

from dataclasses import asdict
from typing import Annotated

import typer

from atent_ext.cli.options import (
    AsJson,
    Classes,
    DataRoot,
    Dataset,
    Download,
    Mean,
    Model,
    ModelArguments,
    ModelDir,
    Output,
    Resize,
    ResizeInside,
    Seed,
    Source,
    StatedNormalisation,
    Std,
    Weights,
    WeightsKey,
    notice,
    print_json,
    print_line,
    print_table,
)


def add(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.command("check")(check)


def check(
    subject: Source,
    n: Annotated[
        int | None, typer.Option("--n", min=2, help="Use N test images [default: 32, or 12 for a slow model].")
    ] = None,
    as_json: AsJson = False,
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
    norm: Annotated[
        str | None, typer.Option(help="For robustbench:NAME: the threat model that it was trained for.")
    ] = None,
    seed: Seed = None,
    data_root: DataRoot = None,
    download: Download = False,
    model_dir: ModelDir = None,
) -> None:
    """Check a model before it is scored: outputs, mode, randomness, gradients, normalisation, class order, speed.

    Takes a few seconds, and the same sources as `atent eval`. Exit code 1 if a check fails.
    """
    from atent_ext import subjects
    from atent_ext.cli.console import diagnosis_table, estimates
    from atent_ext.core.around import parse
    from atent_ext.submissions.diagnosis import diagnose

    loaded = subjects.load(
        *(subject, model, dataset, norm or "Linf", 0.0, data_root, download, model_dir),  # the radius plays no role
        classes=classes,
        weights_key=weights_key,
        around=parse(normalisation, mean, std, output, resize, resize_inside),
        weights=weights,
        arguments=subjects.parse_arguments(model_arg or ()),
    )
    found = diagnose(loaded, n, seed or 0)
    if as_json:
        print_json(asdict(found) | {"checks": [one.model_dump() for one in found.checks], "good": found.good})
    else:
        print_table(diagnosis_table(found))
        for line in estimates(found):
            print_line(line)
        for note in found.notes:
            notice(note)
    if not found.good:
        raise typer.Exit(1)
