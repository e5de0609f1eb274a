"""The commands that take a trained model: eval, certify, export."""

from pathlib import Path
from typing import Annotated

import typer

from atent_ext.cli.options import DataRoot, Download, Seed, console, notice, print_line, print_notes, print_table
from atent_ext.core.errors import BadInput
from atent_ext.core.fraction import fraction

Weights = Annotated[Path | None, typer.Option("--weights", help="For code: the weights of the network that it makes.")]
ModelArguments = Annotated[
    list[str] | None,
    typer.Option("--model-arg", metavar="KEY=VALUE", help="An argument of the network; may be repeated."),
]


def add(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("eval")(evaluate)
    app.command()(certify)
    app.command()(export)


def _number(text: str) -> float:
    """Parse a radius: 0.031, 1e-2 or 8/255."""
    value = fraction(text, "--eps")
    return float(text) if value is None else value


def evaluate(
    subject: Annotated[
        str,
        typer.Argument(
            help="A run folder, a weights file (.safetensors, .pt, .pth), a program (.pt2), a name of `atent ls zoo`, "
            "robustbench:NAME, or code that is run to make a network: timm:NAME, torchvision:NAME, FILE.py:callable, "
            "package.module:callable. "
            "Where a folder is called like a model: ./NAME is the folder, zoo:NAME the model."
        ),
    ],
    protocol: Annotated[str, typer.Option(help="A name of `atent ls protocols`, or a YAML file.")] = "autoattack",
    n: Annotated[int | None, typer.Option("--n", help="Score on the first N test images [default: all].")] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Score on the images that the run held out of training instead.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file to write.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Score anew where --out is there, of this setting or of another one.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="For a weights file: the network's registry name, or code that is run to make it: timm:NAME, "
            "torchvision:NAME, FILE.py:callable, package.module:callable."
        ),
    ] = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    dataset: Annotated[
        str | None, typer.Option(help="For a weights file, a program or robustbench:NAME: the data set.")
    ] = None,
    norm: Annotated[str | None, typer.Option(help="Linf or L2 [default for a run: its recipe's].")] = None,
    eps: Annotated[
        float | None,
        typer.Option(parser=_number, metavar="NUMBER", help="Radius, such as 8/255 [default for a run: its recipe's]."),
    ] = None,
    seed: Seed = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch; the random draws follow it.")] = 250,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Images that are scored and kept together [default: 100, on a GPU 250].")
    ] = None,
    speed: Annotated[str, typer.Option(help="plain, channels-last, compile, graphs or auto.")] = "channels-last",
    data_root: DataRoot = None,
    download: Download = False,
    model_dir: Annotated[
        Path | None, typer.Option("--model-dir", help="For robustbench:NAME: its model_dir [default: models].")
    ] = None,
) -> None:
    """Score a trained model on test images: clean accuracy, attacks, and their worst case.

    The same command goes on with an interrupted evaluation and shows a finished one; torchrun's processes share one.
    """
    from atent_ext import subjects
    from atent_ext.cli.console import ScoringBar
    from atent_ext.evaluation import scoring
    from atent_ext.evaluation.protocol import load_protocol

    chosen = load_protocol(protocol)
    arguments = subjects.parse_arguments(model_arg or ())
    loaded = subjects.load(
        subject, model, dataset, norm, eps, data_root, download, model_dir, held_out, weights, arguments
    )
    target = out or scoring.default_path(Path(subject), loaded, chosen, n, seed or 0)
    if target.is_dir():
        raise BadInput(f"--out {target} is a folder; name the JSON file to write", code="bad-value", field="out")
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
    for note in loaded.notes:
        notice(note)
    print_notes([report])
    written = "written earlier, and nothing was scored (--overwrite scores anew)" if finished else "written"
    print_line(f"{written}: {target}")


def certify(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    sigma: Annotated[float, typer.Option(help="Standard deviation of the noise.")],
    images: Annotated[int, typer.Option(min=1, help="Certify the first IMAGES test images.")] = 100,
    n: Annotated[int, typer.Option("--n", min=1, help="Draws that bound the probability.")] = 100_000,
    n0: Annotated[int, typer.Option(min=1, help="Draws that choose the class.")] = 100,
    alpha: Annotated[float, typer.Option(help="One minus the confidence.")] = 0.001,
    radius: Annotated[float, typer.Option(min=0, help="Refuse an n that cannot reach this ℓ2 radius.")] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Noisy images in one pass.")] = 1000,
    out: Annotated[
        Path | None, typer.Option("--out", help="JSON file to write; an interrupted one is continued.")
    ] = None,
    seed: Seed = None,
    data_root: DataRoot = None,
) -> None:
    """Certify a model by randomized smoothing: certified accuracy at each ℓ2 radius, image by image, resumable."""
    from rich.progress import Progress

    from atent_ext.certification.smoothing import Smoothing
    from atent_ext.cli.console import certified_table
    from atent_ext.evaluation import certificates
    from atent_ext.subjects import run_folder

    smoothing = Smoothing(sigma=sigma, n0=n0, n=n, alpha=alpha, batch_size=batch_size)
    smoothing.require(radius)
    subject = run_folder.from_run(run, data_root)
    target = out or run / f"certify-sigma{sigma:g}-n{n}-seed{seed or 0}.json"
    with Progress(console=console) as bar:
        task = bar.add_task("certifying", total=images)
        report = certificates.certify(
            subject, smoothing, target, images, seed or 0, lambda count: bar.update(task, completed=count)
        )
    print_table(certified_table(report))
    print_line(f"written: {target}")


def export(
    subject: Annotated[str, typer.Argument(metavar="SOURCE", help="A run folder; for --to pt2 all that eval takes.")],
    out: Annotated[
        Path, typer.Option("--out", help="Folder to write to, the library's folder of models; or FILE.pt2.")
    ],
    to: Annotated[str, typer.Option("--to", help="robustbench, or pt2: a program of torch.export.")] = "robustbench",
    name: Annotated[str | None, typer.Option("--name", help="The model's name there [default: the recipe's].")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model of that name in --out.")] = False,
    model: Annotated[str | None, typer.Option(help="For --to pt2, as of `atent eval`.")] = None,
    model_arg: ModelArguments = None,
    weights: Weights = None,
    dataset: Annotated[str | None, typer.Option(help="For --to pt2, as of `atent eval`.")] = None,
    data_root: DataRoot = None,
    download: Download = False,
    model_dir: Annotated[Path | None, typer.Option("--model-dir", help="For --to pt2, as of `atent eval`.")] = None,
) -> None:
    """Write a trained model as another library loads it, or as a program that is run without its source code.

    A program (.pt2) is the network as operators and numbers, with its normalisation. `atent eval FILE.pt2` scores it,
    and a submission with a model.pt2 needs no architecture in its card.
    """
    from atent_ext.core.registry import nearest

    if to == "pt2":
        from atent_ext.models import programs
        from atent_ext.subjects import load, parse_arguments

        if name is not None:
            message = f"--name is {name}, and a program is called as its file; drop it"
            raise BadInput(message, code="unused", field="name")
        programs.check_path(out, overwrite)
        # The threat model plays no role here; without one some sources would ask for it.
        arguments = parse_arguments(model_arg or ())
        loaded = load(
            subject, model, dataset, "Linf", 0.0, data_root, download, model_dir, weights=weights, arguments=arguments
        )
        program = programs.export(loaded.model, loaded.test.images, out, overwrite=overwrite)
        for note in program.notes:
            notice(note)
        print_line(f"written: {out}, {program.operators} operators; `atent eval {out}` scores it")
        return
    if to != "robustbench":
        raise nearest("library to export to", to, ["robustbench", "pt2"])
    given = {"model": model, "model_arg": model_arg, "weights": weights, "dataset": dataset, "model_dir": model_dir}
    for option, value in given.items():
        if value is not None:
            message = f"--{option.replace('_', '-')} is {value}, and only --to pt2 takes it; drop it"
            raise BadInput(message, code="unused", field=option)
    from atent_ext.integrations.robustbench.export import export as write

    weights, entry = write(Path(subject), out, name, data_root=data_root, overwrite=overwrite)
    print_line(f"written: {weights}; how RobustBench finds it: {entry}")
