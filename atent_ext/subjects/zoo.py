"""The zoo: models of registry/cards/ whose weights lie in registry/weights/, loaded by name."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from atent_ext.core import registry
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.evaluation.scoring import Subject
from atent_ext.subjects import base
from atent_ext.subjects.base import under
from atent_ext.submissions import cards
from atent_ext.submissions import folder as submissions
from atent_ext.submissions.cards import Card

_SUFFIX = ".safetensors"


def load(name: str, folder: Path | str | None = None) -> nn.Module:
    """The model of the card `name` with its weights, on the CPU, in eval mode. It maps images in [0, 1] to logits.

    folder: where to look for weights that are not in the installed package, of any card of the registry: the
    .safetensors file with the card's SHA-256, whatever its name. None: `names()` says what is here.
    Raises BadInput for a name that is not in `names()`, or, with a folder, has no card; for a weights file whose
    SHA-256 is not that of the card, and for a folder without such a file; MissingExtra if the architecture needs
    another library that is not installed.
    """
    (card, *_), path = (
        find(name) if folder is None else _in_folder(name, Path(folder))
    )  # further cards are of the same weights under other threat models
    content = path.read_bytes()
    digest, stated = hashlib.sha256(content).hexdigest(), card.weights.get("sha256")
    if digest != stated:
        message = f"{path} has SHA-256 {digest}, and the card of {name} is of {stated}; reinstall atent-ext"
        raise BadInput(message, code="other-content", field="weights.sha256")
    return submissions.filled(card.submission, content, path, [])[0]


def names() -> list[str]:
    """The names of the models that `load` takes."""
    return [path.stem for path in sorted(_weights())]


def find(name: str) -> tuple[list[Card], Path]:
    """The cards of a model, one per threat model, and the path of its weights.

    Raises BadInput for a name that is not in `names()`, and for weights without a card.
    """
    path = next((path for path in _weights() if path.stem == name), None)
    if path is None:
        raise unknown(f"there is no model {name!r} in the zoo", name)
    paths = sorted(_cards(name))
    if not paths:
        message = f"{path} has no card in {registry.folder('card')}; reinstall atent-ext"
        raise BadInput(message, code="missing", field="card")
    return [cards.read_card(card) for card in paths], path


def _in_folder(name: str, folder: Path) -> tuple[list[Card], Path]:
    """As `find`, for a weights file in a folder of the user, which is known by the hash of the card."""
    known = [cards.read_card(path) for path in sorted(_cards(name))]
    if not known:
        raise unknown(f"there is no card {name!r} in the registry", name)
    digest = known[0].weights.get("sha256")
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        if hashlib.sha256(path.read_bytes()).hexdigest() == digest:
            return known, path
    message = f"no {_SUFFIX} file in {folder} has the SHA-256 {digest} of the card of {name}; give another folder"
    raise BadInput(message, code="missing", field="folder")


def unknown(message: str, name: str) -> BadInput:
    """The error for a name that is not a model of the zoo: `message`, and the names that are."""
    if isinstance(name, str) and name.isprintable() and any(_cards(name)):
        message += f"; the registry has a card of {name}, but not its weights; name their folder by folder="
    return BadInput(f"{message}; the zoo has: {', '.join(names()) or 'no models'}", code="unknown-name", field="name")


def _weights() -> Iterator[Path]:
    return registry.folder("weights").glob(f"*{_SUFFIX}")


def _cards(name: str) -> Iterator[Path]:
    return (path for path in registry.folder("card").glob("*/*/*.json") if path.stem == name)


def from_card(
    name: str, norm: str | None = None, eps: float | None = None, root: Path | None = None, download: bool = False
) -> Subject:
    """A model of the zoo (`atent_ext.load`), on the test split of its card's data set, under its card's threat model.

    norm, eps: another threat model. Raises what `load` raises, and BadInput for a missing data set and for a model with
    cards under several threat models if norm or eps is None.
    """
    known, weights = find(name)
    submission = known[0].submission
    if len(known) > 1 and (norm is None or eps is None):
        threats = ", ".join(f"{card.submission.threat.norm} {card.submission.threat.eps:g}" for card in known)
        message = f"{name} has cards under {threats}; give --norm and --eps"
        raise BadInput(message, code="missing", field="norm" if norm is None else "eps")
    images = datasets.load(submission.dataset, root, download)
    about = base.about(name, submission.architecture.name, [weights], images)
    return under(Subject(load(name), images.test, submission.threat, about), norm, eps)
