"""A trainer for ART with any of `atent_ext.objectives`, used like `AdversarialTrainerMadryPGD`.

Importing this module raises MissingExtra if ART is not installed.
"""

import logging
import math
import statistics
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from atent_ext.core import model_state, validate
from atent_ext.core.errors import BadInput, NonFiniteLoss
from atent_ext.core.types import Objective
from atent_ext.integrations.art import check_verbose, class_numbers, input_dtype, refuse_options, seeded_generator

logger = logging.getLogger(__name__)
from art.defences.trainer import Trainer  # noqa: E402 -- after the check that ART is there
from art.estimators.classification import PyTorchClassifier  # noqa: E402
from tqdm.auto import tqdm  # type: ignore[import-untyped]  # noqa: E402

Batches: TypeAlias = Callable[[], Iterator[tuple[Tensor, Tensor, Tensor | None]]]


class AdversarialTrainerObjectivePyTorch(Trainer):  # type: ignore[misc]
    """Train a PyTorchClassifier, with its own optimizer, by any of `atent_ext.objectives` (ATENT, TRADES, ...).

    The objective sees raw inputs: ART's preprocessing runs inside the model, and gradients flow through it.

    seed: of the order of the examples and of the objective's starts and noise (dropout uses torch's global state). The
    generator is seeded once, at construction: two fits of one epoch equal one fit of two. None draws a seed from
    NumPy's global state, which also decides the order in ART's trainers. verbose: show a progress bar.

    Modes: a model in train mode is trained as it is, so that a BatchNorm in eval mode stays frozen; a model in eval
    mode, in which ART's `predict` leaves it, is put into train mode as a whole, as ART does. Afterwards the modes of
    all modules, the gradients and `requires_grad` are restored.
    Raises BadInput for a classifier that is not a PyTorchClassifier, has no optimizer, has preprocessing without
    gradients, uses apex's mixed precision, or has `clip_values` other than the objective's box.
    """

    def __init__(self, classifier: Any, objective: Objective, seed: int | None = None, verbose: bool = True) -> None:
        _check_classifier(classifier, objective)
        check_verbose(verbose)
        super().__init__(classifier)
        self.objective, self.verbose = objective, verbose
        self._raw, self._generator = _RawInputs(classifier), seeded_generator(seed)

    def fit(
        self,
        x: np.ndarray,
        y: np.ndarray,
        validation_data: tuple[np.ndarray, np.ndarray] | None = None,
        batch_size: int = 128,
        nb_epochs: int = 20,
        scheduler: Any = None,
        drop_last: bool = False,
        training_mode: bool = True,
        verbose: bool | int | None = None,
        **kwargs: Any,
    ) -> None:
        """Train on x (N, ...), inside the objective's box, with labels y.

        validation_data: (x, y); its accuracy is logged after each epoch. scheduler: stepped after each epoch.
        drop_last: skip a last batch that is not full (BatchNorm cannot train on a single example). training_mode: False
        trains in eval mode. verbose: whether to show a progress bar; None: as the trainer was built. Raises BadInput
        for invalid data and unknown options, and NonFiniteLoss before a step with a loss that is not finite.
        """
        refuse_options("fit", kwargs)
        validate.steps("batch_size", batch_size)
        inputs, classes = self._tensors(x, y)
        if len(inputs) < (batch_size if drop_last else 1):
            message = f"x holds {len(inputs)} examples; at least one batch is needed to train on"
            raise BadInput(message, code="bad-shape", field="x")

        def batches() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
            order = torch.randperm(len(inputs), generator=self._generator)
            for index in torch.split(
                order[: len(order) // batch_size * batch_size] if drop_last else order, batch_size
            ):
                yield inputs[index], classes[index], index

        validate.flag("training_mode", training_mode)
        with nullcontext() if training_mode else model_state.evaluating(self._raw):
            self._train(batches, nb_epochs, scheduler, validation_data, bool(training_mode), verbose)

    def fit_generator(
        self,
        generator: Any,
        nb_epochs: int = 20,
        scheduler: Any = None,
        validation_data: tuple[np.ndarray, np.ndarray] | None = None,
        verbose: bool | int | None = None,
        **kwargs: Any,
    ) -> None:
        """Train on the batches of an ART DataGenerator, ceil(size / batch_size) of them an epoch; else as `fit`."""
        refuse_options("fit_generator", kwargs)
        if generator.size is None:
            message = "the generator's size is None; give it the number of examples"
            raise BadInput(message, code="missing", field="generator")

        def batches() -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
            for _ in range(math.ceil(generator.size / generator.batch_size)):
                yield (*self._tensors(*generator.get_batch()), None)

        self._train(batches, nb_epochs, scheduler, validation_data, True, verbose)

    def predict(self, x: np.ndarray, **kwargs: Any) -> np.ndarray:
        """The outputs of the classifier's own `predict`; the model keeps its modes."""
        with model_state.evaluating(self._raw):
            outputs: np.ndarray = self.classifier.predict(x, **kwargs)
        return outputs

    def _tensors(self, x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
        x = np.asarray(x)
        return torch.tensor(x).to(input_dtype(self.classifier, x)), class_numbers(y, len(x), self.classifier)

    def _train(
        self, batches: Batches, nb_epochs: int, scheduler: Any, validation_data: Any, train_mode: bool, verbose: Any
    ) -> None:
        validate.steps("nb_epochs", nb_epochs)
        verbose = self.verbose if verbose is None else verbose
        check_verbose(verbose)
        name = f"Adversarial Training {type(self.objective).__name__}"
        with model_state.kept(self._raw):
            if train_mode and not self.classifier.model.training:
                self._raw.train()
            epochs = tqdm(range(nb_epochs), desc=f"{name} - Epochs", disable=not verbose)
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
        classes = class_numbers(y, len(x), self.classifier).numpy()
        return float(np.mean(self.predict(x).argmax(1) == classes))


class _RawInputs(nn.Module):
    """The classifier's model after its preprocessing; ART may apply parts of that to training or prediction only."""

    def __init__(self, classifier: Any) -> None:
        super().__init__()
        self.classifier, self.model = classifier, classifier._model

    def forward(self, x: Tensor) -> Tensor:
        prepared, _ = self.classifier._apply_preprocessing(x, None, fit=self.training, no_grad=False)
        logits: Tensor = self.model(prepared)[-1]  # ART's wrapper returns every layer's output
        return logits


def _check_classifier(classifier: Any, objective: Objective) -> None:
    if not isinstance(classifier, PyTorchClassifier):
        message = f"classifier is a {type(classifier).__name__}; a PyTorchClassifier is needed"
        raise BadInput(message, code="bad-type", field="classifier")
    if classifier.optimizer is None:
        message = "the classifier's optimizer is None; give PyTorchClassifier an optimizer of the model"
        raise BadInput(message, code="missing", field="classifier.optimizer")
    if not classifier.all_framework_preprocessing:
        message = "the classifier's preprocessing is not in PyTorch; gradients cannot flow through it"
        raise BadInput(message, code="unsupported", field="classifier.preprocessing")
    if classifier.use_amp:
        message = "the classifier's use_amp is True; apex is not supported, build the classifier without it"
        raise BadInput(message, code="unsupported", field="classifier.use_amp")
    box, clip = getattr(objective, "box", None), classifier.clip_values
    if box is not None and clip is not None and not all(np.allclose(clip[i], box[i]) for i in (0, 1)):
        message = f"the classifier's clip_values are {clip}, the objective's box is {box}; make them the same"
        raise BadInput(message, code="conflict", field="classifier.clip_values")
