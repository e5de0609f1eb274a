"""The public call `atent_ext.evaluate`: score a model in memory with the engine of `atent eval`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from atent_ext.core import model_state, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import norm as norm_called
from atent_ext.core.schema import Threat
from atent_ext.data import datasets
from atent_ext.data.datasets import Split
from atent_ext.evaluation.journal import Progress
from atent_ext.evaluation.protocol import Protocol, load_protocol
from atent_ext.evaluation.report import About, Report
from atent_ext.evaluation.scoring import Subject, score

Array = Tensor | np.ndarray


def evaluate(
    model: nn.Module,
    images: Array,
    labels: Array,
    *,
    norm: str,
    eps: float,
    protocol: str | Protocol = "autoattack",
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    chunk: int | None = None,
    speed: str = "channels-last",
    device: torch.device | str | None = None,
    out: Path | str | None = None,
    classes: int | Sequence[str] | None = None,
    name: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report:
    """Score a model under a protocol: clean accuracy, attacks, and their worst case, with a flag for every image.

    model: maps images (N, ...) in [0, 1] to logits (N, classes); a normalisation must be part of it. images: (N, ...),
    a tensor or an array of floats in [0, 1]. labels: (N,) whole numbers in [0, classes). norm: "Linf" or "L2". eps:
    the radius in units of the images, for example 8/255. protocol: a name of `atent ls protocols`, a YAML file, or a
    `Protocol`. n: the first n images (None: all). chunk: images per chunk (None: 100, on a GPU 250); chunk k has the
    seed `seed + k`. speed: as in `models.speed`. device: where to compute (None: where the model is). out: a JSON file
    to write; the same call then resumes after an interruption. classes: the number of classes, or their names, checked
    against labels and logits. name: the name of the model in the report. progress: called after each chunk.

    The mode, requires_grad, gradients, device and dtype of the model are restored afterwards.
    Raises BadInput for images outside [0, 1], for labels of another type, range or length, for an eps that looks like
    0-255, for logits of another shape, and for an `out` of other weights, images, protocol, seed or settings.
    """
    test = _split(images, labels, _dtype(model))
    plan = load_protocol(protocol) if isinstance(protocol, str) else protocol
    threat = _threat(norm, eps, test)
    place = model_state.device_of(model) if device is None else torch.device(device)
    with _restored(model, place):
        _check_logits(model, test, place, classes)
        about = About(
            name=name or type(model).__name__,
            model=type(model).__name__,
            data=f"{len(test)} images in memory",
            data_sha256=datasets.digest(*(part[: len(test.take(n))] for part in (test.images, test.labels))),
        )
        return score(
            Subject(model, test, threat, about),
            plan,
            n=n,
            seed=seed,
            batch_size=batch_size,
            chunk=chunk,
            speed=speed,
            device=place,
            path=None if out is None else Path(out),
            progress=progress or (lambda current: None),
        )


@contextmanager
def _restored(model: nn.Module, device: torch.device) -> Iterator[None]:
    before = model_state.device_of(model)
    with model_state.kept(model):
        try:
            yield
        finally:
            if before != device:
                model.to(before)


def _split(images: Array, labels: Array, dtype: torch.dtype) -> Split:
    x, y = (torch.from_numpy(part) if isinstance(part, np.ndarray) else part for part in (images, labels))
    if isinstance(x, Tensor) and x.dtype is torch.uint8:
        raise BadInput("images are uint8, 0-255; divide them by 255", code="bad-type", field="images")
    validate.images(x, 0.0, 1.0)
    validate.labels(y, len(x))
    if not len(x):
        raise BadInput("there are no images; give at least one", code="bad-shape", field="images")
    return Split(x.detach().to("cpu", dtype), y.detach().to("cpu", torch.long))


def _dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the computation: float64 for a model in float64, else float32."""
    tensors = (*model.parameters(), *model.buffers())
    double = any(tensor.dtype is torch.float64 for tensor in tensors)
    return torch.float64 if double else torch.float32


def _threat(norm: str, eps: float, test: Split) -> Threat:
    norm_called(norm)
    validate.radius("eps", eps)
    widest = 1.0 if norm == "Linf" else float(test.images[0].numel()) ** 0.5
    if eps >= widest:
        message = f"eps is {eps:g}, and no two images in [0, 1] are farther apart than {widest:.4g} in {norm}"
        raise BadInput(f"{message}; if it is of 0-255 images, write {eps:g}/255", code="bad-value", field="eps")
    return Threat.model_validate({"norm": norm, "eps": float(eps)})


def _check_logits(model: nn.Module, test: Split, device: torch.device, classes: int | Sequence[str] | None) -> None:
    model.to(device)
    with model_state.evaluating(model), model_state.seeded(0), torch.no_grad():
        logits = model(test.images[:2].to(device))
    validate.logits(logits, min(2, len(test)))
    count = int(logits.shape[1])
    expected = count if classes is None else classes if isinstance(classes, int) else len(classes)
    if expected != count:
        message = f"classes is {expected}, and the model has {count} logits; give the classes of the model"
        raise BadInput(message, code="conflict", field="classes")
    validate.labels(test.labels, len(test), count)
