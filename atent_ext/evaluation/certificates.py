"""`atent certify`: the certificates of a subject's test images in one file, which an interrupted call goes on with."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import TypeAdapter

from atent_ext.certification.smoothing import Certificate, Smoothing, certified_accuracy, certify_all
from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.evaluation import scoring
from atent_ext.evaluation.scoring import Report, Subject
from atent_ext.storage import files, locks


def certify(
    subject: Subject, smoothing: Smoothing, path: Path, images: int, seed: int, progress: Callable[[int], None]
) -> Report:
    """Certify the first `images` test images into the JSON file `path`, written after each; goes on with what it holds.

    Certificates of further images that it holds stay there; `images` and `certified_accuracy` are of the first ones.
    Raises BadInput if `path` holds certificates of another setting or something else, or another process writes there.
    """
    validate.seed(seed)
    split = subject.test.take(images)
    setting = {key: value for key, value in asdict(smoothing).items() if key != "batch_size"}
    about = subject.about | {"smoothing": setting, "seed": seed}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    report: Report = dict(about)
    files.replaceable(path)
    files.folder(path.parent)
    with locks.held(path, "wait for it, or name another --out"):
        before = _certified(path, about)

        def keep(found: list[Certificate]) -> None:
            radii = [smoothing.sigma * share / 4 for share in range(17)]
            curve = {f"{r:g}": certified_accuracy(found, split.labels[: len(found)], r) for r in radii}
            every = [asdict(one) for one in (*found, *before[len(found) :])]
            report.update(images=len(found), certified_accuracy=curve, certificates=every)
            scoring.save(report, path)
            progress(len(found))

        done = before[:images]
        keep(certify_all(subject.model.to(device), split, smoothing, seed=seed, done=done, report=keep))
    return report


def _certified(path: Path, about: Report) -> list[Certificate]:
    """The certificates that a file holds, none if it is not there. Raises BadInput if they are not `about` the same."""
    if not path.exists():
        return []
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
        found = TypeAdapter(list[Certificate]).validate_json(json.dumps(old["certificates"]), strict=True)
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise BadInput(f"{path} is no report of `atent certify` ({reason}); name another file") from None
    for key in ("weights_sha256", "data", "smoothing", "seed"):
        if old.get(key) != about[key]:
            raise BadInput(f"{path} holds another {key}: {old.get(key)!r}, not {about[key]!r}; name another file")
    return found
