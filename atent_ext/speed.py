"""How fast a network runs: settings that change rounding and nothing else, taken by name or by measurement.

plain: as it is. channels-last: weights of convolutions with the channels innermost, which spares oneDNN (and cuDNN in
half precision) two reorderings a layer. compile: that, and torch.compile. graphs: that, with CUDA graphs. A setting
that a network cannot run with, or that changes its logits beyond rounding, gives way to the next simpler one, and one
line says why. auto: times a few of them on the first batch and keeps the fastest.
"""

import copy
import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from atent_ext.errors import BadInput
from atent_ext.modes import evaluating, frozen, seeded
from atent_ext.types import Model

Speed = Literal["plain", "channels-last", "compile", "graphs", "auto"]
SPEEDS: tuple[Speed, ...] = ("plain", "channels-last", "compile", "graphs", "auto")

_SIMPLER: Mapping[str, str] = {"graphs": "compile", "compile": "channels-last", "channels-last": "plain"}
_TOLERANCE = 1e-3
"""How far logits and input gradients may lie from the plain network's, in units of the largest among them (or 1)."""
_ROUNDS = 5
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A network ready to be scored. `speed`: the setting that was chosen. `notes`: what was done and what was not."""

    model: nn.Module
    speed: str
    notes: tuple[str, ...]


def check(speed: str) -> None:
    """Raise BadInput unless `speed` is the name of a setting."""
    if speed not in SPEEDS:
        raise BadInput(f"speed is {speed!r}; known: {', '.join(SPEEDS)}")


def prepare(model: nn.Module, images: Tensor, speed: str = "channels-last") -> Prepared:
    """A copy of the network for scoring: in eval mode, frozen, BatchNorm folded into convolutions, run by `speed`.

    `images` (N, ...) are what its logits are checked on, against those of `model`, which stays as it is. What cannot be
    copied is returned as it is; what cannot be folded is not. Raises BadInput for an unknown setting.
    """
    check(speed)
    device = next((p.device for p in model.parameters()), images.device)
    images = images.to(device)
    try:
        mine = copy.deepcopy(model).eval().requires_grad_(False)
    except Exception as error:  # a model may refuse to be copied in any way
        return Prepared(model, "plain", (f"not prepared: the model cannot be copied ({_line(error)})",))
    mine, folded = _folded(mine, images)
    chosen, notes = choose(mine, images, speed)
    convert(mine, chosen)
    return Prepared(mine, chosen, (*folded, *notes, f"speed: {chosen}"))


def convert(model: nn.Module, speed: str) -> None:
    """Set the network to a chosen setting, in place; its state dict keeps names and values."""
    if speed != "plain":
        model.to(memory_format=torch.channels_last)
    if speed in ("compile", "graphs"):
        model.compile(mode="reduce-overhead" if speed == "graphs" else None)


def choose(model: nn.Module, images: Tensor, speed: str) -> tuple[str, tuple[str, ...]]:
    """The setting to run the network with on batches like `images`, and one line for each that had to be given up.

    Copies are tried, the network itself is not touched. "auto" times plain and channels-last, on a GPU compile as well.
    """
    check(speed)
    if speed == "auto":
        names = ["plain", "channels-last"] if _suits(model) else ["plain"]
        return _fastest(model, images, [*names, "compile"] if images.is_cuda else names)
    notes = []
    while speed != "plain":
        problem = _problem(model, images, speed)
        if problem is None:
            break
        notes.append(f"{speed} not used: {problem}")
        speed = _SIMPLER[speed]
    return speed, tuple(notes)


@contextmanager
def viewed(model: Model, x: Tensor, speed: str) -> Iterator[Model]:
    """The model as an attack runs it on `x` (N, ...), N >= 1; the model itself, its weights included, stays as it is.

    speed: "plain" or "channels-last"; the latter applies on the CPU to a network with convolutions in float32, and
    gives way where the network cannot run so.
    """
    if speed not in ("plain", "channels-last"):
        raise BadInput(f"speed is {speed!r}; an attack knows: plain, channels-last")
    if speed == "plain" or x.is_cuda or not isinstance(model, nn.Module) or not _suits(model):
        yield model
        return
    view = _View(model)
    try:
        with torch.no_grad():
            view(x[:1])
    except RuntimeError as error:  # a `view` of the activations, say, or a module that takes no other weights
        _log.info("channels-last not used: %s", _line(error))
        yield model
        return
    yield view


class _View:
    """A network called with copies of its weights: detached, so that no pass computes their gradients."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights = {name: _innermost(p.detach()) for name, p in model.named_parameters()}

    def __call__(self, x: Tensor) -> Tensor:
        logits: Tensor = torch.func.functional_call(self.model, self.weights, (x,))
        return logits


def _innermost(weight: Tensor) -> Tensor:
    return weight.to(memory_format=torch.channels_last) if weight.dim() == 4 else weight


def _suits(model: nn.Module) -> bool:
    """Whether the network has convolutions in a precision that has kernels for channels-last."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return any(conv.weight.dtype in (torch.float32, torch.float16, torch.bfloat16) for conv in convolutions)


def _folded(model: nn.Module, images: Tensor) -> tuple[nn.Module, tuple[str, ...]]:
    """BatchNorm folded into the convolutions before it, where torch.fx can follow the network."""
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if not norms:
        return model, ()
    try:
        from torch.fx.experimental.optimization import fuse

        fused: nn.Module = fuse(model).eval().requires_grad_(False)
        _agree(_probe(model, images), _probe(fused, images))
    except Exception as error:  # tracing runs the network's own code, which may fail in any way
        return model, (f"BatchNorm not folded: {_line(error)}",)
    left = sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    return fused, (f"BatchNorm folded: {norms - left} of {norms}",)


def _problem(model: nn.Module, images: Tensor, speed: str) -> str | None:
    """What keeps the network from the setting, in a line; None if nothing does."""
    if not _suits(model):
        return "there are no convolutions in float32 or half precision"
    if speed == "graphs" and not images.is_cuda:
        return "CUDA graphs need a GPU"
    try:
        other = copy.deepcopy(model)
        convert(other, speed)
        _agree(_probe(model, images), _probe(other, images))
    except Exception as error:  # a compiler may fail in any way
        return _line(error)
    return None


def _probe(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of their weighted sum with respect to the images, in eval mode; nothing is left behind.

    The weights grow with the class: a plain sum has no gradient where the logits add up to a constant.
    """
    with evaluating(model), frozen(model), seeded(0), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        logits = model(leaf).float()
        score = (logits * torch.arange(1.0, logits.shape[1] + 1, device=logits.device)).sum()
        return logits.detach(), torch.autograd.grad(score, leaf)[0]


def _agree(plain: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    """Raise ValueError if logits or gradients differ by more than rounding."""
    for what, mine, theirs in zip(("logits", "input gradients"), plain, other, strict=True):
        scale = max(1.0, float(mine.abs().max()))
        apart = float((mine - theirs).abs().max()) / scale
        if not apart <= _TOLERANCE:  # NaN is no agreement
            raise ValueError(f"its {what} differ by {apart:.1e} of the largest, more than {_TOLERANCE:g}")


def _fastest(model: nn.Module, images: Tensor, names: list[str]) -> tuple[str, tuple[str, ...]]:
    notes = [f"{name} not used: {problem}" for name in names[1:] if (problem := _problem(model, images, name))]
    able = [name for name in names if not any(note.startswith(name) for note in notes)]
    runners = {name: copy.deepcopy(model) for name in able}
    for name, runner in runners.items():
        convert(runner, name)
    seconds = measure({name: lambda runner=runner: _probe(runner, images) for name, runner in runners.items()})  # type: ignore[misc]
    best = min(seconds, key=lambda name: seconds[name])
    timed = ", ".join(f"{name} {1e3 * value:.1f} ms" for name, value in seconds.items())
    return best, (*notes, f"measured on {len(images)} images: {timed}")


def measure(passes: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of one call of each: the median of interleaved rounds, after one that warms up."""
    found: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(1 + _ROUNDS):
        for name, run in passes.items():
            start = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            found[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in found.items()}


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
