"""Imports of optional packages that fail with current versions of others. Repairs happen only inside these functions.

`advertorch()` and `robustbench()` return the imported package; `autoattack_class()` returns a class with the signatures
of the original AutoAttack, whether that package or pyautoattack is installed.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from atent_ext.core.errors import MissingExtra
from atent_ext.core.original_signatures import VERSIONS as VERSIONS
from atent_ext.core.original_signatures import adapted, new_state
from atent_ext.core.original_signatures import untouched as untouched


def _quiet_import(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def neighbour(name: str, extra: str) -> ModuleType:
    """Import an optional package without its import warnings. Raises MissingExtra, which names `extra`, without it."""
    if importlib.util.find_spec(name) is None:
        raise MissingExtra(f"{name} is not installed; pip install 'atent-ext[{extra}]'", field=name)
    return _quiet_import(name)


def _zero_gradients(x: Tensor | Iterable[Tensor]) -> None:
    for tensor in [x] if isinstance(x, Tensor) else x:
        if tensor.grad is not None:
            tensor.grad.detach_().zero_()


def advertorch() -> ModuleType:
    """Import advertorch 0.2.3, which needs `torch.autograd.gradcheck.zero_gradients`, removed in torch 1.9.

    The function is added to torch only during the import, when a module of advertorch binds it. After this call
    `import advertorch.attacks` and similar imports work anywhere.
    """
    # `import torch.autograd.gradcheck as g` would bind the function gradcheck, not the module.
    gradcheck: Any = importlib.import_module("torch.autograd.gradcheck")
    if hasattr(gradcheck, "zero_gradients"):
        return _quiet_import("advertorch")
    gradcheck.zero_gradients = _zero_gradients
    try:
        return _quiet_import("advertorch")
    finally:
        del gradcheck.zero_gradients


def _original_autoattack() -> ModuleType | None:
    try:
        return _quiet_import("autoattack")
    except ModuleNotFoundError as error:
        if error.name != "autoattack":
            raise
        return None


def autoattack_class() -> type[Any]:
    """A class with the signatures of the original AutoAttack, on that package if it is installed, else on pyautoattack.

    It behaves the same on both; see `OriginalSignatures`.
    """
    return adapted((_original_autoattack() or _quiet_import("pyautoattack")).AutoAttack)


def autoattack_package() -> tuple[str, str]:
    """Name and version of the package that `autoattack_class` runs: "autoattack", the original, or "pyautoattack"."""
    name: str = autoattack_class().package
    try:
        return name, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return name, "of unknown version"


def _module(name: str, **attributes: Any) -> ModuleType:
    module = importlib.util.module_from_spec(ModuleSpec(name, None))
    vars(module).update(attributes)
    return module


def _supply_autoattack() -> None:
    if _original_autoattack() is None:
        state = importlib.import_module("pyautoattack.state")
        sys.modules["autoattack"] = _module("autoattack", AutoAttack=autoattack_class(), state=state)
        sys.modules["autoattack.state"] = state


def _resource_filename(module: str, resource: str) -> str:
    return str(Path(str(importlib.import_module(module).__file__)).parent / resource)


def _importable(name: str) -> bool:
    try:
        _quiet_import(name)
    except ModuleNotFoundError:
        return False
    return True


@contextmanager
def _pkg_resources() -> Iterator[None]:
    """Supply `pkg_resources.resource_filename`, which robustbench calls, if setuptools no longer has pkg_resources."""
    if _importable("pkg_resources"):
        yield
        return
    sys.modules["pkg_resources"] = _module("pkg_resources", resource_filename=_resource_filename)
    try:
        yield
    finally:
        del sys.modules["pkg_resources"]


def robustbench() -> ModuleType:
    """Import robustbench 1.1.1, which imports `autoattack` but requires pyautoattack, and imports pkg_resources.

    If no package `autoattack` is installed, one is added to `sys.modules` and stays there; its `AutoAttack` is
    `autoattack_class()`. `robustbench.benchmark` runs that class also where the original is installed, and can read the
    file that it writes to `aa_state_path`; one that exists is refused before anything runs. Raises MissingExtra if
    robustbench is not installed.
    """
    if importlib.util.find_spec("robustbench") is None:
        raise MissingExtra("robustbench is not installed; pip install 'atent-ext[robustbench]'", field="robustbench")
    _supply_autoattack()
    with _pkg_resources():
        package = _quiet_import("robustbench")
    evaluation: Any = importlib.import_module("robustbench.eval")
    evaluation.AutoAttack, evaluation.EvaluationState = autoattack_class(), _FinishedState
    if not hasattr(evaluation.benchmark, "__wrapped__"):
        evaluation.benchmark = vars(package)["benchmark"] = _refusing_old_states(evaluation.benchmark)
    return package


def _refusing_old_states(benchmark: Callable[..., Any]) -> Callable[..., Any]:
    """RobustBench's `benchmark`, which refuses a state file that exists before it runs anything."""

    @functools.wraps(benchmark)
    def checked(*arguments: Any, **options: Any) -> Any:
        new_state(inspect.signature(benchmark).bind(*arguments, **options).arguments.get("aa_state_path"))
        return benchmark(*arguments, **options)

    return checked


class _FinishedState:
    """What `robustbench.benchmark` reads of a state file: flags (N,), of which it takes the mean.

    Those of AutoAttack's own class are bool, of which torch takes no mean.
    """

    def __init__(self, robust_flags: Tensor) -> None:
        self.robust_flags = robust_flags

    @classmethod
    def from_disk(cls, path: Path | str) -> "_FinishedState":
        """The state in a file that AutoAttack wrote."""
        return cls(torch.tensor(json.loads(Path(path).read_text(encoding="utf-8"))["_robust_flags"]).double())


def repairs(name: str) -> list[str]:
    """Messages about what importing the package `name` through this module would repair in this environment.

    Call it before the package is imported. It may import other packages.
    """
    if name == "advertorch" and not hasattr(importlib.import_module("torch.autograd.gradcheck"), "zero_gradients"):
        return ["zero_gradients supplied to torch"]
    if name == "pyautoattack":
        original = _quiet_import("pyautoattack").AutoAttack
        return [] if "verbose" in inspect.signature(original).parameters else ["the original's signatures"]
    if name == "robustbench":
        sources = {"autoattack": "supplied by pyautoattack", "pkg_resources": "supplied"}
        return [f"{module} {what}" for module, what in sources.items() if not _importable(module)]
    return []
