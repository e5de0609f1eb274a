"""ATENT as attacks of foolbox: subclasses of its `FixedEpsilonAttack`, for PyTorch models.

They do not change the gradients of the model. Like foolbox's own attacks they run the model in its current mode; call
`eval()` first. Importing this module raises MissingExtra if foolbox is not installed.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from atent_ext.attacks.langevin import Langevin, atent
from atent_ext.attacks.moves import Project, Schedule
from atent_ext.attacks.restarts import adversaries
from atent_ext.core import compat, outputs, validate
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import L2, LINF, Norm

compat.neighbour("foolbox", "foolbox")
import eagerpy as ep  # noqa: E402 -- after the check that it is there
from foolbox.attacks.base import FixedEpsilonAttack, get_criterion, raise_if_kwargs  # noqa: E402
from foolbox.criteria import Misclassification  # noqa: E402
from foolbox.distances import Distance, l2, linf  # noqa: E402
from foolbox.models import JAXModel, Model, NumPyModel, TensorFlowModel  # noqa: E402


@dataclass(kw_only=True, eq=False, repr=False)
class _ATENTAttack(FixedEpsilonAttack):  # type: ignore[misc]
    """Base of both attacks; a subclass sets `norm` and foolbox's `distance`. Fields are read at each run."""

    norm: ClassVar[Norm]

    rel_stepsize: float | None = None
    abs_stepsize: float | None = None
    steps: int = 40
    noise: float | None = None
    random_start: bool = True
    gamma: float | None = None
    schedule: Schedule | None = None
    project: Project = "every"
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        self.kernel(1.0)  # building a kernel checks the arguments now, not at the first run

    def kernel(self, epsilon: float, box: tuple[float, float] = (0.0, 1.0), targeted: bool = False) -> Langevin:
        """The attack at one epsilon as a `Langevin` kernel."""
        validate.radius("epsilon", epsilon)
        validate.flag("random_start", self.random_start)
        for name in ("rel_stepsize", "abs_stepsize"):
            if getattr(self, name) is not None:
                validate.radius(name, getattr(self, name))
        relative = None if self.rel_stepsize is None else self.rel_stepsize * epsilon
        return atent(
            self.norm,
            epsilon,
            self.steps,
            relative if self.abs_stepsize is None else self.abs_stepsize,
            noise=self.noise,
            gamma=self.gamma,
            box=box,
            start=None if self.random_start else "clean",
            project=self.project,
            schedule=self.schedule,
            targeted=targeted,
        )

    def run(self, model: Model, inputs: Any, criterion: Any, *, epsilon: float, **kwargs: Any) -> Any:
        """The last iterate of one chain per input, within `epsilon` of it and inside `model.bounds`.

        model: foolbox model of a PyTorch module. inputs: (N, ...) inside its bounds, a torch or eagerpy tensor; the
        result has the same type. criterion: Misclassification, TargetedMisclassification or labels (N,). Raises
        BadInput for another backend or criterion, for inputs outside the bounds and for invalid labels.
        """
        raise_if_kwargs(kwargs)
        wrapped, restore = ep.astensor_(inputs)
        _refuse_other_backends(model, wrapped)
        classes, targeted = _classes(get_criterion(criterion))
        x, box = wrapped.raw, (float(model.bounds.lower), float(model.bounds.upper))
        validate.images(x, *box, "give the model other bounds")
        validate.labels(classes, len(x))
        target = classes.to(x.device, torch.long)
        kernel = self.kernel(epsilon, box, targeted)
        falls = kernel.schedule != "constant"
        with outputs.explained(lambda: _outputs(model, x), 1):
            adversary = adversaries(kernel, model, x, target, cross_entropy, self.generator, rescue=falls)
        return restore(ep.astensor(adversary))


def _refuse_other_backends(model: Model, inputs: ep.Tensor) -> None:
    if not isinstance(inputs, ep.PyTorchTensor):
        message = f"inputs are {type(inputs).__name__}; ATENT runs on PyTorch: pass a torch tensor"
        raise BadInput(message, code="bad-type", field="inputs")
    model = _inner(model)
    if isinstance(model, (JAXModel, NumPyModel, TensorFlowModel)):
        message = f"model is a {type(model).__name__}; ATENT runs on PyTorch: pass a foolbox.PyTorchModel"
        raise BadInput(message, code="bad-type", field="model")


def _inner(model: Model) -> Model:
    """The model inside of foolbox's wrappers."""
    while isinstance(getattr(model, "_model", None), Model):
        model = model._model
    return model


def _outputs(model: Model, x: Tensor) -> list[object]:
    """What the PyTorch module of a foolbox model returns for the first of the inputs x."""
    with torch.no_grad():
        return [_inner(model)._model(x[:1])]


def _classes(criterion: Any) -> tuple[Tensor, bool]:
    """The criterion's classes (N,), and whether they are targets."""
    if isinstance(criterion, Misclassification):
        return criterion.labels.raw, False
    if hasattr(criterion, "target_classes"):
        return criterion.target_classes.raw, True
    message = f"criterion is {validate.shown(criterion)}; known: Misclassification, TargetedMisclassification, labels"
    raise BadInput(message, code="bad-type", field="criterion")


@dataclass(kw_only=True, eq=False, repr=False)
class LinfATENTAttack(_ATENTAttack):
    """ATENT ℓ∞ as an attack: an annealed chain of signed Langevin steps, projected to the epsilon ball at every step.

    rel_stepsize, abs_stepsize: step size, relative to epsilon or absolute, which takes precedence; without either it
    starts at epsilon and falls to 0 by a cosine, and a given one is kept, unless `schedule` says otherwise. steps:
    K >= 1. noise: square root of the temperature, in units of the inputs; None as in `langevin.atent`. random_start:
    uniform in the ball; False starts at the input. gamma: pull of the farthest pixel. project: "every" step, or the
    "last" alone. generator: source of starts and noise. Where the input gradient is 0, an annealed chain goes on as
    `restarts.adversaries` says. Raises BadInput for invalid values.
    """

    norm: ClassVar[Norm] = LINF
    distance: ClassVar[Distance] = linf

    @classmethod
    def paper(cls, **settings: Any) -> Self:
        """Algorithm 2's inner loop: 40 constant steps of epsilon / 30, projected at the last step only."""
        printed: dict[str, Any] = {"rel_stepsize": 0.01 / 0.3, "project": "last"}
        return cls(**printed | settings)


@dataclass(kw_only=True, eq=False, repr=False)
class L2ATENTAttack(_ATENTAttack):
    """ATENT ℓ2 as an attack: an annealed chain of unit Langevin steps, projected to the epsilon ball at every step.

    gamma: pull towards the input; None is 0, but the paper's 0.05 for a constant step size. The pull limits the
    distance to about step / gamma, so a constant step below gamma * epsilon does not reach the boundary. random_start:
    normal, projected. Other fields: `LinfATENTAttack`.
    """

    norm: ClassVar[Norm] = L2
    distance: ClassVar[Distance] = l2

    @classmethod
    def paper(cls, **settings: Any) -> Self:
        """Algorithm 1's inner loop: 40 constant steps of epsilon / 16, a pull of 0.05; projected, as on MNIST."""
        printed: dict[str, Any] = {"rel_stepsize": 0.125 / 2, "gamma": 0.05}
        return cls(**printed | settings)
