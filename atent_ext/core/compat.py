"""Import the neighbours that today's packages break. Each repair is a function and happens only when it is called.

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
"""The versions of AutoAttack: each but "custom" brings its own list of attacks."""


def _quiet_import(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def neighbour(name: str, extra: str) -> ModuleType:
    """Import an optional package without the warnings of its import; raises MissingExtra that names its `extra`."""
    if importlib.util.find_spec(name) is None:
        raise MissingExtra(f"{name} is not installed; pip install 'atent-ext[{extra}]'")
    return _quiet_import(name)


def _zero_gradients(x: Tensor | Iterable[Tensor]) -> None:
    for tensor in [x] if isinstance(x, Tensor) else x:
        if tensor.grad is not None:
            tensor.grad.detach_().zero_()


def advertorch() -> ModuleType:
    """Import advertorch 0.2.3, which needs `zero_gradients`, a function that torch 1.9 removed.

    Its module torch.autograd.gradcheck has that function only while the import runs: one file of advertorch, which
    `import advertorch` loads, binds it. After this call `import advertorch.attacks` and the like work anywhere.
    """
    # `import torch.autograd.gradcheck as g` would bind the function of that name.
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
    """Undo what an AutoAttack leaves behind: seeded random state, parameter gradients, a removed trace function."""
    trace = sys.gettrace()
    try:
        with model_state.frozen(model), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        # Its check for dynamic defences ends in sys.settrace(None): debuggers and coverage would stop there.
        if sys.gettrace() is not trace:
            sys.settrace(trace)


@contextmanager
def _messages(verbose: bool, log_path: str | Path | None) -> Iterator[None]:
    """Send the logger "auto-attack" where the original prints: stdout (unless logging is set up) and `log_path`."""
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
    """The original AutoAttack's signatures over pyautoattack's class; `autoattack_class` joins the two.

    Everything the original lets users set is there: `attacks_to_run`, `seed`, `epsilon`, `verbose`, `apgd`,
    `apgd_targeted`, `fab`, `square` and their `n_restarts`, `n_iter`, `n_target_classes`, `n_queries`.

    It differs in four points. `device` defaults to None: the device of the model's parameters or buffers or, for a
    model that has neither, of the images (the original's "cuda" fails without a GPU). Messages go to the logger
    "auto-attack": to stdout when `verbose` and no logging is set up, and to `log_path`. The random state, the
    parameters' gradients and the trace function are what they were afterwards. A `state_path` that exists is refused.

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
            raise BadInput(
                "is_tf_model is True, but pyautoattack runs PyTorch models only; install the original AutoAttack"
            )
        if version not in VERSIONS:
            raise nearest("AutoAttack version", version, VERSIONS)
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

        `y_adv` holds the classes that the model predicted for `x_adv`. An image that no attack fooled comes back as it
        was. `state_path` names a new file for the progress.
        """
        path = None if state_path is None else Path(state_path)
        if path is not None and path.exists():
            raise BadInput(f"state_path {path} exists, and resuming from it fails in every AutoAttack; name a new file")
        _forget_earlier_models()
        base: Any = super()
        with untouched(self.model), _messages(self.verbose, self.log_path):
            x_adv, y_adv = base.run_standard_evaluation(x_orig, y_orig, batch_size=bs, state_path=path)
        return (x_adv, y_adv) if return_labels else x_adv

    def run_standard_evaluation_individual(
        self, x_orig: Tensor, y_orig: Tensor, bs: int = 250, return_labels: bool = False
    ) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        """Run each attack on all images: name -> what `run_standard_evaluation` returns for that attack alone."""
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
        """Fraction of images (N, C, H, W) that the model gives their label (N,)."""
        base: Any = super()
        with torch.no_grad(), _messages(self.verbose, self.log_path):
            accuracy: float = base.clean_accuracy(x_orig, y_orig, bs=bs)
        return accuracy

    def set_version(self, version: str = "standard") -> None:
        """Set attacks, restarts and target classes to those of a version: "standard", "plus" or "rand"."""
        if version not in VERSIONS:
            raise nearest("AutoAttack version", version, VERSIONS)
        base: Any = super()
        base._set_version(version)


def _forget_earlier_models() -> None:
    # pyautoattack counts a model's gradient calls in a global that it never resets: after one dynamic defence,
    # every later model would be reported as one.
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
    """A class called as the original AutoAttack is: the original where a package `autoattack` is installed.

    Otherwise pyautoattack's class with the original's signatures, see `OriginalSignatures`.
    """
    original = _original_autoattack()
    found: type[Any] = _adapter() if original is None else original.AutoAttack
    return found


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
    """Supply the one function of pkg_resources that robustbench calls, where setuptools has dropped the module."""
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

    Where no package `autoattack` is installed, `sys.modules` has one from now on, whose `AutoAttack` is that of
    `autoattack_class`. Raises MissingExtra where robustbench is not installed.
    """
    if importlib.util.find_spec("robustbench") is None:
        raise MissingExtra("robustbench is not installed; pip install 'atent-ext[robustbench]'")
    _supply_autoattack()
    with _pkg_resources():
        return _quiet_import("robustbench")


def repairs(name: str) -> list[str]:
    """What our import of the neighbour `name` supplies in this environment, in words.

    It is observed, not remembered: ask before the neighbour is imported, and expect other imports on the way.
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
