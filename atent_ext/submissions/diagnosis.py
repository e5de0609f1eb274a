"""Quick checks of a model before it is scored: `atent check`."""

import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from atent_ext.attacks.accuracy import predict
from atent_ext.attacks.langevin import scored_gradient
from atent_ext.attacks.spec import Passes
from atent_ext.core import processes, registry
from atent_ext.core.errors import BadInput, MissingExtra
from atent_ext.core.losses import cross_entropy
from atent_ext.core.model_state import device_of, evaluating, frozen, seeded
from atent_ext.core.statistics import binomial_p
from atent_ext.data.datasets import Split
from atent_ext.evaluation.protocol import Protocol, load_protocol
from atent_ext.evaluation.scoring import Subject
from atent_ext.models import speed
from atent_ext.submissions import sanity
from atent_ext.submissions.cards import Check
from atent_ext.submissions.readings import Reading, readings

LEVEL = 0.01
"""Level of the tests, corrected for the number of readings."""
_PASS = 0.5
"""Approximate seconds of a timed pass; they decide how many images it has."""
_MOST = 64
_USUAL, _FEW, _SLOW = 32, 12, 0.02
"""Images to use; images to use of a slow model; seconds per image that make it slow. There are some fifty passes."""


@dataclass(frozen=True)
class Diagnosis:
    """The findings about a model. checks: those of `sanity.check`, "normalisation" and "class order".

    images: how many there are, how many were used, their shape, their range, and the number of classes.
    right: how many of the used ones the model gets right. passes: images a second, "forward" and "gradient" (forward
    and backward); empty if the model cannot be run. seconds: an upper bound for each protocol on all images
    on this machine, as if no attack broke any; None if it is not known.
    """

    name: str
    model: str
    data: str
    parameters: int
    images: Mapping[str, Any]
    checks: tuple[Check, ...]
    right: int | None
    passes: Mapping[str, float]
    seconds: Mapping[str, float | None]
    machine: Mapping[str, Any]
    notes: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)


def diagnose(subject: Subject, n: int | None = None, seed: int = 0) -> Diagnosis:
    """Check a model on `n` of its images (all if there are fewer), spread over the test set.

    n: None is 32, or 12 if a pass takes long.
    Raises BadInput for fewer than two images, and what `sanity.check` raises. A fault of the model is a failed check.
    """
    device = processes.state().device
    model = subject.model.to(device if device.type == "cuda" else "cpu")
    shown = _spread(subject.test, n or (_FEW if _slow(model, subject.test[:1]) else _USUAL))
    checks = list(sanity.check(model, shown.images, shown.labels, seed))
    right, classes, passes = None, None, dict[str, float]()
    if not sanity.fatal([check for check in checks if check.name != "finite gradient"]):
        with seeded(seed):
            logits = predict(model, shown.images)
            right, classes = int((logits.argmax(1) == shown.labels).sum()), int(logits.shape[1])
            checks += _meanings(model, shown, logits)
            passes = _speed(model, shown)
    least, most = torch.aminmax(shown.images)
    images = {"count": len(subject.test), "looked_at": len(shown), "shape": list(shown.shape), "classes": classes}
    return Diagnosis(
        **subject.about.model_dump(include={"name", "model", "data"}),
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        images=images | {"lowest": float(least), "highest": float(most)},
        checks=tuple(checks),
        right=right,
        passes=passes,
        seconds=dict(_estimates(passes, len(subject.test), classes or 0)),
        machine={"device": device.type, "threads": torch.get_num_threads(), "python": platform.python_version()},
        notes=(*subject.about.weights_notes, *subject.notes),
    )


def _spread(test: Split, n: int) -> Split:
    """`n` images from the whole set, which may be sorted by class."""
    count = min(n, len(test))
    return test.pick(torch.arange(count) * len(test) // max(1, count))[:]


def _slow(model: nn.Module, first: Split) -> bool:
    """Whether a pass takes long; False for a model that cannot be run."""
    with evaluating(model), seeded(0):
        try:
            return speed.measure({"one": lambda: predict(model, first.images)}, 1)["one"] > _SLOW
        except Exception:  # a network may fail in any way, and the checks say how
            return False


def _meanings(model: nn.Module, shown: Split, logits: Tensor) -> tuple[Check, Check]:
    """Check normalisation and class order. If both fail, only the fault that explains more images is reported."""
    (images, by_images), (order, by_order) = _normalisation(model, shown), _class_order(logits, shown.labels)
    if images.passed is False and order.passed is False:
        other = f"not looked at: the other fault explains {max(by_images, by_order)} of {len(shown)} images"
        if by_images >= by_order:
            return images, order.model_copy(update={"passed": None, "said": other})
        return images.model_copy(update={"passed": None, "said": other}), order
    return images, order


def _normalisation(model: nn.Module, shown: Split) -> tuple[Check, int]:
    """Compare the images as they are with the best other reading, and count the images that it gets right."""
    plain = predict(model, shown.images).argmax(1) == shown.labels
    others = readings(shown.images)
    found = [(reading, *_better(model, reading, shown, plain)) for reading in others]
    best, right, p = min(found, key=lambda one: (one[2], -one[1]))
    text = f"{int(plain.sum())} of {len(shown)} images are right as they are"
    if min(1.0, p * len(others)) >= LEVEL:
        text += f"; none of {len(others)} other readings is better"
        return Check(name="normalisation", passed=True, said=text), right
    text += f", and {right} {best.said} (p = {min(1.0, p * len(others)):.1g}): {best.suspicion}"
    return Check(name="normalisation", passed=False, said=text), right


def _better(model: nn.Module, reading: Reading, shown: Split, plain: Tensor) -> tuple[int, float]:
    """The number of correct images in a reading, and McNemar's exact one-sided p-value for its being better."""
    try:
        flags = predict(model, reading.of(shown.images)).argmax(1) == shown.labels
    except Exception:  # a network may refuse values outside [0, 1] in any way
        return 0, 1.0
    return int(flags.sum()), _p(flags, plain)


def _p(flags: Tensor, plain: Tensor) -> float:
    alone, theirs = int((flags & ~plain).sum()), int((plain & ~flags).sum())
    return binomial_p(alone, alone + theirs, alternative="greater")


def _class_order(logits: Tensor, labels: Tensor) -> tuple[Check, int]:
    """Pair classes and predictions on one half of the images, and count how many of the other half are right then.

    A pairing that is better on images that did not decide it is not due to chance.
    """
    name, predicted = "class order", logits.argmax(1)
    if int(labels.max()) >= logits.shape[1]:
        return Check(name=name, passed=None, said="not looked at: a label has no logit"), 0
    plain, paired = predicted == labels, torch.zeros(len(labels), dtype=torch.bool)
    for half in (0, 1):
        table = torch.zeros(logits.shape[1], logits.shape[1])
        for one, other in zip(predicted[half::2].tolist(), labels[half::2].tolist(), strict=True):
            table[one, other] += 1
        match = torch.from_numpy(linear_sum_assignment(-table.numpy())[1])
        rest = slice(1 - half, None, 2)
        paired[rest] = match[predicted[rest]] == labels[rest]
    p = _p(paired, plain)
    text = f"{int(plain.sum())} of {len(labels)} images have the label that is predicted"
    if p < LEVEL:
        text += f", and {int(paired.sum())} if the classes are paired in another order (p = {p:.1g}): the order of the "
        text += "network's classes is not that of the data"
    return Check(name=name, passed=p >= LEVEL, said=text), int(paired.sum())


# ---- speed


def _speed(model: nn.Module, shown: Split) -> dict[str, float]:
    """Images a second of a forward pass, and of one with an input gradient if there is one."""
    network = speed.prepare(model, shown.images[:_MOST]).model
    with evaluating(network), frozen(network):
        one = speed.measure({"one": lambda: predict(network, shown.images[:1])}, 1)["one"]
        count = max(1, min(_MOST, len(shown), int(_PASS / max(one, 1e-6))))
        x, y = (part[:count].to(device_of(network)) for part in (shown.images, shown.labels))
        calls: dict[str, Callable[[], object]] = {"forward": lambda: predict(network, x, count)}
        try:
            scored_gradient(network, cross_entropy, x, y)
            calls["gradient"] = lambda: scored_gradient(network, cross_entropy, x, y)
        except (RuntimeError, BadInput):  # a failed check says so
            pass
        return {name: count / seconds for name, seconds in speed.measure(calls).items()}


def _estimates(passes: Mapping[str, float], count: int, classes: int) -> Iterator[tuple[str, float | None]]:
    for name in registry.files("protocol"):
        try:
            known = _passes(load_protocol(name), classes)
        except (BadInput, MissingExtra):  # of another package
            continue
        possible = known is not None and "forward" in passes and ("gradient" in passes or not known.gradients)
        if known is None or not possible:
            yield name, None
            continue
        one = known.forwards / passes["forward"] + (known.gradients / passes["gradient"] if known.gradients else 0)
        yield name, count * one


def _passes(protocol: Protocol, classes: int) -> Passes | None:
    """The passes of all attacks of a protocol; None if those of one are not known."""
    each = [attack.passes(classes) for attack in protocol.attacks]
    known = [one for one in each if one is not None]
    return Passes(*map(sum, zip(*known, strict=True))) if len(known) == len(each) else None
