"""ART (Adversarial Robustness Toolbox): ATENT as an evasion attack, and one trainer for every objective.

`ATENTAttack` is used like ART's `ProjectedGradientDescent`, `AdversarialTrainerObjectivePyTorch` like its
`AdversarialTrainerMadryPGD` and `AdversarialTrainerTRADESPyTorch`. Both take NumPy arrays, with labels as class numbers
(N,) or one-hot (N, classes). Importing this module raises MissingExtra if ART is not installed.
"""

import math
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from atent_ext.attacks import langevin, uphill
from atent_ext.attacks.langevin import Langevin
from atent_ext.attacks.moves import Project, Schedule
from atent_ext.core import model_state, outputs, seeds, validate
from atent_ext.core.errors import BadInput, MissingExtra
from atent_ext.core.norms import L2, LINF, Norm
from atent_ext.integrations import _art_features as art_features
from atent_ext.integrations._art_features import FeatureKernel, Features

try:
    from art.attacks.attack import EvasionAttack
    from art.config import ART_NUMPY_DTYPE
    from art.estimators import BaseEstimator, LossGradientsMixin
    from art.estimators.classification import ClassifierMixin
    from art.utils import to_categorical
    from tqdm.auto import tqdm  # type: ignore[import-untyped]
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] != "art":
        raise
    raise MissingExtra(
        "adversarial-robustness-toolbox is not installed (another package is called `art`); "
        "pip install 'atent-ext[art]'"
    ) from error


_IGNORED = ("x_init", "x_adv_init", "resume")
"""Options of other attacks of ART, which its helpers give to every attack and its gradient attacks ignore."""


class ATENTAttack(EvasionAttack):  # type: ignore[misc]
    """ATENT's Langevin chain as an attack on any ART classifier with loss gradients, inside its `clip_values`.

    norm: "inf", np.inf or 2. eps: radius, a number or an array that NumPy broadcasts to x: of each example, and for
    norm inf of each feature. eps_step: step size, in the same way; None starts at eps (norm 2: 2 eps) and falls to 0 by
    a cosine; a given one is kept, unless `schedule` says otherwise. max_iter: number of steps. noise: square root of
    the temperature; None is that of `langevin.atent`. gamma: pull towards x; None is 0, but the paper's 0.05 for norm 2
    and a constant step size. project: "every" step, or the "last" alone. An annealed chain takes random directions
    where the gradient is 0. num_random_init: 0 starts at x; n > 1 means n restarts, of which each example keeps the
    first that fools the classifier, or the first if none does. seed: of starts and noise, so that a call is
    reproducible; None draws a seed from NumPy's global state, as ART does. verbose: show a progress bar (0: none).

    Chains run on the CPU in the dtype of the PyTorch model, or else of x; gradients are `estimator.loss_gradient`'s.
    A PyTorch model keeps its modes (such as a frozen BatchNorm) and its gradients, unlike with ART's own attacks.
    Raises BadInput for invalid values, and ART's EstimatorError for unsupported estimators.
    """

    attack_params = (
        "norm eps eps_step max_iter noise gamma targeted num_random_init batch_size seed verbose "  # noqa: SIM905
        "schedule project".split()
    )
    _estimator_requirements = (BaseEstimator, LossGradientsMixin, ClassifierMixin)

    def __init__(
        self,
        estimator: Any,
        norm: float | str = np.inf,
        eps: float | np.ndarray = 0.3,
        eps_step: float | np.ndarray | None = None,
        max_iter: int = 40,
        noise: float | None = None,
        gamma: float | None = None,
        targeted: bool = False,
        num_random_init: int = 1,
        batch_size: int = 32,
        seed: int | None = None,
        verbose: bool = True,
        schedule: Schedule | None = None,
        project: Project = "every",
    ) -> None:
        super().__init__(estimator=estimator)
        self.norm, self.eps, self.eps_step, self.max_iter = norm, eps, eps_step, max_iter
        self.noise, self.gamma, self.targeted = noise, gamma, targeted
        self.num_random_init, self.batch_size = num_random_init, batch_size
        self.seed, self.verbose = seed, verbose
        self.schedule, self.project = schedule, project
        self._check_params()

    @classmethod
    def paper(cls, estimator: Any, norm: float | str = np.inf, **settings: Any) -> Self:
        """The paper's inner loop: 40 constant steps, on the cross-entropy.

        ℓ∞: steps of 0.01, projected at the last alone. ℓ2: steps of 0.125, a pull of 0.05; projected, as on MNIST.
        """
        printed: dict[str, Any] = (
            {"eps_step": 0.01, "project": "last"} if _norm(norm) == LINF else {"eps_step": 0.125, "gamma": 0.05}
        )
        return cls(estimator, norm, **printed | settings)

    @property
    def kernel(self) -> Langevin:
        """The attack as a `Langevin` kernel, made from the current attributes."""
        return langevin.atent(
            _norm(self.norm),
            art_features.radius(self.eps),
            self.max_iter,
            art_features.radius(self.eps_step),
            noise=self.noise,
            gamma=self.gamma,
            box=_box(self.estimator),
            start=None if self.num_random_init else "clean",
            project=self.project,
            schedule=self.schedule,
            targeted=self.targeted,
        )

    def _check_params(self) -> None:
        super()._check_params()
        validate.steps("max_iter", self.max_iter)
        validate.steps("batch_size", self.batch_size)
        if self.num_random_init != 0:
            validate.steps("num_random_init", self.num_random_init)
        for name in ("eps", "eps_step", "noise", "gamma"):
            if name == "eps" or getattr(self, name) is not None:
                value = art_features.radius(getattr(self, name))
                validate.radius(name, value)
                art_features.check_shape(name, value, self.estimator)
        if self.seed is not None:
            validate.seed(self.seed)
        check_verbose(self.verbose)
        if not isinstance(self.targeted, bool):
            message = f"targeted is {validate.shown(self.targeted)}; True or False is needed"
            raise BadInput(message, code="bad-type", field="targeted")
        self.kernel  # noqa: B018 -- building it checks the norm and the clip values

    def generate(
        self, x: np.ndarray, y: np.ndarray | None = None, mask: np.ndarray | None = None, **kwargs: Any
    ) -> np.ndarray:
        """The last iterate of one chain per example, (N, ...), in the floating dtype of x (integers: float32).

        x: (N, ...) inside the classifier's `clip_values`, any rank >= 2. y: labels, or the target classes if
        `targeted`; None: the classifier's own predictions. mask: an array that NumPy broadcasts to x; features where it
        is 0 or False do not change. Raises BadInput for inputs outside the clip values, invalid labels, a targeted
        attack without y, arrays of other shapes, and unknown options; `x_init`, `x_adv_init` and `resume`, which belong
        to other attacks of ART, are ignored, as by ART's own gradient attacks.
        """
        refuse_options("generate", kwargs, _IGNORED)
        if y is None and self.targeted:
            raise BadInput("y is None; a targeted attack needs the target classes", code="missing", field="y")
        x = np.asarray(x)
        starts = range(0, len(x), self.batch_size)
        with _untouched(self.estimator), outputs.explained(lambda: _outputs(self.estimator, x), 1):
            inputs = torch.tensor(x).to(input_dtype(self.estimator, x))
            validate.images(inputs, *_box(self.estimator), "give the classifier other clip_values")
            features = art_features.features(self.kernel, self.estimator, inputs, mask)
            adversary, generator = inputs.clone(), seeded_generator(self.seed)
            classes = self._predicted(inputs) if y is None else class_numbers(y, len(x), self.estimator)
            for start in tqdm(starts, desc="ATENT - Batches", leave=False, disable=not self.verbose):
                part = torch.arange(start, min(start + self.batch_size, len(x)))
                adversary[part] = self._strongest(inputs[part], classes[part], features, part, generator)
        return adversary.numpy().astype(x.dtype if x.dtype.kind == "f" else ART_NUMPY_DTYPE)

    def _predicted(self, x: Tensor) -> Tensor:
        if not len(x):  # ART cannot run on it
            return torch.zeros(0, dtype=torch.long)
        with torch.random.fork_rng(devices=()):  # ART's data loader draws a seed that it does not use
            return torch.tensor(self.estimator.predict(x.numpy(), batch_size=self.batch_size).argmax(1))

    def _strongest(
        self, x: Tensor, classes: Tensor, features: Features, rows: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The first restart that fools the classifier, (N, ...); the first restart where none does.

        rows: the places of the examples in the call, (N,).
        """
        adversary, left = self._chain(x, classes, features.of(rows), generator), torch.arange(len(x))
        for _ in range(1, self.num_random_init):
            left = left[(self._predicted(adversary[left]) == classes[left]) != self.targeted]
            if not len(left):
                break
            restart = self._chain(x[left], classes[left], features.of(rows[left]), generator)
            fools = (self._predicted(restart) == classes[left]) == self.targeted
            adversary[left[fools]] = restart[fools]
        return adversary

    def _chain(self, x: Tensor, classes: Tensor, kernel: Langevin, generator: torch.Generator) -> Tensor:
        one_hot = to_categorical(classes.numpy(), self.estimator.nb_classes)
        flats = uphill.Flats(len(x))

        def gradient(moving: Tensor) -> Tensor:
            # ART's gradient is that of the batch mean; "sign" and "unit" directions do not depend on its scale.
            slope = torch.as_tensor(self.estimator.loss_gradient(moving.numpy(), one_hot)).to(moving)
            return slope if kernel.schedule == "constant" else flats.leave(slope)

        masked = kernel.masked(gradient) if isinstance(kernel, FeatureKernel) else gradient
        last = langevin.finite(deque(langevin.walk(kernel, x, masked, generator), maxlen=1).pop())
        flats.warn()
        return last


def _module(estimator: Any) -> nn.ModuleList:
    """The torch modules of a classifier or of an ensemble of classifiers; empty for other frameworks."""
    parts = [getattr(part, "_model", None) for part in getattr(estimator, "classifiers", [estimator])]
    return nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])


@contextmanager
def _untouched(estimator: Any) -> Iterator[None]:
    model = _module(estimator)  # freezing it also makes ART's backward pass cheaper
    with model_state.kept(model), model_state.frozen(model), torch.inference_mode(False), torch.enable_grad():
        yield


def _outputs(estimator: Any, x: np.ndarray) -> list[object]:
    """What each PyTorch model of a classifier returns for the first of the images x."""
    sample = torch.tensor(x[:1]).to(input_dtype(estimator, x))
    with torch.no_grad():
        return [model(sample.to(model_state.device_of(model)))[-1] for model in _module(estimator)]


def check_verbose(verbose: object) -> None:
    """Raise BadInput unless `verbose` is True, False or a whole number >= 0, as ART's own classes take it."""
    if not isinstance(verbose, Integral | np.bool_) or verbose < 0:
        message = f"verbose is {validate.shown(verbose)}; True, False or a whole number >= 0 is needed"
        raise BadInput(message, code="bad-type", field="verbose")


def input_dtype(estimator: Any, x: np.ndarray) -> torch.dtype:
    """The floating dtype of the model's parameters, or else that of x, or else float32."""
    own = torch.tensor(np.empty(0, x.dtype)).dtype if x.dtype.kind == "f" else torch.float32
    return next((p.dtype for p in _module(estimator).parameters() if p.is_floating_point()), own)


def _norm(norm: float | str) -> Norm:
    try:
        return {math.inf: LINF, 2.0: L2}[float(norm)]
    except (ValueError, TypeError, KeyError):
        message = f"norm is {validate.shown(norm)}; 'inf', np.inf or 2 is needed"
        raise BadInput(message, code="unknown-name", field="norm") from None


def _box(estimator: Any) -> tuple[float, float]:
    """ART's clip values; unbounded without them, as for ART's own attacks, and where `Features` hold them."""
    if estimator.clip_values is None or not art_features.has_one_box(estimator):
        return -math.inf, math.inf
    low, high = (float(np.unique(side)[0]) for side in estimator.clip_values)
    return low, high


def class_numbers(y: np.ndarray, count: int, classifier: Any) -> Tensor:
    """Class numbers (N,) from class numbers (N,) or (N, 1), or from one-hot labels (N, classes). Raises BadInput."""
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] in (1, classifier.nb_classes):
        y = y[:, 0] if y.shape[1] == 1 else y.argmax(1)
    numbers = torch.tensor(y.astype(np.int64) if y.dtype.kind in "iu" else y)
    validate.labels(numbers, count, classifier.nb_classes)
    return numbers


def seeded_generator(seed: int | None) -> torch.Generator:
    """A generator with this seed, or with a seed drawn from NumPy's global state if it is None."""
    drawn = np.random.randint(2**31) if seed is None else seed  # noqa: NPY002 -- ART's own source of randomness
    return seeds.generator(drawn)


def refuse_options(method: str, options: dict[str, Any], ignored: Collection[str] = ()) -> None:
    """Raise BadInput for options other than None, which `method` does not have, except those that are `ignored`."""
    unknown = [name for name, value in options.items() if value is not None and name not in ignored]
    if unknown:
        message = f"{method} does not know {', '.join(unknown)}; leave it out"
        raise BadInput(message, code="unknown-name", field=unknown[0])
