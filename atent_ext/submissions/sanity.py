"""Checks of a network before it is scored: is it a classifier of single images, and can gradients attack it?

A failed check is a result with one line of text and figures; it raises nothing. The network is run in its own eval
mode, as copies where it can be copied, and its state is restored afterwards.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from atent_ext.core import model_state, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy, margin
from atent_ext.core.norms import LINF
from atent_ext.submissions.cards import Check
from atent_ext.submissions.probing import (
    VISIBLE,
    Probe,
    described,
    differs,
    drawers,
    line,
    listed,
    untouched,
    vanishing,
)

NAMES = (
    "shape",
    "finite logits",
    "logits",
    "sensitivity",
    "evaluation mode",
    "determinism",
    "no state",
    "single images",
    "finite gradient",
    "nonzero gradient",
    "uphill gradient",
    "softmax",
)
_FATAL = ("shape", "finite logits", "finite gradient")
_RANDOM = "determinism"

_ALONE = 8
"""Number of images for the check "single images"."""
_FEW = 0.1
"""The largest share of images with a zero gradient that passes; a sound network may be flat at some images."""
_ROUNDING = 1e-4
"""Tolerance for floating-point summation order, relative to the largest logit."""
_PROBES = (1e-3, 1 / 255, 4 / 255)
"""Step sizes along the gradient: a small one for smooth networks, two more for networks that quantise to 256 levels."""


def check(
    network: nn.Module, images: Tensor, labels: Tensor, seed: int = 0, declared_random: bool = False
) -> tuple[Check, ...]:
    """One check for each of `NAMES`, in that order; `passed` is None for those that an earlier failure rules out.

    images: (N, ...) in [0, 1], N >= 2, a few dozen are enough; labels: (N,) integers. declared_random: whether the
    card declares random outputs; "determinism" then fails for a deterministic network, otherwise for a random one.
    Raises BadInput for invalid images, labels or seed. Errors of the network become failed checks.
    """
    validate.seed(seed)
    validate.images(images, 0.0, 1.0)
    validate.labels(labels, len(images))
    if len(images) < 2:
        message = f"there are {len(images)} images to check the network on; give at least 2"
        raise BadInput(message, code="bad-shape", field="images")
    device = model_state.device_of(network)
    with untouched(network):
        probe = Probe(network, images.to(device), labels.to(device), seed)
        return _completed(_checks(probe, declared_random))


def fatal(checks: Sequence[Check]) -> tuple[Check, ...]:
    """The failed checks that make scoring impossible: empty if the network can be scored."""
    return tuple(check for check in checks if check.name in _FATAL and check.passed is False)


def is_random(checks: Sequence[Check], declared: bool) -> bool:
    """Whether the outputs for one image differ between calls, so that AutoAttack's "rand" version scores the network.

    False for a network that is declared random but is deterministic: "rand" lacks half of the standard attacks.
    """
    return any(check.name == _RANDOM and check.passed is declared for check in checks)


def _checks(probe: Probe, declared: bool) -> Iterator[Check]:
    shape = _shape(probe)
    yield shape
    if not shape.passed:
        return
    logits = probe.answer(probe.fresh(), probe.images)
    finite = _finite_logits(probe, logits)
    yield finite
    if not finite.passed:
        return
    yield _logits(logits.float())
    yield _sensitivity(probe, logits)
    yield _evaluation_mode(probe)
    deterministic = _determinism(probe, declared)
    yield deterministic
    reproducible = not differs(logits, probe.answer(probe.fresh(), probe.images)).any()
    yield _no_state(probe) if reproducible else _skipped("no state", "its draws follow no seed")
    random = is_random([deterministic], declared)
    yield _skipped("single images", "it answers at random") if random else _single_images(probe)
    yield from _gradients(probe)


def _completed(checks: Iterator[Check]) -> tuple[Check, ...]:
    """The checks in the order of `NAMES`; those that were not reached have `passed` None."""
    by_name: dict[str, Check] = {}
    try:
        for check in checks:
            by_name[check.name] = check
    except Exception as error:  # a network may fail at any call, in any way
        by_name["shape"] = Check(name="shape", passed=False, said=f"it fails on the way: {line(error)}")
    why = f"{' and '.join(check.name for check in fatal(tuple(by_name.values())))} failed"
    return tuple(by_name.get(name) or _skipped(name, why) for name in NAMES)


def _skipped(name: str, why: str) -> Check:
    return Check(name=name, passed=None, said=f"not looked at: {why}")


# ---- outputs


def _shape(probe: Probe) -> Check:
    shape, largest = tuple(probe.images.shape), int(probe.labels.max())
    try:
        output = probe.answer(probe.fresh(), probe.images)
    except Exception as error:  # a network may fail in any way
        return Check(name="shape", passed=False, said=f"it cannot be run on images {shape}: {line(error)}")
    try:
        classes = validate.logits(output, shape[0]).shape[1]
    except BadInput as error:
        return Check(name="shape", passed=False, said=str(error))
    if not output.is_floating_point():
        return Check(
            name="shape", passed=False, said=f"it returns {output.dtype}, and logits are floating-point numbers"
        )
    text = f"{classes} logits per image, for labels up to {largest}"
    return Check(name="shape", passed=classes >= 2 and largest < classes, said=text)


def _finite_logits(probe: Probe, logits: Tensor) -> Check:
    outputs = (logits, probe.answer(probe.fresh(), probe.noisy()))
    broken = sum(int((~output.isfinite()).any(1).sum()) for output in outputs)
    text = f"NaN or infinite for {broken} of {2 * len(logits)} images, half of them under visible noise"
    return Check(name="finite logits", passed=not broken, said=text)


def _logits(logits: Tensor) -> Check:
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < _ROUNDING).all()):
        text = "every row is non-negative and sums to 1: these are probabilities; leave the softmax out"
        return Check(name="logits", passed=False, said=text)
    low, high = (float(bound) for bound in torch.aminmax(logits))
    log = bool((logits.logsumexp(1).abs() < _ROUNDING).all())
    kind = "log-probabilities, which do as logits" if log else "logits"
    return Check(name="logits", passed=True, said=f"{kind} from {low:.4g} to {high:.4g}")


def _sensitivity(probe: Probe, logits: Tensor) -> Check:
    moved = int(differs(logits, probe.answer(probe.fresh(), probe.noisy()), 1e-6).sum())
    others = int(differs(logits, logits[:1].expand_as(logits), 1e-6).sum())
    text = f"noise of {VISIBLE:g} changes the logits of {moved} of {len(logits)} images; "
    text += f"{others} have other logits than the first"
    return Check(name="sensitivity", passed=2 * moved >= len(logits) and others > 0, said=text)


def _evaluation_mode(probe: Probe) -> Check:
    left = [described(name, module) for name, module in probe.fresh().named_modules() if module.training]
    text = (
        f"still in train mode after .eval(): {listed(left)}; scored in eval mode"
        if left
        else "every module leaves train mode"
    )
    return Check(name="evaluation mode", passed=not left, said=text)


def _determinism(probe: Probe, declared: bool) -> Check:
    """Compare two copies under two seeds, and two calls of one copy under one seed.

    The second comparison finds a random source of the network's own, or a counter of its calls.
    """
    copy, other = probe.fresh(), probe.fresh()
    first = probe.answer(copy, probe.images)
    second, repeated = probe.answer(other, probe.images, 1), probe.answer(copy, probe.images)
    differing = differs(first, second) | differs(first, repeated)
    count, by = int(differing.sum()), max(float((first - logits).abs().max()) for logits in (second, repeated))
    if not count:
        text = "declared random, but it answers alike: scored as deterministic" if declared else "it answers alike"
        return Check(name=_RANDOM, passed=not declared, said=text)
    drawn = listed(drawers(probe))
    text = f"the logits of {count} of {len(first)} images differ from call to call by up to {by:.2g}"
    text += f"; random numbers are drawn in {drawn}" if drawn else ""
    return Check(name=_RANDOM, passed=declared, said=f"{text}; {'declared random' if declared else 'not declared'}")


def _no_state(probe: Probe) -> Check:
    network = probe.fresh()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    first = probe.answer(network, probe.images)
    probe.answer(network, 1 - probe.images)
    count = int(differs(first, probe.answer(network, probe.images)).sum())
    changed = [name for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])]
    text = f"after another batch {count} of {len(first)} images get other logits"
    text += f"; calls change {listed(changed)}" if changed else ""
    return Check(name="no state", passed=not count and not changed, said=text)


def _single_images(probe: Probe) -> Check:
    network = probe.fresh()
    batched = probe.answer(network, probe.images)[:_ALONE]
    try:
        alone = torch.cat([probe.answer(network, image) for image in torch.split(probe.images[:_ALONE], 1)])
    except Exception as error:  # for example BatchNorm in train mode on a single vector
        return Check(name="single images", passed=False, said=f"it cannot take an image alone: {line(error)}")
    by = float((alone - batched).abs().max() / batched.abs().max().clamp_min(torch.finfo(batched.dtype).tiny))
    count = int(differs(batched, alone, _ROUNDING).sum())
    text = f"{count} of {len(batched)} images get other logits alone than in a batch, by up to {by:.1e} of the largest"
    return Check(name="single images", passed=not count, said=text)


# ---- gradients


def _gradients(probe: Probe) -> Iterator[Check]:
    try:
        logit, nats = probe.gradient(margin), probe.gradient(cross_entropy)
    except Exception as error:  # autograd raises RuntimeError, a network anything
        text = f"there is no gradient with respect to the image: {line(error)}"
        yield Check(name="finite gradient", passed=False, said=text)
        return
    broken = int((~(logit.isfinite() & nats.isfinite())).flatten(1).any(1).sum())
    text = f"NaN or infinite for {broken} of {len(logit)} images"
    yield Check(name="finite gradient", passed=not broken, said=text)
    if broken:
        return
    zero = vanishing(logit)
    yield _nonzero(probe, zero)
    yield _uphill(probe, logit, ~zero) if not zero.all() else _skipped("uphill gradient", "it is zero everywhere")
    yield _softmax(probe, vanishing(nats) & ~zero)


def _nonzero(probe: Probe, zero: Tensor) -> Check:
    """Noise separates a network that is flat at an image from one whose gradient is cut off."""
    count = int(zero.sum())
    text = f"the gradient of the logits' margin is zero for {count} of {len(zero)} images"
    if count:
        clean = probe.answer(probe.fresh(), probe.images)
        moves = [differs(clean, probe.answer(probe.fresh(), probe.noisy(size))) for size in (1 / 255, 8 / 255, VISIBLE)]
        moving = int((torch.stack(moves).any(0) & zero).sum())
        text += f"; of these, {moving} get other logits under noise of up to {VISIBLE:g}: their gradient is cut"
    return Check(name="nonzero gradient", passed=count <= _FEW * len(zero), said=text)


def _uphill(probe: Probe, gradient: Tensor, nonzero: Tensor) -> Check:
    before, up = probe.margins(probe.images), LINF.steepest(gradient)
    rises = torch.stack([probe.margins((probe.images + step * up).clamp(0, 1)) > before for step in _PROBES]).any(0)
    count, total = int((rises & nonzero).sum()), int(nonzero.sum())
    text = f"a step of at most 4/255 along the gradient's sign raises the margin of {count} of {total} images"
    return Check(name="uphill gradient", passed=2 * count >= total, said=text)


def _softmax(probe: Probe, saturated: Tensor) -> Check:
    count, typical = int(saturated.sum()), float(probe.margins(probe.images).abs().median())
    text = f"the cross-entropy's gradient vanishes for {count} of {len(saturated)} images whose margin has one"
    text += f" (the median margin is {typical:.4g})"
    return Check(name="softmax", passed=count <= _FEW * len(saturated), said=text)
