"""Cases for attacks, objectives and kernels drawn by hypothesis, and the check of one: see `outcome`.

Arguments make sense at first; then one or two of them, the images, the labels, the network or the rest of a call are
replaced by something odd, or all of these (`_THEMES`). Networks are tiny. `tests/test_fuzz.py` and
`eval/stress/fuzz.py` share this.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import partial
from math import prod
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from problems import Wrapped
from torch import Tensor, nn

from atent_ext import objectives
from atent_ext.attacks import langevin
from atent_ext.attacks.advertorch_style import L2ATENTAttack, LinfATENTAttack
from atent_ext.core.errors import AtentError
from atent_ext.core.losses import cross_entropy, margin
from atent_ext.core.norms import L2, LINF

INF, NAN = float("inf"), float("nan")
VALID, OWN, NOT_FINITE = "valid", "the network's own error", "not finite, as the network"
Arguments = dict[str, Any]
Strategies = Mapping[str, st.SearchStrategy[Any]]


class OwnError(Exception):
    """What a network of the user's may raise; it must come through as it is."""


@dataclass(frozen=True)
class Case:
    """`run` says what came out, or raises AtentError or OwnError; anything else is a fault. `kind`: what was called."""

    kind: str
    run: Callable[[], str]
    description: Any

    def __repr__(self) -> str:
        return f"{self.kind}: {self.description}"


def outcome(case: Case) -> str:
    """`valid`, the name of the documented exception, or another of the constants above; raises what is a fault."""
    try:
        return case.run()
    except AtentError as error:
        return type(error).__name__
    except OwnError:
        return OWN


# ---- odd values

_ODD = (
    *(None, True, -1, 0, 1, 0.5, 1e-40, 1e30, 1e308, -0.5, NAN, INF, -INF, 10**30, 10**400, 1j),
    *("", "a", "Linf", "0.3", b"a", (), [], {}, (0.5,), (1.0, 0.0), (0.0, NAN), ("0", "1"), ([0.0], [1.0])),
    *(Fraction(1, 3), Decimal("0.1"), np.float16(0.1), np.int64(2), np.array(0.1), np.array([0.1, 0.2])),
    *(torch.tensor(0.1), torch.tensor([0.1, 0.2]), torch.tensor([[0.1]]), torch.tensor([1j]), torch.tensor([True])),
    *(torch.tensor(1), torch.tensor([NAN]), torch.tensor([0.1, -0.1]), torch.tensor([]), print, object),
)
_COUNTS = {"nb_iter", "steps", "restarts", "draws", "n"}  # a huge one makes sense, and takes for ever


_THEMES = ("none", "none", "none", "arguments", "images", "labels", "network", "rest", "all")


def _odd(theme: str, what: str) -> bool:
    return theme in (what, "all")


@st.composite
def with_odd(draw: Any, sensible: Strategies, odd: bool) -> Arguments:
    """Arguments that make sense, of which one or two are replaced if `odd`."""
    chosen = {name: draw(strategy) for name, strategy in sensible.items()}
    for _ in range(draw(st.integers(1, 2)) if odd and sensible else 0):
        name, value = draw(st.sampled_from(sorted(sensible))), draw(st.sampled_from(_ODD))
        if not (name in _COUNTS and isinstance(value, int) and value > 3):
            chosen[name] = value
    return chosen


# ---- networks

_SOUND = ("plain", "plain", "frozen", "saturated", "constant")


def _own_error(network: nn.Module, x: Tensor) -> Tensor:
    raise OwnError


def _nan_gradient(network: nn.Module, x: Tensor) -> Tensor:
    logits = network(x)
    return logits + ((logits - logits.detach()) ** 2).sqrt()


_UNSOUND: Mapping[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "squeezing": lambda network, x: network(x).squeeze(),
    "raising": _own_error,
    "nan": _nan_gradient,
    "cut": lambda network, x: network(x.detach()),
}


def network(name: str, features: tuple[int, ...], classes: int, dtype: torch.dtype, training: bool) -> nn.Module:
    """One for inputs (N, *features): with convolutions, BatchNorm and dropout for images, else linear."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(max(1, prod(features)), classes)]
    if len(features) == 3 and prod(features):
        head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, classes)]
        layers = [nn.Conv2d(features[0], 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout(0.3), *head]
    model = nn.Sequential(*layers).to(dtype).train(training)
    last = layers[-1]
    with torch.no_grad():
        if name == "constant":
            last.weight.zero_()
        if name == "saturated":  # a gap of 200 between the first class and the others
            last.bias[0] += 200
    if name == "frozen":
        last.bias.requires_grad_(False)
        last.eval()
    model[-1].bias.grad = torch.ones_like(last.bias) if name == "frozen" else None
    return Wrapped(model, _UNSOUND[name]).train(training) if name in _UNSOUND else model


def state(model: nn.Module) -> list[Any]:
    """Everything of a network that an attack must leave alone."""
    parameters = list(model.parameters())
    return [
        [module.training for module in model.modules()],
        [p.requires_grad for p in parameters],
        [p.detach().clone() for p in parameters],
        [b.clone() for b in model.buffers()],
        [None if p.grad is None else p.grad.clone() for p in parameters],
    ]


def untouched(before: list[Any], model: nn.Module, but: tuple[str, ...] = ()) -> None:
    names = ("modes", "requires_grad", "weights", "buffers", "gradients")
    for name, old, new in zip(names, before, state(model), strict=True):
        assert name in but or all(map(_same, old, new)), f"{name} of the network changed"


def _same(old: Any, new: Any) -> bool:
    return torch.equal(old, new) if isinstance(old, Tensor) and isinstance(new, Tensor) else old is new


def _bits(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1).contiguous().view(torch.uint8)  # NaN is not equal to itself


# ---- images and labels

_BOXES = ((0.0, 1.0), (0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (-INF, INF))
_IMAGES: Mapping[str, Callable[[Tensor], Any]] = {
    "as numpy": lambda x: x.float().numpy(),
    "as list": lambda x: x.tolist(),
    "missing": lambda x: None,
    "uint8": lambda x: x.to(torch.uint8),
    "bool": lambda x: x > 0,
    "complex": lambda x: x.to(torch.complex64),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "flat": lambda x: x.flatten(),
    "number": lambda x: x.sum(),
    "nan": lambda x: x * NAN,
    "inf": lambda x: x + INF,
    "outside": lambda x: 3 * x + 300,
    "huge": lambda x: x + 1e30,
    "black": torch.zeros_like,
    "identical": lambda x: x[:1].expand_as(x) if len(x) else x,
    "recording": lambda x: x.clone().requires_grad_(),
    "not contiguous": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
}
_LABELS: Mapping[str, Callable[[Tensor], Any]] = {
    "as numpy": lambda y: y.numpy(),
    "as list": lambda y: y.tolist(),
    "missing": lambda y: None,
    **{str(kind): partial(lambda kind, y: y.to(kind), kind) for kind in (torch.float32, torch.bool, torch.complex64)},
    **{f"int{bits}": partial(lambda kind, y: y.to(kind), getattr(torch, f"int{bits}")) for bits in (8, 16, 32)},
    **{f"uint{bits}": partial(lambda kind, y: y.to(kind), getattr(torch, f"uint{bits}")) for bits in (8, 16, 32, 64)},
    "columns": lambda y: y[:, None],
    "too few": lambda y: y[1:],
    "too many": lambda y: torch.cat([y, y]),
    "negative": lambda y: y - 1,
    "ignored": lambda y: y * 0 - 100,
    "too large": lambda y: y + 7,
    "one class": torch.zeros_like,
    "number": lambda y: y.sum(),
    "one-hot": lambda y: torch.nn.functional.one_hot(y, 9).float(),
}
_SHAPES = ((5,), (1,), (2, 3), (1, 6, 6), (3, 4, 4), (2, 1, 1, 3), (0,), (2, 0, 1))


@dataclass(frozen=True)
class Problem:
    """A network, and images (N, *features) in the box with their labels, or something odd in their place."""

    model: nn.Module
    x: Any
    y: Any
    box: tuple[float, float]
    sound: bool  # whether all that comes out must be finite
    description: tuple[Any, ...]


@st.composite
def problems(draw: Any, theme: str) -> Problem:
    seed = draw(st.integers(0, 2**32 - 1))
    empty = _odd(theme, "images") and draw(st.booleans())
    features, box = draw(st.sampled_from(_SHAPES if empty else _SHAPES[:-2])), draw(st.sampled_from(_BOXES))
    count = draw(st.sampled_from((0,) if empty else (1, 2, 2, 2, 5, 5, 5, 70)))
    classes = draw(st.sampled_from((1, 2, 3, 9)))
    dtype = draw(st.sampled_from((torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16)))
    name = draw(st.sampled_from(sorted(_UNSOUND) if _odd(theme, "network") else _SOUND))
    training = draw(st.booleans())
    odd_x = draw(st.sampled_from(sorted(_IMAGES))) if _odd(theme, "images") and not empty else "plain"
    odd_y = draw(st.sampled_from(sorted(_LABELS))) if _odd(theme, "labels") else "plain"
    torch.manual_seed(seed)
    model = network(name, features, classes, dtype, training)
    low, high = (max(-1.0, box[0]), min(box[1], 255.0))
    x = (low + (high - low) * torch.rand(count, *features)).to(dtype)
    y = torch.randint(classes, (count,))
    x, y = _IMAGES.get(odd_x, lambda x: x)(x), _LABELS.get(odd_y, lambda y: y)(y)
    description = (name, training, (count, *features), classes, dtype, odd_x, odd_y, box, seed)
    return Problem(model, x, y, box, name != "nan" and odd_x != "huge", description)


def in_ball(norm: Any, eps: Any, x: Tensor, adversaries: Tensor) -> bool:
    """Whether each lies in its eps ball, up to a few roundings of its own precision for every feature."""
    unit, wide, clean = torch.finfo(x.dtype).eps, adversaries.double(), x.detach().double()
    given = eps.double() if isinstance(eps, Tensor) else torch.tensor(float(eps), dtype=torch.float64)
    radius = given.expand(len(x))
    largest = torch.maximum(wide.flatten(1).abs().amax(1), clean.flatten(1).abs().amax(1))
    features = prod(x.shape[1:]) if norm == L2 else 1
    return bool((norm.size(wide - clean) <= radius + 4 * unit * features**0.5 * (largest + radius)).all())


def in_box(box: tuple[float, float], x: Tensor) -> bool:
    slack = 4 * torch.finfo(x.dtype).eps * max([1.0, *(abs(side) for side in box if abs(side) < INF)])
    return bool(((x >= box[0] - slack) & (x <= box[1] + slack)).all())


# ---- attacks

_RADII = st.sampled_from((0.0, 1e-6, 0.05, 0.3, 2.0))
_STARTS = st.sampled_from((None, "uniform", "ball", "corner", "blocks", "near", "clean"))
_CHAIN: Strategies = {
    "noise": st.sampled_from((0.0, 1e-3, 0.5)),
    "gamma": st.sampled_from((0.0, 0.05, 1.0)),
    "start": _STARTS,
    "direction": st.sampled_from((None, "sign", "unit", "unit-or-random", "raw")),
}
_ATTACK: Strategies = {
    **_CHAIN,
    "eps": _RADII,
    "nb_iter": st.integers(1, 3),
    "eps_iter": _RADII,
    "rand_init": st.booleans(),
    "targeted": st.booleans(),
    "loss_fn": st.sampled_from((None, margin, nn.CrossEntropyLoss(reduction="sum"))),
    "pull": st.sampled_from(("authors", "paper", "coordinate")),
    "restarts": st.integers(1, 2),
    "keep": st.sampled_from(("last", "success")),
    "early_stop": st.booleans(),
    "batch_size": st.sampled_from((None, 1, 3)),
    "speed": st.sampled_from(("channels-last", "plain")),
    "generator": st.builds(lambda: torch.Generator().manual_seed(0)),
}
_PROJECTIONS = {LinfATENTAttack: ("last", "every"), L2ATENTAttack: ("last", "every", None)}
_CONTEXTS: Mapping[str, Callable[[], Any]] = {
    "none": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    **{str(kind): partial(torch.autocast, "cpu", kind) for kind in (torch.bfloat16, torch.float16)},
}


def _autocasts(problem: Problem) -> tuple[str, ...]:
    wide = next(problem.model.parameters()).dtype is torch.float32
    return (str(torch.bfloat16), str(torch.float16)) if wide else ()


@st.composite
def attacks(draw: Any) -> Case:
    kind = draw(st.sampled_from((LinfATENTAttack, L2ATENTAttack)))
    theme = draw(st.sampled_from(_THEMES))
    problem = draw(problems(theme))
    low, high = problem.box
    sensible = {"project": st.sampled_from(_PROJECTIONS[kind]), "clip_min": st.just(low), "clip_max": st.just(high)}
    arguments = draw(with_odd({**_ATTACK, **sensible}, _odd(theme, "arguments")))
    n = draw(with_odd({"n": st.sampled_from((None, None, 1, 2))}, _odd(theme, "rest")))["n"]
    context = draw(st.sampled_from(("none", "no_grad", "inference_mode", *_autocasts(problem))))
    description = (problem.description, arguments, n, context)
    return Case(kind.__name__, partial(_attacked, kind, problem, arguments, n, context), description)


def _attacked(kind: Any, problem: Problem, arguments: Arguments, n: Any, context: str) -> str:
    before, given = state(problem.model), [t.clone() if isinstance(t, Tensor) else t for t in (problem.x, problem.y)]
    try:
        with _CONTEXTS[context]():
            attack = kind(problem.model, **arguments)
            adversaries = attack.perturb(problem.x, problem.y) if n is None else attack.sample(problem.x, problem.y, n)
    finally:
        untouched(before, problem.model)
        for old, new in zip(given, (problem.x, problem.y), strict=True):
            if isinstance(new, Tensor):
                assert torch.equal(_bits(old), _bits(new)), "images or labels changed"
                assert new.grad is None, "a gradient was left on the images"
    x = problem.x
    assert adversaries.shape == (x.shape if n is None else (n, *x.shape)), "wrong shape"
    assert adversaries.dtype is x.dtype, "wrong dtype"
    assert not adversaries.requires_grad, "not detached"
    for adversary in (adversaries[None] if n is None else adversaries) if x.numel() else ():
        assert adversary.isfinite().all(), "NaN or infinity among the adversaries"
        assert in_box((float(arguments["clip_min"]), float(arguments["clip_max"])), adversary), "outside the box"
        assert arguments["project"] is None or in_ball(attack.norm, arguments["eps"], x, adversary), "outside the ball"
    return VALID


# ---- objectives

_COMMON: Strategies = {
    "norm": st.sampled_from(("Linf", "L2")),
    "eps": _RADII,
    "steps": st.integers(1, 3),
    "step_size": _RADII,
    "inner_mode": st.sampled_from(("train", "eval")),
}
_BETA: Strategies = {"beta": st.sampled_from((0.0, 1.0, 6.0))}
_SIGMA: Strategies = {"sigma": st.sampled_from((0.0, 0.1, 1.0))}
_LANGEVIN: Strategies = {
    **_COMMON,
    **_CHAIN,
    "alpha": st.sampled_from((0.5, 0.9, 1.0)),
    "average": st.sampled_from(("exponential", "uniform")),
    "tolerance": st.sampled_from((0.0, 1e-3)),
    "starts": st.integers(1, 3),
    "pull": st.sampled_from((None, "authors", "paper", "coordinate")),
    "project": st.sampled_from((None, "every", "last", "never")),
}
_OBJECTIVES: Mapping[str, Strategies] = {
    "Standard": {},
    "PGDAT": {**_COMMON, "start": _STARTS},
    "TRADES": {**_COMMON, **_BETA},
    "MART": {**_COMMON, **_BETA},
    "MMA": {**{k: _COMMON[k] for k in ("norm", "steps", "inner_mode")}, "eps": st.just(0.3), "least": st.just(0.05)},
    "ATENT": _LANGEVIN,
    "DESGD": {**_LANGEVIN, "project": st.just("never")},
    "IBP": {"eps": _RADII, "kappa": st.sampled_from((0.0, 0.5, 1.0))},
    "GaussianNoise": _SIGMA,
    "SmoothAdv": {**_COMMON, **_SIGMA, "draws": st.integers(1, 2)},
    "SmoothTRADES": {**_SIGMA, **_BETA},
}
_WITHOUT_BOX = ("Standard", "GaussianNoise", "SmoothTRADES")
_LAST_IS_THE_ADVERSARY = ("PGDAT", "TRADES", "MART", "ATENT", "DESGD")
_PLACES = (None, torch.arange, lambda count: torch.arange(count).int() + 7)
_ODD_PLACES = (
    *(torch.zeros, lambda count: torch.full((count,), -1), lambda count: torch.arange(count + 1)),
    *(lambda count: torch.arange(count)[:, None], lambda count: torch.zeros(count) > 0, range, str),
)


@st.composite
def trainings(draw: Any) -> Case:
    kind = draw(st.sampled_from(sorted(_OBJECTIVES)))
    theme = draw(st.sampled_from(_THEMES))
    problem = draw(problems(theme))
    box = {} if kind in _WITHOUT_BOX else {"box": st.just(problem.box)}
    arguments = draw(with_odd({**_OBJECTIVES[kind], **box}, _odd(theme, "arguments")))
    odd_rest = _odd(theme, "rest")
    factor = draw(st.sampled_from(_ODD if odd_rest and draw(st.booleans()) else (None, None, 0.5, 1.0)))
    places = draw(st.sampled_from(_ODD_PLACES if odd_rest else _PLACES))
    index = places(len(problem.x)) if places and isinstance(problem.x, Tensor) and problem.x.dim() else None
    context = draw(st.sampled_from(("none", *_autocasts(problem))))
    description = (problem.description, arguments, factor, index, context)
    return Case(kind, partial(_trained, kind, problem, arguments, factor, index, context), description)


def _trained(kind: str, problem: Problem, arguments: Arguments, factor: Any, index: Any, context: str) -> str:
    model, x, seen = problem.model, problem.x, []
    before, moved = state(model), ["buffers"] if any(m.training for m in model.modules()) else []
    watch = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    try:
        objective = getattr(objectives, kind)(**arguments)
        objective = objective if factor is None else objective.scaled(factor)
        terms = []
        steps = objective(model, x, problem.y, index, generator=torch.Generator().manual_seed(0))
        while len(terms) <= objective.terms:
            with _CONTEXTS[context]():
                term = next(steps, None)
            if term is None:
                break
            moved.append("gradients")
            term.backward()
            terms.append(term.detach())
    finally:
        watch.remove()
        untouched(before, model, tuple(moved))
    assert len(terms) == objective.terms, "not as many terms as it says"
    assert all(term.shape == () for term in terms), "a term is no number"
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if not all(tensor.isfinite().all() for tensor in (*terms, *gradients)):
        assert not problem.sound, "NaN or infinity in a term or its gradient"
        return NOT_FINITE
    if kind in _LAST_IS_THE_ADVERSARY:
        kernel = objective.kernel
        assert in_box(kernel.box, seen[-1]), "trained outside the box"
        within = kernel.project == "never" or in_ball(kernel.norm, kernel.eps, x, seen[-1])
        assert within, "trained outside the ball"
    return VALID


# ---- kernels

_MAKERS: Mapping[str, Strategies] = {
    "pgd": {"eps": _RADII, "steps": st.integers(1, 3), "step_size": st.sampled_from((None, 0.1)), "start": _STARTS},
    "fgsm": {"eps": _RADII},
    "atent": {
        **{name: _CHAIN[name] for name in ("noise", "gamma", "start")},
        **{"eps": _RADII, "steps": st.integers(1, 3), "step_size": st.sampled_from((None, 0.1))},
        **{"project": st.sampled_from((None, "every", "last", "never")), "targeted": st.booleans()},
    },
}


@st.composite
def kernels(draw: Any) -> Case:
    kind = draw(st.sampled_from(sorted(_MAKERS)))
    common = {"norm": st.sampled_from((LINF, L2)), "box": st.sampled_from(_BOXES)}
    arguments = draw(with_odd({**common, **_MAKERS[kind]}, draw(st.booleans())))
    return Case(kind, partial(_walked, kind, arguments), arguments)


def _walked(kind: str, arguments: Arguments) -> str:
    kernel = getattr(langevin, kind)(**arguments)
    model, y = network("plain", (4,), 3, torch.float32, False), torch.tensor([0, 1])
    x = torch.full((2, 4), 0.5)
    adversaries = langevin.last_iterate(kernel, model, x, y, cross_entropy, torch.Generator().manual_seed(0))
    assert adversaries.isfinite().all(), "NaN or infinity among the adversaries"
    assert in_box(kernel.box, adversaries), "outside the box"
    assert kernel.project == "never" or in_ball(kernel.norm, kernel.eps, x, adversaries), "outside the ball"
    return VALID
