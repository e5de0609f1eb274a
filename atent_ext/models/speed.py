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

from atent_ext.core.errors import BadInput
from atent_ext.core.model_state import device_of, evaluating, frozen, seeded
from atent_ext.core.types import Model

Speed = Literal["plain", "channels-last", "compile", "graphs", "auto"]
ViewSpeed = Literal["plain", "channels-last"]
SPEEDS: tuple[Speed, ...] = ("plain", "channels-last", "compile", "graphs", "auto")

_SIMPLER: Mapping[str, str] = {"graphs": "compile", "compile": "channels-last", "channels-last": "plain"}
_TOLERANCE = 1e-3
"""How far a setting may move the answers: the logits, in units of the largest (or 1), and the median image's gradient,
in units of its own norm. The median, since rounding may take any one image across a kink of the network."""
_ROUNDS = 5
_FEW = 32
"""Images that answers are compared on."""
_BLOCK = 64
"""Images of a pass on the CPU: their activations fit into memory that the process keeps from one pass to the next,
where those of more are handed back to the system and asked for again, page by page."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A network ready to be scored.

    `speed`: the setting that was chosen. `folded`: whether BatchNorm was folded. `notes`: what was done and what not.
    """

    model: nn.Module
    speed: str
    folded: bool
    notes: tuple[str, ...]


def check(speed: str) -> None:
    """Raise BadInput unless `speed` is the name of a setting."""
    if speed not in SPEEDS:
        raise BadInput(f"speed is {speed!r}; known: {', '.join(SPEEDS)}")


def prepare(model: nn.Module, images: Tensor, speed: str = "channels-last", fold: bool | None = None) -> Prepared:
    """A copy of the network for scoring: in eval mode, frozen, BatchNorm folded into convolutions, run by `speed`.

    `images` (N, ...) are what its answers are checked on, against those of `model`, which stays as it is. What cannot
    be copied is returned as it is; what cannot be folded, or draws at random, is not folded. fold: None is to fold
    unless `speed` is "plain". Raises BadInput for an unknown setting.
    """
    check(speed)
    images = images.to(device_of(model, images.device))
    try:
        mine = copy.deepcopy(model).eval().requires_grad_(False)
    except Exception as error:  # a model may refuse to be copied in any way
        return Prepared(model, "plain", False, (f"not prepared: the model cannot be copied ({_line(error)})",))
    folds = speed != "plain" if fold is None else fold
    fused, folding = _folded(mine, images[:_FEW]) if folds else (None, ())
    chosen, notes = choose(fused or mine, images, speed)
    convert(fused or mine, chosen)
    return Prepared(fused or mine, chosen, fused is not None, (*folding, *notes, f"speed: {chosen}"))


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
        problem = _problem(model, images[:_FEW], speed)
        if problem is None:
            break
        notes.append(f"{speed} not used: {problem}")
        speed = _SIMPLER[speed]
    return speed, tuple(notes)


def check_view(speed: str) -> None:
    """Raise BadInput unless `speed` is a setting that an attack can run a network with."""
    if not isinstance(speed, str) or speed not in ("plain", "channels-last"):
        raise BadInput(f"speed is {speed!r}; an attack knows: plain, channels-last")


@contextmanager
def viewed(model: Model, x: Tensor, speed: str) -> Iterator[Model]:
    """The model as an attack runs it on `x` (N, ...), N >= 1; the model itself, its weights included, stays as it is.

    speed: "plain" or "channels-last"; the latter applies on the CPU to a network with convolutions in float32 or half
    precision, and gives way where the network cannot run so.
    """
    check_view(speed)
    if speed == "plain" or x.is_cuda or not isinstance(model, nn.Module) or not _suits(model):
        yield model
        return
    try:
        with torch.inference_mode(False):  # autograd takes no copies that were made under it
            view = _View(model)
            _probe(view, x[:1].clone())
    except Exception as error:  # a `view` of the activations, say, or a module that takes no other weights
        _log.info("channels-last not used: %s", _line(error))
        yield model
        return
    yield view


def block(x: Tensor) -> int | None:
    """How many images of x (N, ...) to pass at a time where their number is free; None: all of them."""
    return _BLOCK if x.dim() == 4 and len(x) > _BLOCK and not x.is_cuda else None


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


def _folded(model: nn.Module, images: Tensor) -> tuple[nn.Module | None, tuple[str, ...]]:
    """The network with BatchNorm folded into the convolutions before it, where torch.fx can follow it; else None."""
    norms = _norms(model)
    if not norms:
        return None, ()
    try:
        from torch.fx.experimental.optimization import fuse

        if _draws(model, images):
            raise ValueError("the network draws at random, and following it would fix the draw")
        with seeded(0):
            fused: nn.Module = fuse(model).eval().requires_grad_(False)
        with _full_precision():
            _agree(_probe(model, images), _probe(fused, images))
    except Exception as error:  # tracing runs the network's own code, which may fail in any way
        return None, (f"BatchNorm not folded: {_line(error)}",)
    return fused, (f"BatchNorm folded: {norms - _norms(fused)} of {norms}",)


def _norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def _draws(model: nn.Module, images: Tensor) -> bool:
    """Whether a pass of the network takes random numbers of torch."""

    def state() -> Tensor:
        return torch.cuda.get_rng_state(images.device).cpu() if images.is_cuda else torch.get_rng_state()

    with seeded(0), evaluating(model), torch.no_grad():
        before = torch.get_rng_state(), state()
        model(images)
        return not all(map(torch.equal, before, (torch.get_rng_state(), state())))


def _problem(model: nn.Module, images: Tensor, speed: str) -> str | None:
    """What keeps the network from the setting, in a line; None if nothing does."""
    if not _suits(model):
        return "there are no convolutions in float32 or half precision"
    if speed == "graphs" and not images.is_cuda:
        return "CUDA graphs need a GPU"
    try:
        other = copy.deepcopy(model)
        convert(other, speed)
        with _full_precision():
            _agree(_probe(model, images), _probe(other, images))
    except Exception as error:  # a compiler may fail in any way
        return _line(error)
    return None


@contextmanager
def _full_precision() -> Iterator[None]:
    """Convolutions of a GPU without TF32, in which two ways to compute the same one are further apart than rounding."""
    cudnn = torch.backends.cudnn
    try:
        before = cudnn.allow_tf32
    except RuntimeError:  # it was decided for convolutions alone, by its newer name, and cannot be read by this one
        yield
        return
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def _probe(model: Model, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the gradient of their weighted sum with respect to the images, in eval mode; nothing is left behind.

    The weights grow with the class: a plain sum has no gradient where the logits add up to a constant.
    """
    with evaluating(model), frozen(model), seeded(0), torch.enable_grad():
        leaf = images.detach().clone().requires_grad_()
        logits = model(leaf).float()
        score = (logits * torch.arange(1.0, logits.shape[1] + 1, device=logits.device)).sum()
        return logits.detach(), torch.autograd.grad(score, leaf)[0]


def _agree(plain: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> None:
    """Raise ValueError if logits or input gradients differ by more than rounding."""
    (logits, gradient), (their_logits, their_gradient) = plain, other
    apart = float((logits - their_logits).abs().max()) / max(1.0, float(logits.abs().max()))
    sizes, errors = (part.float().flatten(1).norm(dim=1) for part in (gradient, gradient - their_gradient))
    bent = float(torch.where(errors == 0, 0.0, errors / sizes).median())
    for what, by in (("logits differ", apart), ("input gradients differ for the median image", bent)):
        if not by <= _TOLERANCE:  # NaN is no agreement
            raise ValueError(f"its {what} by {by:.1e}, more than {_TOLERANCE:g}")


def _fastest(model: nn.Module, images: Tensor, names: list[str]) -> tuple[str, tuple[str, ...]]:
    """The fastest of the settings that the network can run with, of which the first is "plain"."""
    problems = {name: _problem(model, images[:_FEW], name) for name in names[1:]}
    notes = tuple(f"{name} not used: {problem}" for name, problem in problems.items() if problem)
    able = [name for name in names if not problems.get(name)]
    if able == ["plain"]:
        return "plain", notes
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
