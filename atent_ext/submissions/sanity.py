"""Checks of a network before it is scored: does it answer as a classifier of single images, and can it be attacked?

What fails is told in one line with its figure and never thrown. The network is looked at as its own `.eval()` leaves
it, in copies where it can be copied, and comes back as found.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from atent_ext.core import model_state, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy, margin
from atent_ext.core.norms import LINF
from atent_ext.submissions.cards import Check
from atent_ext.submissions.probing import VISIBLE, Probe, apart, called, drawers, line, listed, untouched, vanishing

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
"""Images that are shown alone."""
_FEW = 0.1
"""The share of images that may have a zero gradient: a network may be flat here and there."""
_ROUNDING = 1e-4
"""What the order of sums may change of the logits, in units of the largest."""
_PROBES = (1e-3, 1 / 255, 4 / 255)
"""Steps up the gradient: the first is small for a smooth network, the others for one with 256 levels of input."""


def check(
    network: nn.Module, images: Tensor, labels: Tensor, seed: int = 0, declared_random: bool = False
) -> tuple[Check, ...]:
    """One check for each of `NAMES`, in that order; `passed` is None for those that an earlier failure rules out.

    images: (N, ...) in [0, 1], N >= 2, a few dozen are enough; labels: (N,) integers. declared_random: whether the
    network is said to answer at random, which is then no failure (and the contrary is one).
    Raises BadInput for images, labels and a seed that are none; whatever the network does is a check.
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


def fatal(found: Sequence[Check]) -> tuple[Check, ...]:
    """The failed checks that make scoring impossible: empty if the network can be scored."""
    return tuple(one for one in found if one.name in _FATAL and one.passed is False)


def is_random(found: Sequence[Check], declared: bool) -> bool:
    """Whether the network gave different answers to one image, so that AutoAttack's "rand" version is to score it.

    What is declared random and found deterministic gets no leniency: "rand" lacks half of the standard attacks.
    """
    return any(one.name == _RANDOM and one.passed is declared for one in found)


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
    seed_rules = not apart(logits, probe.answer(probe.fresh(), probe.images)).any()
    yield _no_state(probe) if seed_rules else _skipped("no state", "its draws follow no seed")
    steady = not is_random([deterministic], declared)
    yield _single_images(probe) if steady else _skipped("single images", "it answers at random")
    yield from _gradients(probe)


def _completed(found: Iterator[Check]) -> tuple[Check, ...]:
    """The checks in the order of `NAMES`, with those that were not reached."""
    by_name: dict[str, Check] = {}
    try:
        for one in found:
            by_name[one.name] = one
    except Exception as error:  # a network may fail at any call, in any way
        by_name["shape"] = Check(name="shape", passed=False, said=f"it fails on the way: {line(error)}")
    why = f"{' and '.join(one.name for one in fatal(tuple(by_name.values())))} failed"
    return tuple(by_name.get(name) or _skipped(name, why) for name in NAMES)


def _skipped(name: str, why: str) -> Check:
    return Check(name=name, passed=None, said=f"not looked at: {why}")


# ---- its answers


def _shape(probe: Probe) -> Check:
    asked, most = tuple(probe.images.shape), int(probe.labels.max())
    try:
        found = probe.answer(probe.fresh(), probe.images)
    except Exception as error:  # a network may fail in any way
        return Check(name="shape", passed=False, said=f"it cannot be run on images {asked}: {line(error)}")
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.dim() != 2 or len(found) != asked[0]:
        kind = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        return Check(name="shape", passed=False, said=f"it returns {kind} for images {asked}, not logits (N, classes)")
    classes = found.shape[1]
    said = f"{classes} logits per image, for labels up to {most}"
    return Check(name="shape", passed=classes >= 2 and most < classes, said=said)


def _finite_logits(probe: Probe, logits: Tensor) -> Check:
    broken = sum(
        int((~found.isfinite()).any(1).sum()) for found in (logits, probe.answer(probe.fresh(), probe.noisy()))
    )
    said = f"NaN or infinite for {broken} of {2 * len(logits)} images, half of them under visible noise"
    return Check(name="finite logits", passed=not broken, said=said)


def _logits(logits: Tensor) -> Check:
    if bool((logits >= 0).all()) and bool(((logits.sum(1) - 1).abs() < _ROUNDING).all()):
        said = "every row is non-negative and sums to 1: these are probabilities; leave the softmax out"
        return Check(name="logits", passed=False, said=said)
    low, high = (float(bound) for bound in torch.aminmax(logits))
    log = bool((logits.logsumexp(1).abs() < _ROUNDING).all())
    kind = "log-probabilities, which do as logits" if log else "logits"
    return Check(name="logits", passed=True, said=f"{kind} from {low:.4g} to {high:.4g}")


def _sensitivity(probe: Probe, logits: Tensor) -> Check:
    moved = int(apart(logits, probe.answer(probe.fresh(), probe.noisy()), 1e-6).sum())
    others = int(apart(logits, logits[:1].expand_as(logits), 1e-6).sum())
    said = f"noise of {VISIBLE:g} changes the logits of {moved} of {len(logits)} images; "
    said += f"{others} have other logits than the first"
    return Check(name="sensitivity", passed=2 * moved >= len(logits) and others > 0, said=said)


def _evaluation_mode(probe: Probe) -> Check:
    left = [called(name, module) for name, module in probe.fresh().named_modules() if module.training]
    said = (
        f"still in train mode after .eval(): {listed(left)}; scored in eval mode"
        if left
        else "every module leaves train mode"
    )
    return Check(name="evaluation mode", passed=not left, said=said)


def _determinism(probe: Probe, declared: bool) -> Check:
    """Two copies and two seeds tell randomness; one copy called twice tells noise of its own, or a count of calls."""
    one, other = probe.fresh(), probe.fresh()
    first = probe.answer(one, probe.images)
    second, again = probe.answer(other, probe.images, 1), probe.answer(one, probe.images)
    differing = apart(first, second) | apart(first, again)
    count, by = int(differing.sum()), max(float((first - found).abs().max()) for found in (second, again))
    if not count:
        said = "declared random, but it answers alike: scored as deterministic" if declared else "it answers alike"
        return Check(name=_RANDOM, passed=not declared, said=said)
    drawn = listed(drawers(probe))
    said = f"the logits of {count} of {len(first)} images differ from call to call by up to {by:.2g}"
    said += f"; random numbers are drawn in {drawn}" if drawn else ""
    return Check(name=_RANDOM, passed=declared, said=f"{said}; {'declared random' if declared else 'not declared'}")


def _no_state(probe: Probe) -> Check:
    network = probe.fresh()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    first = probe.answer(network, probe.images)
    probe.answer(network, 1 - probe.images)
    count = int(apart(first, probe.answer(network, probe.images)).sum())
    changed = [name for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])]
    said = f"after another batch {count} of {len(first)} images get other logits"
    said += f"; calls change {listed(changed)}" if changed else ""
    return Check(name="no state", passed=not count and not changed, said=said)


def _single_images(probe: Probe) -> Check:
    network = probe.fresh()
    together = probe.answer(network, probe.images)[:_ALONE]
    try:
        alone = torch.cat([probe.answer(network, image) for image in torch.split(probe.images[:_ALONE], 1)])
    except Exception as error:  # BatchNorm in train mode refuses a single vector, say
        return Check(name="single images", passed=False, said=f"it cannot take an image alone: {line(error)}")
    by = float((alone - together).abs().max() / together.abs().max().clamp_min(torch.finfo(together.dtype).tiny))
    count = int(apart(together, alone, _ROUNDING).sum())
    said = f"{count} of {len(together)} images get other logits alone than in a batch, by up to {by:.1e} of the largest"
    return Check(name="single images", passed=not count, said=said)


# ---- its gradients


def _gradients(probe: Probe) -> Iterator[Check]:
    try:
        logit, nats = probe.gradient(margin), probe.gradient(cross_entropy)
    except Exception as error:  # autograd raises RuntimeError, a network anything
        said = f"there is no gradient with respect to the image: {line(error)}"
        yield Check(name="finite gradient", passed=False, said=said)
        return
    broken = int((~(logit.isfinite() & nats.isfinite())).flatten(1).any(1).sum())
    said = f"NaN or infinite for {broken} of {len(logit)} images"
    yield Check(name="finite gradient", passed=not broken, said=said)
    if broken:
        return
    zero = vanishing(logit)
    yield _nonzero(probe, zero)
    yield _uphill(probe, logit, ~zero) if not zero.all() else _skipped("uphill gradient", "it is zero everywhere")
    yield _softmax(probe, vanishing(nats) & ~zero)


def _nonzero(probe: Probe, zero: Tensor) -> Check:
    """Where there is no gradient, a probe tells a network that is flat from one whose gradient is cut."""
    count = int(zero.sum())
    said = f"the gradient of the logits' margin is zero for {count} of {len(zero)} images"
    if count:
        still = probe.answer(probe.fresh(), probe.images)
        moves = [apart(still, probe.answer(probe.fresh(), probe.noisy(size))) for size in (1 / 255, 8 / 255, VISIBLE)]
        moving = int((torch.stack(moves).any(0) & zero).sum())
        said += f"; of these, {moving} get other logits under noise of up to {VISIBLE:g}: their gradient is cut"
    return Check(name="nonzero gradient", passed=count <= _FEW * len(zero), said=said)


def _uphill(probe: Probe, gradient: Tensor, nonzero: Tensor) -> Check:
    before, up = probe.margins(probe.images), LINF.steepest(gradient)
    rises = torch.stack([probe.margins((probe.images + step * up).clamp(0, 1)) > before for step in _PROBES]).any(0)
    count, total = int((rises & nonzero).sum()), int(nonzero.sum())
    said = f"a step of at most 4/255 along the gradient's sign raises the margin of {count} of {total} images"
    return Check(name="uphill gradient", passed=2 * count >= total, said=said)


def _softmax(probe: Probe, saturated: Tensor) -> Check:
    count, typical = int(saturated.sum()), float(probe.margins(probe.images).abs().median())
    said = f"the cross-entropy's gradient vanishes for {count} of {len(saturated)} images whose margin has one"
    said += f" (the median margin is {typical:.4g})"
    return Check(name="softmax", passed=count <= _FEW * len(saturated), said=said)
