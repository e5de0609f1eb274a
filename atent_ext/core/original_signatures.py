"""The original AutoAttack's signatures on either package: the original itself, `autoattack`, or pyautoattack.

Both packages run the same attacks. They differ in their signatures, in how they report, and in what they leave behind.
"""

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from atent_ext.core import model_state
from atent_ext.core.errors import BadInput
from atent_ext.core.registry import nearest

VERSIONS = ("standard", "plus", "rand", "custom")
"""The versions of AutoAttack. All but "custom" define their list of attacks."""
_LOGGER = logging.getLogger("auto-attack")


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
    handlers: list[logging.Handler] = []
    if verbose and not _LOGGER.hasHandlers():
        handlers.append(logging.StreamHandler(sys.stdout))
    if log_path is not None:
        handlers.append(logging.FileHandler(log_path, delay=True, encoding="utf-8"))
    level = _LOGGER.level
    try:
        for handler in handlers:
            _LOGGER.addHandler(handler)
        if verbose:
            _LOGGER.setLevel(logging.DEBUG)
        yield
    finally:
        _LOGGER.setLevel(level)
        for handler in handlers:
            _LOGGER.removeHandler(handler)
            handler.close()


def new_state(path: str | Path | None) -> Path | None:
    """The path of a state that does not exist yet. Raises BadInput for one that does."""
    if path is not None and Path(path).exists():
        message = f"state_path {path} exists, and resuming from it fails in every AutoAttack: it holds no adversaries"
        remedy = "name a new file, or use `atent eval` or `atent_ext.evaluate(..., out=...)`, which resume"
        raise BadInput(f"{message}; {remedy}", code="exists", field="state_path")
    return None if path is None else Path(path)


class OriginalSignatures:
    """The original AutoAttack's signatures, a mixin for the class of either package; see `compat.autoattack_class`.

    All attributes that users of the original set exist: `attacks_to_run`, `seed`, `epsilon`, `verbose`, `apgd`,
    `apgd_targeted`, `fab`, `square` and their `n_restarts`, `n_iter`, `n_target_classes`, `n_queries`.

    There are four differences from the original. `device` defaults to None: the device of the model's parameters or
    buffers or, for a model that has neither, of the images (the original's "cuda" fails without a GPU). Messages go to
    the logger "auto-attack": to stdout if `verbose` and logging is not configured, and to `log_path`; warnings are
    logged as such. The random state, the parameters' gradients and the trace function are restored, and a dynamic
    defence is not remembered for the next model. A `state_path` that exists is an error.

    Raises BadInput for an unknown `version`, for a `state_path` that exists, and for `is_tf_model=True` unless the
    original is installed.
    """

    package: ClassVar[str]
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
        if version not in VERSIONS:
            raise nearest("AutoAttack version", version, VERSIONS, field="version")
        options: dict[str, Any] = {"eps": eps, "norm": norm, "seed": seed, "version": version}
        options["device"] = model_state.device_of(model, None) if device is None else device
        self._build(model, list(attacks_to_run), bool(is_tf_model), options)
        self.model = model
        self.verbose = verbose
        self.is_tf_model = bool(is_tf_model)
        self.log_path = log_path

    def _build(self, model: Any, attacks: list[str], is_tf_model: bool, options: dict[str, Any]) -> None:
        """Call the package's constructor, without its messages."""
        raise NotImplementedError

    def _evaluate(self, x: Tensor, y: Tensor, batch_size: int, path: Path | None) -> tuple[Tensor, Tensor]:
        """Call the package's `run_standard_evaluation`; returns adversaries and their predictions."""
        raise NotImplementedError

    def _choose(self, version: str) -> None:
        """Call the package's `set_version`."""
        raise NotImplementedError

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
        path = new_state(state_path)
        _reset_gradient_counts(self.package)
        with untouched(self.model), _messages(self.verbose, self.log_path):
            x_adv, y_adv = self._evaluate(x_orig, y_orig, bs, path)
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
        with torch.no_grad(), self._silenced():
            accuracy: float = base.clean_accuracy(x_orig, y_orig, bs=bs)
        if self.verbose:
            with _messages(self.verbose, self.log_path):
                _LOGGER.info(f"clean accuracy: {accuracy:.2%}")
        return accuracy

    def set_version(self, version: str = "standard") -> None:
        """Set the attacks, restarts and target classes of a version: "standard", "plus" or "rand".

        Raises BadInput for an unknown version.
        """
        if version not in VERSIONS:
            raise nearest("AutoAttack version", version, VERSIONS, field="version")
        with self._silenced():
            self._choose(version)
        if self.verbose:
            _LOGGER.info(f"setting parameters for {version} version")

    @contextmanager
    def _silenced(self) -> Iterator[None]:
        # What the original prints, pyautoattack logs; the callers log it in either case.
        verbose, self.verbose = self.verbose, False
        try:
            yield
        finally:
            self.verbose = verbose


class _OnPyautoattack(OriginalSignatures):
    """The differences of pyautoattack 0.2.0: keywords, a pair as result, warnings in the logger "auto-attack"."""

    package = "pyautoattack"

    def _build(self, model: Any, attacks: list[str], is_tf_model: bool, options: dict[str, Any]) -> None:
        if is_tf_model:
            message = "is_tf_model is True, but pyautoattack runs PyTorch models only; install the original AutoAttack"
            raise BadInput(message, code="unsupported", field="is_tf_model")
        base: Any = super(OriginalSignatures, self)
        named = attacks if attacks or options["version"] == "custom" else None
        base.__init__(model, attacks=named, **options)

    def _evaluate(self, x: Tensor, y: Tensor, batch_size: int, path: Path | None) -> tuple[Tensor, Tensor]:
        base: Any = super(OriginalSignatures, self)
        pair: tuple[Tensor, Tensor] = base.run_standard_evaluation(x, y, batch_size=batch_size, state_path=path)
        return pair

    def _choose(self, version: str) -> None:
        base: Any = super(OriginalSignatures, self)
        base._set_version(version)


class _OnOriginal(OriginalSignatures):
    """The differences of the original (github.com/fra31/auto-attack): it prints messages and warnings."""

    package = "autoattack"

    def _build(self, model: Any, attacks: list[str], is_tf_model: bool, options: dict[str, Any]) -> None:
        base: Any = super(OriginalSignatures, self)
        base.__init__(model, verbose=False, attacks_to_run=attacks, is_tf_model=is_tf_model, **options)
        parts: Any = self
        for reporter in (parts, parts.apgd, parts.apgd_targeted):
            reporter.logger = _ToLogging()

    def _evaluate(self, x: Tensor, y: Tensor, batch_size: int, path: Path | None) -> tuple[Tensor, Tensor]:
        base: Any = super(OriginalSignatures, self)
        pair: tuple[Tensor, Tensor] = base.run_standard_evaluation(
            x, y, bs=batch_size, return_labels=True, state_path=path
        )
        return pair

    def _choose(self, version: str) -> None:
        base: Any = super(OriginalSignatures, self)
        base.set_version(version)


class _ToLogging:
    """Stands in for the original's Logger, which prints: warnings become warnings of the logger "auto-attack"."""

    def log(self, message: str) -> None:
        """Log a message of the original; "Warning: " marks its warnings."""
        text = message.removeprefix("Warning: ")
        _LOGGER.log(logging.DEBUG if text == message else logging.WARNING, text)


def _reset_gradient_counts(package: str) -> None:
    # Both packages count a model's gradient calls in a global variable that they never reset: after a dynamic defence,
    # they would report every later model as a dynamic defence.
    counts = importlib.import_module(f"{package}.checks").funcs
    counts.update(dict.fromkeys(counts, 0))


@functools.cache
def adapted(autoattack: type[Any]) -> type[Any]:
    """The class `AutoAttack` of either package with `OriginalSignatures`; a class that has them already, itself."""
    if issubclass(autoattack, OriginalSignatures):
        return autoattack
    original = "is_tf_model" in inspect.signature(autoattack).parameters
    mixin = _OnOriginal if original else _OnPyautoattack
    return type("AutoAttack", (mixin, autoattack), {"__doc__": OriginalSignatures.__doc__})
