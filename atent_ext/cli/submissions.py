"""The commands around submissions and the registry: verify, board, submit, submission new, registry check."""

import re
import shlex
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer

from atent_ext.cli.options import DataRoot, Seed, console
from atent_ext.core.errors import BadInput

_CARD = ".card.json"
submission = typer.Typer(no_args_is_help=True, help="Folders that are sent in.")
registry = typer.Typer(no_args_is_help=True, help="The cards, recipes and weights of the registry.")


def add(app: typer.Typer) -> None:
    """Give `app` these commands."""
    for command in (verify, board, submit, zoo):
        app.command()(command)
    app.add_typer(submission, name="submission")
    app.add_typer(registry, name="registry")


def verify(
    folder: Annotated[Path, typer.Argument(help="A submission: weights and card.yaml.")],
    n: Annotated[int | None, typer.Option("--n", min=1, help="The first N test images [default: all].")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The card [default: FOLDER.card.json].")] = None,
    protocol: Annotated[str, typer.Option(help="What is measured: a protocol's name or YAML file.")] = "verify",
    dataset: Annotated[str | None, typer.Option(help="Load this instead of the card's data set, npz:FILE say.")] = None,
    seed: Seed = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch; the random draws follow it.")] = 250,
    chunk: Annotated[int | None, typer.Option(min=1, help="As of `atent eval`.")] = None,
    speed: Annotated[str, typer.Option(help="plain, channels-last, compile, graphs or auto.")] = "channels-last",
    data_root: DataRoot = None,
) -> None:
    """Check a submission, score it, compare it with what it claims, and write its card. No code of it is run.

    The same command goes on with a verification that was interrupted.
    """
    from atent_ext.cli.console import ScoringBar
    from atent_ext.figures import gallery
    from atent_ext.storage import files
    from atent_ext.submissions import cards
    from atent_ext.submissions.folder import read
    from atent_ext.submissions.verification import verify as run

    target = out or _card_of(folder)
    if ("registry", "cards") in pairwise(target.resolve().parts):
        raise BadInput(f"{target} lies among the registry's cards, and files of the scoring would, too; move it later")
    for file in (target, target.with_suffix(".png")):
        files.replaceable(file)
    opened = read(folder, data_root)

    def draw(network: Any, test: Any, classes: Sequence[str]) -> None:
        title = f"{opened.submission.name}: the first test images under PGD-{gallery.STEPS}"
        gallery.draw(network, test, opened.submission.threat, classes, title, target.with_suffix(".png"), seed or 0)

    with ScoringBar(console) as bar:
        card = run(
            opened,
            n=n,
            seed=seed or 0,
            out=target.with_name(f"{target.name}.report.json"),
            protocol=protocol,
            dataset=dataset,
            data_root=data_root,
            batch_size=batch_size,
            chunk=chunk,
            speed=speed,
            draw=draw,
            command=_command(sys.argv[1:]),
            busy=bar.busy,
            progress=bar.standing,
        )
    cards.write_card(card, target)
    if card.report:
        console.print(card.report.table())
    for line in _said(card):
        console.print(line, soft_wrap=True)
    if not card.report:
        console.print(f"written: {target}; the network cannot be scored, and the registry takes no such card")
        raise typer.Exit(1)
    picture = target.with_suffix(".png").name
    console.print(f"written: {target} and {picture}; the card's place is registry/cards/{card.place}", soft_wrap=True)


def _card_of(folder: Path) -> Path:
    """The card's place beside the submission, which may be called "." as well."""
    named = folder if folder.name == folder.resolve().name else folder.resolve()
    return named.with_name(f"{named.name}{_CARD}")


def _weights_of(path: Path, file: str) -> Path:
    """The weights in the submission that a card lies beside, or beside the card itself."""
    inside = path.with_name(path.name.removesuffix(_CARD)) / file
    return inside if path.name.endswith(_CARD) and inside.is_file() else path.with_name(file)


def _command(arguments: Sequence[str]) -> str:
    """The command as a card tells it: files and folders by their last name, for where they lie says nothing."""
    return shlex.join(["atent", *(re.sub(r"[^:=]*[/\\](?=[^/\\])", "", one) for one in arguments)])


def _said(card: Any) -> list[str]:
    """What a reader has to know besides the table: failed checks, signs of masking, verdicts."""
    failed = [f"check failed: {check.name}: {check.said}" for check in card.checks if check.passed is False]
    signs = [f"sign of gradient masking: {sign.name}: {sign.evidence}" for sign in card.signs if sign.found]
    verdicts = [
        f"claim of {one.claim.percent:g} % ({one.claim.what}): {one.verdict}; measured {one.measured:.1f} % "
        f"({one.interval[0]:.1f}-{one.interval[1]:.1f}) under {one.attack}, {one.points:+.1f} points"
        for one in card.verdicts
    ]
    judged = [one.claim for one in card.verdicts]
    unjudged = [
        f"claim of {claim.percent:g} % ({claim.what}): not judged; only with AutoAttack can it be confirmed"
        for claim in card.submission.claims
        if card.report and claim not in judged
    ]
    return [*failed, *signs, *verdicts, *unjudged]


def board(
    out: Annotated[Path, typer.Option("--out", help="Folder to write the site to.")],
    cards: Annotated[
        Path | None, typer.Option(help="Folder of the cards [default: those that atent-ext brings].")
    ] = None,
) -> None:
    """Write the leaderboard of all cards as pages that open without a network."""
    from atent_ext.core.registry import folder as shipped
    from atent_ext.leaderboard.site import build

    folder = shipped("card") if cards is None else cards
    if not folder.is_dir():
        raise BadInput(f"there are no cards in {folder}; name their folder with --cards")
    written = build(folder, out)
    console.print(f"written: {written[0]} and {len(written) - 1} more files", soft_wrap=True)


def zoo() -> None:
    """List the models that can be loaded by name, by `atent eval NAME` or `atent_ext.load(NAME)`."""
    from rich.table import Column, Table

    from atent_ext.leaderboard.ranking import measured
    from atent_ext.subjects import zoo as models

    first = Column("model", no_wrap=True)
    table = Table(first, *(Column(one, overflow="fold") for one in ("data", "threat", "clean", "worst case", "images")))
    for name in models.names():
        for card in models.find(name)[0]:
            asked, entry = card.submission, measured(card, Path(name))
            found = [f"{100 * one.accuracy:.1f}%" for one in (entry.clean, entry.worst)]
            threat = f"{asked.threat.norm} {asked.threat.eps:.4g}"
            table.add_row(name, asked.dataset, threat, *found, str(entry.clean.n))
    console.print(table)


def submit(
    card: Annotated[Path, typer.Argument(help="A card that `atent verify` wrote.")],
    weights: Annotated[
        Path | None, typer.Option(help="The weights of the card [default: in its FOLDER, or the file beside it].")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="New folder [default: robustbench-NAME].")] = None,
    to: Annotated[str, typer.Option("--to", help="The leaderboard: robustbench.")] = "robustbench",
) -> None:
    """Write the bundle that a leaderboard's maintainers ask for."""
    from atent_ext.core.registry import nearest
    from atent_ext.integrations.robustbench.bundle import bundle
    from atent_ext.submissions.cards import read_card

    if to != "robustbench":
        raise nearest("leaderboard to submit to", to, ["robustbench"])
    read = read_card(card)
    target = out or Path(f"{to}-{read.submission.name}")
    written = bundle(read, weights or _weights_of(card, read.weights["file"]), target)
    console.print(f"written: {target}, {len(written)} files; README.md in it says what to do", soft_wrap=True)


@submission.command("new")
def new(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    out: Annotated[Path, typer.Option("--out", help="New folder to write to.")],
    authors: Annotated[str, typer.Option(help="Who is to be named.")],
    license: Annotated[str, typer.Option(help="Of the weights, such as MIT.")],
    link: Annotated[str, typer.Option(help="An address that starts with https://.")] = "",
    venue: Annotated[str, typer.Option(help="Where it was published.")] = "Unpublished",
    name: Annotated[str | None, typer.Option("--name", help="The model's name [default: the recipe's].")] = None,
    report: Annotated[
        Path | None, typer.Option(help="What `atent eval RUN` wrote: its figures become the claims.")
    ] = None,
) -> None:
    """Write the submission of a training run: weights, card.yaml, recipe.yaml."""
    from atent_ext.submissions.folder import new as write

    folder = write(run, out, authors=authors, license=license, link=link, venue=venue, name=name, report=report)
    console.print(f"written: {folder}; check it with: atent verify {folder}", soft_wrap=True)


@registry.command("check")
def check(
    root: Annotated[Path, typer.Argument(help="Folder with cards/, recipes/ and README.md.")] = Path("registry"),
) -> None:
    """Check all cards, hashes, counts and recipes; exit code 1 and a line for each fault if there are any."""
    from atent_ext.leaderboard.check import check as run

    problems = run(root)
    for problem in problems:
        console.print(problem, soft_wrap=True)
    if problems:
        raise typer.Exit(1)
    console.print(f"{root}: all cards and recipes are in order", soft_wrap=True)


# What has one command has a callback, or typer would take the command's name for its argument.
@submission.callback()
def _submission() -> None:
    pass


@registry.callback()
def _registry() -> None:
    pass
