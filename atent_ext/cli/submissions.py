"""The commands for submissions: verify, submit, submission new."""

import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atent_ext.cli import card_text
from atent_ext.cli.exit import Group
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
    Weights,
    WeightsKey,
    console,
    notice,
    print_line,
    print_table,
    print_weights_notes,
)
from atent_ext.core.errors import BadInput

if TYPE_CHECKING:  # they import torch
    from atent_ext.evaluation.report import Report
    from atent_ext.submissions.folder import Opened

_CARD = ".card.json"
submission = typer.Typer(
    cls=Group, no_args_is_help=True, help="Folders with a model and its claims, for `atent verify`."
)


def add(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command()(verify)
    app.command()(submit)
    app.add_typer(submission, name="submission")


def verify(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A submission: weights and card.yaml.")],
    n: Annotated[int | None, typer.Option("--n", min=1, help="Score the first N test images [default: all].")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The card to write [default: FOLDER.card.json].")] = None,
    protocol: Annotated[str, typer.Option(help="A name of `atent ls protocols`, or a YAML file.")] = "verify",
    dataset: Annotated[str | None, typer.Option(help="Data set to load instead of the card's: npz:FILE.")] = None,
    seed: Seed = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch; the random draws depend on it.")] = 250,
    chunk: Annotated[int | None, typer.Option(min=1, help="As for `atent eval`.")] = None,
    speed: Annotated[str, typer.Option(help="plain, channels-last, compile, graphs or auto.")] = "channels-last",
    until_decided: Annotated[
        bool,
        typer.Option("--until-decided", help="Score images in random order, at most --n, until each claim is decided."),
    ] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="With --until-decided: confirm claims within so many points [default: 1]."),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Measure again if the card exists, and replace it; its evidence stays."),
    ] = False,
    adversaries: Annotated[
        Path | None,
        typer.Option(help="Other people's adversarial images (.npz), which may lower the worst case."),
    ] = None,
    by: Annotated[str | None, typer.Option(help="Who made the --adversaries [default: the file's name].")] = None,
    data_root: DataRoot = None,
) -> None:
    """Check a submission, score it, compare the scores with its claims, and write its card. None of its code is run.

    Run the same command again to resume an interrupted verification, or to show a finished card. Without --overwrite, a
    card of something else is kept. To write a card again from the same scores, delete the card alone, and not the
    report beside it.
    """
    from atent_ext.cli.adversaries import Evidence
    from atent_ext.cli.console import ScoringBar
    from atent_ext.core import processes
    from atent_ext.data import datasets
    from atent_ext.evaluation.protocol import load_protocol
    from atent_ext.figures import gallery
    from atent_ext.models import speed as speeds
    from atent_ext.storage import files
    from atent_ext.submissions import cards
    from atent_ext.submissions import evidence as evidence_of
    from atent_ext.submissions.folder import read
    from atent_ext.submissions.verification import verify as run

    speeds.check(speed)
    if adversaries is not None and until_decided:
        message = "--adversaries follow the order of the test images, and --until-decided a random one; drop one"
        raise BadInput(message, code="conflict", field="adversaries")
    if tolerance is not None and not until_decided:
        message = f"--tolerance is {tolerance:g}, and only --until-decided uses it; give both, or neither"
        raise BadInput(message, code="unused", field="tolerance")
    if dataset is not None:
        datasets.check_name(dataset)
    plan = load_protocol(protocol)
    target = out or _card_of(folder)
    if ("registry", "cards") in pairwise(target.resolve().parts):
        message = f"{target} is in the registry's folder of cards, where scoring would leave files; move the card later"
        raise BadInput(message, code="bad-value", field="out")
    for file in (target, target.with_suffix(".png")):
        files.replaceable(file)
    finished = None if overwrite else cards.find_card(target)
    opened = read(folder, data_root)
    evidence = Evidence.of(adversaries, by, opened, dataset, data_root)
    kept = _kept(target, opened, dataset, data_root) if overwrite else None
    if kept is not None and until_decided:
        message = f"{target} has adversarial images of others, which a drawn order of the images would lose; "
        raise BadInput(f"{message}give --n, or name another --out", code="conflict", field="overwrite")

    def draw(network: Any, test: Any, classes: Sequence[str]) -> None:
        if len(test.shape) != 3:
            return  # features and sequences are no pictures
        title = f"{opened.submission.name}: the first test images under PGD-{gallery.STEPS}"
        gallery.draw(network, test, opened.submission.threat, classes, title, target.with_suffix(".png"), seed or 0)

    with ScoringBar(console) as bar:
        card = run(
            opened,
            n=n,
            seed=seed or 0,
            out=target.with_name(f"{target.name}.report.json"),
            protocol=plan,
            dataset=dataset,
            data_root=data_root,
            batch_size=batch_size,
            chunk=chunk,
            speed=speed,
            card=finished,
            overwrite=overwrite,
            tolerance=(1.0 if tolerance is None else tolerance) if until_decided else None,
            draw=draw,
            command=_command(ctx.obj),
            busy=bar.busy,
            progress=bar.progress_to,
        )
    if kept is not None and card.report:
        card = evidence_of.carried(card, kept)
        notice(f"kept of the card before: {', '.join(one.attack for one in kept.evidence)}")
    card, _ = evidence.added(card, batch_size) if evidence and card.report else (card, False)
    same = card is finished
    if not same and processes.is_main():
        cards.write_card(card, target)
    written = "written" if not same else "written earlier, and nothing was measured (--overwrite measures anew)"
    if card.report:
        print_table(card.report.table())
        if card.report.drawn is not None:
            notice(card.report.drawn.note(card.report.n, card.report.total))
        if dataset is not None:
            notice(card.report.data_note)
    print_weights_notes(card.weights.get("notes", ()))
    for line in card_text.remarks(card.model_dump()):
        print_line(line)
    if not card.report:
        print_line(f"{written}: {target}; the network cannot be scored, and the registry takes no such card")
        raise typer.Exit(1)
    picture = target.with_suffix(".png").name
    print_line(f"{written}: {target} and {picture}; {card_text.standing(card.model_dump(), str(card.place))}")


def _kept(target: Path, opened: "Opened", dataset: str | None, root: Path | None) -> "Report | None":
    """The report at the path of the new card whose evidence that card has to keep, if there is one."""
    from atent_ext.submissions import cards, evidence, verification

    try:
        before = cards.find_card(target)
    except BadInput:  # what is no card has no evidence
        return None
    if before is None:
        return None
    return evidence.kept(before, opened, lambda: verification.images_of(opened, dataset, root).test)


def _card_of(folder: Path) -> Path:
    """The default path of the card, beside the submission's folder; that may be given as "."."""
    named = folder if folder.name == folder.resolve().name else folder.resolve()
    return named.with_name(f"{named.name}{_CARD}")


def _weights_of(path: Path, file: str) -> Path:
    """The weights in the submission's folder beside the card, or else beside the card itself."""
    inside = path.with_name(path.name.removesuffix(_CARD)) / file
    return inside if path.name.endswith(_CARD) and inside.is_file() else path.with_name(file)


def _command(arguments: Sequence[str]) -> str:
    """The command for the card, with file and folder names but without the paths of this machine."""
    return shlex.join(["atent", *(re.sub(r"[^:=]*[/\\](?=[^/\\])", "", argument) for argument in arguments)])


def submit(
    card: Annotated[Path, typer.Argument(help="A card that `atent verify` wrote.")],
    weights: Annotated[
        Path | None, typer.Option(help="The card's weights file [default: in the FOLDER, or beside the card].")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="New folder [default: TO-NAME].")] = None,
    to: Annotated[str, typer.Option("--to", help="robustbench or huggingface.")] = "robustbench",
) -> None:
    """Write a bundle for RobustBench's maintainers, or a repository for the Hugging Face hub. Nothing is sent."""
    from atent_ext.core.registry import nearest
    from atent_ext.submissions.cards import read_card

    if to not in ("robustbench", "huggingface"):
        raise nearest("place to submit to", to, ["robustbench", "huggingface"])
    read = read_card(card)
    target = out or Path(f"{to}-{read.submission.name}")
    own = weights or _weights_of(card, read.weights["file"])
    if to == "huggingface":
        from atent_ext.integrations.huggingface import write

        written = write(read, own, target)
        print_line(
            f"written: {target}, {len(written)} files; `hf upload OWNER/{read.submission.name} {target}` sends it"
        )
        return
    from atent_ext.integrations.robustbench.bundle import bundle

    written = bundle(read, own, target)
    print_line(f"written: {target}, {len(written)} files; README.md in it says what to do")


@submission.command("new")
def new(
    subject: Source,
    out: Annotated[Path, typer.Option("--out", help="New folder to write to.")],
    authors: Annotated[str, typer.Option(help="Names of the authors.")],
    license: Annotated[str, typer.Option(help="License of the weights, such as MIT.")],
    link: Annotated[str, typer.Option(help="A web address that starts with https://.")] = "",
    venue: Annotated[str, typer.Option(help="Where it was published.")] = "Unpublished",
    name: Annotated[str | None, typer.Option("--name", help="The model's name [default: the source's].")] = None,
    report: Annotated[
        Path | None, typer.Option(help="A report of `atent eval SOURCE`, whose figures become the claims.")
    ] = None,
    data_name: Annotated[
        str | None, typer.Option(help="For data that `atent ls datasets` lacks: its name on the card.")
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
    data_root: DataRoot = None,
    download: Download = False,
    model_dir: ModelDir = None,
) -> None:
    """Write a submission for a source: card.yaml with the weights, or with the network as a program (model.pt2).

    For a training run, recipe.yaml is written as well. A network of code becomes a program, which `atent verify` reads
    without the code.
    """
    from atent_ext import subjects
    from atent_ext.core.around import parse

    source: dict[str, Any] = {
        "model": model,
        "dataset": dataset,
        "norm": norm,
        "eps": eps,
        "root": data_root,
        "download": download,
    }
    source |= {"model_dir": model_dir, "classes": classes, "weights_key": weights_key, "weights": weights}
    source |= {"around": parse(normalisation, mean, std, output, resize, resize_inside)}
    source |= {"arguments": subjects.parse_arguments(model_arg or ())}
    written = {"authors": authors, "license": license, "link": link, "venue": venue}
    folder = subjects.new(subject, out, written, name, report, data_name, source)
    data = "" if dataset is None or ":" not in dataset else f" --dataset {shlex.quote(dataset)}"
    print_line(f"written: {folder}; check it with: atent verify {folder}{data}")


# A typer app with a single command needs a callback; otherwise the command's name is read as its argument.
@submission.callback()
def _submission() -> None:
    pass
