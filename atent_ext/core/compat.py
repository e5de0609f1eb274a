"""Imports of optional packages that fail with current versions of others. Repairs happen only inside these functions.

`advertorch()` and `robustbench()` return the imported package; `autoattack_class()` returns a class with the signatures
of the original AutoAttack, whether that package or pyautoattack is installed.
"""

import functools
import importlib
import importlib.util
import inspect
import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from atent_ext.core import model_state
from atent_ext.core.errors import BadInput, MissingExtra
from atent_ext.core.registry import nearest

VERSIONS = ("standard", "plus", "rand", "custom")
"""The versions of AutoAttack. All but "custom" define their list of attacks."""


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


@contextmanager
def untouched(model: object) -> Iterator[None]:
    """Restore what AutoAttack changes: the random state, parameter gradients and the trace function."""
    trace = sys.gettrace()
    try:
        with model_state.frozen(model), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        # Its check for dynamic defences calls sys.settrace(None), which stops debuggers and coverage.
        if sys.gettrace() is not trace:
            sys.settrace(trace)


@contextmanager
def _messages(verbose: bool, log_path: str | Path | None) -> Iterator[None]:
    """Send messages of the logger "auto-attack" to stdout (unless logging is configured) and to `log_path`."""
    logger = logging.getLogger("auto-attack")
    handlers: list[logging.Handler] = []
    if verbose and not logger.hasHandlers():
        handlers.append(logging.StreamHandler(sys.stdout))
    if log_path is not None:
        handlers.append(logging.FileHandler(log_path, delay=True, encoding="utf-8"))
    level = logger.level
    try:
        for handler in handlers:
            logger.addHandler(handler)
        if verbose:
            logger.setLevel(logging.DEBUG)
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()


class OriginalSignatures:
    """The original AutoAttack's signatures, a mixin for pyautoattack's class; see `autoattack_class`.

    All attributes that users of the original set exist: `attacks_to_run`, `seed`, `epsilon`, `verbose`, `apgd`,
    `apgd_targeted`, `fab`, `square` and their `n_restarts`, `n_iter`, `n_target_classes`, `n_queries`.

    There are four differences. `device` defaults to None: the device of the model's parameters or buffers or, for a
    model that has neither, of the images (the original's "cuda" fails without a GPU). Messages go to the logger
    "auto-attack": to stdout if `verbose` and logging is not configured, and to `log_path`. The random state, the
    parameters' gradients and the trace function are restored. A `state_path` that exists is an error.

    Raises BadInput for `is_tf_model=True`, for an unknown `version` and for a `state_path` that exists.
    """

    attacks_to_run: Sequence[str]

    def __init__(
        self,
        model: Any,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: torch.device | str | None = None,
        log_path: str | Path | None = None,
    ) -> None:
        if is_tf_model:
            message = "is_tf_model is True, but pyautoattack runs PyTorch models only; install the original AutoAttack"
            raise BadInput(message, code="unsupported", field="is_tf_model")
        if version not in VERSIONS:
            raise nearest("AutoAttack version", version, VERSIONS, field="version")
        attacks = list(attacks_to_run)
        base: Any = super()
        base.__init__(
            model,
            attacks=attacks if attacks or version == "custom" else None,
            device=model_state.device_of(model, None) if device is None else device,
            eps=eps,
            norm=norm,
            seed=seed,
            version=version,
        )
        self.model = model
        self.verbose = verbose
        self.is_tf_model = False
        self.log_path = log_path

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Attack images (N, C, H, W) in [0, 1] with labels (N,); return x_adv, or (x_adv, y_adv) with `return_labels`.

        `y_adv` (N,) holds the model's predictions for `x_adv`. Images that no attack fools are returned unchanged. bs:
        batch size. state_path: a new file for the progress. Raises BadInput if `state_path` exists.
        """
        path = None if state_path is None else Path(state_path)
        if path is not None and path.exists():
            message = f"state_path {path} exists, and resuming from it fails in every AutoAttack; name a new file"
            raise BadInput(message, code="exists", field="state_path")
        _reset_gradient_counts()
        base: Any = super()
        with untouched(self.model), _messages(self.verbose, self.log_path):
            x_adv, y_adv = base.run_standard_evaluation(x_orig, y_orig, batch_size=bs, state_path=path)
        return (x_adv, y_adv) if return_labels else x_adv

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        """Run each attack separately on all images: name -> the result of `run_standard_evaluation` for this attack."""
        attacks = list(self.attacks_to_run)
        results = {}
        try:
            for attack in attacks:
                self.attacks_to_run = [attack]
                results[attack] = self.run_standard_evaluation(x_orig, y_orig, bs, return_labels)
        finally:
            self.attacks_to_run = attacks
        return results

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """Clean accuracy on images (N, C, H, W) with labels (N,), in [0, 1]."""
        base: Any = super()
        with torch.no_grad(), _messages(self.verbose, self.log_path):
            accuracy: float = base.clean_accuracy(x_orig, y_orig, bs=bs)
        return accuracy

    def set_version(self, version: str = "standard") -> None:
        """Set the attacks, restarts and target classes of a version: "standard", "plus" or "rand".

        Raises BadInput for an unknown version.
        """
        if version not in VERSIONS:
            raise nearest("AutoAttack version", version, VERSIONS, field="version")
        base: Any = super()
        base._set_version(version)


def _reset_gradient_counts() -> None:
    # pyautoattack counts a model's gradient calls in a global variable that it never resets: after a dynamic defence,
    # it would report every later model as a dynamic defence.
    counts = importlib.import_module("pyautoattack.checks").funcs
    counts.update(dict.fromkeys(counts, 0))


@functools.cache
def _adapter() -> type[Any]:
    original = _quiet_import("pyautoattack").AutoAttack
    return type("AutoAttack", (OriginalSignatures, original), {"__doc__": OriginalSignatures.__doc__})


def _original_autoattack() -> ModuleType | None:
    try:
        return _quiet_import("autoattack")
    except ModuleNotFoundError as error:
        if error.name != "autoattack":
            raise
        return None


def autoattack_class() -> type[Any]:
    """A class with the signatures of the original AutoAttack: the original itself if `autoattack` is installed.

    Otherwise it is pyautoattack's class with `OriginalSignatures`.
    """
    original = _original_autoattack()
    return _adapter() if original is None else original.AutoAttack


def _module(name: str, **attributes: Any) -> ModuleType:
    module = importlib.util.module_from_spec(ModuleSpec(name, None))
    vars(module).update(attributes)
    return module


def _supply_autoattack() -> None:
    if _original_autoattack() is None:
        state = importlib.import_module("pyautoattack.state")
        sys.modules["autoattack"] = _module("autoattack", AutoAttack=_adapter(), state=state)
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
    `autoattack_class()`. Raises MissingExtra if robustbench is not installed.
    """
    if importlib.util.find_spec("robustbench") is None:
        raise MissingExtra("robustbench is not installed; pip install 'atent-ext[robustbench]'", field="robustbench")
    _supply_autoattack()
    with _pkg_resources():
        return _quiet_import("robustbench")


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
