"""Other people's adversarial images: the command `adversaries add`, and what `verify --adversaries` shares with it."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from atent_ext.cli.exit import Group
from atent_ext.cli.options import DataRoot, notice, print_line
from atent_ext.core.errors import BadInput

if TYPE_CHECKING:  # it imports torch
    from torch import nn

    from atent_ext.data.datasets import Split
    from atent_ext.submissions.cards import Card
    from atent_ext.submissions.evidence import Adversaries
    from atent_ext.submissions.folder import Opened

_LONGEST = 100
_WEIGHTS = 4 * 2**30
adversaries = typer.Typer(cls=Group, no_args_is_help=True, help="Other people's adversarial images, as evidence.")


def add(app: typer.Typer) -> None:
    """Add the command to `app`."""
    app.add_typer(adversaries, name="adversaries")


@adversaries.callback()
def _adversaries() -> None:
    pass


@adversaries.command("add")
def add_adversaries(
    card: Annotated[Path, typer.Argument(help="The card (.json), which is rewritten.")],
    images: Annotated[Path, typer.Argument(metavar="X_ADV", help="An .npz file with x_adv, optionally y and index.")],
    by: Annotated[str, typer.Option(help="Who made them: the name on the card and the leaderboard.")],
    weights: Annotated[Path, typer.Option(help="The card's weights file, found by its hash, or its folder.")],
    dataset: Annotated[str | None, typer.Option(help="Data set to load instead of the card's: npz:FILE.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per batch.")] = 250,
    data_root: DataRoot = None,
) -> None:
    """Check other people's adversarial images of a card's model, and lower its worst case by those that count.

    An image counts if it lies in [0, 1] and in the eps ball around its test image, and if the model is right on the
    test image and wrong on the adversarial one. Exit code 1 if the card does not change.
    """
    from atent_ext.submissions import cards, evidence, verification
    from atent_ext.submissions import folder as submissions

    known = cards.read_card(card)
    evidence.scored(known)
    path, content = _weights(weights, known)
    opened = submissions.opened(known.submission, content, path, [], data_root)
    test = verification.images_of(opened, dataset, data_root).test
    found = Evidence(opened.network, evidence.read(images, test), _name(by), test)
    lowered, changed = found.added(known, batch_size)
    if not changed:
        print_line(f"unchanged: {card}")
        raise typer.Exit(1)
    cards.write_card(lowered, card)
    print_line(f"written: {card}")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Adversarial images, who made them, and the network and test images that they belong to."""

    network: "nn.Module"
    images: "Adversaries"
    by: str
    test: "Split"

    @classmethod
    def of(
        cls, images: Path | None, by: str | None, opened: "Opened", dataset: str | None, root: Path | None
    ) -> "Evidence | None":
        """The evidence in the file `images` about a submission; None without a file. Raises BadInput for a bad one."""
        from atent_ext.submissions import evidence, verification

        if images is None:
            if by is not None:
                raise BadInput(
                    "--by names who made the --adversaries; give them, or drop it", code="unused", field="by"
                )
            return None
        name = _name(by or images.name.removesuffix(".npz"))
        test = verification.images_of(opened, dataset, root).test
        return cls(opened.network, evidence.read(images, test), name, test)

    def added(self, card: "Card", batch_size: int) -> "tuple[Card, bool]":
        """The card with the images that count, and whether the card changed; prints what happened."""
        from atent_ext.submissions import evidence, sanity

        evidence.require_same_images(card, self.test)
        random = sanity.is_random(card.checks, card.submission.random)
        checked = evidence.check(self.network, self.images, self.test, card.submission.threat, batch_size, random)
        print_line(f"evidence: {checked}")
        lowered = evidence.add(card, checked, self.by)
        before, after = (evidence.scored(one).worst.accuracy for one in (card, lowered))
        if lowered is card:
            notice(f"they break no image that was still right: the worst case stays {before:.2%}")
        else:
            print_line(f"worst case: {before:.2%} before, {after:.2%} with the adversaries by {self.by}")
        return lowered, lowered is not card


def _name(by: str) -> str:
    if not by.strip() or len(by) > _LONGEST or not by.isprintable():
        message = f"--by is {by[:_LONGEST]!r}; a name of 1 to {_LONGEST} printable characters is needed"
        raise BadInput(message, code="bad-value", field="by")
    return by


def _weights(place: Path, card: "Card") -> tuple[Path, bytes]:
    """The weights file with the card's hash, and its bytes. Raises BadInput if it is not there."""
    from atent_ext.storage import untrusted

    wanted: Any = card.weights.get("sha256")
    for path in _candidates(place):
        content = untrusted.read(path, _WEIGHTS)
        if hashlib.sha256(content).hexdigest() == wanted:
            return path, content
    message = f"no file in {place} has the SHA-256 {wanted} of the card of {card.submission.name}; give its weights"
    raise BadInput(message, code="other-content", field="weights")


def _candidates(place: Path) -> Iterator[Path]:
    from atent_ext.storage import untrusted

    return iter(untrusted.files(place, most=1000) if place.is_dir() else [place])
