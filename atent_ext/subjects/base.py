"""Shared by all sources of subjects: the threat model, and where a model and its images come from."""

import hashlib
from dataclasses import replace
from pathlib import Path

from torch import nn

from atent_ext.attacks.accuracy import predict
from atent_ext.core import validate
from atent_ext.core.around import Around
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import ball as norm_called
from atent_ext.core.schema import Threat, escaped
from atent_ext.data import datasets
from atent_ext.evaluation.report import About
from atent_ext.evaluation.scoring import Subject
from atent_ext.models import wrappers


def under(subject: Subject, norm: str | None, eps: float | None) -> Subject:
    """The subject under another threat model. norm, eps: None keeps those of the subject.

    Raises BadInput for another norm without an eps.
    """
    own = subject.threat
    if norm_called(norm or own.norm).name != own.norm and eps is None:
        message = f"norm is {norm}, but the known radius, {own.eps:g}, is for {own.norm}; give --eps as well"
        raise BadInput(message, code="missing", field="eps")
    return replace(subject, threat=threat_model(norm or own.norm, own.eps if eps is None else eps))


def surrounded(subject: Subject, around: Around, key: str | None = None) -> Subject:
    """The subject with what is stated around its network, also in the report; its images are already resized.

    key: as in `wrappers.described`. Raises what `wrappers.surrounded` raises.
    """
    placed = wrappers.surrounded(subject.model, around, subject.test[:2].images)
    return _placed(subject, placed.network, around, key, placed.output, placed.notes)


def behind(subject: Subject, around: Around) -> Subject:
    """As `surrounded`, for a network that is known to give logits for float32 images."""
    network, notes = wrappers.behind(subject.model, around, subject.test.shape)
    return _placed(subject, network, around, None, around.output, notes)


def _placed(
    subject: Subject, network: nn.Module, around: Around, key: str | None, output: str | None, notes: tuple[str, ...]
) -> Subject:
    text = wrappers.described(subject.about.model, around.normalisation, key, output, around.resize_inside)
    resized = () if around.resize is None else (f"test images are {around.resize} first, and eps is of those",)
    about = subject.about.model_copy(update={"model": text})
    return replace(subject, model=network, about=about, notes=(*subject.notes, *resized, *notes))


def threat_model(norm: str, eps: float) -> Threat:
    """The threat model of a norm and a radius. Raises BadInput for an unknown norm and an invalid radius."""
    norm_called(norm)
    validate.radius("eps", eps)
    return Threat.model_validate({"norm": norm, "eps": eps})


def check_classes(network: nn.Module, images: datasets.DataSet) -> None:
    """Refuse a network with another number of logits than the classes of an image folder or of `hf-dataset:`.

    There, label k is the k-th class of a known order, which would be another class of the network. A network that
    cannot be run on the first image is not refused here, since scoring says why.
    """
    if images.counted or not images.name.startswith(datasets.NAMED):
        return
    try:
        logits = predict(network, images.test[:1].images)
    except (BadInput, RuntimeError):
        return
    if logits.shape[1] != len(images.classes):
        message = f"the network has {logits.shape[1]} logits, and {images.name} {len(images.classes)} classes; "
        message += "for a folder list all classes of the network in PATH/classes.txt, in its order"
        raise BadInput(message, code="conflict", field="classes")


def about(name: str, model: str, weights: list[Path], images: datasets.DataSet) -> About:
    """Where a subject comes from: name, model, SHA-256 of its weights files, data.

    The hash is None if there are no weights files or one is missing.
    """
    complete = bool(weights) and all(path.is_file() for path in weights)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest() if complete else None
    return About(
        name=escaped(name), model=model, weights_sha256=digest, data=escaped(images.name), data_note=images.note
    )
