"""MAIR (github.com/Harry24k/MAIR): a trainer for every objective, used like its own AT, TRADES and MART.

    from atent_ext.integrations.mair import trainer_class

    trainer = trainer_class()(rmodel, ATENT(norm="Linf", eps=8 / 255, steps=10, step_size=2 / 255))
    trainer.setup(optimizer="SGD(lr=0.1, momentum=0.9)", n_epochs=200)
    trainer.fit(train_loader, n_epochs=200, record_type=None, save_type=None)

To record robust accuracy and to save, call `record_rob` first and give `fit` a `save_path`, as with MAIR's own.
MAIR is not on PyPI. `trainer_class` imports it; this module does not.

MAIR's own `load_dict` (of a RobModel and of a trainer) cannot read the files that `fit` saves, since torch 2.6: they
hold MAIR's record manager beside the tensors, and `torch.load` reads tensors alone. For files of your own, which may
run code, start Python with the environment variable TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1. To pass weights on, save them
alone: `rmodel.save_dict("weights.pth")`, which `rmodel.load_dict` reads as it is. A trainer's `load_dict` also needs
a file from a `setup` with a scheduler.
"""

import functools
import importlib
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from atent_ext.core import seeds
from atent_ext.core.errors import BadInput, MissingExtra
from atent_ext.core.types import Objective


class ObjectiveTraining:
    """Mix-in of `trainer_class` for MAIR's AdvTrainer.

    rmodel: MAIR's RobModel. objective: any of `atent_ext.objectives`. seed: of the objective's starts and noise; None
    uses torch's global state, as MAIR's own trainers do. MAIR decides the order of the examples, torch's state dropout.
    The loader's images are raw, inside the objective's box. If the RobModel was built with `normalization_used`, the
    loader's images are normalised with it, as for MAIR's own attacks; eps and box stay in units of raw images.
    MAIR puts the whole RobModel into train mode before each batch.
    """

    rmodel: nn.Module
    device: torch.device

    def __init__(self, rmodel: nn.Module, objective: Objective, seed: int | None = None) -> None:
        base: Any = super()
        base.__init__(rmodel)
        self.objective = objective
        self._raw = _RawInputs(rmodel)
        self._generator = None if seed is None else seeds.generator(seed)

    def calculate_cost(self, train_data: tuple[Tensor, Tensor], reduction: str = "mean") -> Tensor:
        """The objective's loss on (images (N, ...), labels (N,)), ready for one `backward()`; recorded as "Loss".

        Raises BadInput for another reduction than "mean", and for images or labels that the objective refuses.
        """
        if reduction != "mean":
            message = f"reduction is {reduction!r}; an objective is a mean over the batch: leave it at 'mean'"
            raise BadInput(message, code="unsupported", field="reduction")
        images, labels = (data.to(self.device) for data in train_data)
        terms = self.objective(self._raw, self._raw.restored(images), labels, generator=self._generator)
        cost = one_loss(self.rmodel, terms)
        recorder: Any = self
        recorder.add_record_item("Loss", cost.item())
        return cost


class _RawInputs(nn.Module):
    """A RobModel as a function of raw images, also if it takes normalised ones."""

    def __init__(self, rmodel: nn.Module) -> None:
        super().__init__()
        self.rmodel = rmodel

    def forward(self, x: Tensor) -> Tensor:
        used = self._normalization(x)
        logits: Tensor = self.rmodel((x - used[0]) / used[1] if used else x)
        return logits

    def restored(self, images: Tensor) -> Tensor:
        """The loader's images as raw ones."""
        used = self._normalization(images)
        return images * used[1] + used[0] if used else images

    def _normalization(self, x: Tensor) -> tuple[Tensor, Tensor] | None:
        # Read at each call: RobModel.add_normalize() moves it into the model.
        mean, std = getattr(self.rmodel, "mean", None), getattr(self.rmodel, "std", None)
        if not isinstance(mean, Tensor) or not isinstance(std, Tensor) or bool((mean == 0).all() & (std == 1).all()):
            return None
        shape = (1, -1, *[1] * (x.dim() - 2))
        return mean.to(x).reshape(shape), std.to(x).reshape(shape)


def one_loss(model: nn.Module, terms: Iterable[Tensor]) -> Tensor:
    """The sum of an objective's terms as one scalar, for trainers that call `backward()` themselves.

    Each term is back-propagated at once. The `backward()` of the returned sum adds the summed gradients to those of the
    parameters of `model`, which are unchanged until then.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.grad for parameter in parameters]
    values = []
    try:
        for parameter in parameters:
            parameter.grad = None
        for term in terms:
            term.backward()  # type: ignore[no-untyped-call]
            values.append(term.detach())
        gradients = [parameter.grad for parameter in parameters]
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
    loss: Tensor = _KnownGradients.apply(torch.stack(values).sum(), gradients, *parameters)
    return loss


class _KnownGradients(torch.autograd.Function):
    """A scalar with given gradients with respect to the parameters."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor | None], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> Any:
        scaled = [None if gradient is None else outer[0] * gradient for gradient in ctx.gradients]
        return None, None, *scaled


@functools.cache
def trainer_class() -> type[Any]:
    """`ObjectiveTrainer(rmodel, objective, seed=None)`, a subclass of MAIR's AdvTrainer; see `ObjectiveTraining`.

    Raises MissingExtra if MAIR is not installed.
    """
    return type("ObjectiveTrainer", (ObjectiveTraining, _adv_trainer()), {"__doc__": ObjectiveTraining.__doc__})


def _adv_trainer() -> type[Any]:
    try:
        mair = importlib.import_module("mair")
    except ModuleNotFoundError as error:
        if error.name != "mair":
            raise
        raise MissingExtra(
            "MAIR is not installed, and it is not on PyPI; pip install git+https://github.com/Harry24k/MAIR"
        ) from error
    try:
        trainer: type[Any] = importlib.import_module("mair.defenses.advtraining.advtrainer").AdvTrainer
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("mair"):
            raise
        trainer = mair.AdvTrainer
    return trainer
