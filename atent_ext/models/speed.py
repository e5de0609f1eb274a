"""Settings that make a network run faster and change its outputs by rounding only, chosen by name or by timing.

plain: the network is unchanged. channels-last: convolution weights in the channels-last memory format, which saves
oneDNN (and cuDNN in half precision) two reorderings per layer. compile: channels-last and torch.compile. graphs:
compile with CUDA graphs. If a network cannot run with a setting, or its logits change by more than rounding, the next
simpler setting is used and a note says why. auto: times some of the settings on the first batch and uses the fastest.
"""

import copy
import logging
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import device_of, evaluating, frozen, seeded
from atent_ext.core.types import Model
from atent_ext.models.contrast import Contrast

Speed = Literal["plain", "channels-last", "compile", "graphs", "auto"]
ViewSpeed = Literal["plain", "channels-last"]
SPEEDS: tuple[Speed, ...] = ("plain", "channels-last", "compile", "graphs", "auto")

_SIMPLER: Mapping[str, str] = {"graphs": "compile", "compile": "channels-last", "channels-last": "plain"}
_TOLERANCE = 1e-3
"""Largest relative difference that a setting may cause: of the logits, relative to the largest one (or 1), and of the
median image's input gradient, relative to its norm. The median is robust: rounding can move a single image across a
kink of the network."""
_REPEATS = 5
_FEW = 32
"""How many images outputs are compared on."""
_BLOCK = 64
"""Images per forward pass on the CPU. The process keeps the memory of their activations between passes; larger batches
return it to the system and request it again, page by page."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A network that is ready for scoring.

    speed: the setting that is used. folded: whether BatchNorm was folded. notes: what was done, what failed and why.
    """

    model: nn.Module
    speed: str
    folded: bool
    notes: tuple[str, ...]


def check(speed: str) -> None:
    """Raise BadInput unless `speed` is the name of a setting."""
    if speed not in SPEEDS:
        raise BadInput(f"speed is {speed!r}; known: {', '.join(SPEEDS)}", code="unknown-name", field="speed")


def prepare(model: nn.Module, images: Tensor, speed: str = "channels-last", fold: bool | None = None) -> Prepared:
    """A copy of the network for scoring: in eval mode, frozen, BatchNorm folded into convolutions, run with `speed`.

    images (N, ...): the outputs of the copy on the first of them are checked against those of `model`, which is not
    changed. A model that cannot be copied is returned itself; a network that torch.fx cannot trace, or that draws at
    random, is not folded. fold: None folds unless `speed` is "plain". Raises BadInput for an unknown setting.
    """
    check(speed)
    images = images.to(device_of(model, images.device))
    try:
        network = copy.deepcopy(model).eval().requires_grad_(False)
    except Exception as error:  # copying a model can fail in any way
        return Prepared(model, "plain", False, (f"not prepared: the model cannot be copied ({_line(error)})",))
    folds = speed != "plain" if fold is None else fold
    fused, folding = _folded(network, images[:_FEW]) if folds else (None, ())
    chosen, notes = choose(fused or network, images, speed)
    convert(fused or network, chosen)
    return Prepared(fused or network, chosen, fused is not None, (*folding, *notes, f"speed: {chosen}"))


def convert(model: nn.Module, speed: str) -> None:
    """Apply a setting to the network in place. Names and values of its state dict do not change."""
    if speed != "plain":
        model.to(memory_format=torch.channels_last)
    if speed in ("compile", "graphs"):
        model.compile(mode="reduce-overhead" if speed == "graphs" else None)


def choose(model: nn.Module, images: Tensor, speed: str) -> tuple[str, tuple[str, ...]]:
    """Choose the setting for batches like `images`: (the setting, a note for each setting that could not be used).

    Settings are tried on copies; the network is not changed. "auto" times plain and channels-last, and on a GPU compile
    as well. Raises BadInput for an unknown setting.
    """
    check(speed)
    if speed == "auto":
        names = ["plain", "channels-last"] if _suits(model) else ["plain"]
        return _fastest(model, images, [*names, "compile"] if images.is_cuda else names)
    notes = []
    while speed != "plain":
        problem = _problem(model, images[:_FEW], speed)
        if problem is None:
            break
        notes.append(f"{speed} not used: {problem}")
        speed = _SIMPLER[speed]
    return speed, tuple(notes)


def check_view(speed: str) -> None:
    """Raise BadInput unless `speed` is a setting for attacks: "plain" or "channels-last"."""
    if not isinstance(speed, str) or speed not in ("plain", "channels-last"):
        message = f"speed is {speed!r}; an attack knows: plain, channels-last"
        raise BadInput(message, code="unknown-name", field="speed")


@contextmanager
def viewed(model: Model, x: Tensor, speed: str) -> Iterator[Model]:
    """The model as an attack runs it on `x` (N, ...), N >= 1. The model and its weights are not changed.

    speed: "plain" or "channels-last". The latter has an effect on the CPU only, for a network with convolutions in
    float32 or half precision that can run with it. Raises BadInput for another setting.
    """
    check_view(speed)
    if speed == "plain" or x.is_cuda or not isinstance(model, nn.Module) or not _suits(model):
        yield model
        return
    try:
        with torch.inference_mode(False):  # autograd refuses tensors that were made in inference mode
            view = _View(model)
            _probe(view, x[:1].clone())
    except Exception as error:  # for example, the network calls `view` on its activations
        _log.info("channels-last not used: %s", _line(error))
        yield model
        return
    yield view


def block(x: Tensor) -> int | None:
    """How many images of x (N, ...) to pass at once if any number will do; None for all of them."""
    return _BLOCK if x.dim() == 4 and len(x) > _BLOCK and not x.is_cuda else None


class _View:
    """Calls a network with detached channels-last copies of its weights, so that no pass computes their gradients."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights = {name: _channels_last(p.detach()) for name, p in model.named_parameters()}

    def __call__(self, x: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(self.model, self.weights, (x,))
        return logits


def _channels_last(weight: Tensor) -> Tensor:
    return weight.to(memory_format=torch.channels_last) if weight.dim() == 4 else weight


def _suits(model: nn.Module) -> bool:
    """Whether the network has convolutions in a precision with channels-last kernels."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return any(conv.weight.dtype in (torch.float32, torch.float16, torch.bfloat16) for conv in convolutions)


def _folded(model: nn.Module, images: Tensor) -> tuple[nn.Module | None, tuple[str, ...]]:
    """The network with BatchNorm folded into the convolutions before it (None if that fails), and a note."""
    norms = _norms(model)
    if not norms:
        return None, ()
    if any(isinstance(module, Contrast) for module in model.modules()):
        return None, ("BatchNorm not folded: tracing would lose the contrast layer, which attacks look for",)
    try:
        from torch.fx.experimental.optimization import fuse

        if _draws(model, images):
            raise ValueError("the network draws at random, and tracing it would fix the draw")
        with seeded(0):
            fused: nn.Module = fuse(model).eval().requires_grad_(False)
        with _full_precision():
            _check_equal(_probe(model, images), _probe(fused, images))
    except Exception as error:  # tracing runs the network's own code, which can fail in any way
        return None, (f"BatchNorm not folded: {_line(error)}",)
    return fused, (f"BatchNorm folded: {norms - _norms(fused)} of {norms}",)


def _norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def _draws(model: nn.Module, images: Tensor) -> bool:
    """Whether a forward pass draws random numbers from torch, NumPy or Python."""

    def state() -> list[object]:
        states = [torch.get_rng_state(), *([torch.cuda.get_rng_state(images.device)] if images.is_cuda else [])]
        name, keys, *rest = np.random.get_state()  # noqa: NPY002 -- a network may use it
        return [random.getstate(), name, list(keys), rest, *(one.tolist() for one in states)]

    with seeded(0), evaluating(model), torch.no_grad():
        before = state()
        model(images.clone())
        return before != state()


def _problem(model: nn.Module, images: Tensor, speed: str) -> str | None:
    """Why the network cannot use the setting, in one line; None if it can."""
    if not _suits(model):
        return "there are no convolutions in float32 or half precision"
    if speed == "graphs" and not images.is_cuda:
        return "CUDA graphs need a GPU"
    try:
        other = copy.deepcopy(model)
        convert(other, speed)
        with _full_precision():
            _check_equal(_probe(model, images), _probe(other, images))
    except Exception as error:  # compilation can fail in any way
        return _line(error)
    return None


@contextmanager
def _full_precision() -> Iterator[None]:
    """Switch TF32 off for convolutions on a GPU: its differences between two algorithms exceed `_TOLERANCE`."""
    cudnn = torch.backends.cudnn
    try:
        before = cudnn.allow_tf32
    except RuntimeError:  # the newer setting `conv.fp32_precision` is in use, and the old one cannot be read
        yield
        return
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def _probe(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of their weighted sum with respect to the images, in eval mode; no side effects.

    The weight grows with the class: a plain sum has no gradient if the logits add up to a constant.
    """
    with evaluating(model), frozen(model), seeded(0), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        logits = model(leaf).float()
        score = (logits * torch.arange(1.0, logits.shape[1] + 1, device=logits.device)).sum()
        return logits.detach(), torch.autograd.grad(score, leaf)[0]


def _check_equal(plain: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    """Raise ValueError if logits or input gradients of `_probe` differ by more than rounding."""
    (logits, gradient), (other_logits, other_gradient) = plain, other
    sizes, errors = (part.float().flatten(1).norm(dim=1) for part in (gradient, gradient - other_gradient))
    differences = {
        "logits differ": float((logits - other_logits).abs().max()) / max(1.0, float(logits.abs().max())),
        "input gradients differ for the median image": float(torch.where(errors == 0, 0.0, errors / sizes).median()),
    }
    for what, difference in differences.items():
        if not difference <= _TOLERANCE:  # also for NaN
            raise ValueError(f"its {what} by {difference:.1e}, more than {_TOLERANCE:g}")


def _fastest(model: nn.Module, images: Tensor, names: list[str]) -> tuple[str, tuple[str, ...]]:
    """The fastest of the settings `names` that the network can use; the first is "plain"."""
    problems = {name: _problem(model, images[:_FEW], name) for name in names[1:]}
    notes = tuple(f"{name} not used: {problem}" for name, problem in problems.items() if problem)
    usable = [name for name in names if not problems.get(name)]
    if usable == ["plain"]:
        return "plain", notes
    copies = {name: copy.deepcopy(model) for name in usable}
    for name, network in copies.items():
        convert(network, name)
    seconds = measure({name: lambda network=network: _probe(network, images) for name, network in copies.items()})  # type: ignore[misc]
    best = min(seconds, key=lambda name: seconds[name])
    timed = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in seconds.items())
    return best, (*notes, f"measured on {len(images)} images: {timed}")


def measure(passes: Mapping[str, Callable[[], object]], repeats: int = _REPEATS) -> dict[str, float]:
    """Seconds per call of each function: the median of `repeats` interleaved calls after a warm-up call."""
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(1 + repeats):
        for name, run in passes.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
