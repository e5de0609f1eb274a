"""ATENT as attacks in the interface of advertorch: subclasses of its `Attack` and `LabelMixin`.

Unlike advertorch's own attacks, they work under `torch.no_grad()`, leave no gradients on the model, run it in eval mode
and restore its state. Importing this module imports advertorch, repaired for current torch (`atent_ext.core.compat`).
"""

import math
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor
from typing_extensions import Self

from atent_ext.attacks import gibbs, restarts, uphill
from atent_ext.attacks.gibbs import Draws
from atent_ext.attacks.langevin import Langevin, atent
from atent_ext.attacks.moves import Pull, Schedule
from atent_ext.attacks.restarts import Keep, adversaries
from atent_ext.core import box, compat, validate
from atent_ext.core.box import Side
from atent_ext.core.errors import BadInput
from atent_ext.core.losses import cross_entropy
from atent_ext.core.model_state import evaluating
from atent_ext.core.norms import L2, LINF, Direction, Norm, Start
from atent_ext.core.types import Loss, Model, Radius
from atent_ext.models import speed
from atent_ext.models.speed import ViewSpeed

compat.advertorch()
from advertorch.attacks.base import Attack, LabelMixin  # noqa: E402 -- importable only after the repair

Projection = Literal["every", "last"]


class _ATENTAttack(Attack, LabelMixin):  # type: ignore[misc]
    """Base of both attacks; a subclass sets `norm`."""

    norm: Norm

    eps: Radius
    nb_iter: int
    eps_iter: Radius | None
    schedule: Schedule | None
    noise: float | None
    gamma: float | None
    pull: Pull
    rand_init: bool
    start: Start | None
    direction: Direction | None
    project: Projection | None
    targeted: bool
    generator: torch.Generator | None
    restarts: int
    keep: Keep
    early_stop: bool
    batch_size: int | None
    speed: ViewSpeed

    def __init__(self, predict: Model, loss_fn: Loss | None, clip_min: Side, clip_max: Side, **settings: Any) -> None:
        if not callable(predict):
            message = f"predict is {validate.shown(predict)}; it must be a model, (N, ...) to logits"
            raise BadInput(message, code="bad-type", field="predict")
        if loss_fn is not None and not callable(loss_fn):
            message = (
                f"loss_fn is {validate.shown(loss_fn)}; it must be a function of (logits, y), or None for cross-entropy"
            )
            raise BadInput(message, code="bad-type", field="loss_fn")
        super().__init__(predict, loss_fn, clip_min, clip_max)
        self.__dict__.update(settings)
        self.kernel  # noqa: B018 -- validates the arguments now, not at the first call
        validate.flag("early_stop", self.early_stop)
        restarts.check(self.restarts, self.keep, self.batch_size)
        speed.check_view(self.speed)

    @property
    def kernel(self) -> Langevin:
        """The attack as a `Langevin` kernel, built from the current attributes. Raises BadInput for invalid ones."""
        validate.steps("nb_iter", self.nb_iter)
        if self.eps_iter is not None:
            validate.radius("eps_iter", self.eps_iter)
        validate.flag("rand_init", self.rand_init)
        box.check((self.clip_min, self.clip_max), "clip_min", "clip_max")
        kernel = atent(
            self.norm,
            self.eps,
            self.nb_iter,
            self.eps_iter,
            noise=self.noise,
            gamma=self.gamma,
            box=(self.clip_min, self.clip_max),
            start=self.start if self.rand_init else "clean",
            project="never" if self.project is None else self.project,
            schedule=self.schedule,
            targeted=self.targeted,
        )
        return replace(kernel, direction=kernel.direction if self.direction is None else self.direction, pull=self.pull)

    def perturb(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The last iterate of one chain per example.

        x: (N, ...) inside [clip_min, clip_max], any rank >= 2. y: (N,) labels, or the targets if `targeted`; None
        uses the model's predictions. Returns (N, ...), detached. Raises BadInput for inputs outside the box, for labels
        out of range, for a targeted attack without y, and for input gradients that are NaN or missing.
        """
        return self.sample(x, y, 1)[0]

    def sample(
        self, x: Tensor, y: Tensor | None = None, n: int = 1, temperature: float | None = None, thin: int = 10
    ) -> Tensor:
        """Of each example the last iterates of `n` independent chains, (n, N, ...); see `perturb`.

        With a `temperature` instead `n` draws from the Gibbs law of the loss in ball and box, see `draws`.
        """
        validate.steps("n", n)
        remedy = "give clip_min and clip_max"
        box.check_images(x, (self.clip_min, self.clip_max), "clip_min", "clip_max", remedy)
        if len(x) == 0:  # many models fail on an empty batch
            return x.new_empty((n, *x.shape))
        if temperature is not None:
            points = cast(Tensor, self.draws(x, y, n, temperature, thin).points)
            return points.transpose(0, 1).flatten(0, 1)[:n]  # the first draws of all chains, then the second
        with evaluating(self.predict), speed.viewed(self.predict, x, self.speed) as model:
            y = self._labels(x, y)
            return torch.stack([self._attack(model, x, y) for _ in range(n)])

    def draws(
        self, x: Tensor, y: Tensor | None = None, n: int = 400, temperature: float = 1.0, thin: int = 10
    ) -> Draws:
        """At least `n` draws an example from the Gibbs law, with their mixing diagnostics (`attacks.gibbs`).

        The law has the density exp(loss / temperature) in the eps ball and the box. Each of 4 chains takes `nb_iter`
        steps first, which are dropped, and then `thin` steps a draw, for at least 4 draws. eps_iter: the step size of
        the sampler; None is the one that `gibbs.kernel` names. Of the other settings only gamma counts.
        """
        validate.steps("n", n)
        clip, gamma = (self.clip_min, self.clip_max), self.gamma or 0.0
        box.check_images(x, clip, "clip_min", "clip_max", "give clip_min and clip_max")
        steps = self.nb_iter + thin * max(4, math.ceil(n / 4))
        chain = gibbs.kernel(
            self.norm, self.eps, steps, temperature, x.shape[1:], step_size=self.eps_iter, gamma=gamma, box=clip
        )
        with evaluating(self.predict), speed.viewed(self.predict, x, self.speed) as model:
            how: dict[str, Any] = {"burn_in": self.nb_iter, "thin": thin, "generator": self.generator}
            return gibbs.draw(chain, model, x, self._labels(x, y), loss=self.loss_fn or cross_entropy, **how)

    def _attack(self, model: Model, x: Tensor, y: Tensor) -> Tensor:
        names = uphill.IN_TURN_TARGETED if self.targeted else uphill.IN_TURN
        kernel = self.kernel
        return adversaries(
            kernel,
            model,
            x,
            y,
            uphill.in_turn(names, self.restarts) if self.loss_fn is None else self.loss_fn,
            self.generator,
            restarts=self.restarts,
            keep=self.keep,
            early_stop=self.early_stop,
            batch_size=speed.block(x) if self.batch_size is None else self.batch_size,
            rescue=self.loss_fn is None and kernel.schedule != "constant",
        )

    def _labels(self, x: Tensor, y: Tensor | None) -> Tensor:
        if y is None:
            if self.targeted:
                raise BadInput("y is None; a targeted attack needs the target classes", code="missing", field="y")
            with torch.no_grad():
                return validate.logits(self.predict(x), len(x)).argmax(1)
        with torch.no_grad():
            first = self.predict(x[:1])
        # squeeze() in a model drops a batch dimension of 1
        squeezed = isinstance(first, Tensor) and first.dim() == 1 and len(first) > 1
        validate.labels(y, len(x), validate.logits(first[None] if squeezed else first, 1).shape[1])
        return y.to(x.device, torch.long)


class LinfATENTAttack(_ATENTAttack):
    """ATENT ℓ∞ as an attack: an annealed chain of signed Langevin steps, projected to the eps ball at every step.

    predict: model, (N, ...) to logits. loss_fn: per-example or summed loss of (logits, y); None lets the restarts take
    `uphill.IN_TURN` (cross-entropy, then nearest wrong classes), and goes on by another loss or in random directions,
    with the warning `GradientVanished`, where the input gradient is 0. eps: radius, a number or (N,). nb_iter: steps.
    eps_iter: step size; None starts at eps and falls to 0 by a cosine; a given one is kept, unless `schedule` says
    otherwise ("constant", "cosine", "linear": of step size and temperature). noise: square root of the temperature;
    None is that of `langevin.atent`. rand_init: start uniformly in the ball (or at `start`; the authors use "corner");
    False starts at x. project: project at "every" step, or at the "last" step only, which is much weaker. gamma, pull,
    direction: as in `Langevin`. generator: source of noise and random starts; None is torch's global generator.
    restarts, keep, early_stop, batch_size: as in `restarts.adversaries`. By default the last iterate of one chain is
    returned, and images on the CPU are processed in batches of at most 64. speed: "channels-last" or "plain", as in
    `speed.viewed`. clip_min, clip_max: numbers, or tensors with one value per feature, of the shape of one input or of
    the batch. Adversaries lie in the eps ball and in [clip_min, clip_max]. Raises BadInput for invalid values.
    """

    norm = LINF

    @classmethod
    def paper(cls, predict: Model, loss_fn: Loss | None = None, **settings: Any) -> Self:
        """Algorithm 2's inner loop as the authors run it on CIFAR-10; `settings` change single arguments.

        40 constant steps of 0.01 on the cross-entropy, projected at the last step only.
        """
        printed: dict[str, Any] = {"eps_iter": 0.01, "project": "last"}
        return cls(predict, loss_fn or cross_entropy, **printed | settings)

    def __init__(
        self,
        predict: Model,
        loss_fn: Loss | None = None,
        eps: Radius = 0.3,
        nb_iter: int = 40,
        eps_iter: Radius | None = None,
        noise: float | None = None,
        rand_init: bool = True,
        clip_min: Side = 0.0,
        clip_max: Side = 1.0,
        targeted: bool = False,
        *,
        project: Projection = "every",
        gamma: float = 0.0,
        start: Start | None = None,
        direction: Direction | None = None,
        pull: Pull = "coordinate",
        schedule: Schedule | None = None,
        generator: torch.Generator | None = None,
        restarts: int = 1,
        keep: Keep = "last",
        early_stop: bool = True,
        batch_size: int | None = None,
        speed: ViewSpeed = "channels-last",
    ) -> None:
        if not isinstance(project, str) or project not in ("last", "every"):
            message = f"project is {validate.shown(project)}; the ℓ∞ attack projects at the 'last' or at 'every' step"
            raise BadInput(message, code="unknown-name" if isinstance(project, str) else "bad-type", field="project")
        super().__init__(
            predict,
            loss_fn,
            clip_min,
            clip_max,
            eps=eps,
            nb_iter=nb_iter,
            eps_iter=eps_iter,
            schedule=schedule,
            noise=noise,
            gamma=gamma,
            pull=pull,
            rand_init=rand_init,
            start=start,
            direction=direction,
            project=project,
            targeted=targeted,
            generator=generator,
            restarts=restarts,
            keep=keep,
            early_stop=early_stop,
            batch_size=batch_size,
            speed=speed,
        )


class L2ATENTAttack(_ATENTAttack):
    """ATENT ℓ2 as an attack: an annealed chain of unit Langevin steps, projected to the eps ball at every step.

    gamma: strength of the pull towards x; None is 0, but the paper's 0.05 for a constant step size. project: at "every"
    step, at the "last" step, or None for the paper's unprojected sampler, whose samples may lie outside the eps ball.
    eps_iter: None starts at 2 eps. start: "ball" (the default: normal, projected), "uniform", "corner", "blocks",
    "near", "clean". The other arguments are those of `LinfATENTAttack`.
    """

    norm = L2

    @classmethod
    def paper(cls, predict: Model, loss_fn: Loss | None = None, **settings: Any) -> Self:
        """Algorithm 1's inner loop, with the authors' directions and pull; `settings` change single arguments.

        40 constant steps of 0.125 on the cross-entropy and a pull of 0.05 in place of a projection: samples may lie
        outside the eps ball.
        """
        printed: dict[str, Any] = {"eps_iter": 0.125, "gamma": 0.05, "project": None}
        return cls(predict, loss_fn or cross_entropy, **printed | settings)

    def __init__(
        self,
        predict: Model,
        loss_fn: Loss | None = None,
        eps: Radius = 2.0,
        nb_iter: int = 40,
        eps_iter: Radius | None = None,
        noise: float | None = None,
        gamma: float | None = None,
        rand_init: bool = True,
        clip_min: Side = 0.0,
        clip_max: Side = 1.0,
        targeted: bool = False,
        *,
        project: Projection | None = "every",
        start: Start | None = None,
        direction: Direction | None = None,
        pull: Pull = "authors",
        schedule: Schedule | None = None,
        generator: torch.Generator | None = None,
        restarts: int = 1,
        keep: Keep = "last",
        early_stop: bool = True,
        batch_size: int | None = None,
        speed: ViewSpeed = "channels-last",
    ) -> None:
        super().__init__(
            predict,
            loss_fn,
            clip_min,
            clip_max,
            eps=eps,
            nb_iter=nb_iter,
            eps_iter=eps_iter,
            schedule=schedule,
            noise=noise,
            gamma=gamma,
            pull=pull,
            rand_init=rand_init,
            start=start,
            direction=direction,
            project=project,
            targeted=targeted,
            generator=generator,
            restarts=restarts,
            keep=keep,
            early_stop=early_stop,
            batch_size=batch_size,
            speed=speed,
        )
