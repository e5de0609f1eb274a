"""Shared by all sources of subjects: the threat model, and where a model and its images come from."""

import hashlib
from dataclasses import replace
from pathlib import Path

from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import norm as norm_called
from atent_ext.core.schema import Threat, escaped
from atent_ext.data import datasets
from atent_ext.evaluation.report import About
from atent_ext.evaluation.scoring import Subject


def under(subject: Subject, norm: str | None, eps: float | None) -> Subject:
    """The subject under another threat model. norm, eps: None keeps those of the subject.

    Raises BadInput for another norm without an eps.
    """
    own = subject.threat
    if norm_called(norm or own.norm).name != own.norm and eps is None:
        message = f"norm is {norm}, and the radius at hand, {own.eps:g}, is of {own.norm}; give --eps, too"
        raise BadInput(message, code="missing", field="eps")
    return replace(subject, threat=threat_model(norm or own.norm, own.eps if eps is None else eps))


def threat_model(norm: str, eps: float) -> Threat:
    """The threat model of a norm and a radius. Raises BadInput for an unknown norm and an invalid radius."""
    norm_called(norm)
    validate.radius("eps", eps)
    return Threat.model_validate({"norm": norm, "eps": eps})


def about(name: str, model: str, weights: list[Path], images: datasets.DataSet) -> About:
    """Where a subject comes from: name, model, SHA-256 of its weights files, data.

    The hash is None if there are no weights files or one is missing.
    """
    complete = bool(weights) and all(path.is_file() for path in weights)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest() if complete else None
    return About(
        name=escaped(name), model=model, weights_sha256=digest, data=escaped(images.name), data_note=images.note
    )
