"""A repository of the Hugging Face hub as a subject: weights or a program, and a file that says how to read them.

card.json      what `atent verify` wrote           model.safetensors, model.pt2, or the file that the reference names
card.yaml      what a submission claims            config.json    timm's, or of a network of `atent ls models`
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from atent_ext.core import registry
from atent_ext.core.around import Around, refuse
from atent_ext.core.errors import BadInput
from atent_ext.data import datasets
from atent_ext.data.resizing import resized
from atent_ext.evaluation.scoring import Subject
from atent_ext.integrations import huggingface
from atent_ext.integrations.huggingface import CARD, PREFIX, Fetched, Place
from atent_ext.storage import untrusted_program
from atent_ext.subjects import base, hub_config
from atent_ext.subjects.base import threat_model, under
from atent_ext.subjects.exported_program import SUFFIX, from_program
from atent_ext.subjects.weights_file import from_weights
from atent_ext.submissions import cards, folder
from atent_ext.submissions.cards import Submission

_NOTHING = Around()
_CLAIMED, _CONFIG = "card.yaml", "config.json"
_WEIGHTS = ("model.safetensors", "model.pt2")


def from_hub(
    reference: str,
    model: str | None,
    dataset: str | None,
    norm: str | None,
    eps: float | None,
    root: Path | None = None,
    download: bool = False,
    classes: int | None = None,
    key: str | None = None,
    around: Around = _NOTHING,
    arguments: Mapping[str, Any] | None = None,
) -> Subject:
    """The model of `hf:OWNER/NAME[@REVISION][/FILE]`. No code of the repository is run.

    With a card, data set and threat model are the card's unless they are given. With a config.json, or with `model`,
    `dataset` and `eps` are needed; norm: None is "Linf" then. The other arguments: as in `from_weights`. The notes of
    the subject name repository, commit and file. Raises BadInput for a repository that lacks these files, for weights
    that are not the card's or do not fit, for an architecture that is not known, and what `huggingface.fetch` raises.
    """
    place = huggingface.parse(reference)
    found = None if model is not None else _first(place, CARD, _CLAIMED, _CONFIG)
    if found is not None and found.shown.name != _CONFIG:
        _refuse(reference, key=key, model_arg=arguments)
        refuse(around, f"{reference} has a card, which says what stands around the network")
        return under(_of_card(place, found, dataset, root, download, classes), norm, eps)
    weights = _weights(place)
    if dataset is None or eps is None:
        message = f"{reference} has no card, which would name data set and threat model; give --dataset and --eps"
        raise BadInput(message, code="missing", field="dataset" if dataset is None else "eps")
    of_data = (root, download, classes)
    if weights.path.suffix == SUFFIX:
        _refuse(reference, key=key, model_arg=arguments)
        return _of(place, weights, from_program(weights.path, model, dataset, norm, eps, *of_data, around))
    threat = threat_model(norm or "Linf", eps)
    notes: tuple[str, ...] = ()
    if model is None:
        if found is None:
            names = f"{CARD}, {_CLAIMED} and {_CONFIG}"
            message = f"{reference} has none of {names}, which would name its network; give --model"
            raise BadInput(message, code="missing", field="model")
        _refuse(reference, model_arg=arguments)
        config = hub_config.read(found.read(hub_config.MOST), found.shown)
        model, arguments = config.model, config.arguments
        if around.normalisation is None and config.normalisation is not None:
            around = around.model_copy(update={"normalisation": config.normalisation})
            notes = (f"{_CONFIG} says the normalisation, which is applied",)
    subject = from_weights(weights.path, model, dataset, threat, *of_data, key, around, arguments)
    return _of(place, weights, subject, *notes)


def _of_card(
    place: Place, found: Fetched, dataset: str | None, root: Path | None, download: bool, classes: int | None
) -> Subject:
    """The subject of a card of measurements or of claims, under its threat model."""
    path = found.path.resolve()  # the cache holds links
    card = cards.read_card(path) if found.shown.name == CARD else None
    submission = card.submission if card else cards.read_submission(path)
    named = None if card is None or place.file else place.beside(str(card.weights["file"]))
    weights = _weights(place, named)
    content = weights.read(untrusted_program.MOST)
    if card is not None:
        cards.require_weights(card, content, weights.shown)
    notes: list[str] = []
    network, key = folder.filled(submission, content, weights.shown, notes, root)
    images = resized(_images(submission, dataset, root, download, classes), submission.resize)
    about = base.about(submission.name, submission.described(key), [weights.path], images)
    about = about.model_copy(update={"weights_notes": tuple(notes)})
    return Subject(network, images.test, submission.threat, about, notes=(_origin(place, weights),))


def _images(
    submission: Submission, dataset: str | None, root: Path | None, download: bool, classes: int | None
) -> datasets.DataSet:
    own = submission.dataset
    if dataset is None and own not in registry.entries("data set"):
        message = f"the card is for {own}, which is no data set here; give --dataset"
        raise BadInput(message, code="missing", field="dataset")
    return datasets.load(dataset or own, root, download, classes)


def _weights(place: Place, named: str | None = None) -> Fetched:
    """The weights: the file of the reference, else `named`, else one of the usual names beside it."""
    names = [name for name in (place.file, named) if name][:1] or list(_WEIGHTS)
    found = next((file for name in names if (file := huggingface.fetch(place, name)) is not None), None)
    if found is None:
        raise huggingface.absent(place, *names)
    return found


def _first(place: Place, *names: str) -> Fetched | None:
    """The first of the files beside the weights that the repository has."""
    return next((file for name in names if (file := huggingface.fetch(place, place.beside(name))) is not None), None)


def _of(place: Place, weights: Fetched, subject: Subject, *notes: str) -> Subject:
    """The subject of a file in the cache, named after its repository."""
    about = subject.about.model_copy(update={"name": place.name.partition("/")[2]})
    return replace(subject, about=about, notes=(*subject.notes, _origin(place, weights), *notes))


def _origin(place: Place, weights: Fetched) -> str:
    return f"from {PREFIX}{place.name}, commit {weights.commit}, file {weights.shown.relative_to(place.name)}"


def _refuse(reference: str, **given: Any) -> None:
    """Raise BadInput for options that the repository decides."""
    option = next((name for name, value in given.items() if value), None)
    if option is not None:
        field = "weights_key" if option == "key" else option
        message = f"{reference} says how it is read; drop --{field.replace('_', '-')}"
        raise BadInput(message, code="unused", field=field)
