"""Watches the public calls of atent_ext: what belongs to the whole process must come back as it was found.

`watch_package()` puts a check around every public function and around what users call of attacks, objectives and
adapters. The outermost call is checked, also where it ends in an exception; of a generator, each step by itself.
`atent_ext.core.compat` is left out, which repairs other packages on request, and so is the command line.
"""

import functools
import importlib
import inspect
import logging
import os
import pkgutil
import random
import signal
import sys
import warnings
from _signal import getsignal  # what signal.getsignal wraps into an enumeration, slowly
from collections.abc import Callable, Iterator, Mapping
from ctypes import string_at
from types import GeneratorType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

import atent_ext

TORCH_DRAWS = "torch's random state"
NUMPY_DRAWS = "numpy's random state"
_MT19937 = 625 * 4  # bytes of its state; numpy's own get_state() takes longer than all the other probes together
_NOT_OURS = (
    *(b"PYTEST_CURRENT_TEST", b"THP_MEM_ALLOC_ENABLE"),  # pytest's, and what the command sets for its own process
    *(b"TORCHINDUCTOR_CACHE_DIR", b"_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"),  # torch.compile's
)
_LOGGERS = (None, "atent_ext", "auto-attack")


def _numpy_random() -> tuple[object, bytes]:
    bits = np.random.get_bit_generator()
    return bits, string_at(bits.ctypes.state_address, _MT19937)


def _logging() -> object:
    return [logging.root.manager.disable, *map(_configured, map(logging.getLogger, _LOGGERS))]


def _configured(logger: logging.Logger) -> object:
    # pytest gives its own handlers to whatever logger does not propagate.
    handlers = [handler for handler in logger.handlers if not type(handler).__module__.startswith("_pytest")]
    return logger.level, logger.propagate, handlers


def _environment() -> dict[bytes, bytes]:
    variables = os.environ._data.copy()  # type: ignore[attr-defined]  # in a tenth of the time of dict()
    for name in _NOT_OURS:
        variables.pop(name, None)
    return variables


RANDOM: Mapping[str, Callable[[], object]] = {
    TORCH_DRAWS: lambda: torch.get_rng_state().numpy().tobytes(),
    "torch's seed": torch.initial_seed,
    NUMPY_DRAWS: _numpy_random,
    "python's random state": random.getstate,
}
SETTINGS: Mapping[str, Callable[[], object]] = {
    "default dtype": torch.get_default_dtype,
    "grad mode": lambda: (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    "deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "matmul precision": torch.get_float32_matmul_precision,
    "number of threads": torch.get_num_threads,
    "cudnn flags": lambda: (
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    ),
    "mkldnn flags": lambda: (torch.backends.mkldnn.enabled, getattr(torch.backends.mkldnn, "deterministic", False)),
    "logging": _logging,
    "signal handlers": lambda: (getsignal(signal.SIGINT), getsignal(signal.SIGTERM)),
    "current folder": os.getcwd,
    "environment": _environment,
}
PROBES = {**RANDOM, "warnings filters": lambda: list(warnings.filters), **SETTINGS}

_UNWATCHED = (
    "atent_ext.compat",
    "atent_ext.core.compat",
    "atent_ext.cli",
    "atent_ext.__main__",
    "atent_ext.integrations.",
)
_METHODS = ("__call__", "perturb", "sample", "generate", "run", "fit", "fit_generator", "step", "calculate_cost")
"""What users call of a class."""

violations: list[str] = []
"""What was found, also where somebody caught the exception."""
_inside = False
_dropped = False  # whether a layer of dropout drew during the call


class StateChanged(AssertionError):
    """A public call left something changed."""


def snapshot(probes: Mapping[str, Callable[[], object]]) -> list[object]:
    return [probe() for probe in probes.values()]


def changed(probes: Mapping[str, Callable[[], object]], before: list[object], after: list[object]) -> list[str]:
    return [name for name, old, new in zip(probes, before, after, strict=True) if old != new]


def watched(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a check around its outermost calls. Raises StateChanged, which names what changed."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        if _inside:
            return function(*arguments, **options)
        result = _checked(lambda: function(*arguments, **options), function, arguments, options)
        return _steps(result, function, arguments, options) if isinstance(result, GeneratorType) else result

    call.is_watched = True  # type: ignore[attr-defined]
    return call


def _steps(result: Iterator[Any], function: Callable[..., Any], arguments: Any, options: Any) -> Iterator[Any]:
    while True:
        try:  # no name holds what is yielded: its graph is the caller's alone
            yield next(result) if _inside else _checked(lambda: next(result), function, arguments, options)
        except StopIteration:
            return


def _checked(run: Callable[[], Any], function: Callable[..., Any], arguments: Any, options: Any) -> Any:
    global _inside, _dropped
    before = snapshot(PROBES)
    _inside, _dropped = True, False
    try:
        return run()
    finally:
        _inside = False
        after = snapshot(PROBES)
        if before != after:
            _judge(changed(PROBES, before, after), function, arguments, options)


def _judge(names: list[str], function: Callable[..., Any], arguments: Any, options: Any) -> None:
    bound = inspect.signature(function).bind(*arguments, **options)
    bound.apply_defaults()
    left = [name for name in names if name not in documented_draws(function, bound.arguments)]
    if left:
        violations.append(f"{function.__module__}.{function.__qualname__} changed: {', '.join(left)}")
        raise StateChanged(violations[-1])


def documented_draws(function: Callable[..., Any], given: Mapping[str, Any]) -> set[str]:
    """The random states that the docstrings let this call draw from; none lets it seed them."""
    owner = given.get("self")
    generators = given.get("generator", ...), _of(owner, "generator"), _of(owner, "_generator")
    torch_draws = (
        any(generator is None for generator in generators)
        or function.__qualname__ == "EntropySGD.step"  # its noise is seeded from there
        or function.__module__
        in (
            "atent_ext.models.networks",
            "atent_ext.models.libraries",
            "atent_ext.models.normfree",
        )  # the weights of a fresh network
        or function.__qualname__ == "build_model"
        or _of(owner, "attack_mode") == "targeted(random)"  # torchattacks draws the targets
        or _dropped
    )
    numpy_draws = _of(owner, "seed") is None  # ART's source of randomness
    return {name for name, may in ((TORCH_DRAWS, torch_draws), (NUMPY_DRAWS, numpy_draws)) if may}


def _of(owner: object, name: str) -> object:
    return getattr(owner, name, ...)


def _noticed(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def call(layer: nn.Dropout, x: torch.Tensor) -> torch.Tensor:
        global _dropped
        _dropped |= layer.training
        return forward(layer, x)

    return call


_INTEGRATIONS = {
    module.name
    for module in pkgutil.walk_packages(atent_ext.__path__, "atent_ext.")
    if module.name.startswith("atent_ext.integrations.")
}
_seen: dict[str, ModuleType] = {}


def watch_package() -> None:
    """Watch what is public in atent_ext; what was imported from it earlier is not."""
    importlib.import_module("sklearn")  # the import itself sets environment variables (KMP_...)
    nn.Dropout.forward = _noticed(nn.Dropout.forward)  # type: ignore[method-assign]
    for module in pkgutil.walk_packages(atent_ext.__path__, "atent_ext."):
        if not module.name.startswith(_UNWATCHED):
            watch(importlib.import_module(module.name))


def watch_integrations() -> None:
    """Watch the classes of those integrations that were imported since."""
    for name in _INTEGRATIONS & sys.modules.keys():
        if _seen.get(name) is not sys.modules[name]:
            _seen[name] = sys.modules[name]
            watch(_seen[name])


def watch(module: ModuleType) -> None:
    """Replace the public functions of a module, and the methods of its public classes, by watched ones."""
    for name, value in list(vars(module).items()):
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if (module.__name__, name) == ("atent_ext.core.seeds", "everywhere"):  # seeds for callers, which are watched
            continue
        if inspect.isfunction(value):
            setattr(module, name, _once(value))
        elif inspect.isclass(value) and not issubclass(value, nn.Module):
            for kind in (base for base in value.__mro__ if base.__module__ == module.__name__):
                for method in (method for method in _METHODS if inspect.isfunction(vars(kind).get(method))):
                    setattr(kind, method, _once(vars(kind)[method]))


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    return function if hasattr(function, "is_watched") else watched(function)
