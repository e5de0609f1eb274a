"""ART (Adversarial Robustness Toolbox): ATENT as an evasion attack, and one trainer for every objective.

`ATENTAttack` stands beside `ProjectedGradientDescent`, `AdversarialTrainerObjectivePyTorch` beside ART's
`AdversarialTrainerMadryPGD` and `AdversarialTrainerTRADESPyTorch`; the words are ART's. Both speak numpy, with labels
as class numbers (N,) or one-hot (N, classes). Importing this module raises MissingExtra where ART is not installed.
"""

import logging
import math
import statistics
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from atent_ext import checks, langevin, modes
from atent_ext.errors import BadInput, MissingExtra, NonFiniteLoss
from atent_ext.norms import L2, LINF, Norm
from atent_ext.types import Objective

try:
    from art.attacks.attack import EvasionAttack
    from art.config import ART_NUMPY_DTYPE
    from art.defences.trainer import Trainer
    from art.estimators import BaseEstimator, LossGradientsMixin
    from art.estimators.classification import ClassifierMixin, PyTorchClassifier
    from art.utils import to_categorical
    from tqdm.auto import tqdm  # type: ignore[import-untyped]
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "art":
        raise
    raise MissingExtra(
        "adversarial-robustness-toolbox is not installed (another package is called `art`); "
        "pip install 'atent-ext[art]'"
    ) from error

logger = logging.getLogger(__name__)
Batches: TypeAlias = Callable[[], Iterator[tuple[Tensor, Tensor, Tensor | None]]]


class ATENTAttack(EvasionAttack):  # type: ignore[misc]
    """ATENT's Langevin chain as an attack on any ART classifier with loss gradients, inside its `clip_values`.

    norm: "inf", np.inf or 2. eps: radius. eps_step: step size; None is 2.5 eps / max_iter and follows eps (PGD's fixed
    0.1 would leave a small ball at once, and ℓ∞ is projected at the last step only). max_iter: steps. noise: square
    root of the temperature. gamma: pull towards x (None: 0.05 for norm 2, 0 for inf). num_random_init: 0 starts at x;
    n > 1 are restarts, of which each example keeps the first that fools the classifier, or else the first.
    seed: of starts and noise, so that a call repeats exactly; None draws it from numpy's global state, as ART does.
    verbose: show a progress bar.

    Chains run on the CPU, in the dtype of a PyTorch model, else of x; gradients are `estimator.loss_gradient`'s.
    Unlike with ART's own attacks a PyTorch model keeps its modes (frozen BatchNorm) and its gradients.
    Raises BadInput for values that make no sense, and ART's EstimatorError for other estimators.
    """

    attack_params = (
        "norm eps eps_step max_iter noise gamma targeted num_random_init batch_size seed verbose".split()  # noqa: SIM905
    )
    _estimator_requirements = (BaseEstimator, LossGradientsMixin, ClassifierMixin)

    def __init__(
        self,
        estimator: Any,
        norm: float | str = np.inf,
        eps: float = 0.3,
        eps_step: float | None = None,
        max_iter: int = 40,
        noise: float = 1e-3,
        gamma: float | None = None,
        targeted: bool = False,
        num_random_init: int = 1,
        batch_size: int = 32,
        seed: int | None = None,
        verbose: bool = True,
    ) -> None:
        super().__init__(estimator=estimator)
        self.norm, self.eps, self.eps_step, self.max_iter = norm, eps, eps_step, max_iter
        self.noise, self.gamma, self.targeted = noise, gamma, targeted
        self.num_random_init, self.batch_size = num_random_init, batch_size
        self.seed, self.verbose = seed, verbose
        self._check_params()

    @property
    def kernel(self) -> langevin.Langevin:
        """The attack as a value of the one kernel, read from the attributes at each call."""
        return langevin.atent(
            _norm(self.norm),
            self.eps,
            self.max_iter,
            self.eps_step,
            noise=self.noise,
            gamma=self.gamma,
            box=_box(self.estimator),
            start=None if self.num_random_init else "clean",
            targeted=self.targeted,
        )

    def _check_params(self) -> None:
        super()._check_params()
        checks.steps("max_iter", self.max_iter)
        checks.steps("batch_size", self.batch_size)
        if self.num_random_init != 0:
            checks.steps("num_random_init", self.num_random_init)
        for name in ("eps", "eps_step", "noise", "gamma"):
            if name in ("eps", "noise") or getattr(self, name) is not None:
                checks.radius(name, getattr(self, name))
        if not isinstance(self.targeted, bool):
            raise BadInput(f"targeted is {self.targeted!r}; True or False is needed")
        self.kernel  # noqa: B018 -- building it checks the norm and the clip values

    def generate(self, x: np.ndarray, y: np.ndarray | None = None, **kwargs: Any) -> np.ndarray:
        """The last iterate of one chain per example, (N, ...), in the floating dtype of x (integers: float32).

        x: (N, ...) inside the classifier's `clip_values`, of any rank >= 2. y: labels, or the target classes if
        `targeted`; None takes the classifier's own predictions. Raises BadInput for inputs outside the clip values,
        for labels that do not fit, for a targeted attack without y, and for options of other attacks such as `mask`.
        """
        _refuse("generate", kwargs)
        if y is None and self.targeted:
            raise BadInput("y is None; a targeted attack needs the target classes")
        x = np.asarray(x)
        starts = range(0, len(x), self.batch_size)
        with _untouched(self.estimator):
            inputs = torch.tensor(x).to(_dtype(self.estimator, x))
            checks.images(inputs, *_box(self.estimator))
            found, generator = inputs.clone(), _generator(self.seed)
            classes = self._predicted(inputs) if y is None else _class_numbers(y, len(x), self.estimator)
            for start in tqdm(starts, desc="ATENT - Batches", leave=False, disable=not self.verbose):
                part = slice(start, start + self.batch_size)
                found[part] = self._strongest(inputs[part], classes[part], generator)
        return found.numpy().astype(x.dtype if x.dtype.kind == "f" else ART_NUMPY_DTYPE)

    def _predicted(self, x: Tensor) -> Tensor:
        if not len(x):  # ART cannot run on it
            return torch.zeros(0, dtype=torch.long)
        return torch.tensor(self.estimator.predict(x.numpy(), batch_size=self.batch_size).argmax(1))

    def _strongest(self, x: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
        """The first restart; where it fails, the next one that fools the classifier, if any does."""
        found, left = self._chain(x, classes, generator), torch.arange(len(x))
        for _ in range(1, self.num_random_init):
            left = left[(self._predicted(found[left]) == classes[left]) != self.targeted]
            if not len(left):
                break
            again = self._chain(x[left], classes[left], generator)
            fools = (self._predicted(again) == classes[left]) == self.targeted
            found[left[fools]] = again[fools]
        return found

    def _chain(self, x: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
        one_hot = to_categorical(classes.numpy(), self.estimator.nb_classes)

        def gradient(moving: Tensor) -> Tensor:
            # ART's is that of the mean over the batch: "sign" and "unit" directions do not see the difference.
            return torch.as_tensor(self.estimator.loss_gradient(moving.numpy(), one_hot)).to(moving)

        return langevin.finite(deque(langevin.walk(self.kernel, x, gradient, generator), maxlen=1).pop())


class AdversarialTrainerObjectivePyTorch(Trainer):  # type: ignore[misc]
    """Train a PyTorchClassifier, with its own optimizer, by any of `atent_ext.objectives` (ATENT, TRADES, ...).

    The name follows ART's, the method first and PyTorch last; here the method is a value, the objective.
    The objective sees raw inputs: ART's preprocessing runs inside the model, and gradients flow through it.

    seed: of the order of the examples and of the objective's starts and noise (dropout has torch's global state), from
    construction on: two fits of one epoch equal one fit of two. None draws it from numpy's global state, which also
    rules the order in ART's trainers. verbose: show a progress bar.

    Modes: a model in train mode is trained as it is, so that BatchNorm put into eval stays frozen; one in eval mode,
    which ART's `predict` leaves behind, is put into train mode as a whole, as ART does. Afterwards every module is in
    the mode it was found in, and gradients and `requires_grad` are what they were.
    Raises BadInput for a classifier that is no PyTorchClassifier, that has no optimizer, preprocessing without
    gradients or apex's mixed precision, or whose `clip_values` are not the objective's box.
    """

    def __init__(self, classifier: Any, objective: Objective, seed: int | None = None, verbose: bool = True) -> None:
        _check_classifier(classifier, objective)
        super().__init__(classifier)
        self.objective, self.verbose = objective, verbose
        self._raw, self._generator = _RawInputs(classifier), _generator(seed)

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        validation_data: tuple[np.ndarray, np.ndarray] | None = None,
        batch_size: int = 128,
        nb_epochs: int = 20,
        scheduler: Any = None,
        drop_last: bool = False,
        **kwargs: Any,
    ) -> None:
        """Train on x (N, ...), inside the objective's box, with labels y.

        validation_data: (x, y), whose accuracy is logged after each epoch. scheduler: stepped after each epoch.
        drop_last: leave out a last batch that is not full; BatchNorm cannot train on one of a single example.
        Raises BadInput for data that do not fit and for unknown options, NonFiniteLoss before stepping on such a loss.
        """
        _refuse("fit", kwargs)
        checks.steps("batch_size", batch_size)
        inputs, classes = self._tensors(x, y)
        if len(inputs) < (batch_size if drop_last else 1):
            raise BadInput(f"x holds {len(inputs)} examples; at least one batch is needed to train on")

        def batches() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
            order = torch.randperm(len(inputs), generator=self._generator)
            for index in torch.split(
                order[: len(order) // batch_size * batch_size] if drop_last else order, batch_size
            ):
                yield inputs[index], classes[index], index

        self._train(batches, nb_epochs, scheduler, validation_data)

    def fit_generator(self, generator: Any, nb_epochs: int = 20, scheduler: Any = None, **kwargs: Any) -> None:
        """Train on the batches of an ART DataGenerator, ceil(size / batch_size) of them an epoch; else as `fit`."""
        _refuse("fit_generator", kwargs)
        if generator.size is None:
            raise BadInput("the generator's size is None; give it the number of examples")

        def batches() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
            for _ in range(math.ceil(generator.size / generator.batch_size)):
                yield (*self._tensors(*generator.get_batch()), None)

        self._train(batches, nb_epochs, scheduler, None)

    def predict(self, x: np.ndarray, **kwargs: Any) -> np.ndarray:
        """What the classifier's own `predict` returns; the model keeps its modes."""
        with modes.evaluating(self._raw):
            found: np.ndarray = self.classifier.predict(x, **kwargs)
        return found

    def _tensors(self, x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        x = np.asarray(x)
        return torch.tensor(x).to(_dtype(self.classifier, x)), _class_numbers(y, len(x), self.classifier)

    def _train(self, batches: Batches, nb_epochs: int, scheduler: Any, validation_data: Any) -> None:
        checks.steps("nb_epochs", nb_epochs)
        name = f"Adversarial Training {type(self.objective).__name__}"
        with modes.kept(self._raw):
            if not self.classifier.model.training:
                self._raw.train()
            epochs = tqdm(range(nb_epochs), desc=f"{name} - Epochs", disable=not self.verbose)
            for epoch in epochs:
                report = {"loss": statistics.fmean(self._step(*batch) for batch in batches())}
                if scheduler is not None:
                    scheduler.step()
                if validation_data is not None:
                    report["accuracy"] = self._accuracy(*validation_data)
                epochs.set_postfix(report)
                logger.info("%s, epoch %d: %s", name, epoch + 1, report)

    def _step(self, x: Tensor, y: Tensor, index: Tensor | None) -> float:
        """One optimizer step; returns the loss."""
        optimizer, device = self.classifier.optimizer, self.classifier.device
        optimizer.zero_grad()
        loss = 0.0
        for term in self.objective(self._raw, x.to(device), y.to(device), index, generator=self._generator):
            term.backward()  # type: ignore[no-untyped-call]
            loss += float(term.detach())
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"the loss is {loss}; the weights are those before this step; try a smaller step size")
        optimizer.step()
        return loss

    def _accuracy(self, x: np.ndarray, y: np.ndarray) -> float:
        classes = _class_numbers(y, len(x), self.classifier).numpy()
        return float(np.mean(self.predict(x).argmax(1) == classes))


class _RawInputs(nn.Module):
    """The classifier's model behind its preprocessing, parts of which ART may apply only to train or to predict."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier, self.model = classifier, classifier._model

    def forward(self, x: Tensor) -> Tensor:
        prepared, _ = self.classifier._apply_preprocessing(x, None, fit=self.training, no_grad=False)
        logits: Tensor = self.model(prepared)[-1]  # ART's wrapper returns every layer's output
        return logits


def _check_classifier(classifier: Any, objective: Objective) -> None:
    if not isinstance(classifier, PyTorchClassifier):
        raise BadInput(f"classifier is a {type(classifier).__name__}; a PyTorchClassifier is needed")
    if classifier.optimizer is None:
        raise BadInput("the classifier's optimizer is None; give PyTorchClassifier an optimizer of the model")
    if not classifier.all_framework_preprocessing:
        raise BadInput("the classifier's preprocessing is not in PyTorch; gradients cannot flow through it")
    if classifier.use_amp:
        raise BadInput("the classifier's use_amp is True; apex is not supported, build the classifier without it")
    box, clip = getattr(objective, "box", None), classifier.clip_values
    if box is not None and clip is not None and not all(np.allclose(clip[i], box[i]) for i in (0, 1)):
        raise BadInput(f"the classifier's clip_values are {clip}, the objective's box is {box}; make them the same")


def _module(estimator: Any) -> nn.ModuleList:
    """The torch modules of a classifier or of an ensemble of them; none for another framework."""
    parts = [getattr(part, "_model", None) for part in getattr(estimator, "classifiers", [estimator])]
    return nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])


@contextmanager
def _untouched(estimator: Any) -> Iterator[None]:
    model = _module(estimator)  # frozen: ART's backward pass is then cheaper, too
    with modes.kept(model), modes.frozen(model), torch.inference_mode(False), torch.enable_grad():
        yield


def _dtype(estimator: Any, x: np.ndarray) -> torch.dtype:
    own = torch.tensor(np.empty(0, x.dtype)).dtype if x.dtype.kind == "f" else torch.float32
    return next((p.dtype for p in _module(estimator).parameters() if p.is_floating_point()), own)


def _norm(norm: float | str) -> Norm:
    try:
        return {math.inf: LINF, 2.0: L2}[float(norm)]
    except (ValueError, TypeError, KeyError):
        raise BadInput(f"norm is {norm!r}; 'inf', np.inf or 2 is needed") from None


def _box(estimator: Any) -> tuple[float, float]:
    """ART's clip values; any number where there are none, as for ART's own attacks."""
    clip = (-math.inf, math.inf) if estimator.clip_values is None else estimator.clip_values
    low, high = np.unique(clip[0]), np.unique(clip[1])
    if len(low) > 1 or len(high) > 1:
        raise BadInput("clip_values differ between features; ATENT needs one lowest and one highest value")
    return float(low[0]), float(high[0])


def _class_numbers(y: np.ndarray, count: int, classifier: Any) -> Tensor:
    """Class numbers (N,) from class numbers (N,) or (N, 1), or from one-hot labels (N, classes)."""
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] in (1, classifier.nb_classes):
        y = y[:, 0] if y.shape[1] == 1 else y.argmax(1)
    numbers = torch.tensor(y.astype(np.int64) if y.dtype.kind in "iu" else y)
    checks.labels(numbers, count, classifier.nb_classes)
    return numbers


def _generator(seed: int | None) -> torch.Generator:
    drawn = np.random.randint(2**31) if seed is None else seed  # noqa: NPY002 -- ART's own source of randomness
    return torch.Generator().manual_seed(drawn)


def _refuse(method: str, options: dict[str, Any]) -> None:
    unknown = [name for name, value in options.items() if value is not None]
    if unknown:
        raise BadInput(f"{method} does not know {', '.join(unknown)}; leave it out")
