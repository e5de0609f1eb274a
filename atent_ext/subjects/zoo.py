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
from atent_ext.submissions import cards, folder
from atent_ext.submissions.cards import Card

_SUFFIX = ".safetensors"


def load(name: str) -> nn.Module:
    """The network of the card `name` with its weights, on the CPU, in eval mode: images in [0, 1] to logits.

    Raises BadInput for a name that is not in `names()`, and for weights that are not the file that the card was
    measured on (SHA-256); MissingExtra where the network is another library's and that is not installed.
    """
    (card, *_), path = find(name)  # the others are of the same weights, under other threat models
    content = path.read_bytes()
    digest, stated = hashlib.sha256(content).hexdigest(), card.weights.get("sha256")
    if digest != stated:
        raise BadInput(f"{path} has SHA-256 {digest}, and the card of {name} is of {stated}; reinstall atent-ext")
    return folder.filled(card.submission, content, path, [])


def names() -> list[str]:
    """The models that `load` knows."""
    return [path.stem for path in sorted(_weights())]


def find(name: str) -> tuple[list[Card], Path]:
    """The cards of a model, one a threat model, and the file of its weights.

    Raises BadInput for a name that is not in `names()`, and for weights without a card.
    """
    path = next((path for path in _weights() if path.stem == name), None)
    if path is None:
        raise unknown(f"there is no model {name!r} in the zoo", name)
    found = sorted(_cards(name))
    if not found:
        raise BadInput(f"{path} has no card in {registry.folder('card')}; reinstall atent-ext")
    return [cards.read_card(one) for one in found], path


def unknown(said: str, name: str) -> BadInput:
    """The error for a name that is no model of the zoo: what was said, and what there is instead."""
    if isinstance(name, str) and name.isprintable() and any(_cards(name)):
        said += f"; the registry has a card of {name}, but not its weights"
    return BadInput(f"{said}; the zoo has: {', '.join(names()) or 'no models'}")


def _weights() -> Iterator[Path]:
    return registry.folder("weights").glob(f"*{_SUFFIX}")


def _cards(name: str) -> Iterator[Path]:
    return (path for path in registry.folder("card").glob("*/*/*.json") if path.stem == name)


def from_card(
    name: str, norm: str | None = None, eps: float | None = None, root: Path | None = None, download: bool = False
) -> Subject:
    """A model of our zoo (`atent_ext.load`), on the test split of its card's data set, under its card's threat model.

    norm, eps: another threat model. Raises what `load` raises, and BadInput for data that is not there and where
    the model has cards under several threat models and none is asked for.
    """
    found, weights = find(name)
    submission = found[0].submission
    if len(found) > 1 and (norm is None or eps is None):
        threats = ", ".join(f"{one.submission.threat.norm} {one.submission.threat.eps:g}" for one in found)
        raise BadInput(f"{name} has cards under {threats}; give --norm and --eps")
    images = datasets.load(submission.dataset, root, download)
    about = base.about(name, submission.architecture.name, [weights], images)
    return under(Subject(load(name), images.test, submission.threat, about), norm, eps)
