"""The commands that take a trained model: eval, certify, export."""

from pathlib import Path
from typing import Annotated, Any

import typer

from atent_ext.cli.options import (
    Classes,
    DataRoot,
    Dataset,
    Download,
    Eps,
    Model,
    ModelArguments,
    ModelDir,
    Norm,
    Seed,
    Source,
    StatedNormalisation,
    Weights,
    WeightsKey,
    console,
    notice,
    number,
    print_data,
    print_line,
    print_notes,
    print_table,
    print_weights_notes,
)
from atent_ext.core.errors import BadInput


def add(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("eval")(evaluate)
    app.command()(certify)
    app.command()(export)


def evaluate(
    subject: Source,
    protocol: Annotated[str, typer.Option(help="A name of `atent ls protocols`, or a YAML file.")] = "autoattack",
    n: Annotated[int | None, typer.Option("--n", help="Score on the first N test images [default: all].")] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Score on the images that the run held out of training instead.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file to write.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Score anew where --out is there, of this setting or of another one.")
    ] = False,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    dataset: Dataset = None,
    classes: Classes = None,
    weights_key: WeightsKey = None,
    normalisation: StatedNormalisation = None,
    norm: Norm = None,
    eps: Eps = None,
    seed: Seed = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch; the random draws follow it.")] = 250,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Images that are scored and kept together [default: 100, on a GPU 250].")
    ] = None,
    speed: Annotated[str, typer.Option(help="plain, channels-last, compile, graphs or auto.")] = "channels-last",
    data_root: DataRoot = None,
    download: Download = False,
    model_dir: ModelDir = None,
) -> None:
    """Score a trained model on test images: clean accuracy, attacks, and their worst case.

    The same command goes on with an interrupted evaluation and shows a finished one; torchrun's processes share one.
    """
    from atent_ext import subjects
    from atent_ext.cli.console import ScoringBar
    from atent_ext.core import validate
    from atent_ext.core.schema import normalisation as parse_normalisation
    from atent_ext.evaluation import scoring
    from atent_ext.evaluation.protocol import load_protocol
    from atent_ext.models import speed as speeds

    if n is not None:
        validate.steps("n", n)
    speeds.check(speed)
    subjects.check_values(model, dataset, norm, eps, classes)
    chosen = load_protocol(protocol)
    _no_folder(out)
    stated = None if normalisation is None else parse_normalisation(normalisation)
    loaded = subjects.load(
        *(subject, model, dataset, norm, eps, data_root, download, model_dir, held_out, classes),
        weights_key=weights_key,
        normalisation=stated,
        weights=weights,
        arguments=subjects.parse_arguments(model_arg or ()),
    )
    print_weights_notes(loaded.about.weights_notes)
    target = out or scoring.default_path(Path(subject), loaded, chosen, n, seed or 0)
    finished = target.exists() and not overwrite  # `score` returns it, or raises BadInput if its setting differs
    with ScoringBar(console) as bar:
        report = scoring.score(
            loaded,
            chosen,
            n=n,
            seed=seed or 0,
            batch_size=batch_size,
            chunk=chunk,
            speed=speed,
            path=target,
            overwrite=overwrite,
            busy=bar.busy,
            progress=bar.progress_to,
        )
    print_table(report.table())
    print_data(report)
    for note in loaded.notes:
        notice(note)
    print_notes([report])
    written = "written earlier, and nothing was scored (--overwrite scores anew)" if finished else "written"
    print_line(f"{written}: {target}")


def certify(
    subject: Source,
    sigma: Annotated[
        float,
        typer.Option(parser=number("--sigma"), metavar="NUMBER", help="Standard deviation of the noise."),
    ],
    images: Annotated[
        int | None, typer.Option(min=1, help="Certify this many [default: 100; with --skip or --max all of them].")
    ] = None,
    skip: Annotated[int, typer.Option("--skip", min=1, help="Certify every K-th test image.", metavar="K")] = 1,
    most: Annotated[
        int | None, typer.Option("--max", min=1, help="Only among the first N test images.", metavar="N")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Draws that bound the probability.")] = 100_000,
    n0: Annotated[int, typer.Option(min=1, help="Draws that choose the class.")] = 100,
    alpha: Annotated[float, typer.Option(help="One minus the confidence.")] = 0.001,
    radius: Annotated[
        float | None,
        typer.Option(parser=number("--radius"), metavar="NUMBER", help="Refuse an n that cannot reach it, in ℓ2."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Noisy images in one pass.")] = 1000,
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON file to write; an interrupted one is continued.")
    ] = None,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    dataset: Dataset = None,
    classes: Classes = None,
    weights_key: WeightsKey = None,
    normalisation: StatedNormalisation = None,
    norm: Annotated[
        str | None, typer.Option(help="For robustbench:NAME: the threat model that it was trained for.")
    ] = None,
    seed: Seed = None,
    data_root: DataRoot = None,
    download: Download = False,
    model_dir: ModelDir = None,
) -> None:
    """Certify a model by randomized smoothing: certified accuracy at each ℓ2 radius, image by image, resumable."""
    from rich.progress import Progress

    from atent_ext import subjects
    from atent_ext.certification.smoothing import Smoothing
    from atent_ext.cli.console import certified_table
    from atent_ext.core.schema import normalisation as parse_normalisation
    from atent_ext.evaluation import certificates, scoring

    smoothing = Smoothing(sigma=sigma, n0=n0, n=n, alpha=alpha, batch_size=batch_size)
    smoothing.require(radius or 0.0)
    _no_folder(out)
    threat = (norm or "Linf", 0.0)  # its norm is part of a name in RobustBench's zoo; radii are what is measured
    stated = None if normalisation is None else parse_normalisation(normalisation)
    loaded = subjects.load(
        subject,
        model,
        dataset,
        *threat,
        data_root,
        download,
        model_dir,
        classes=classes,
        weights_key=weights_key,
        normalisation=stated,
        weights=weights,
        arguments=subjects.parse_arguments(model_arg or ()),
    )
    print_weights_notes(loaded.about.weights_notes)
    for note in loaded.notes:
        notice(note)
    total = len(loaded.test)
    if most is not None and most > total:
        message = f"--max is {most}, but there are only {total} test images; ask for at most {total}"
        raise BadInput(message, code="bad-value", field="max")
    among = len(range(0, most or total, skip))
    count = images or (100 if skip == 1 and most is None else among)
    if count > among and most is not None:
        message = f"--images is {count}, but --skip {skip} and --max {most} leave {among}; ask for at most {among}"
        raise BadInput(message, code="conflict", field="images")
    name = f"certify-sigma{sigma:g}-n{n}-seed{seed or 0}" + (f"-skip{skip}" if skip > 1 else "")
    target = out or scoring.default_folder(Path(subject), loaded) / f"{name}.json"
    with Progress(console=console) as bar:
        task = bar.add_task("certifying", total=count)
        report = certificates.certify(
            loaded, smoothing, target, count, seed or 0, lambda done: bar.update(task, completed=done), skip
        )
    print_table(certified_table(report))
    print_data(report)
    print_line(f"written: {target}")


def _no_folder(out: Path | None) -> None:
    if out is not None and out.is_dir():
        raise BadInput(f"--out {out} is a folder; name the JSON file to write", code="bad-value", field="out")


def export(
    subject: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A run folder or a weights file; for --to pt2 all that eval takes."),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write to, the library's folder of models; or FILE.pt2.")
    ],
    to: Annotated[str, typer.Option("--to", help="robustbench, or pt2: a program of torch.export.")] = "robustbench",
    name: Annotated[
        str | None, typer.Option("--name", help="The model's name there [default: the recipe's, or the file's].")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model of that name in --out.")] = False,
    model: Model = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    dataset: Dataset = None,
    classes: Classes = None,
    weights_key: WeightsKey = None,
    normalisation: StatedNormalisation = None,
    norm: Norm = None,
    eps: Eps = None,
    data_root: DataRoot = None,
    download: Download = False,
    model_dir: ModelDir = None,
) -> None:
    """Write a trained model as another library loads it, or as a program that is run without its source code.

    A program (.pt2) is the network as operators and numbers, with its normalisation. `atent eval FILE.pt2` scores it,
    and a submission with a model.pt2 needs no architecture in its card.
    """
    from atent_ext.core.registry import nearest
    from atent_ext.core.schema import normalisation as parse_normalisation

    if to not in ("robustbench", "pt2"):
        raise nearest("library to export to", to, ["robustbench", "pt2"])
    stated = None if normalisation is None else parse_normalisation(normalisation)
    of_file: dict[str, Any] = {"model": model, "dataset": dataset, "norm": norm, "eps": eps, "classes": classes}
    of_file |= {"weights_key": weights_key, "normalisation": stated}
    if to == "pt2":
        theirs = subject.startswith("robustbench:")  # whose names are of a norm
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

    programs.check_path(out, overwrite)
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
    from atent_ext.integrations.robustbench import export as robustbench

    if not Path(subject).is_file():
        _refuse_given(of_file, f"{subject} is no weights file")
        return robustbench.export(Path(subject), out, name, data_root=data_root, overwrite=overwrite)
    if subjects.is_code(str(of_file["model"])) or Path(subject).suffix == ".pt2":
        message = (
            f"{subject} is of a network that RobustBench could not build; name one of `atent ls models`, or --to pt2"
        )
        raise BadInput(message, code="unsupported", field="model")
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
