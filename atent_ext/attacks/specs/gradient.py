"""Gradient attacks of protocols: settings of the Langevin kernel, with restarts."""

import warnings
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from atent_ext.attacks import uphill
from atent_ext.attacks.accuracy import robust_flags
from atent_ext.attacks.langevin import Langevin, atent, fgsm, pgd
from atent_ext.attacks.moves import Schedule
from atent_ext.attacks.restarts import Keep
from atent_ext.attacks.spec import AttackSpec, Note, Outcome, Passes, Setting
from atent_ext.attacks.uphill import Climb, GradientVanished, LossName
from atent_ext.core.losses import cross_entropy
from atent_ext.core.norms import LINF, norm
from atent_ext.core.schema import Count, Positive
from atent_ext.core.types import Loss
from atent_ext.data.datasets import Split


class FGSMSpec(AttackSpec):
    """One step of size eps from the clean image (Goodfellow et al. 2015)."""

    attack: Literal["fgsm"] = "fgsm"
    by_image: ClassVar[bool] = True

    def run(self, model: nn.Module, split: Split, setting: Setting) -> Outcome:
        """Attack all images with one step."""
        kernel = fgsm(norm(setting.threat.norm), setting.threat.eps)
        return Outcome("attack", "FGSM", {}, robust_flags(model, split, kernel, setting))

    def passes(self, classes: int) -> Passes:
        """One step, and the checks of the image and its adversary."""
        return Passes(1, 3)


class Chain(AttackSpec):
    """Base of attacks of several steps; their display names contain steps and restarts."""

    steps: Count = 40
    by_image: ClassVar[bool] = True

    def passes(self, classes: int) -> Passes:
        """The steps, and the checks of the image, the end of the chain and the adversary."""
        return Passes(self.steps, 3)

    def outcome(
        self,
        name: str,
        kernel: Langevin,
        model: nn.Module,
        split: Split,
        setting: Setting,
        restarts: int = 1,
        keep: Keep = "last",
        loss: Loss | Sequence[Climb] = cross_entropy,
        **more: Any,
    ) -> Outcome:
        """Run the chains of `kernel`; `more` are additional settings for the report."""
        settings = {"steps": self.steps, "step_size": kernel.step_size, "restarts": restarts, **more}
        name += f"-{self.steps}" + (f" x {restarts}" if restarts > 1 else "")
        if keep == "success":
            settings["keep"], name = keep, f"{name}, every iterate"
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", GradientVanished)
            flags = robust_flags(model, split, kernel, setting, restarts, keep, loss=loss)
        return Outcome("attack", name, settings, flags, notes=_vanished([warning.message for warning in heard]))


def _vanished(heard: Sequence[Warning | str]) -> tuple[Note, ...]:
    counts = [warning for warning in heard if isinstance(warning, GradientVanished)]
    if not counts:
        return ()
    return (
        Note(kind="warning", text=str(GradientVanished(sum(c.count for c in counts), sum(c.total for c in counts)))),
    )


class IFGSMSpec(Chain):
    """Steps of size eps / steps from the clean image (Kurakin et al. 2017)."""

    attack: Literal["ifgsm"] = "ifgsm"

    def run(self, model: nn.Module, split: Split, setting: Setting) -> Outcome:
        """Attack all images with one chain."""
        eps = setting.threat.eps
        kernel = pgd(norm(setting.threat.norm), eps, self.steps, eps / self.steps, start="clean")
        return self.outcome("IFGSM", kernel, model, split, setting)


class _Restarted(Chain):
    """Chains with restarts.

    step_size: None is 2.5 eps / steps. keep: "last" checks the last iterate of a chain, "success" every iterate.
    """

    restarts: Count = 1
    step_size: Positive | None = None
    keep: Keep = "last"

    def passes(self, classes: int) -> Passes:
        """The steps of all chains, and the checks of the image, the end of each chain and the adversary."""
        return Passes(self.steps * self.restarts, self.restarts + 2)

    def for_random_network(self) -> AttackSpec:
        """keep="last": with random outputs, an iterate that succeeds once may fail the next time."""
        return self.model_copy(update={"keep": "last"})


class PGDSpec(_Restarted):
    """Projected gradient ascent from random starts (Madry et al. 2018)."""

    attack: Literal["pgd"] = "pgd"

    def run(self, model: nn.Module, split: Split, setting: Setting) -> Outcome:
        """Attack all images with `restarts` chains each."""
        kernel = pgd(norm(setting.threat.norm), setting.threat.eps, self.steps, self.step_size)
        return self.outcome("PGD", kernel, model, split, setting, self.restarts, self.keep)


class ATENTSpec(_Restarted):
    """ATENT's chain as an attack (Jagatap et al. 2022, section 4), annealed unless a step size or a schedule is given.

    noise, project, schedule, step_size: as in `langevin.atent`. gamma: the pull; "paper" is 0.05 for ℓ2 and 0 for ℓ∞.
    losses: the restarts use them in turn.
    """

    attack: Literal["atent"] = "atent"
    noise: Annotated[float, Field(ge=0)] | None = None
    gamma: Annotated[float, Field(ge=0)] | Literal["paper"] = 0.0
    project: Literal["last", "every"] = "every"
    schedule: Schedule | None = None
    losses: Annotated[tuple[LossName, ...], Field(min_length=1)] = uphill.IN_TURN
    title: ClassVar[str] = "ATENT"
    """What the display name calls it."""

    def run(self, model: nn.Module, split: Split, setting: Setting) -> Outcome:
        """Attack all images with `restarts` chains each."""
        ball = norm(setting.threat.norm)
        kernel = atent(
            ball,
            setting.threat.eps,
            self.steps,
            self.step_size,
            noise=self.noise,
            gamma=(0.0 if ball == LINF else 0.05) if self.gamma == "paper" else self.gamma,
            project=self.project,
            schedule=self.schedule,
        )
        losses = uphill.in_turn(self.losses, self.restarts)
        more: dict[str, Any] = {"noise": kernel.noise, "project": kernel.project}
        if kernel.schedule != "constant":
            more |= {"schedule": kernel.schedule, "losses": list(self.losses)}
        name = self.title if kernel.schedule == "constant" else f"annealed {self.title}"
        return self.outcome(name, kernel, model, split, setting, self.restarts, self.keep, losses, **more)
