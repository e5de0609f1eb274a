"""The public call `atent_ext.evaluate`: score a model in memory with the engine of `atent eval`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, TypedDict, overload

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from atent_ext.attacks.accuracy import clean_flags
from atent_ext.core import layouts, model_state, validate
from atent_ext.core.around import Around, resizing
from atent_ext.core.errors import BadInput
from atent_ext.core.norms import ball as norm_called
from atent_ext.core.schema import Threat
from atent_ext.core.schema import normalisation as parse_normalisation
from atent_ext.data.datasets import Split
from atent_ext.evaluation import anytime
from atent_ext.evaluation import threats as of_several
from atent_ext.evaluation.journal import Progress
from atent_ext.evaluation.protocol import Protocol, load_protocol
from atent_ext.evaluation.report import About, Report
from atent_ext.evaluation.scoring import Subject, score
from atent_ext.evaluation.threats import ThreatLike
from atent_ext.evaluation.union import UnionReport
from atent_ext.models.structure import Structure
from atent_ext.models.wrappers import Surrounded, described, surrounded

Array = Tensor | np.ndarray


class _Options(TypedDict, total=False):
    """The other arguments of `evaluate`."""

    protocol: str | Path | Protocol
    n: int | None
    seed: int
    batch_size: int
    chunk: int | None
    speed: str
    device: torch.device | str | None
    out: Path | str | None
    overwrite: bool
    until_width: float | None
    classes: int | Sequence[str] | None
    name: str | None
    normalisation: str | Mapping[str, Any] | None
    output: str | int | None
    resize: str | int | None
    resize_inside: str | int | None
    progress: Callable[[Progress], None] | None


_SHOWN = 64
"""Images on which the two readings of the axes are compared."""


@overload
def evaluate(
    model: nn.Module, images: Array, labels: Array, *, norm: str, eps: float, **options: Unpack[_Options]
) -> Report: ...


@overload
def evaluate(
    model: nn.Module, images: Array, labels: Array, *, threats: Sequence[ThreatLike], **options: Unpack[_Options]
) -> UnionReport: ...


def evaluate(
    model: nn.Module,
    images: Array,
    labels: Array,
    *,
    norm: str | None = None,
    eps: float | None = None,
    threats: Sequence[ThreatLike] | None = None,
    protocol: str | Path | Protocol = "autoattack",
    n: int | None = None,
    seed: int = 0,
    batch_size: int = 250,
    chunk: int | None = None,
    speed: str = "channels-last",
    device: torch.device | str | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    until_width: float | None = None,
    classes: int | Sequence[str] | None = None,
    name: str | None = None,
    normalisation: str | Mapping[str, Any] | None = None,
    output: str | int | None = None,
    resize: str | int | None = None,
    resize_inside: str | int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Report | UnionReport:
    """Score a model under a protocol: clean accuracy, attacks, and their worst case, with a flag for every image.

    model: a module that maps images (N, ...) in [0, 1] to logits (N, classes), in any precision, or to several results.
    A model of one logit z per image is read as one of the two logits (0, z).
    images: (N, ...), a tensor or an array of floats in [0, 1]. labels: (N,) whole numbers in [0, classes). norm:
    "Linf", "L2", or for AutoAttack "L1". eps: the radius in units of the images, for example 8/255. threats: instead of
    norm and eps two or more threat models, such as ["Linf:8/255", "L2:0.5"] or [("Linf", 8 / 255), ("L2", 0.5)], for a
    report of each and of their union, all with the same seed; "autoattack" is then autoattack-l1 in L1. protocol: a
    name of `atent ls protocols`, a YAML file, or a `Protocol`. n: the first n images (None: all). chunk: images per
    chunk (None: 100, on a GPU 250); chunk k has the seed `seed + k`. speed: as in `models.speed`. device: where to
    compute (None: where the model is). out: a JSON file to write; the same call then resumes after an interruption.
    overwrite: replace a report of another setting. until_width: score the images in an order drawn from `seed` (n: at
    most so many) until the 95 % interval of the worst case on all images, which holds whenever one stops, is that many
    percentage points wide; with `out`, a call with a smaller width goes on from there. classes: the number of classes,
    or their names, checked against labels and logits. name: the name of the model in the report. normalisation: in
    front of the model, if it has none of its own: "imagenet", {"mean": [0.5], "std": [0.25]} with a number per channel,
    or text as in `schema.normalisation`. output: key, attribute or position of the logits, where several results could
    be. resize: the images first, so that eps is of resized ones; resize_inside: by the model; 224, or as in
    `around.parse`. progress: called while it runs, with the number of finished chunks.

    Images are float32 whatever the model computes in. The mode, requires_grad, gradients, device and dtype of the model
    are restored afterwards. Raises BadInput for a model that is no torch module, for results of which none or several
    could be the logits, for images outside [0, 1] or of a shape
    that the model does not take, such as (N, H, W, C), for labels of another type, range or length, such as one-hot
    ones, for an eps that looks like 0-255, for logits of another shape, and for an `out` of other weights, images,
    protocol, seed or settings.
    """
    _check_model(model)
    around = Around(
        normalisation=None if normalisation is None else parse_normalisation(normalisation),
        output=_output(output),
        resize=resizing(resize, "resize"),
        resize_inside=resizing(resize_inside, "resize_inside"),
    )
    test = _resized(_split(images, labels), around)
    plan = protocol if isinstance(protocol, Protocol) else load_protocol(str(protocol))
    chosen = _threats(norm, eps, threats, until_width, test)
    for threat in chosen if threats else ():
        of_several.protocol_of(plan, threat)
    validate.steps("batch_size", batch_size)
    until = None if until_width is None else anytime.until_width(until_width)
    place = model_state.device_of(model) if device is None else _device(device)
    with _restored(model):
        structure = Structure(model)
        placed = _surrounded(model, around, test, place)
        _check_logits(placed.network, test, place, classes)
        kind, resized = type(model).__name__, "" if around.resize is None else f", {around.resize}"
        about = About(
            name=name or kind,
            model=described(kind, around.normalisation, None, placed.output, around.resize_inside)
            + f", structure {structure.digest()}",
            data=f"{len(test)} images in memory{resized}",
        )
        subject = Subject(placed.network, test, chosen[0], about, notes=placed.notes)
        how: dict[str, Any] = {"n": n, "seed": seed, "batch_size": batch_size, "chunk": chunk, "speed": speed}
        how |= {"device": place, "path": None if out is None else Path(out), "overwrite": overwrite}
        how |= {"progress": progress or (lambda current: None)}
        if threats is not None:
            return of_several.score(subject, plan, chosen, **how)
        return score(subject, plan, until=until, **how)


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    before = model_state.device_of(model)
    with model_state.kept(model):
        try:
            yield
        finally:
            if model_state.device_of(model) != before:
                model.to(before)


def _split(images: Array, labels: Array) -> Split:
    x, y = _tensor("images", images), _tensor("labels", labels)
    validate.images(x, 0.0, 1.0)
    validate.labels(y, len(x))
    if not len(x):
        raise BadInput("there are no images; give at least one", code="bad-shape", field="images")
    return Split(x.detach().to("cpu", torch.float32), y.detach().to("cpu", torch.long))


def _tensor(name: str, value: Array) -> Tensor:
    if not isinstance(value, np.ndarray):
        return value
    try:
        return torch.from_numpy(np.ascontiguousarray(value))  # torch takes no negative strides
    except TypeError:
        message = f"{name} are an array of {value.dtype}; floats for images and whole numbers for labels are needed"
        raise BadInput(message, code="bad-type", field=name) from None


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        message = f"model is a {type(model).__name__}; a torch.nn.Module that returns logits is needed"
        raise BadInput(message, code="bad-type", field="model")


def _output(output: str | int | None) -> str | None:
    """The name of the logits; a position as text."""
    if output is not None and (isinstance(output, bool) or not isinstance(output, str | Integral)):
        message = f"output is {validate.shown(output)}; give the key, the attribute or the position of the logits"
        raise BadInput(message, code="bad-type", field="output")
    return None if output is None else str(output)


def _resized(test: Split, around: Around) -> Split:
    if around.resize is None:
        return test
    return Split(around.resize.plan(test.images.shape[1:]).of(test.images).clamp(0, 1), test.labels)


def _surrounded(model: nn.Module, around: Around, test: Split, device: torch.device) -> Surrounded:
    """The model on the device, with what stands around it."""
    model.to(device)
    shown = test.images[:2].to(device)
    try:
        placed = surrounded(model, around, shown)
    except BadInput as error:
        if error.field == "images":
            layouts.channels_first(test.images)  # raises for the usual reason
        raise
    placed.network.to(device)
    return placed


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        message = f"device is {str(device)!r}, which cannot be used ({' '.join(str(error).split())[:100]})"
        raise BadInput(f'{message}; give "cpu" or a GPU of this machine', code="bad-value", field="device") from None


def _threats(
    norm: str | None, eps: float | None, threats: Sequence[ThreatLike] | None, until_width: float | None, test: Split
) -> tuple[Threat, ...]:
    """The threat models that are asked for. Raises BadInput for none, for both ways to say them, for invalid ones."""
    if threats is None:
        if norm is None or eps is None:
            field = "norm" if norm is None else "eps"
            raise BadInput(f"{field} is missing; give norm and eps, or threats", code="missing", field=field)
        return (_threat(norm, eps, test),)
    chosen = of_several.parse_all(threats)
    others = {"norm": norm, "eps": eps, "until_width": until_width}
    for name in (name for name, value in others.items() if value is not None):
        message = f"{name} is {others[name]}, and threats are given, with which it means nothing; leave one out"
        raise BadInput(message, code="conflict", field=name)
    if len(chosen) < 2:
        message = "threats holds one threat model; give two or more, or norm and eps"
        raise BadInput(message, code="bad-value", field="threats")
    return tuple(_threat(threat.norm, threat.eps, test) for threat in chosen)


def _threat(norm: str, eps: float, test: Split) -> Threat:
    norm_called(norm)
    validate.number("eps", eps)
    widest = float(test.images[0].numel()) ** {"Linf": 0.0, "L2": 0.5, "L1": 1.0}[norm]
    if eps >= widest:
        message = f"eps is {eps:g}, and no two images in [0, 1] are farther apart than {widest:.4g} in {norm}"
        raise BadInput(f"{message}; if it is of 0-255 images, write {eps:g}/255", code="bad-value", field="eps")
    return Threat.model_validate({"norm": norm, "eps": float(eps)})


def _check_logits(model: nn.Module, test: Split, device: torch.device, classes: int | Sequence[str] | None) -> None:
    with model_state.evaluating(model), model_state.seeded(0), torch.no_grad():
        output = model(test.images[:2].to(device, copy=True))
    logits = validate.logits(output, min(2, len(test)))
    count = int(logits.shape[1])
    expected = count if classes is None else classes if isinstance(classes, int) else len(classes)
    if expected != count:
        message = f"classes is {expected}, and the model has {count} logits; give the classes of the model"
        raise BadInput(message, code="conflict", field="classes")
    validate.labels(test.labels, len(test), count)
    _check_axes(model, test.take(min(_SHOWN, len(test))))


def _check_axes(model: nn.Module, shown: Split) -> None:
    """Refuse (N, H, W, C) for a model that takes either layout, if it gets more labels right with the channels first.

    A model that was made for channels last, and only such a one, may have them.
    """
    if shown.images.dim() != 4 or layouts.layout(shown.images.shape[1:]) != "HWC":
        return
    as_given = int(clean_flags(model, shown).sum())
    try:
        turned = int(clean_flags(model, Split(shown.images.permute(0, 3, 1, 2).contiguous(), shown.labels)).sum())
    except Exception:  # it is anybody's network, which may assert the order that it was made for
        return
    if turned > as_given + 1:
        message = f"images are (N, {', '.join(map(str, shown.images.shape[1:]))}); of the first {len(shown)} the model "
        message += f"gets {as_given} right, and {turned} as (N, C, H, W): pass images.permute(0, 3, 1, 2)"
        raise BadInput(message, code="conflict", field="images")
