"""The command `atent`: parses, calls, prints. Errors that we raise on purpose are one line and exit code 2."""

import os
from pathlib import Path
from typing import Annotated

import typer

from atent_ext import subjects
from atent_ext.cli import exit, submissions
from atent_ext.cli.options import DataRoot, Download, Out, Seed, console
from atent_ext.core.errors import BadInput
from atent_ext.core.version import __version__
from atent_ext.evaluation.report import Report
from atent_ext.subjects import run_folder

app = typer.Typer(
    cls=exit.Commands,
    name="atent",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
submissions.add(app)


def main() -> None:
    """Run the command line."""
    # Read by torch at its first large tensor: large pages spare most of the page faults of a training step on the CPU.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    exit.run(app)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    """ATENT: adversarial training by entropic regularization, trained and scored beside its rivals."""
    if show:
        console.print(f"atent-ext {__version__}")
        raise typer.Exit


@app.command()
def recipes() -> None:
    """List the training recipes, and the objectives, models and data sets that a recipe can name."""
    from rich.table import Table

    from atent_ext.core import registry
    from atent_ext.training import recipes as all_recipes

    table = Table("recipe", "data", "threat", "what it trains")
    for name in all_recipes.names():
        try:
            recipe = all_recipes.load(name)
        except BadInput as error:  # one of another package
            table.add_row(name, "", "", f"cannot be used: {error}")
            continue
        threat = f"{recipe.threat.norm} {recipe.threat.eps:.4g}"
        table.add_row(name, recipe.dataset, threat, recipe.description)
    console.print(table)
    for fault in registry.faults():
        console.print(f"note: {fault}", soft_wrap=True)
    for kind, more in (("objective", []), ("model", []), ("data set", ["folder:PATH", "npz:FILE"])):
        others = registry.packages(kind)
        known = [f"{name} (from {others[name]})" if name in others else name for name in registry.entries(kind)]
        console.print(f"{kind}s: {', '.join([*known, *more])}")


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A name from `atent recipes`, or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value, e.g. objective.steps=10.")] = None,
    out: Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    seed: Seed = None,
    data_root: DataRoot = None,
    download: Download = False,
) -> None:
    """Train a model by a recipe; the run folder is runs/RECIPE unless --out says otherwise.

    --resume without --set and --seed takes those that the run was started with.
    """
    from atent_ext.cli.console import TrainingBar
    from atent_ext.data import datasets
    from atent_ext.training import recipes as all_recipes
    from atent_ext.training.loop import fit
    from atent_ext.training.run_folder import RunFolder

    changes = [*(overrides or []), *([] if seed is None else [f"seed={seed}"])]
    chosen = all_recipes.load(recipe, changes)
    folder = out or Path("runs") / chosen.name
    if resume and not changes:  # the options of the first call need not be given again
        stored = RunFolder(folder).to_resume()
        chosen = stored if stored.name == chosen.name else chosen
    images = datasets.load(chosen.dataset, data_root, download)
    with TrainingBar(console) as bar:
        fit(chosen, images, folder, resume=resume, overwrite=overwrite, reporter=bar)
    console.print(f"trained: {folder}; score it with: atent eval {folder}", soft_wrap=True)


def _number(text: str) -> float:
    """A number as people write radii: 0.031, 1e-2 or 8/255."""
    numerator, slash, denominator = text.partition("/")
    if slash and not float(denominator):
        raise ValueError(f"{text} divides by 0")
    return float(numerator) / (float(denominator) if slash else 1.0)


@app.command("eval")
def evaluate(
    subject: Annotated[
        Path,
        typer.Argument(
            help="A run folder, a weights file (.safetensors, .pt, .pth), a name of `atent zoo`, or robustbench:NAME."
        ),
    ],
    protocol: Annotated[
        str, typer.Option(help="autoattack, autoattack+atent, zoo, pgd, quick, clean, or a YAML file.")
    ] = "autoattack",
    n: Annotated[int | None, typer.Option("--n", help="Score on the first N test images [default: all].")] = None,
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Score on the images that the run held out of training instead.")
    ] = False,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file to write.")] = None,
    model: Annotated[str | None, typer.Option(help="For a weights file: the network's registry name.")] = None,
    dataset: Annotated[str | None, typer.Option(help="For a weights file or robustbench:NAME: the data set.")] = None,
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

    The same command goes on with an evaluation that was interrupted; the processes of torchrun share one.
    """
    from atent_ext.cli.console import ScoringBar
    from atent_ext.evaluation import scoring
    from atent_ext.evaluation.protocol import load_protocol

    chosen = load_protocol(protocol)
    loaded = subjects.load(subject, model, dataset, norm, eps, data_root, download, model_dir, held_out)
    target = out or scoring.default_path(subject, loaded, chosen, n, seed or 0)
    if target.is_dir():
        raise BadInput(f"--out {target} is a folder; name the JSON file to write")
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
            busy=bar.busy,
            progress=bar.standing,
        )
    console.print(report.table())
    _print_notes([report])
    console.print(f"written: {target}", soft_wrap=True)


@app.command()
def certify(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    sigma: Annotated[float, typer.Option(help="Standard deviation of the noise.")],
    images: Annotated[int, typer.Option(min=1, help="Certify the first IMAGES test images.")] = 100,
    n: Annotated[int, typer.Option("--n", min=1, help="Draws that bound the probability.")] = 100_000,
    n0: Annotated[int, typer.Option(min=1, help="Draws that choose the class.")] = 100,
    alpha: Annotated[float, typer.Option(help="One minus the confidence.")] = 0.001,
    radius: Annotated[float, typer.Option(min=0, help="Refuse an n that cannot reach this ℓ2 radius.")] = 0.0,
    batch_size: Annotated[int, typer.Option(min=1, help="Noisy images in one pass.")] = 1000,
    out: Annotated[Path | None, typer.Option("--out", help="JSON file; one that exists is gone on with.")] = None,
    seed: Seed = None,
    data_root: DataRoot = None,
) -> None:
    """Certify a model by randomized smoothing: certified accuracy at each ℓ2 radius, image by image, resumable."""
    from rich.progress import Progress

    from atent_ext.certification.smoothing import Smoothing
    from atent_ext.cli.console import certified_table
    from atent_ext.evaluation import certificates

    smoothing = Smoothing(sigma=sigma, n0=n0, n=n, alpha=alpha, batch_size=batch_size)
    smoothing.require(radius)
    subject = run_folder.from_run(run, data_root)
    target = out or run / f"certify-sigma{sigma:g}-n{n}-seed{seed or 0}.json"
    with Progress(console=console) as bar:
        task = bar.add_task("certifying", total=images)
        report = certificates.certify(
            subject, smoothing, target, images, seed or 0, lambda count: bar.update(task, completed=count)
        )
    console.print(certified_table(report))
    console.print(f"written: {target}", soft_wrap=True)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to write to: the library's folder of models.")],
    to: Annotated[str, typer.Option("--to", help="The library: robustbench.")] = "robustbench",
    name: Annotated[str | None, typer.Option("--name", help="The model's name there [default: the recipe's].")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model of that name in --out.")] = False,
    data_root: DataRoot = None,
) -> None:
    """Write a trained model as another library loads it."""
    from atent_ext.core.registry import nearest
    from atent_ext.integrations.robustbench.export import export as write

    if to != "robustbench":
        raise nearest("library to export to", to, ["robustbench"])
    weights, entry = write(run, out, name, data_root=data_root, overwrite=overwrite)
    console.print(f"written: {weights}; how RobustBench finds it: {entry}", soft_wrap=True)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option("--out", help="Folder to write to.")] = Path("quickstart"),
    seed: Seed = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --out holds.")] = False,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="key=value, for all five recipes.")] = None,
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
        )
    console.print(board_table(reports))
    _print_notes(reports)
    console.print(f"written: {out}/results.json, leaderboard.md, accuracy_vs_eps.png, adversaries.png")


@app.command()
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
    from atent_ext.experiments.rows import Workshop

    if show:
        console.print(report.listing())
        return
    if name is None:
        raise BadInput("no table or figure is named; `atent reproduce --list` shows them all")
    chosen = study.load(name)
    chosen.at(scale)
    target = out / f"{name}-{scale}.json"
    with TrainingBar(console) as bar:
        shop = Workshop(scale, out / "runs", seed or 0, data_root, download, bar, bar.busy)  # type: ignore[arg-type]
        result = run(chosen, shop, target, rows or ())
    console.print(report.table(result))
    for label in ("differs", "notes"):
        if result[label]:
            console.print(f"{label}: {result[label]}", soft_wrap=True)
    console.print(f"written: {target}", soft_wrap=True)


@app.command()
def plot(
    kind: Annotated[str, typer.Argument(help="history, landscape, probabilities, curve, plane or density.")],
    runs: Annotated[list[Path] | None, typer.Argument(help="Run folders; plane and density take none.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Picture to write [default: KIND.png]; an SVG beside it.")
    ] = None,
    index: Annotated[int, typer.Option("--index", min=0, help="Which test image, for one image's figures.")] = 0,
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
    console.print(f"written: {', '.join(map(str, files))}", soft_wrap=True)


@app.command()
def doctor(
    neighbours: Annotated[list[str] | None, typer.Argument(help="Which to check [default: all].")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")] = False,
) -> None:
    """Use torch, AutoAttack, RobustBench, ... once each; exit code 1 if something installed cannot be used."""
    import json

    from atent_ext.cli import doctor as checks

    if as_json:
        report = checks.check(neighbours or ())
        print(json.dumps(report, indent=1))
    else:
        with console.status("using each neighbour once, which takes about half a minute"):
            report = checks.check(neighbours or ())
        console.print(checks.table(report))
    if not checks.healthy(report):
        raise typer.Exit(1)


def _print_notes(reports: list[Report]) -> None:
    from atent_ext.cli.console import notes

    for note in notes(reports):
        console.print(f"note: {note}", soft_wrap=True)
