"""The commands that measure a trained model: eval, certify."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Seed,
    Source,
    StatedNormalisation,
    Std,
    Threats,
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

if TYPE_CHECKING:  # they import torch
    from atent_ext.core.schema import Threat
    from atent_ext.evaluation.protocol import Protocol
    from atent_ext.evaluation.report import Report
    from atent_ext.evaluation.scoring import Subject
    from atent_ext.evaluation.union import UnionReport


def add(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("eval")(evaluate)
    app.command()(certify)


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
    save_adversaries: Annotated[
        Path | None, typer.Option(help="File (.npz) for x_adv, the first adversary of each image, and the labels y.")
    ] = None,
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
    threat: Threats = None,
    seed: Seed = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch; the random draws follow it.")] = 250,
    chunk: Annotated[
        int | None, typer.Option(min=1, help="Images that are scored and kept together [default: 100, on a GPU 250].")
    ] = None,
    speed: Annotated[str, typer.Option(help="plain, channels-last, compile, graphs or auto.")] = "channels-last",
    until_width: Annotated[
        float | None,
        typer.Option(
            "--until-width",
            metavar="POINTS",
            help="Score images in random order, at most --n, until the worst case's interval is so many points wide.",
        ),
    ] = None,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Measure a few batches, print passes and time by number of images, and stop."),
    ] = False,
    data_root: DataRoot = None,
    download: Download = False,
    model_dir: ModelDir = None,
) -> None:
    """Score a trained model on test images: clean accuracy, attacks, and their worst case.

    Run the same command again to resume an interrupted evaluation, or to show a finished one. The processes of torchrun
    share one evaluation.
    """
    from atent_ext import subjects
    from atent_ext.cli.console import ScoringBar
    from atent_ext.core import validate
    from atent_ext.core.around import parse
    from atent_ext.evaluation import anytime, places, scoring
    from atent_ext.evaluation import threats as of_several
    from atent_ext.evaluation.protocol import load_protocol
    from atent_ext.models import speed as speeds

    if plan:
        _only_planned(until_width=until_width, save_adversaries=save_adversaries, out=out, overwrite=overwrite or None)
    if n is not None:
        validate.steps("n", n)
    speeds.check(speed)
    until = None if until_width is None else anytime.until_width(until_width)
    threats = _threats(threat, norm, eps, until_width, save_adversaries)
    if threats:
        norm, eps = threats[0].norm, threats[0].eps
    several = threats if len(threats) > 1 else ()
    subjects.check_values(model, dataset, norm, eps, classes)
    chosen = load_protocol(protocol)
    for one in several:
        of_several.protocol_of(chosen, one)  # refuses what does not run in its norm
    _no_folder(out)
    around = parse(normalisation, mean, std, output, resize, resize_inside)
    loaded = subjects.load(
        *(subject, model, dataset, norm, eps, data_root, download, model_dir, held_out, classes),
        weights_key=weights_key,
        around=around,
        weights=weights,
        arguments=subjects.parse_arguments(model_arg or ()),
    )
    print_weights_notes(loaded.about.weights_notes)
    how: dict[str, Any] = {"n": n, "seed": seed or 0, "batch_size": batch_size, "chunk": chunk, "speed": speed}
    if plan:
        _plan(loaded, chosen, how, several)
        return
    setting = (Path(subject), loaded, chosen, n, seed or 0)
    target = out or places.default_path(*setting, drawn=until is not None, threats=several)
    before = _modified(target)  # a report of this setting stays as it is; one that stopped too early is continued
    with ScoringBar(console) as bar:
        how |= {"path": target, "overwrite": overwrite, "busy": bar.busy, "progress": bar.progress_to}
        report: Report | UnionReport
        if several:
            report = of_several.score(loaded, chosen, several, **how)
        else:
            report = scoring.score(loaded, chosen, **how, until=until, adversaries=save_adversaries)
    finished = before is not None and before == _modified(target)
    print_table(report.table())
    print_data(loaded.about)
    for note in loaded.notes:
        notice(note)
    print_notes([report])
    if report.passes is not None:
        print_line(f"forward passes: {report.passes:,} in all, {report.passes / report.n:,.0f} an image")
    written = "written earlier, and nothing was scored (--overwrite scores anew)" if finished else "written"
    print_line(f"{written}: {target}")
    if save_adversaries is not None:
        print_line(f"adversaries: {save_adversaries}")


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
    """Certify a model by randomized smoothing: certified accuracy at each ℓ2 radius, image by image, resumable."""
    from rich.progress import Progress

    from atent_ext import subjects
    from atent_ext.certification.smoothing import Smoothing
    from atent_ext.cli.console import certified_table
    from atent_ext.core.around import parse
    from atent_ext.evaluation import certificates, places

    smoothing = Smoothing(sigma=sigma, n0=n0, n=n, alpha=alpha, batch_size=batch_size)
    smoothing.require(radius or 0.0)
    _no_folder(out)
    threat = (norm or "Linf", 0.0)  # its norm is part of a name in RobustBench's zoo; radii are what is measured
    around = parse(normalisation, mean, std, output, resize, resize_inside)
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
        around=around,
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
    target = out or places.default_folder(Path(subject), loaded) / f"{name}.json"
    with Progress(console=console) as bar:
        task = bar.add_task("certifying", total=count)
        report = certificates.certify(
            loaded, smoothing, target, count, seed or 0, lambda done: bar.update(task, completed=done), skip
        )
    print_table(certified_table(report))
    print_data(report)
    print_line(f"written: {target}")


def _threats(
    given: list[str] | None,
    norm: str | None,
    eps: float | None,
    until_width: float | None,
    save_adversaries: Path | None,
) -> "tuple[Threat, ...]":
    """The threat models of --threat; none if it is not given. Raises BadInput for options that contradict it."""
    from atent_ext.evaluation import threats

    if not given:
        return ()
    chosen = threats.parse_all(given)
    others: dict[str, Any] = {"norm": norm, "eps": eps}
    if len(chosen) > 1:
        others |= {"until_width": until_width, "save_adversaries": save_adversaries}
    for name in (name for name, value in others.items() if value is not None):
        remedy = "say it with --threat" if name in ("norm", "eps") else "score each threat model alone"
        message = f"--{name.replace('_', '-')} is {others[name]}, and --threat is given; {remedy}"
        raise BadInput(message, code="conflict", field=name)
    return chosen


def _only_planned(**others: Any) -> None:
    """Raise BadInput for an option that `--plan`, which scores and writes nothing, would ignore."""
    for name in (name for name, value in others.items() if value is not None):
        option = name.replace("_", "-")
        message = f"--{option} is given, and --plan scores and writes nothing; leave one of them out"
        raise BadInput(message, code="conflict", field=name)


def _plan(loaded: "Subject", protocol: "Protocol", how: dict[str, Any], several: "Sequence[Threat]") -> None:
    """Print what an evaluation would take: of the images asked for, 100, 1,000 and all of them."""
    from atent_ext.evaluation import planning, threats
    from atent_ext.evaluation.union import called

    everything = len(loaded.test)
    for threat in several or (loaded.threat,):
        part = replace(loaded, threat=threat)
        plan = threats.protocol_of(protocol, threat) if several else protocol
        with console.status("measuring a few batches") as status:
            found = planning.estimate(part, plan, **how, busy=status.update)
        if several:
            print_line(f"{called(threat)}:")
        print_table(found.table(*(n for n in (how["n"] or everything, 100, 1000, everything) if n <= everything)))
    print_line("nothing was scored or written")


def _modified(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


def _no_folder(out: Path | None) -> None:
    if out is not None and out.is_dir():
        raise BadInput(f"--out {out} is a folder; name the JSON file to write", code="bad-value", field="out")
