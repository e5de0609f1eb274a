"""`atent certify`: certificates of a subject's test images in one JSON file, from which an interrupted call resumes."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from pydantic import ConfigDict, Field, JsonValue, ValidationError
from torch import Tensor

from atent_ext.certification.smoothing import Certificate, Smoothing, certified_accuracy, certify_all
from atent_ext.core import validate
from atent_ext.core.errors import BadInput
from atent_ext.core.schema import explain
from atent_ext.data.splits import digest
from atent_ext.evaluation.report import About
from atent_ext.evaluation.scoring import Subject
from atent_ext.storage import files, locks

_SHARES = 17
"""Number of radii of the curve: multiples of sigma / 4, starting at 0."""


class Certified(About):
    """Certificates of the test images 0, skip, 2 skip, ...

    content_sha256: a hash of all weights and buffers, the number of test images, and the first one with its label; None
    in files of before. certified_accuracy: ℓ2 radius -> share in [0, 1] of the first `images` of them. certificates:
    may hold more images.
    """

    model_config = ConfigDict(extra="ignore")

    smoothing: dict[str, JsonValue]
    seed: int
    skip: int = 1
    content_sha256: str | None = None
    images: int = 0
    certified_accuracy: dict[str, float] = Field(default_factory=dict)
    certificates: tuple[Certificate, ...] = ()


def certify(
    subject: Subject,
    smoothing: Smoothing,
    path: Path,
    images: int,
    seed: int,
    progress: Callable[[int], None],
    skip: int = 1,
) -> Certified:
    """Certify `images` test images: the first ones, or every skip-th from the first on.

    The JSON file `path` is written after each image; a call resumes from it.

    Certificates of further images in the file stay there; `images` and `certified_accuracy` are of the first `images`.
    progress: called with the number of certified images. An image has the same certificate whatever `skip` is.
    Raises BadInput for more images than there are, if `path` holds certificates of another setting or other content,
    or if another process writes there.
    """
    validate.seed(seed)
    split = subject.test.take(_last(len(subject.test), images, skip))
    setting = {key: value for key, value in asdict(smoothing).items() if key != "batch_size"}
    about = subject.about.model_dump()
    empty = Certified(**about, smoothing=setting, seed=seed, skip=skip, content_sha256=_content(subject))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    files.replaceable(path)
    files.folder(path.parent)
    with locks.held(path, "wait for it, or name another --out"):
        before = _certified(path, empty)

        def reported(certificates: list[Certificate]) -> Certified:
            radii = [smoothing.sigma * share / 4 for share in range(_SHARES)]
            labels = split.labels[::skip][: len(certificates)]
            curve = {f"{radius:g}": certified_accuracy(certificates, labels, radius) for radius in radii}
            every = (*certificates, *before[len(certificates) :])
            changes = {"images": len(certificates), "certified_accuracy": curve, "certificates": every}
            return empty.model_copy(update=changes)

        def keep(certificates: list[Certificate]) -> None:
            files.write(path, json.dumps(reported(certificates).model_dump(mode="json"), indent=1) + "\n")
            progress(len(certificates))

        done = before[:images]
        model = subject.model.to(device)
        certificates = certify_all(model, split, smoothing, seed=seed, skip=skip, done=done, report=keep)
        keep(certificates)
    return reported(certificates)


def _content(subject: Subject) -> str:
    tensors = [*subject.model.state_dict().values(), *subject.model.buffers()]
    first, count = subject.test[:1], torch.tensor(len(subject.test))
    return digest(count, first.images, first.labels, *(value for value in tensors if isinstance(value, Tensor)))


def _last(count: int, images: int, skip: int) -> int:
    """How many test images the certified ones reach over. Raises BadInput if there are not so many."""
    validate.steps("images", images)
    validate.steps("skip", skip)
    most = len(range(0, count, skip))
    if images > most:
        each = f" with skip {skip}" if skip > 1 else ""
        message = f"images is {images}{each}, but there are only {count} test images; ask for at most {most}"
        raise BadInput(message, code="bad-value", field="images")
    return (images - 1) * skip + 1


def _certified(path: Path, current: Certified) -> list[Certificate]:
    """The certificates in a file; none if there is no file. Raises BadInput if they are of another setting."""
    if not path.exists():
        return []
    try:
        old = Certified.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        text = explain(error, Certified) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
        reason = " ".join(text.split())
        message = f"{path} is no report of `atent certify` ({reason[:200]}); name another file"
        raise BadInput(message, code="unreadable", field="path") from None
    for key in ("weights_sha256", "model", "data", "smoothing", "seed", "skip", "content_sha256"):
        was, now = getattr(old, key), getattr(current, key)
        if was != now and (key, was) != ("content_sha256", None):
            message = f"{path} holds another {key}: {was!r}, not {now!r}; name another file"
            raise BadInput(message, code="other-content", field=key)
    return list(old.certificates)
