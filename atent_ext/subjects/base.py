"""What every source of subjects shares: the threat model that was asked for, and where things come from."""

import hashlib
from dataclasses import replace
from pathlib import Path

from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import norm as norm_called
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.evaluation.report import About
from atent_ext.evaluation.scoring import Subject


def under(subject: Subject, norm: str | None, eps: float | None) -> Subject:
    """The subject under another threat model, where one is asked for."""
    own = subject.threat
    if norm_called(norm or own.norm).name != own.norm and eps is None:
        raise BadInput(f"norm is {norm}, and the radius at hand, {own.eps:g}, is of {own.norm}; give --eps, too")
    return replace(subject, threat=threat_model(norm or own.norm, own.eps if eps is None else eps))


def threat_model(norm: str, eps: float) -> Threat:
    """The threat model of a norm and a radius. Raises BadInput for an unknown norm and a radius that is none."""
    norm_called(norm)
    validate.radius("eps", eps)
    return Threat.model_validate({"norm": norm, "eps": eps})


def about(name: str, model: str, weights: list[Path], images: datasets.DataSet) -> About:
    """Where a subject comes from, as plain data: name, model, SHA-256 of its weights, data."""
    found = bool(weights) and all(path.is_file() for path in weights)
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in weights)).hexdigest() if found else None
    return About(name=name, model=model, weights_sha256=digest, data=images.name, data_note=images.note)
